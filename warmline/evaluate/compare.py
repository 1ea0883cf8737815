"""Two sides on the samples that both scored: paired differences with intervals, refused where the two were not asked alike."""

import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from warmline.evaluate import held_out
from warmline.evaluate.floors import CLASSIFIED, label_of
from warmline.evaluate.stats import Interval, ratio_draws, resample, verdict
from warmline.evaluate.wording import difference, number, table
from warmline.run_dir import STAGES, RunDir, RunError

SETTINGS = ("dtype", "quantization", "system_prompt", "chat_template")  # of a recipe's model, that must agree
NAMES = frozenset(("model", "stage", "run", "name", "engine", "weights", "adapter", "url"))  # who, not how
CLUSTERS = ("cluster", "conversation", "persona", "scenario")  # what names the samples that belong together
MAX_SHOWN = 60  # characters of a setting that are shown

_LOWER = re.compile(r"loss|bits_per|perplexity|(?:^|_)(?:mae|error|errors|ece)(?:$|_)")
_HIGHER = re.compile(r"accuracy|f1|bleu|rouge|pearson|(?:^|_)(?:official|lm_eval|parse_scaled|tolerant)(?:$|_)")


class UnfairError(ValueError):
    """The two sides were not asked alike; the message names each setting that differs."""


class Side(NamedTuple):
    """A stage of a run."""

    run: RunDir
    stage: str

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{self.run.path.name}:{self.stage}"


class Amount(NamedTuple):
    """What one sample adds to a metric: the metric is the sum of `total` over the sum of `weight`."""

    total: float
    weight: float


@dataclass(frozen=True)
class Scored:
    """The rows of one suite and stage, by sample."""

    amounts: Mapping[str, Mapping[Hashable, Amount]]  # metric -> sample -> its part
    clusters: Mapping[Hashable, Hashable]
    num_unscored: int
    decodings: tuple[Mapping[str, Any], ...]  # that stand in the rows, each once


class Line(NamedTuple):
    """One metric of one suite; the difference is ours minus theirs."""

    suite: str
    metric: str
    n: int  # samples that both scored
    left_out: int  # samples that only one of the two scored
    ours: float | None  # None: no sample in common
    theirs: float | None
    gap: Interval | None
    verdict: str


class Comparison(NamedTuple):
    """What `warmline compare` shows."""

    ours: str
    theirs: str
    unfair: tuple[str, ...]  # settings that differ, in words; only where that was allowed
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def side_of(run: RunDir, stage: str | None) -> Side:
    """A stage of a run by name, or the latest that has scores. Raises RunError."""
    if not run.path.is_dir():
        raise RunError(f"{run.path} does not exist; expected a run folder, or a run's name under ./runs")
    scored = [each for each in STAGES if suites(run, each)]
    if not scored:
        raise RunError(f"{run.path} has no scores; `warmline eval` makes them")
    if stage is not None and stage not in scored:
        raise RunError(f"{run.path} has no scores of stage {stage!r} (it has those of {', '.join(scored)})")
    return Side(run, stage or scored[-1])


def suites(run: RunDir, stage: str) -> dict[str, Path]:
    """The files of rows of a stage, by suite."""
    ending = f".{stage}.jsonl"
    return {file.name.removesuffix(ending): file for file in sorted((run.path / "scores").glob(f"*{ending}"))}


