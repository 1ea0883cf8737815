"""EQ-Bench 3: role-plays of several turns, a debrief, and rubric scores by a judge.

Material (scenarios, prompts, criteria) is read from a folder, `eqbench3/` under WARMLINE_DATA; nothing of it stands here.
As in the benchmark's own code: each prompt of a scenario is put into the master prompt of its kind, the earlier turns
stay in the conversation, the debrief is asked last, and analyses have none. A scenario's score is the mean of the criteria
that say how able the respondent is (six of a role-play's, all of an analysis'), 0 to 20, times 5; the benchmark
is the mean over scenarios. It draws at temperature 0.7 (0.5 for the debrief); its min_p of 0.1 has no counterpart here, and
answers are cut at 4,096 tokens rather than 12,000. Pairwise Elo, the benchmark's other number, is not computed here: warmline/evaluate/pairwise.py
holds two models against each other.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np

from warmline.engine.engine import Engine, EngineError, GenerateRequest, Message, Sampling
from warmline.evaluate.held_out import Progress, Progressed
from warmline.evaluate.judge import Judge, Rubric, RubricItem, RubricRow, Status, score_rubric, summarise_rubric
from warmline.evaluate.rows import StrictRow, add_row, digest, resume_rows
from warmline.evaluate.stats import Interval, ratio_draws, resample

Kind = Literal["role-play", "drafting", "analysis"]

FOLDER = "eqbench3"  # under WARMLINE_DATA
SAMPLING = Sampling(temperature=0.7, top_p=1.0, max_new_tokens=4096, seed=7)
DEBRIEF_TEMPERATURE = 0.5  # at most
SCALE = 5.0  # from 0..20 to 0..100
ABLE = frozenset(  # of a role-play's criteria, those of which the rubric's prompt says that higher is better
    "demonstrated_empathy pragmatic_ei depth_of_insight social_dexterity emotional_reasoning message_tailoring".split()
)
MASTERS: Mapping[Kind, str] = {
    "role-play": "scenario_master_prompt.txt",
    "drafting": "scenario_master_prompt_message_drafting.txt",
    "analysis": "scenario_master_prompt_analysis.txt",
}
SCENARIOS, DEBRIEF = "scenario_prompts.txt", "debrief_prompt.txt"
RUBRICS = {False: "rubric_scoring_prompt.txt", True: "rubric_scoring_prompt_analysis.txt"}  # by: is an analysis
CRITERIA = {False: "rubric_scoring_criteria.txt", True: "rubric_scoring_criteria_analysis.txt"}

_SCENARIO = re.compile(r"########\s*(\d+)\s*\|\s*([^|]*?)\s*\|\s*(.*?)\s*")
_PROMPT = re.compile(r"#######\s*Prompt\s*\d+\s*")


class MaterialError(ValueError):
    """The benchmark's folder is missing or incomplete, or a file in it is not what it should be."""


@dataclass(frozen=True)
class Scenario:
    id: str
    kind: Kind
    category: str
    title: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """All that is read from the folder."""

    scenarios: tuple[Scenario, ...]
    left_out: tuple[str, ...]  # scenarios without a heading `Prompt`: the benchmark's own parser drops them (409)
    masters: Mapping[Kind, str]  # each with the place {scenario_prompt}
    debrief: str
    rubric_prompts: Mapping[bool, str]  # is an analysis -> prompt with {transcript}, {debrief} and {output_format}
    rubrics: Mapping[bool, Rubric]


class Played(StrictRow):
    """A scenario as one model went through it."""

    id: str
    kind: Kind
    model: str
    played_with: str  # digest of prompts and sampling
    status: Status
    reason: str | None = None  # begins with `model: `
    turns: tuple[str, ...] = ()  # the model's, one for each prompt
    debrief: str | None = None  # None: an analysis has none


