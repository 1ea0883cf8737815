"""Comparing two sides: paired intervals on shared samples, refusal of what was not asked alike, and the command."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from warmline.config.reading import load_recipe
from warmline.evaluate.compare import Side, UnfairError, as_markdown, compare, read_scores, side_of
from warmline.evaluate.held_out import Gold
from warmline.evaluate.held_out import Row as HeldOutRow
from warmline.run_dir import RunDir, RunError

from .conftest import ToyRecipe
from .test_cli import refused, warmline

SUITE = "responses"


def row(number: int, /, status: str = "scored", **scores: Any) -> dict[str, Any]:
    return {"id": f"s{number}", "status": status, "scores": scores, "about": {"conversation": f"c{number // 2}"}}


def write(run: RunDir, stage: str, rows: list[dict[str, Any]], suite: str = SUITE, **decoding: object) -> None:
    file = run.path / "scores" / f"{suite}.{stage}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    more = {"decoding": decoding} if decoding else {}
    file.write_text("".join(json.dumps(each | more) + "\n" for each in rows), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path, toy_recipe: ToyRecipe) -> RunDir:
    return started(tmp_path, toy_recipe, "one")


def started(tmp_path: Path, toy_recipe: ToyRecipe, name: str, **changes: object) -> RunDir:
    made = RunDir(tmp_path / "runs" / name)
    made.path.mkdir(parents=True)
    made.claim(load_recipe(str(toy_recipe(**changes))))
    return made


def compared(one: RunDir, other: RunDir, stages: tuple[str, str] = ("sft", "base"), *, allow_unfair: bool = False):
    return compare(Side(one, stages[0]), Side(other, stages[1]), allow_unfair=allow_unfair, samples=400, seed=1)


def test_a_difference_is_paired_over_the_samples_that_both_scored(run: RunDir) -> None:
    """Samples differ far more from each other than the sides do: only a paired interval sees it."""
    write(run, "base", [row(n, accuracy=float(n)) for n in range(40)])
    write(run, "sft", [row(n, accuracy=n + 1 + n % 3 / 10) for n in range(4, 44)])
    [line] = compared(run, run).lines
    assert (line.suite, line.metric, line.n, line.left_out) == (SUITE, "accuracy", 36, 8)
    assert line.gap is not None
    assert line.gap.value == pytest.approx(1.1)
    assert line.gap.low is not None
    assert line.gap.high is not None
    assert 1.05 < line.gap.low < 1.1 < line.gap.high < 1.15
    assert line.verdict == "higher, better"


@pytest.mark.parametrize(
    ("metric", "verdict"),
    [("bleu_4", "higher, better"), ("mae", "higher, worse"), ("loss", "higher, worse"), ("question", "higher")],
)
def test_a_verdict_says_better_only_where_the_direction_is_known(run: RunDir, metric: str, verdict: str) -> None:
    write(run, "base", [row(n, "scored", **{metric: 1}) for n in range(20)])
    write(run, "sft", [row(n, "scored", **{metric: 2}) for n in range(20)])
    assert compared(run, run).lines[0].verdict == verdict
    lower = verdict.replace("higher", "lower")
    swapped = {"better": "worse", "worse": "better"}
    lower = ", ".join(swapped.get(word, word) for word in lower.split(", "))
    assert compared(run, run, ("base", "sft")).lines[0].verdict == lower


def test_what_is_unscored_or_does_not_apply_is_no_zero(run: RunDir) -> None:
    write(run, "base", [row(n, hit=n % 2 == 0, label="joy", none=None, nan=math.nan) for n in range(20)])
    rows = [row(n, hit=True) for n in range(18)] + [row(18, status="unscored"), row(19, status="unscored")]
    write(run, "sft", rows)
    found = compared(run, run)
    [line] = found.lines
    assert (line.metric, line.n, line.left_out, line.ours, line.theirs) == ("hit", 18, 2, 1.0, 0.5)
    assert found.notes == (f"{SUITE}: 2 and 0 samples are unscored; they are in no number",)


def test_few_conversations_give_no_interval_and_no_verdict(run: RunDir) -> None:
    write(run, "base", [row(n, accuracy=0) for n in range(6)])
    write(run, "sft", [row(n, accuracy=1) for n in range(6)])
    [line] = compared(run, run).lines
    assert line.gap == (1.0, None, None)
    assert line.verdict == "not distinguishable"


def held_out_row(number: int, logprob: float, num_tokens: int, guess: str) -> dict[str, Any]:
    return HeldOutRow(
        id=f"c{number // 2}#{number}",
        conversation=f"c{number // 2}",
        source="talks",
        status="scored",
        num_chars=40,
        logprob=logprob,
        num_tokens=num_tokens,
        gold=Gold(strategy="Question"),
        readings={"strategy": {"Question": 0.6 if guess == "Question" else 0.1, "Others": 0.3}},
    ).model_dump(mode="json")


def test_held_out_rows_give_loss_per_token_bits_and_accuracy(run: RunDir) -> None:
    write(run, "base", [held_out_row(n, -20.0, 10, "Others") for n in range(20)], "held-out")
    write(run, "sft", [held_out_row(n, -10.0, 10, "Question") for n in range(20)], "held-out")
    lines = {line.metric: line for line in compared(run, run).lines}
    assert {name: (line.ours, line.theirs) for name, line in lines.items()} == {
        "loss_per_token": (1.0, 2.0),
        "bits_per_char": pytest.approx((10 / math.log(2) / 40, 20 / math.log(2) / 40)),
        "strategy_accuracy": (1.0, 0.0),
    }
    assert lines["loss_per_token"].verdict == "lower, better"


def test_tokens_of_two_tokenizers_are_not_compared(run: RunDir) -> None:
    write(run, "base", [held_out_row(n, -20.0, 10, "Others") for n in range(20)], "held-out")
    write(run, "sft", [held_out_row(n, -10.0, 9, "Others") for n in range(20)], "held-out")
    found = compared(run, run)
    lines = {line.metric: line for line in found.lines}
    assert (lines["loss_per_token"].n, lines["loss_per_token"].gap) == (0, None)
    assert lines["bits_per_char"].n == 20
    assert "count tokens differently" in " ".join(found.notes)
    assert "no sample in common" in as_markdown(found)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model__dtype": "bfloat16"}, "dtype: float32 against bfloat16"),
        ({"model__quantization": "int8"}, "quantization: none against int8"),
        ({"model__system_prompt": "Be brief."}, "system_prompt: Listen. against Be brief."),
        ({"model__chat_template": "{{ messages }}"}, "chat_template: none against {{ messages }}"),
    ],
)
def test_sides_that_were_not_asked_alike_are_refused(
    run: RunDir, tmp_path: Path, toy_recipe: ToyRecipe, change: dict[str, Any], why: str
) -> None:
    other = started(tmp_path, toy_recipe, "other", **change)
    for each in (run, other):
        write(each, "sft", [row(n, accuracy=n) for n in range(20)])
    with pytest.raises(UnfairError) as caught:
        compared(run, other, ("sft", "sft"))
    assert why in str(caught.value)
    found = compared(run, other, ("sft", "sft"), allow_unfair=True)
    assert found.unfair == (why,)
    shown = as_markdown(found)
    assert f"**Unfair**: the two sides were not asked alike: {why}." in shown
    assert "(unfair)" in shown


def test_a_template_that_differs_by_the_manifest_is_refused(run: RunDir, tmp_path: Path, toy_recipe: ToyRecipe) -> None:
    other = started(tmp_path, toy_recipe, "other")
    for each, template in ((run, "abc"), (other, "def")):
        write(each, "sft", [row(n, accuracy=n) for n in range(20)])
        each.add_to_manifest(base={"name": "b", "template": template})
    with pytest.raises(UnfairError, match="template: abc against def"):
        compared(run, other, ("sft", "sft"))


def test_decodings_must_agree_in_all_but_names(run: RunDir) -> None:
    rows = [row(n, accuracy=n) for n in range(20)]
    write(run, "base", rows, temperature=0, model="a", engine="local")
    write(run, "sft", rows, temperature=0, model="b", engine="remote")
    assert compared(run, run).unfair == ()
    write(run, "sft", rows, temperature=0.7, model="b", engine="remote")
    with pytest.raises(UnfairError, match=r"responses: decoding temperature: 0\.7 against 0"):
        compared(run, run)


def test_suites_of_one_side_are_named_and_left_out(run: RunDir) -> None:
    for stage in ("base", "sft"):
        write(run, stage, [row(n, accuracy=n) for n in range(20)])
    write(run, "sft", [row(n, accuracy=n) for n in range(20)], "qualitative")
    found = compared(run, run)
    assert {line.suite for line in found.lines} == {SUITE}
    assert found.notes == ("qualitative: only one of the two has it, left out",)


def test_broken_and_doubled_rows_are_named_and_a_cut_line_is_not_one(tmp_path: Path) -> None:
    file = tmp_path / "x.sft.jsonl"
    good = json.dumps(row(1, accuracy=1))
    file.write_text(f'{good}\n{{"id": "s2", "sco')
    assert list(read_scores(file).clusters) == [(None, "s1", None)]
    for text, why in (
        (f"no\n{good}\n", "line 1: not a JSON object"),
        (f"{good}\n[1]\n", "line 2: not a row of scores"),
        (f"{good}\n{good}\n", "line 2: sample 's1' stands there twice"),
        ('{"id": "a", "num_chars": "many"}\n', "line 1: not a held-out row"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=why):
            read_scores(file)


def test_sides_that_do_not_exist_are_refused_by_name(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        side_of(RunDir(tmp_path / "nowhere"), None)
    with pytest.raises(RunError, match="has no scores"):
        side_of(run, None)
    write(run, "base", [row(1, accuracy=1)])
    write(run, "sft", [row(2, accuracy=1)])
    assert side_of(run, None).stage == "sft"
    with pytest.raises(RunError, match=r"no scores of stage 'dpo' \(it has those of base, sft\)"):
        side_of(run, "dpo")
    with pytest.raises(RunError, match="compared with itself"):
        compared(run, run, ("sft", "sft"))
    write(run, "base", [row(1, other=1)])
    with pytest.raises(RunError, match="no metric in common"):
        compared(run, run)
    (run.path / "scores" / f"{SUITE}.base.jsonl").rename(run.path / "scores" / "else.base.jsonl")
    with pytest.raises(RunError, match="no suite in common"):
        compared(run, run)


# ---- the command ----


def test_the_command_prints_a_table_or_json(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(run, "base", [row(n, accuracy=0) for n in range(20)])
    write(run, "sft", [row(n, accuracy=1) for n in range(20)])
    result = warmline("compare", "one", "one:base")
    assert result.exit_code == 0, result.output
    assert "one:sft minus one:base" in result.stdout
    assert (
        "| responses | accuracy | 20 | 0 | 1.000 | 0.000 | +1.000 [+1.000, +1.000] | higher, better |" in result.stdout
    )
    found = json.loads(warmline("compare", "runs/one:sft", "one:base", "--json").stdout)
    assert found["lines"][0]["gap"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_command_refuses_the_unfair_with_1_and_bad_names_with_2(
    run: RunDir, tmp_path: Path, toy_recipe: ToyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = started(tmp_path, toy_recipe, "other", model__dtype="bfloat16")
    for each in (run, other):
        write(each, "sft", [row(n, accuracy=n) for n in range(20)])
    assert "--allow-unfair" in refused(warmline("compare", "one", "other"), code=1)
    result = warmline("compare", "one", "other", "--allow-unfair")
    assert result.exit_code == 0
    assert "dtype: float32 against bfloat16" in result.stdout
    assert "'sfd' is no stage" in refused(warmline("compare", "one:sfd", "other"))
    assert "does not exist" in refused(warmline("compare", "one", "nothing"))
    assert "no scores of stage 'dpo'" in refused(warmline("compare", "one", "other:dpo"))
