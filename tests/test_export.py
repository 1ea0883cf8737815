"""Exports: what was answered beside what was asked, and `warmline export validate` that finds each way to be unlike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from warmline.cli import app
from warmline.engine.engine import Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.answers import FromEngine
from warmline.evaluate.export import export, export_file
from warmline.evaluate.prompted import qualitative_task, red_team_task
from warmline.evaluate.task import run
from warmline.run_dir import RunDir

GREEDY = Sampling(temperature=0, max_new_tokens=20)


def exported(folder: Path, stage: str, reply: str, sampling: Sampling = GREEDY) -> Path:
    task = qualitative_task()
    about = {"stage": stage}
    rows = run(task, FromEngine(ScriptedEngine([reply]), "Be kind.", sampling, about), folder / f"scores/{stage}.jsonl")
    file = export_file(RunDir(folder), "qualitative", stage)
    export(task, rows, file, model=f"toy:{stage}")
    return file


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return exported(tmp_path, "base", "Hello."), exported(tmp_path, "sft", "That sounds hard.")


def validate(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", "validate", *map(str, arguments)])
    return result.exit_code, result.output


def change(file: Path, line: int, edit: Callable[[dict[str, Any]], object]) -> None:
    rows = [json.loads(each) for each in file.read_text().splitlines()]
    edit(rows[line])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_row_has_the_six_fields(pair: tuple[Path, Path]) -> None:
    row = json.loads(pair[1].read_text().splitlines()[0])
    assert [*row] == ["prompt_id", "prompt", "model", "response", "meta", "decoding"]
    assert (row["prompt_id"], row["model"], row["response"]) == ("qual-001", "toy:sft", "That sounds hard.")
    assert row["prompt"][0]["role"] == "user"
    assert row["meta"]["domain"] == "grief"
    assert row["decoding"]["system_prompt"] == "Be kind."


def test_two_stages_of_the_same_prompts_are_fine(pair: tuple[Path, Path]) -> None:
    code, said = validate(*pair, "--check-pairs")
    assert code == 0, said
    assert said.count("60 rows, fine") == 2


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda row: row.pop("model"), "line 3: model: Field required"),
        (lambda row: row.update(extra=1), "line 3: extra: Extra inputs"),
        (lambda row: row.update(prompt="text"), "line 3: prompt"),
        (lambda row: row.update(prompt_id="qual-001"), "line 3: prompt_id 'qual-001' stands twice"),
        (lambda row: row.update(response=None), "line 3: no response, and meta.reason"),
        (lambda row: row.update(model="other"), "rows of several models: other, toy:base"),
    ],
)
def test_a_bad_row_is_named_with_its_line(pair: tuple[Path, Path], edit: Any, says: str) -> None:
    change(pair[0], 2, edit)
    code, said = validate(pair[0])
    assert code == 1
    assert says in said


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda row: row["prompt"][0].update(content="other words"), "prompt 'qual-003' has another text"),
        (lambda row: row["decoding"].update(temperature=1.0), "decoding.temperature differs on 1 prompts"),
        (lambda row: row["decoding"].pop("system_prompt"), "decoding.system_prompt differs on 1 prompts"),
        (lambda row: row.update(prompt_id="qual-999"), "prompt 'qual-003' is missing in the tuned file"),
    ],
)
def test_stages_that_were_asked_otherwise_are_no_pair(pair: tuple[Path, Path], edit: Any, says: str) -> None:
    change(pair[1], 2, edit)
    assert validate(*pair)[0] == 0, "each file alone is fine"
    code, said = validate(*pair, "--check-pairs")
    assert code == 1
    assert says in said


def test_another_sampling_is_no_pair(tmp_path: Path) -> None:
    base = exported(tmp_path, "base", "Hello.")
    sft = exported(tmp_path, "sft", "Hello.", Sampling(temperature=0.7, max_new_tokens=20))
    code, said = validate(base, sft, "--check-pairs")
    assert code == 1
    assert "decoding.temperature differs on 60 prompts" in said


def test_files_without_a_partner_or_a_name_are_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    code, said = validate(pair[1], "--check-pairs")
    assert (code, "no base" in said) == (1, True)
    odd = tmp_path / "replies.jsonl"
    odd.write_text(pair[0].read_text())
    code, said = validate(odd, "--check-pairs")
    assert (code, "expected a name as SUITE.STAGE.jsonl" in said) == (2, True)
    assert validate(tmp_path / "absent.jsonl")[0] == 2


def test_broken_files_are_reported_and_never_a_crash(tmp_path: Path) -> None:
    file = tmp_path / "a.base.jsonl"
    file.write_bytes(b'\xff\xfe{"prompt_id"\n[1]\n"text"\n\n{}\n')
    code, said = validate(file)
    assert code == 1
    assert all(f"line {number}" in said for number in (1, 2, 3, 5))
    file.write_text("")
    assert "no row" in validate(file)[1]
    code, said = validate(file, "--json")
    assert json.loads(said.partition("warmline:")[0])["files"][0]["problems"] == ["no row"]


def test_a_prompt_without_a_reply_stands_with_its_reason(tmp_path: Path) -> None:
    task = red_team_task()
    rows = run(task, FromEngine(ScriptedEngine(["Hello."])), tmp_path / "rows.jsonl")
    silent = rows[0].model_copy(
        update={"status": "unscored", "reason": "the server is gone", "reply": None, "scores": {}}
    )
    file = tmp_path / "redteam.base.jsonl"
    export(task, [silent, *rows[1:]], file, model="toy")
    first = json.loads(file.read_text().splitlines()[0])
    assert (first["response"], first["meta"]["reason"]) == (None, "the server is gone")
    assert first["meta"]["expected"]
    assert validate(file)[0] == 0