class Benchmark(NamedTuple):
    """The number, and what is not in it."""

    num_scenarios: int  # that are in the score
    raw: Interval | None  # 0 to 100; None: none was scored
    criteria: Mapping[str, Interval]  # each criterion's mean, 0 to 20, style criteria too
    unscored_by_model: int  # the model gave no answer
    unscored_by_judge: int  # the judge failed: never the model's score


def load_material(data_root: Path | None) -> Material:
    """The benchmark's material from `data_root`/eqbench3. Raises MaterialError that says what is missing."""
    if data_root is None:
        raise MaterialError("EQ-Bench 3 needs its material: set WARMLINE_DATA to the folder that holds eqbench3/")
    folder = data_root / FOLDER
    if not folder.is_dir():
        raise MaterialError(f"{folder} does not exist; expected EQ-Bench 3's prompts, criteria and scenarios")
    masters: dict[Kind, str] = {kind: _with_places(folder, name, "scenario_prompt") for kind, name in MASTERS.items()}
    rubric_prompts = {
        False: _with_places(folder, RUBRICS[False], "transcript", "debrief", "output_format"),
        True: _with_places(folder, RUBRICS[True], "transcript", "output_format"),
    }
    rubrics = {is_analysis: _rubric(folder / name) for is_analysis, name in CRITERIA.items()}
    if missing := sorted(ABLE - {*rubrics[False].criteria}):
        raise MaterialError(f"{folder / CRITERIA[False]}: the criterion {missing[0]} is missing")
    found = [*parse_scenarios(_text(folder / SCENARIOS), str(folder / SCENARIOS))]
    scenarios = tuple(each for each in found if each.prompts)
    if not scenarios:
        raise MaterialError(f"{folder / SCENARIOS}: no scenario")
    left_out = tuple(each.id for each in found if not each.prompts)
    return Material(scenarios, left_out, masters, _text(folder / DEBRIEF), rubric_prompts, rubrics)


def parse_scenarios(text: str, where: str) -> Iterator[Scenario]:
    """The scenarios of a file: a line `######## ID | CATEGORY | TITLE`, then `####### Prompt1` and its text, and so on.

    A scenario whose prompts have no such heading comes without prompts. Raises MaterialError that names `where` and the
    line.
    """
    head: re.Match[str] | None = None
    prompts: list[list[str]] = []
    seen: set[str] = set()
    for number, line in enumerate([*text.splitlines(), "######## 0 | end | end"], start=1):
        found = _SCENARIO.fullmatch(line)
        if found is None and line.startswith("########"):
            raise MaterialError(f"{where}, line {number}: expected `######## ID | CATEGORY | TITLE`")
        if found:
            if head is not None:
                yield _scenario(head, prompts)
            if found[1] in seen:
                raise MaterialError(f"{where}, line {number}: the scenario {found[1]} stands there twice")
            seen.add(found[1])
            head, prompts = found, []
        elif _PROMPT.fullmatch(line):
            prompts.append([])
        elif prompts:
            prompts[-1].append(line)


def _scenario(head: re.Match[str], prompts: Sequence[Sequence[str]]) -> Scenario:
    texts = tuple(text for lines in prompts if (text := "\n".join(lines).strip()))
    # The benchmark's own code lists ids: 201 to 209 are drafts, 401 to 420 analyses.
    hundreds = int(head[1]) // 100
    kind: Kind = "drafting" if hundreds == 2 else "analysis" if hundreds == 4 else "role-play"
    return Scenario(head[1], kind, head[2], head[3], texts)