def compare(ours: Side, theirs: Side, *, allow_unfair: bool, samples: int, seed: int) -> Comparison:
    """Every metric that both sides have, on the samples that both scored.

    Raises UnfairError if dtype, template, system prompt or decoding differ and that is not allowed, RunError if there
    is nothing to compare, ValueError for a file that cannot be read.
    """
    if (ours.run.path.resolve(), ours.stage) == (theirs.run.path.resolve(), theirs.stage):
        raise RunError(f"{ours.name} is compared with itself; give two runs or two stages")
    files, other_files = suites(ours.run, ours.stage), suites(theirs.run, theirs.stage)
    common = [suite for suite in files if suite in other_files]
    if not common:
        raise RunError(f"{ours.name} and {theirs.name} have no suite in common")
    read = {suite: (read_scores(files[suite]), read_scores(other_files[suite])) for suite in common}
    unfair = [*_settings_that_differ(ours.run, theirs.run)]
    for suite, (one, other) in read.items():
        unfair += _decodings_that_differ(suite, one, other)
    if unfair and not allow_unfair:
        raise UnfairError(
            f"{ours.name} and {theirs.name} were not asked alike: {'; '.join(unfair)}. "
            "Evaluate them alike, or compare them all the same with --allow-unfair"
        )
    lines: list[Line] = []
    notes = [f"{suite}: only one of the two has it, left out" for suite in sorted({*files} ^ {*other_files})]
    for suite, (one, other) in read.items():
        lines += _lines(suite, one, other, samples=samples, seed=seed)
        notes += _notes(suite, one, other)
    if not lines:
        raise RunError(f"{ours.name} and {theirs.name} have no metric in common")
    return Comparison(ours.name, theirs.name, tuple(unfair), tuple(lines), tuple(notes))


def read_scores(file: Path) -> Scored:
    """A suite's rows as sums: held-out rows, or any rows with an `id` and numbers under `scores`.

    Yes and no count as 1 and 0; texts and what does not apply to a sample are left out. Raises ValueError that names
    the file and the line.
    """
    amounts: dict[str, dict[Hashable, Amount]] = {}
    clusters: dict[Hashable, Hashable] = {}
    decodings: dict[str, Mapping[str, Any]] = {}
    num_unscored = 0
    for where, raw in _raw_rows(file):
        key: Hashable = (raw.get("source"), raw["id"], raw.get("order"))
        if key in clusters:
            raise ValueError(f"{where}: sample {raw['id']!r} stands there twice")
        clusters[key] = (raw.get("source"), _cluster(raw))
        if isinstance(decoding := raw.get("decoding"), dict):
            decodings.setdefault(json.dumps(decoding, sort_keys=True), decoding)
        if raw.get("status") == "unscored":
            num_unscored += 1
            continue
        for metric, amount in _held_out(where, raw) if "num_chars" in raw else _numbers(raw.get("scores")):
            amounts.setdefault(metric, {})[key] = amount
    return Scored(amounts, clusters, num_unscored, tuple(decodings.values()))


def as_markdown(comparison: Comparison) -> str:
    """The table with what must be known to read it."""
    heading = f"{comparison.ours} minus {comparison.theirs}, on the samples that both scored"
    unfair = [f"**Unfair**: the two sides were not asked alike: {each}." for each in comparison.unfair]
    header = ("suite", "metric", "n", "left out", comparison.ours, comparison.theirs, "difference [95 %]", "verdict")
    rows = [
        (
            line.suite,
            line.metric,
            line.n,
            line.left_out,
            "none" if line.ours is None else number(line.ours),
            "none" if line.theirs is None else number(line.theirs),
            difference(line.gap) if line.gap else "no sample in common",
            f"{line.verdict} (unfair)" if unfair and line.gap else line.verdict,
        )
        for line in comparison.lines
    ]
    return "\n\n".join([heading, *unfair, table(header, rows), *comparison.notes]) + "\n"


def _raw_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}") from None
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except ValueError:
            if at == len(lines):
                return  # cut off while it was written
            raise ValueError(f"{file}, line {at}: not a JSON object") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
            raise ValueError(f"{file}, line {at}: not a row of scores: it has no id")
        yield f"{file}, line {at}", raw


def _cluster(raw: Mapping[str, Any]) -> Hashable:
    about = raw.get("about")
    places = [raw, about] if isinstance(about, dict) else [raw]
    found = (place.get(name) for place in places for name in CLUSTERS)
    return next((each for each in found if isinstance(each, str)), raw["id"])


def _numbers(scores: object) -> Iterator[tuple[str, Amount]]:
    for metric, value in scores.items() if isinstance(scores, dict) else ():
        if isinstance(value, int | float) and math.isfinite(value):
            yield str(metric), Amount(float(value), 1.0)


