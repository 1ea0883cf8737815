"""EQ-Bench 3 over a small folder of material of our own, and over the real one where it is set up."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Scores
from warmline.engine.remote import RemoteEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.eq_bench3 import (
    ABLE,
    MaterialError,
    Played,
    analysis_file,
    judge_played,
    judge_prompt,
    load_material,
    normalised,
    parse_scenarios,
    play,
    scenario_score,
    summarise,
)
from warmline.evaluate.held_out import Progressed
from warmline.evaluate.judge import Judge, RubricRow
from warmline.evaluate.rows import read_rows
from warmline.evaluate.stats import Interval

from .test_remote import DONE, event, serving

STYLE = ("moralising", "warmth")
ANALYSIS = ("depth_of_insight", "correctness")
FILES = {
    "scenario_prompts.txt": (
        "######## 1   | Work | The {brace}\n####### Prompt1\nA colleague is late.\n\nWhat now?\n####### Prompt2\nShe sighs.\n"
        "######## 208 | Friend | A card\n####### Prompt1\nWrite it.\n"
        "######## 401 | Analysis | A talk\n####### Prompt1\n# Act 1\nThey talk.\n"
    ),
    "scenario_master_prompt.txt": "{scenario_prompt}\n--\nAnswer in three parts.",
    "scenario_master_prompt_message_drafting.txt": "{scenario_prompt}\n--\nDraft it.",
    "scenario_master_prompt_analysis.txt": "[T]{scenario_prompt}[/T]\nAnalyse.",
    "debrief_prompt.txt": "Now reflect.",
    "rubric_scoring_prompt.txt": "Score this.\n{transcript}\nDebrief:\n{debrief}\n# Form\n{output_format}",
    "rubric_scoring_prompt_analysis.txt": "Score this analysis.\n{transcript}\n{output_format}",
    "rubric_scoring_criteria.txt": "\n".join([*sorted(ABLE), *STYLE]),
    "rubric_scoring_criteria_analysis.txt": "\n".join(ANALYSIS),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "eqbench3"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder.parent


class Says:
    """An engine that answers by a function of what it was asked, and remembers it."""

    def __init__(self, say: Callable[[GenerateRequest], str]) -> None:
        self._say = say
        self.requests: list[GenerateRequest] = []

    def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.requests.append(request)
        yield Chunk(self._say(request))

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        raise EngineError("not asked here")


def scores_of(able: float, style: float, analysis: float) -> Callable[[GenerateRequest], str]:
    """A judge that gives these, whatever it reads."""

    def say(request: GenerateRequest) -> str:
        prompt = request.messages[-1].content
        if "this analysis" in prompt:
            return json.dumps(dict.fromkeys(ANALYSIS, analysis))
        return json.dumps(dict.fromkeys(sorted(ABLE), able) | dict.fromkeys(STYLE, style))

    return say


def judged(file: Path) -> list[RubricRow]:
    return read_rows(file, RubricRow) + read_rows(analysis_file(file), RubricRow)


def test_each_scenario_is_played_turn_by_turn_and_debriefed(root: Path, tmp_path: Path) -> None:
    engine = Says(lambda request: f"answer {len(request.messages)}")
    rows = play(engine, "m", load_material(root), tmp_path / "played.jsonl")
    assert [(row.id, row.kind, row.turns, row.debrief) for row in rows] == [
        ("1", "role-play", ("answer 1", "answer 3"), "answer 5"),
        ("208", "drafting", ("answer 1",), "answer 3"),
        ("401", "analysis", ("answer 1",), None),
    ]
    first, second, debrief, draft, _, analysis = engine.requests
    assert [message.content for message in first.messages] == [
        "A colleague is late.\n\nWhat now?\n--\nAnswer in three parts."
    ]
    assert [message.role for message in debrief.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert debrief.messages[-1].content == "Now reflect."
    assert second.messages[-1].content == "She sighs.\n--\nAnswer in three parts."
    assert draft.messages[-1].content == "Write it.\n--\nDraft it."
    assert analysis.messages[-1].content == "[T]# Act 1\nThey talk.[/T]\nAnalyse."
    assert (first.sampling.temperature, debrief.sampling.temperature) == (0.7, 0.5)


def test_the_judge_reads_the_whole_talk_and_braces_are_only_braces(root: Path, tmp_path: Path) -> None:
    material = load_material(root)
    rows = play(ScriptedEngine(["**I** feel {debrief} and {this}."]), "m", material, tmp_path / "played.jsonl")
    prompt = judge_prompt(material, rows[0])
    assert "User:\nA colleague is late." in prompt
    assert "Assistant:\nI feel {debrief} and {this}.\n\n---\n\nUser:\nShe sighs." in prompt
    assert "Debrief:\nI feel {debrief}" in prompt
    assert '"warmth": 0-20' in prompt
    assert "*" not in prompt
    assert "#" not in prompt
    analysis = judge_prompt(material, rows[2])
    assert "They talk." in analysis
    assert '"correctness": 0-20' in analysis
    assert '"warmth"' not in analysis


def test_scores_are_means_of_ability_scaled_to_100(root: Path, tmp_path: Path) -> None:
    material = load_material(root)
    played = play(ScriptedEngine(["Well."]), "m", material, tmp_path / "played.jsonl")
    file = tmp_path / "eq-bench3-judged.sft.jsonl"
    assert judge_played(Judge(Says(scores_of(10, 20, 16)), "j"), material, played, file) == Progressed(3, 0)
    assert analysis_file(file).name == "eq-bench3-judged-analysis.sft.jsonl"
    found = summarise(played, judged(file), samples=100, seed=1)
    assert found.num_scenarios == 3
    assert found.raw is not None
    assert found.raw.value == pytest.approx((50 + 50 + 80) / 3)  # style is in no score
    assert (found.criteria["warmth"].value, found.criteria["depth_of_insight"].value) == (20, pytest.approx(12))
    assert (found.unscored_by_model, found.unscored_by_judge) == (0, 0)
    assert scenario_score("analysis", {"correctness": 16, "depth_of_insight": 4}) == 50


def test_normalised_is_100_for_the_base_itself_and_paired(root: Path, tmp_path: Path) -> None:
    def row(number: int, score: float) -> tuple[Played, RubricRow]:
        played = Played(id=str(number), kind="role-play", model="m", played_with="", status="scored", turns=("a",))
        scores: dict[str, float] = dict.fromkeys(ABLE, score)
        return played, RubricRow(
            id=str(number), cluster=str(number), judge="j", asked="", status="scored", num_tries=1, scores=scores
        )

    base = [row(number, 4 + number % 5) for number in range(20)]
    tuned = [row(number, 1.5 * (4 + number % 5)) for number in range(5, 25)]
    one, other = (
        ([pair[0] for pair in tuned], [pair[1] for pair in tuned]),
        ([p[0] for p in base], [p[1] for p in base]),
    )
    assert normalised(*other, *other, samples=100, seed=1) == Interval(100, 100, 100)
    found = normalised(*one, *other, samples=100, seed=1)
    assert found is not None
    assert tuple(found) == pytest.approx((150, 150, 150))
    zero = [row(number, 0) for number in range(3)]
    assert normalised(*one, [p[0] for p in zero], [p[1] for p in zero], samples=100, seed=1) is None


def test_a_judges_failure_is_counted_apart_from_the_models(root: Path, tmp_path: Path) -> None:
    def broken(request: GenerateRequest) -> str:
        if "Write it" in request.messages[0].content:
            raise EngineError("out of memory")
        return "Well."

    material = load_material(root)
    played = play(Says(broken), "m", material, tmp_path / "played.jsonl")
    assert [(row.status, row.reason) for row in played][1] == ("unscored", "model: out of memory")
    file = tmp_path / "judged.jsonl"
    with serving() as server:
        server.streams(event(scores_of(8, 8, 8)(GenerateRequest((Message("user", ""),))), finish="stop"), DONE)
        server.fails(500, b"{}")
        judge = Judge(RemoteEngine(server.url, "j"), "j", num_tries=2, backoff_s=0.01)
        assert judge_played(judge, material, played, file) == Progressed(1, 1)
    found = summarise(played, judged(file), samples=100, seed=1)
    assert (found.num_scenarios, found.unscored_by_model, found.unscored_by_judge) == (1, 1, 1)
    assert found.raw is not None
    assert found.raw.value == pytest.approx(40), "neither failure is a zero"


def test_a_model_that_says_nothing_is_unscored(root: Path, tmp_path: Path) -> None:
    played = play(Says(lambda request: " "), "m", load_material(root), tmp_path / "played.jsonl", max_scenarios=1)
    assert [(row.status, row.reason) for row in played] == [("unscored", "model: it said nothing in turn 1")]
    assert summarise(played, [], samples=100, seed=1).raw is None


def test_what_is_played_is_kept_and_another_model_is_played_anew(root: Path, tmp_path: Path) -> None:
    material, file = load_material(root), tmp_path / "played.jsonl"
    engine = Says(lambda request: "Well.")
    play(engine, "m", material, file, max_scenarios=2)
    with file.open("a") as handle:
        handle.write('{"id": "401", "ki')
    num = len(engine.requests)
    assert [row.id for row in play(engine, "m", material, file)] == ["1", "208", "401"]
    assert len(engine.requests) == num + 1
    play(engine, "other", material, file)
    assert {row.model for row in read_rows(file, Played)} == {"other"}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / "eqbench3" / name).unlink()
    with pytest.raises(MaterialError, match=rf"{re.escape(name)} is missing"):
        load_material(root)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("debrief_prompt.txt", " \n", "is empty"),
        ("scenario_master_prompt.txt", "Answer.", "no place {scenario_prompt}"),
        ("rubric_scoring_prompt.txt", "{transcript} {output_format}", "no place {debrief}"),
        ("rubric_scoring_criteria.txt", "warmth", "criterion demonstrated_empathy is missing"),
        ("rubric_scoring_criteria_analysis.txt", "a\na", "different names"),
        ("scenario_prompts.txt", "hello", "no scenario"),
        ("scenario_prompts.txt", "######## one | a | b\n", "line 1: expected"),
        ("scenario_prompts.txt", "######## 1 | a | b\n####### Prompt1\n\n", "no scenario"),
        ("scenario_prompts.txt", "######## 1 | a | b\n####### Prompt1\nx\n" * 2, "line 4: the scenario 1 stands there twice"),
    ],
)  # fmt: skip
def test_broken_material_is_named(root: Path, name: str, text: str, why: str) -> None:
    (root / "eqbench3" / name).write_text(text)
    with pytest.raises(MaterialError, match=re.escape(why)) as caught:
        load_material(root)
    assert name in str(caught.value)


def test_a_missing_folder_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(MaterialError, match="set WARMLINE_DATA"):
        load_material(None)
    with pytest.raises(MaterialError, match="eqbench3 does not exist"):
        load_material(tmp_path)
    file = tmp_path / "eqbench3" / "scenario_master_prompt.txt"
    file.parent.mkdir()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(MaterialError, match="not UTF-8"):
        load_material(tmp_path)


def test_lines_with_hashes_inside_a_prompt_stay_in_it() -> None:
    text = "######## 7 | a | b\n####### Prompt1\n# Act 1\n###### six\nend\n####### Prompt2  \nx"
    [scenario, empty] = parse_scenarios(f"{text}\n######## 8 | a | b\n####### 1\nlost", "f")
    assert empty.prompts == (), "as the benchmark's own parser reads it"
    assert scenario.prompts == ("# Act 1\n###### six\nend", "x")


@pytest.mark.real
def test_the_real_material_is_played_and_judged(tmp_path: Path) -> None:
    if not os.environ.get("WARMLINE_DATA"):
        pytest.skip("WARMLINE_DATA is not set")
    material = load_material(Path(os.environ["WARMLINE_DATA"]))
    assert (len(material.scenarios), material.left_out) == (45, ("409",))
    kinds = [scenario.kind for scenario in material.scenarios]
    assert (kinds.count("role-play"), kinds.count("drafting"), kinds.count("analysis")) == (25, 1, 19)
    played = play(ScriptedEngine(["I hear you."]), "scripted", material, tmp_path / "played.jsonl")
    assert sum(len(row.turns) for row in played) == sum(len(each.prompts) for each in material.scenarios)

    def say(request: GenerateRequest) -> str:
        asked = re.findall(r'^  "(\w+)": 0-20', request.messages[-1].content, re.MULTILINE)
        assert asked
        return json.dumps({name: 10 if name in {*ABLE, *material.rubrics[True].criteria} else 3 for name in asked})

    file = tmp_path / "judged.jsonl"
    assert judge_played(Judge(Says(say), "j"), material, played, file) == Progressed(45, 0)
    assert summarise(played, judged(file), samples=100, seed=1).raw == Interval(50, 50, 50)