def play(
    engine: Engine,
    model: str,
    material: Material,
    file: Path,
    *,
    sampling: Sampling = SAMPLING,
    max_scenarios: int | None = None,
    progress: Progress | None = None,
) -> list[Played]:
    """Have a model go through the scenarios into `file`, a row each as it finishes; what is played already is kept.

    What the engine refuses is unscored with its reason. `model`: its name in the rows. Raises nothing of the engine's.
    """
    wanted = {each.id: each for each in material.scenarios[:max_scenarios]}
    digests = {
        name: digest(*each.prompts, material.masters[each.kind], material.debrief, repr(sampling))
        for name, each in wanted.items()
    }
    kept = resume_rows(file, Played, lambda row: (row.model, row.played_with) == (model, digests.get(row.id)))
    rows = {row.id: row for row in kept}
    with progress(len(wanted), len(rows)) if progress else nullcontext(_silent) as advance:
        for scenario in wanted.values():
            if scenario.id in rows:
                continue
            row = Played(
                id=scenario.id, kind=scenario.kind, model=model, played_with=digests[scenario.id], status="unscored"
            )
            try:
                turns, debrief = _go_through(engine, scenario, material, sampling)
                row = row.model_copy(update={"status": "scored", "turns": turns, "debrief": debrief})
            except EngineError as error:
                row = row.model_copy(update={"reason": f"model: {error}"})
            add_row(file, row)
            rows[scenario.id] = row
            advance(1, "")
    return [rows[name] for name in wanted]


def _go_through(
    engine: Engine, scenario: Scenario, material: Material, sampling: Sampling
) -> tuple[tuple[str, ...], str | None]:
    messages: list[Message] = []

    def answer(prompt: str, temperature: float) -> str:
        seed = None if sampling.seed is None else sampling.seed + len(messages)
        messages.append(Message("user", prompt))
        request = GenerateRequest(tuple(messages), replace(sampling, seed=seed, temperature=temperature))
        said = "".join(chunk.text for chunk in engine.generate(request)).strip()
        if not said:
            raise EngineError(f"it said nothing in turn {len(messages) // 2 + 1}")
        messages.append(Message("assistant", said))
        return said

    master = material.masters[scenario.kind]
    turns = tuple(answer(_filled(master, scenario_prompt=prompt), sampling.temperature) for prompt in scenario.prompts)
    cooler = min(sampling.temperature, DEBRIEF_TEMPERATURE)
    return turns, None if scenario.kind == "analysis" else answer(material.debrief, cooler)


def judge_played(
    judge: Judge,
    material: Material,
    played: Sequence[Played],
    file: Path,
    *,
    retry_unscored: bool = False,
    progress: Progress | None = None,
) -> Progressed:
    """Have a judge score what was played into two files beside each other: `file`, and that of the analyses.

    They have criteria of their own; `analysis_file` names the second.
    """
    done = []
    for is_analysis in (False, True):
        items = [
            RubricItem(row.id, row.id, judge_prompt(material, row))
            for row in played
            if row.status == "scored" and (row.kind == "analysis") == is_analysis
        ]
        place = analysis_file(file) if is_analysis else file
        rubric = material.rubrics[is_analysis]
        done.append(score_rubric(judge, items, rubric, place, retry_unscored=retry_unscored, progress=progress))
    return Progressed(sum(each.num_scored for each in done), sum(each.num_unscored for each in done))


def analysis_file(file: Path) -> Path:
    """Where the judgements of analyses stand: `eq-bench3-judged.sft.jsonl` -> `eq-bench3-judged-analysis.sft.jsonl`."""
    name, dot, rest = file.name.partition(".")
    return file.with_name(f"{name}-analysis{dot}{rest}")


def asked(material: Material, scenario_id: str) -> list[str]:
    """What a model is asked in a scenario, turn by turn; the debrief is not in it."""
    scenario = next(each for each in material.scenarios if each.id == scenario_id)
    return [_filled(material.masters[scenario.kind], scenario_prompt=prompt) for prompt in scenario.prompts]


