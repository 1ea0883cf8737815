"""The doctor: every finding comes from trying, and what fails is said with what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from warmline import doctor
from warmline.config.reading import recipe_names
from warmline.model.device import bfloat16_slowdown, threads_for_one_row

CPU = torch.device("cpu")


def found(data_root: Path | None = None) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(data_root, online=False)}


def test_here_everything_that_training_needs_works() -> None:
    findings = found()
    assert {finding.what for finding in findings.values() if finding.status == "fail"} == set()
    assert findings["nf4"].status == findings["int8"].status == "ok"
    assert "torch " in findings["packages"].found
    assert findings["try"].found.removeprefix("warmline run ") in recipe_names()


def test_the_command_prints_a_line_for_each_and_json_alone() -> None:
    command = [sys.executable, "-m", "warmline", "doctor", "--no-online"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert [line.split()[:2] for line in lines] == [[row["status"], row["what"]] for row in rows]


def test_slow_bfloat16_is_a_note_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bfloat16_slowdown(CPU) > 0
    monkeypatch.setattr(doctor, "bfloat16_slowdown", lambda _device: 26.3)
    finding = found()["bfloat16"]
    assert finding == ("bfloat16", "note", "emulated, 26 times slower: set model.dtype to float32")


def test_quantisation_that_does_not_work_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn.modules", None)
    finding = found()["nf4"]
    assert finding.status == "note"
    assert finding.found.endswith("set model.quantization to none")


def test_a_cache_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WARMLINE_HOME", str(tmp_path / "file" / "below"))
    assert found()["cache"].status == "fail"
    done = subprocess.run(
        [sys.executable, "-m", "warmline", "doctor", "--no-online"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "set WARMLINE_HOME" in done.stdout


def test_corpora_are_named_by_source(tmp_path: Path) -> None:
    (tmp_path / "esconv").mkdir()
    assert found(tmp_path)["corpora"].found == f"in {tmp_path}: esconv"
    assert found(tmp_path / "nowhere")["corpora"].status == "fail"


def test_an_unreachable_hub_is_a_note() -> None:
    """Tests run with HF_HUB_OFFLINE."""
    (hub,) = [finding for finding in doctor.examine(None, online=True) if finding.what == "hub"]
    assert hub.status == "note"


@pytest.mark.parametrize(
    ("memory", "recipe"), [(80, "qwen2.5-7b"), (12, "qwen2.5-3b"), (4, "qwen2.5-3b-4gb"), (2, "tiny")]
)
def test_the_suggested_recipe_goes_by_memory(memory: float, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = memory * 2**30 * 0.98  # a card shows a little less than its name says

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Card)
    assert doctor.suggested_recipe(torch.device("cuda")) == recipe
    assert doctor.suggested_recipe(CPU) == "tiny"


def test_a_narrow_model_reads_one_row_with_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for device, width, expected in ((CPU, 256, 1), (CPU, 1024, 2), (torch.device("cuda"), 256, 2)):
            with threads_for_one_row(device, width):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
