"""The main job on the real corpora, cut short: every source, one-pass examples, a base from scratch, SFT, a report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHORT = [
    "base.steps=2",
    "base.hidden_size=32",
    "base.num_layers=1",
    "base.batch_size=4",
    "sft.steps=2",
    "sft.optim.batch_size=12",
    "eval.max_conversations=3",
    "eval.suites=[responses, warm]",
    "eval.limit=2",
    *(f"data.sources.{name}.max_conversations=60" for name in ("esconv", "empathetic_dialogues", "goemotions")),
    *(
        f"data.sources.{name}.max_validation_conversations=4"
        for name in ("esconv", "empathetic_dialogues", "goemotions")
    ),
]


@pytest.mark.real
def test_tiny_real_goes_from_the_real_corpora_to_its_report(tmp_path: Path) -> None:
    if not os.environ.get("WARMLINE_DATA"):
        pytest.skip("WARMLINE_DATA is not set")
    settings = [part for change in SHORT for part in ("--set", change)]
    done = subprocess.run(
        [sys.executable, "-m", "warmline", "run", "tiny-real", *settings],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "tiny-real"
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["labels"]) == {"emotion", "situation", "strategy"}
    assert manifest["data"]["esconv"]["counts"] == {"train": 60, "validation": 4, "test": 195}
    assert manifest["examples"]["goemotions"] == 60
    summary = json.loads((run / "scores" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["stages"]) == {"base", "sft"}
    assert set(summary["stages"]["sft"]["heads"]) == {"emotion", "situation", "strategy"}
    assert "previous strategy" in (run / "report.md").read_text(encoding="utf-8")