def judge_prompt(material: Material, played: Played) -> str:
    """What a judge is asked of one scenario: the conversation as it was played. Marks of Markdown are taken out, as the
    benchmark's own code does."""
    is_analysis = played.kind == "analysis"
    exchanges = zip(asked(material, played.id), played.turns, strict=True)
    said = [f"User:\n{one}\n\n---\n\nAssistant:\n{other}" for one, other in exchanges]
    filled = _filled(
        material.rubric_prompts[is_analysis],
        transcript="\n\n---\n\n".join(said),
        debrief=played.debrief or "",
        output_format=material.rubrics[is_analysis].answer_form(),
    )
    return filled.replace("*", "").replace("#", "")


def summarise(played: Sequence[Played], judged: Sequence[RubricRow], *, samples: int, seed: int) -> Benchmark:
    """The benchmark with intervals over scenarios. `judged`: the rows of both files."""
    rows = {row.id: row for row in judged if row.status == "scored"}
    scored = [each for each in played if each.id in rows]
    by_model = sum(each.status == "unscored" for each in played)
    raw, criteria = None, {}
    if scored:
        draw = resample([each.id for each in scored], samples=samples, seed=seed)
        totals = [scenario_score(each.kind, rows[each.id].scores) for each in scored]
        raw = draw.interval(ratio_draws(totals, np.ones(len(totals)), draw))
        criteria = summarise_rubric([rows[each.id] for each in scored], samples=samples, seed=seed).criteria
    return Benchmark(len(scored), raw, criteria, by_model, len(played) - by_model - len(scored))


def normalised(
    played: Sequence[Played],
    judged: Sequence[RubricRow],
    base_played: Sequence[Played],
    base_judged: Sequence[RubricRow],
    *,
    samples: int,
    seed: int,
) -> Interval | None:
    """100 x the mean score / the base's mean score, on the scenarios that both have: base = 100, paired.

    None where they share no scenario, or the base scored 0 on all of them.
    """
    ours, theirs = _totals(played, judged), _totals(base_played, base_judged)
    both = [name for name in ours if name in theirs]
    if not both or not any(theirs[name] for name in both):
        return None
    draw = resample(both, samples=samples, seed=seed)
    base_R = draw.sums([theirs[name] for name in both])
    base_R = np.where(base_R > 0, base_R, base_R[0])  # a draw of nothing but zeros has no ratio
    return draw.interval(100 * draw.sums([ours[name] for name in both]) / base_R)


def scenario_score(kind: Kind, scores: Mapping[str, float]) -> float:
    """0 to 100: the mean of the criteria of ability, times 5."""
    counted = [score for name, score in scores.items() if kind == "analysis" or name in ABLE]
    return SCALE * fmean(counted)


def _totals(played: Sequence[Played], judged: Sequence[RubricRow]) -> dict[str, float]:
    rows = {row.id: row for row in judged if row.status == "scored"}
    return {each.id: scenario_score(each.kind, rows[each.id].scores) for each in played if each.id in rows}


def _rubric(file: Path) -> Rubric:
    names = [line.strip() for line in _text(file).splitlines() if line.strip() and not line.startswith("#")]
    try:
        return Rubric(tuple(names))
    except ValueError as error:
        raise MaterialError(f"{file}: {error}") from None


def _with_places(folder: Path, name: str, *places: str) -> str:
    text = _text(folder / name)
    if missing := next((place for place in places if f"{{{place}}}" not in text), None):
        raise MaterialError(f"{folder / name}: it has no place {{{missing}}}")
    return text


def _filled(text: str, **places: str) -> str:
    """A prompt with its places filled in one pass; braces in what is filled in are only braces."""
    return re.sub(r"\{(\w+)\}", lambda found: places.get(found[1], found[0]), text)


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise MaterialError(f"{file} is missing; it belongs to EQ-Bench 3's material") from None
    except UnicodeDecodeError as error:
        raise MaterialError(f"{file}: not UTF-8 at byte {error.start}") from None
    if not text:
        raise MaterialError(f"{file} is empty")
    return text


def _silent(count: int, note: str) -> None:
    """No progress shown."""
