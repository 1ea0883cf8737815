"""Ablations: the grid and its names, intervals over seeds, resuming cell by cell, and two real runs from the command."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.config.reading import load_recipe
from warmline.evaluate.ablate import (
    AblationError,
    Cell,
    Row,
    as_markdown,
    grid,
    over_seeds,
    parse_seeds,
    parse_variation,
    rows_of,
    run_cells,
)
from warmline.evaluate.results import SummaryError
from warmline.evaluate.rows import read_rows
from warmline.evaluate.stats import Interval

from .conftest import ToyRecipe
from .test_cli import refused, warmline

RANK = parse_variation("model.lora.r=4,8")


@pytest.mark.parametrize("text", ["", "a", "a=", "=4", "a=4,,8", "a=4,", "a=4,4", " =4"])
def test_a_variation_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(AblationError, match="--vary"):
        parse_variation(text)


@given(st.lists(st.from_regex(r"[a-z0-9.]{1,5}|\[[a-z, ]{1,9}\]", fullmatch=True), min_size=1, unique=True))
def test_values_come_back_as_they_were_given(values: list[str]) -> None:
    assert parse_variation(f"a.b={','.join(values)}").values == tuple(values)


@pytest.mark.parametrize("text", ["1,x", "1,1", "", "1.5"])
def test_seeds_are_different_whole_numbers(text: str) -> None:
    with pytest.raises(AblationError, match="--seeds"):
        parse_seeds(text)
    assert parse_seeds("3,1") == (3, 1)


def test_a_grid_is_every_combination_with_names_that_say_what_varies() -> None:
    cells = grid({"tiny": "tiny"}, [RANK, parse_variation("sft.steps=2")], (1, 2), ["eval.split=test"])
    assert [cell.variant for cell in cells] == ["tiny r=4 steps=2"] * 2 + ["tiny r=8 steps=2"] * 2
    assert cells[1].overrides == ("eval.split=test", "model.lora.r=4", "sft.steps=2", "seed=2")
    assert re.fullmatch(r"tiny--r-4--steps-2--seed-2--[0-9a-f]{6}", cells[1].run)
    assert len({cell.run for cell in cells}) == 4
    assert cells == grid({"tiny": "tiny"}, [RANK, parse_variation("sft.steps=2")], (1, 2), ["eval.split=test"])
    other = grid({"tiny": "tiny"}, [RANK, parse_variation("sft.steps=2")], (1, 2), ["eval.split=validation"])
    assert not {cell.run for cell in cells} & {cell.run for cell in other}, "other settings are other runs"


def test_two_keys_with_the_same_end_are_named_in_full() -> None:
    cells = grid(
        {"t": "t"}, [parse_variation("heads.emotion.weight=0,1"), parse_variation("heads.risk.weight=0,1")], ()
    )
    assert cells[0].variant == "t heads.emotion.weight=0 heads.risk.weight=0"
    assert cells[0].seed is None
    assert cells[0].overrides == ("heads.emotion.weight=0", "heads.risk.weight=0")


def test_names_are_fit_for_folders_and_never_the_same() -> None:
    values = parse_variation("model.lora.targets=[q_proj],q_proj,[q/proj]," + "x" * 300)
    names = [cell.run for cell in grid({"t": "t"}, [values], ())]
    assert len({*names}) == 4
    assert all(re.fullmatch(r"[\w.-]{1,130}", name) for name in names)


@pytest.mark.parametrize(
    ("variations", "seeds", "why"),
    [
        ([], (), "nothing varies"),
        ([RANK, RANK], (), "stands there twice"),
        ([parse_variation("seed=1,2")], (), "--seeds"),
        ([parse_variation("a=" + ",".join(map(str, range(101))))], (1, 2), "more than 200"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(variations, seeds: tuple[int, ...], why: str) -> None:
    with pytest.raises(AblationError, match=why):
        grid({"tiny": "tiny"}, variations, seeds)


def test_intervals_over_seeds_are_students() -> None:
    assert over_seeds([3.0]) == Interval(3.0, None, None)
    assert tuple(over_seeds([1.0, 3.0])) == pytest.approx((2, 2 - 12.706, 2 + 12.706), abs=1e-3)
    assert tuple(over_seeds([1.0, 2.0, 3.0, 4.0])) == pytest.approx((2.5, 0.4457, 4.5543), abs=1e-3)
    many = over_seeds([0.0, 1.0] * 50)
    assert many.low is not None
    assert 0.39 < many.low < 0.4


def summary(loss: float) -> str:
    """A summary.json as `warmline eval` writes it, with one number."""
    interval = {"value": loss, "low": None, "high": None}
    overall = {
        "num_turns": 1, "num_conversations": 1, "num_tokens": 10, "unscored": 0,
        "loss_per_token": interval, "bits_per_char": None, "perplexity": None,
    }  # fmt: skip
    stage = {"responses": {"overall": overall, "by_source": {}}, "heads": {}, "unscored": 0, "unscored_reasons": {}}
    whole = {
        "split": "test",
        "bootstrap_samples": 100,
        "seed": 7,
        "stages": {"base": stage, "sft": stage},
        "comparisons": [],
    }
    return json.dumps(whole)


def finish(runs: Path, cell: Cell, loss: float) -> int:
    file = runs / cell.run / "scores" / "summary.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(summary(loss))
    return 0


def test_a_table_has_variants_over_seeds_and_paired_differences(tmp_path: Path) -> None:
    cells = grid({"tiny": "tiny"}, [RANK], (1, 2, 3))
    for cell in cells:
        assert cell.seed is not None
        finish(tmp_path, cell, 2.0 + cell.seed - (0.5 if "r=8" in cell.variant else 0))
    rows = rows_of(cells, tmp_path)
    assert [(row.variant, len(row.runs), row.stage) for row in rows] == [("tiny r=4", 3, "sft"), ("tiny r=8", 3, "sft")]
    shown = as_markdown(rows, cells)
    assert "| tiny r=4 | 3 | 4.000 [1.516, 6.484] |  |" in shown
    assert "| tiny r=8 | 3 | 3.500 [1.016, 5.984] | -0.500 [-0.500, -0.500] |" in shown
    assert "those of the stage sft" in shown


def test_a_cell_that_fails_stops_no_other_and_is_in_no_number(tmp_path: Path) -> None:
    cells = grid({"tiny": "tiny"}, [RANK], (1, 2))
    asked: list[str] = []

    def run(cell: Cell) -> int:
        asked.append(cell.run)
        return 1 if cell is cells[1] else finish(tmp_path, cell, 3.0)

    failed = run_cells(cells, tmp_path, run)
    assert failed == [cells[1].run]
    assert asked == [cell.run for cell in cells]
    rows = rows_of(cells, tmp_path, failed)
    assert [(len(row.runs), row.failed) for row in rows] == [(1, (cells[1].run,)), (2, ())]
    shown = as_markdown(rows, cells)
    assert f"1 runs have no scores and are in no number: {cells[1].run}" in shown
    assert "| tiny r=4 | 1 | 3.000 (no interval) |" in shown


def test_runs_without_a_summary_are_failures_and_broken_ones_are_named(tmp_path: Path) -> None:
    cells = grid({"tiny": "tiny"}, [RANK], ())
    assert run_cells(cells, tmp_path, lambda cell: 0) == [cell.run for cell in cells]
    shown = as_markdown(rows_of(cells, tmp_path), cells)
    assert "2 runs have no scores" in shown
    finish(tmp_path, cells[0], 1.0)
    (tmp_path / cells[0].run / "scores" / "summary.json").write_text("{")
    with pytest.raises(SummaryError, match=r"summary\.json"):
        rows_of(cells, tmp_path)


# ---- the command ----


def test_bad_values_are_refused_before_any_run(toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = toy_recipe()
    assert "lora.r" in refused(warmline("ablate", recipe, "--vary", "model.lora.r=4,many"))
    assert "nothing varies" in refused(warmline("ablate", recipe))
    assert "same name" in refused(warmline("ablate", recipe, "--variant", recipe))
    assert "unknown key" in refused(warmline("ablate", recipe, "--vary", "model.lora.rank=4,8"))
    assert not Path("runs").exists()


def test_two_cells_are_ordinary_runs_and_a_second_call_keeps_them(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = toy_recipe(sft__steps=1, sft__validate_every=1, sft__save_every=1)
    command = ["ablate", recipe, "--vary", "sft.optim.learning_rate=0.01,0.02", "--seeds", "3"]
    result = warmline(*command)
    assert result.exit_code == 0, result.output
    assert "| toy learning_rate=0.01 | 1 |" in result.stdout
    runs = [Path("runs") / f"toy--learning_rate-{rate}--seed-3" for rate in ("0.01", "0.02")]
    for run, rate in zip(runs, (0.01, 0.02), strict=True):
        recipe_there = load_recipe(str(run / "recipe.yaml"))
        assert (recipe_there.sft.optim.learning_rate, recipe_there.seed) == (rate, 3)
        assert (run / "report.md").is_file()
    rows = read_rows(Path("runs/ablate-toy/ablation.jsonl"), Row)
    assert [row.runs for row in rows] == [(run.name,) for run in runs]
    assert Path("runs/ablate-toy/ablation.md").read_text() == result.stdout
    before = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("report.md")}
    assert warmline(*command).stdout == result.stdout
    assert {file: file.stat().st_mtime_ns for file in Path("runs").rglob("report.md")} == before
