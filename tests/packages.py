"""Makes packages as people do, through the command, and the runs that they are made of."""

from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from warmline.cli import app
from warmline.model import checkpoint
from warmline.model.load import fingerprint, load_tokenizer
from warmline.pipeline import open_run
from warmline.run_dir import RunDir, write_json


def package(run: RunDir, out: Path | None, *options: str) -> Any:
    where = [] if out is None else ["--out", str(out)]
    return CliRunner().invoke(app, ["package", str(run.path), *where, *options])


def made(run: RunDir, out: Path, *options: str) -> Path:
    done = package(run, out, *options)
    assert done.exit_code == 0, done.output
    return out


def refused(done: Any, code: int = 2) -> str:
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if line.startswith("warmline: ")]
    return line


def shaken(run: RunDir) -> RunDir:
    """The run with random weights in its stage."""
    loaded = open_run(run)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_" in name or "stage_heads" in name:
                parameter.normal_(0, 0.3)
    checkpoint.save_stage(loaded.model, run.stage("sft"), fingerprint=loaded.fingerprint, about={"step": 1})
    return run


def reseal(run: RunDir, base: Path) -> None:
    """Write stage.json anew, as if the stage had been saved like this over this base."""
    folder = run.stage("sft")
    template = str(load_tokenizer(base).chat_template)
    about = checkpoint.read_stage(folder) | {
        "fingerprint": fingerprint(base, run.recipe().model, template),
        "files": checkpoint.checksums(folder, checkpoint.STAGE_FILES),
    }
    write_json(folder / "stage.json", about | {"checksum": checkpoint._digest(about)})