def _held_out(where: str, raw: Mapping[str, Any]) -> Iterator[tuple[str, Amount]]:
    try:
        row = held_out.Row.model_validate_json(json.dumps(raw))
    except ValueError:
        raise ValueError(f"{where}: not a held-out row") from None
    if row.num_chars and row.logprob is not None and row.num_tokens:
        yield "loss_per_token", Amount(-row.logprob, row.num_tokens)
        yield "bits_per_char", Amount(-row.logprob / math.log(2), row.num_chars)
    for head in CLASSIFIED:
        label, readings = label_of(head, row.gold), row.readings.get(head)
        if label is not None and readings:
            yield f"{head}_accuracy", Amount(float(max(readings, key=readings.__getitem__) == label), 1.0)


def _lines(suite: str, one: Scored, other: Scored, *, samples: int, seed: int) -> Iterator[Line]:
    for metric, ours in one.amounts.items():
        theirs = other.amounts.get(metric)
        if theirs is None:
            continue
        both = [key for key in ours if key in theirs and _is_comparable(metric, ours[key], theirs[key])]
        left_out = len({*ours} | {*theirs}) - len(both)
        if not both:
            yield Line(suite, metric, 0, left_out, None, None, None, "not compared")
            continue
        draw = resample([one.clusters[key] for key in both], samples=samples, seed=seed)
        ours_R, theirs_R = (
            ratio_draws([side[key].total for key in both], [side[key].weight for key in both], draw)
            for side in (ours, theirs)
        )
        gap = draw.interval(ours_R - theirs_R)
        yield Line(suite, metric, len(both), left_out, float(ours_R[0]), float(theirs_R[0]), gap, _verdict(metric, gap))


def _is_comparable(metric: str, ours: Amount, theirs: Amount) -> bool:
    """Tokens of two tokenizers are no common unit, and replies of different lengths are not the same sample."""
    return metric not in {"loss_per_token", "bits_per_char"} or ours.weight == theirs.weight


def _verdict(metric: str, gap: Interval) -> str:
    found = verdict(gap, "higher")
    if found == "not distinguishable":
        return found
    higher = found == "beats"
    word = "higher" if higher else "lower"
    if not (_LOWER.search(metric) or _HIGHER.search(metric)):
        return word
    return f"{word}, {'better' if higher != bool(_LOWER.search(metric)) else 'worse'}"


def _notes(suite: str, one: Scored, other: Scored) -> Iterator[str]:
    if one.num_unscored or other.num_unscored:
        yield f"{suite}: {one.num_unscored} and {other.num_unscored} samples are unscored; they are in no number"
    losses = [side.amounts.get("loss_per_token", {}) for side in (one, other)]
    if any(losses[0][key].weight != losses[1][key].weight for key in losses[0] if key in losses[1]):
        yield f"{suite}: the two count tokens differently; where they do, only bits_per_char compares them"


def _settings_that_differ(ours: RunDir, theirs: RunDir) -> Iterator[str]:
    one, other = (_settings(run) for run in (ours, theirs))
    for name in dict.fromkeys((*one, *other)):
        if one.get(name) != other.get(name):
            yield f"{name}: {_shown(one.get(name))} against {_shown(other.get(name))}"


def _settings(run: RunDir) -> dict[str, Any]:
    """What a run's answers hang on besides its weights; without a recipe, what the manifest says."""
    base = run.manifest().get("base")
    found = {"template": base["template"]} if isinstance(base, dict) and "template" in base else {}
    if (run.path / "recipe.yaml").is_file():
        model = run.recipe().model
        found |= {name: getattr(model, name) for name in SETTINGS}
    return found


def _decodings_that_differ(suite: str, one: Scored, other: Scored) -> Iterator[str]:
    names = dict.fromkeys(name for each in (*one.decodings, *other.decodings) for name in each if name not in NAMES)
    for name in names:
        ours, theirs = (
            {json.dumps(each.get(name), sort_keys=True) for each in side.decodings} for side in (one, other)
        )
        if ours != theirs:
            shown = " against ".join(_shown(" or ".join(sorted(each)) or None) for each in (ours, theirs))
            yield f"{suite}: decoding {name}: {shown}"


def _shown(value: object) -> str:
    text = "none" if value is None else " ".join(str(value).split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
