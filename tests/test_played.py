"""Suites that are played or judged, through `warmline eval` with a scripted judge over real HTTP, and their tables."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import ToyRecipe
from warmline.cli import app
from warmline.commands.suites import suites_of
from warmline.data.sources.chat_jsonl import chat_rows
from warmline.dialogue.companion import Setting
from warmline.engine.engine import GenerateRequest, Message, Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate import played
from warmline.evaluate.answers import FromEngine
from warmline.evaluate.export import check_file, check_pairs, export_file
from warmline.evaluate.judge import Judge
from warmline.evaluate.played import Players, Subject, scores_file
from warmline.evaluate.prompted import qualitative_task
from warmline.evaluate.report import write_report
from warmline.evaluate.rows import read_rows
from warmline.evaluate.seeker import ASKED, GOODBYES, MAX_TURNS, MIN_TURNS, NAME, TOLD, ScriptedSeeker
from warmline.evaluate.simulate import SEEDS_A_TALK, Talk, says_goodbye
from warmline.evaluate.suites import Material, SuiteError, limited
from warmline.evaluate.task import run as ask
from warmline.progress import progress
from warmline.run_dir import RunDir
from warmline.safety.detect import load_detector
from warmline.safety.resources.directory import load_directory

from .test_eq_bench3 import FILES
from .test_remote import DONE, Server, event, serving
from .test_report_html import new_run

SEEKER = ScriptedSeeker(SEEDS_A_TALK)
FOUR = Material(limit=4, bootstrap_samples=100)


def follow(what: str) -> Any:
    return lambda num, done: progress(what, num, done)


def subject(stage: str, reply: str = "That sounds lonely. What happened then?") -> Subject:
    engine = ScriptedEngine([reply])
    return Subject(engine, Setting(engine, load_detector(), load_directory(), "Listen."), stage, f"toy, stage {stage}")


def answering(server: Server) -> None:
    """The server judges: a form that it is shown is filled in with tens, and of two answers the first one wins."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        prompt = server.bodies[-1]["messages"][-1]["content"]
        criteria = re.findall(r'^ *"(\w+)": 0-20', prompt, re.MULTILINE)
        said = json.dumps(dict.fromkeys(criteria, 10) if criteria else {"winner": "A"})
        body = event(said, finish="stop") + DONE
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server.answers.append(answer)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "eqbench3"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder.parent


# ---- the scripted seeker ----


def lines_of(talk: int, reply: str, card: str = "a card") -> list[str]:
    """What it says, turn after turn, to one who always says the same."""
    messages = [Message("system", card), Message("user", "(begin)"), Message("assistant", "hi"), Message("user", reply)]
    said: list[str] = []
    while not (said and says_goodbye(said[-1])):
        request = GenerateRequest(tuple(messages), Sampling(seed=talk * SEEDS_A_TALK + len(said)))
        [chunk] = SEEKER.generate(request)
        said.append(chunk.text)
        messages += [Message("assistant", chunk.text), Message("user", reply)]
    return said


def test_every_goodbye_of_the_script_is_read_as_one_and_no_other_line_is() -> None:
    assert all(says_goodbye(line) for line in GOODBYES)
    assert not any(says_goodbye(line) for line in (*ASKED, *TOLD))


@pytest.mark.parametrize("talk", range(20))
def test_the_script_says_no_line_twice_and_ends(talk: int) -> None:
    for reply in ("That sounds hard.", "What happened?"):
        said = lines_of(talk, reply)
        assert len({*said}) == len(said)
        assert MIN_TURNS <= len(said) + 1 <= MAX_TURNS  # its opening is on the card
        assert said == lines_of(talk, reply)
        assert {*said[:-1]} <= {*(ASKED if "?" in reply else TOLD)}


def test_the_card_and_the_number_of_the_talk_choose_the_lines() -> None:
    assert len({tuple(lines_of(talk, "Oh.")) for talk in range(10)}) > 5
    assert len({tuple(lines_of(1, "Oh.", f"card {number}")) for number in range(10)}) > 5


# ---- simulated talks ----


def test_talks_are_scored_exported_and_kept_and_what_always_says_the_same_talks_too(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for stage in ("base", "sft"):
        played.play("simulated", run, subject(stage), Players(max_turns=3), FOUR, follow)
    talks = {stage: read_rows(scores_file(run, "simulated", stage), Talk) for stage in ("base", "sft", "floor")}
    assert [[talk.id for talk in each] for each in talks.values()] == [[talk.id for talk in talks["base"]]] * 3
    assert {talk.seeker for talk in talks["sft"]} == {NAME}
    assert {turn.text for talk in talks["floor"] for turn in talk.turns if turn.reply_source == "model"} == {
        "That sounds really hard. I'm here to listen."
    }
    exported = [check_file(export_file(run, "simulated", stage)) for stage in ("base", "sft")]
    assert [each.problems for each in exported] == [(), ()]
    assert check_pairs(exported) == [], "the first exchange of a talk is one prompt for both"
    assert not export_file(run, "simulated", "floor").exists()
    assert len([*chat_rows(run.path / "talks" / "sft.jsonl")]) == 4
    found = json.loads(played.sum_up("simulated", run, FOUR).read_text())
    assert [*found["stages"]] == ["base", "sft", "floor"]
    assert found["stages"]["sft"]["rules"]["num_talks"] == 4
    assert found["stages"]["sft"]["judge"] is None
    before = {file: file.read_bytes() for file in run.path.rglob("*.jsonl")}
    silent = subject("sft")._replace(setting=Setting(ScriptedEngine(["Other words."]), load_detector(), load_directory(), "Listen."))  # fmt: skip
    played.play("simulated", run, silent, Players(max_turns=3), FOUR, follow)
    assert {file: file.read_bytes() for file in before} == before, "what was played is kept"


def test_a_talk_without_a_reply_says_why_in_its_export(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    played.play("simulated", run, subject("base", "   "), Players(max_turns=1), FOUR, follow)
    checked = check_file(export_file(run, "simulated", "base"))
    assert checked.problems == ()
    assert {row.meta["reason"] for row in checked.rows.values() if row.response is None} <= {
        "the companion released no reply"
    }


def test_a_judge_scores_talks_over_http_and_is_not_asked_twice(tmp_path: Path, server: Server) -> None:
    from warmline.engine.remote import RemoteEngine

    answering(server)
    run = new_run(tmp_path / "runs" / "tiny")
    players = Players(Judge(RemoteEngine(server.url, "judge"), "judge", backoff_s=0.01), max_turns=1)
    played.play("simulated", run, subject("sft"), players, FOUR, follow)
    assert len(server.bodies) == 8, "four talks of the stage and four of the floor"
    played.play("simulated", run, subject("sft"), players, FOUR, follow)
    assert len(server.bodies) == 8
    found = json.loads(played.sum_up("simulated", run, FOUR).read_text())["stages"]
    assert found["sft"]["judge"]["criteria"]["warmth"] == {"value": 10.0, "low": None, "high": None}
    text = write_report(run).read_text(encoding="utf-8")
    assert "What the judge said of the talks, 0 to 20 (judge: judge):" in text
    assert "| criterion | sft | floor: always the same sentence |" in text
    assert "--suite simulated" in text


def test_a_judges_failure_is_counted_and_asked_again_only_on_demand(tmp_path: Path, server: Server) -> None:
    from warmline.engine.remote import RemoteEngine

    server.fails(500, b'{"error": {"message": "out of order"}}')
    run = new_run(tmp_path / "runs" / "tiny")
    judge = Judge(RemoteEngine(server.url, "judge"), "judge", num_tries=1)
    players, one = Players(judge, max_turns=1), Material(limit=1, bootstrap_samples=100)
    played.play("simulated", run, subject("sft"), players, one, follow)
    found = json.loads(played.sum_up("simulated", run, one).read_text())["stages"]["sft"]
    assert (found["rules"]["num_talks"], found["judge"]["num_scored"], found["judge"]["unscored"]) == (1, 0, 1)
    assert "Where the judge failed:" in write_report(run).read_text(encoding="utf-8")
    played.play("simulated", run, subject("sft"), players, one, follow)
    assert len(server.bodies) == 2
    played.play("simulated", run, subject("sft"), Players(judge, max_turns=1, retry_unscored=True), one, follow)
    assert len(server.bodies) == 4


# ---- EQ-Bench 3 and pairs ----


def test_eq_bench3_has_a_floor_failures_apart_and_a_table_in_the_report(tmp_path: Path, root: Path) -> None:
    run = new_run(tmp_path / "runs" / "tiny")
    tens = json.dumps(dict.fromkeys((*FILES["rubric_scoring_criteria.txt"].split("\n"), "correctness"), 10))
    players = Players(Judge(ScriptedEngine([tens]), "judge", backoff_s=0.01))
    material = Material(data_root=root, bootstrap_samples=100)
    for stage in ("base", "sft"):
        played.play("eq-bench3", run, subject(stage, f"I am {stage}."), players, material, follow)
    found = json.loads(played.sum_up("eq-bench3", run, material).read_text())["stages"]
    assert [*found] == ["base", "sft", "floor"]
    assert found["sft"]["raw"]["value"] == pytest.approx(50)
    assert found["sft"]["base_is_100"]["value"] == pytest.approx(100)
    checked = [check_file(export_file(run, "eq-bench3", stage)) for stage in ("base", "sft")]
    assert [each.problems for each in checked] == [(), ()]
    assert check_pairs(checked) == []
    text = write_report(run).read_text(encoding="utf-8")
    assert "| sft | 50.000 (no interval) | 100.0 (no interval) | 3 | 0 | 0 |" in text
    assert "| floor: always the same sentence | 50.000 (no interval) |" in text


@pytest.mark.parametrize("name", ["eq-bench3", "pairwise"])
def test_without_a_judge_nothing_is_played(name: str, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=f"{name}: it needs a judge"):
        played.play(name, RunDir(tmp_path), subject("sft"), Players(), FOUR, follow)
    assert [*tmp_path.rglob("*.jsonl")] == []


def test_pairs_are_replies_of_both_stages_and_a_biased_judge_is_seen(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs" / "tiny")
    for stage, reply in {"base": "I see.", "sft": "That sounds really hard."}.items():
        ask(
            limited(qualitative_task(), 10, 1),
            FromEngine(ScriptedEngine([reply])),
            scores_file(run, "qualitative", stage),
        )
    players = Players(Judge(ScriptedEngine(['{"winner": "A"}']), "judge"))
    for stage in ("base", "sft"):
        played.play("pairwise", run, subject(stage), players, FOUR, follow)
    found = json.loads(played.sum_up("pairwise", run, FOUR).read_text())["stages"]
    assert [*found] == ["sft"]
    assert (found["sft"]["num_pairs"], found["sft"]["position_bias"]["value"]) == (10, 1.0)
    text = write_report(run).read_text(encoding="utf-8")
    assert "| sft wins, a tie counts half (chance: 0.5) | 0.500 [0.500, 0.500] |" in text


def test_pairs_of_a_stage_that_was_not_asked_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="stage sft has no replies to hold; ask it with --suite qualitative"):
        played.pairs_of(RunDir(tmp_path), "sft")


# ---- the command ----


def test_all_leaves_out_what_needs_a_judge_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.delenv("WARMLINE_DATA", raising=False)
    found = suites_of("all", is_run=True, has_judge=False, questions=None)
    assert found == ["held-out", "responses", "qualitative", "redteam", "warm", "safety", "simulated"]
    said = capsys.readouterr().err
    for name in ("eq-bench3: it needs a judge", "pairwise: it needs a judge", "eq-bench: no question file"):
        assert f"warmline: all leaves out {name}" in said
    monkeypatch.setenv("WARMLINE_DATA", str(root))
    found = suites_of("all", is_run=True, has_judge=True, questions=root)
    assert {"eq-bench", "eq-bench3", "pairwise"} < {*found}
    assert capsys.readouterr().err == ""
    assert suites_of("all", is_run=False, has_judge=True, questions=root) == [
        *("eq-bench", "qualitative", "redteam", "warm", "safety", "simulated", "eq-bench3"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "eq-bench3"], "--suite eq-bench3: it needs a judge; name one with --judge-url and --judge-model"),
        (["--suite", "simulated", "--judge-url", "http://127.0.0.1:9"], "--judge-url and --judge-model go together"),
        (["--suite", "simulated", "--seeker-model", "m"], "--seeker-url and --seeker-model go together"),
        (["--suite", "pairwise", "--judge-url", "http://127.0.0.1:9", "--judge-model", "j"], "has one stage"),
        (["--suite", "simulated", "--turns", "31"], "--turns"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["eval", "nowhere", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_the_command_plays_judges_and_reports_and_keeps_its_key_to_itself(
    toy_recipe: ToyRecipe, tmp_path: Path, root: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a toy whose recipe names suites, then the judged ones from the command line; again adds nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WARMLINE_DATA", str(root))
    monkeypatch.setenv("WARMLINE_JUDGE_KEY", "not-to-be-shown")
    answering(server)
    recipe = toy_recipe(sft__steps=1, eval__suites=["qualitative"], eval__limit=1)
    trained = CliRunner().invoke(app, ["run", str(recipe)])
    assert trained.exit_code == 0, trained.output
    run = tmp_path / "runs" / "toy"
    assert "### Everyday situations" in (run / "report.md").read_text(encoding="utf-8")
    words = ["eval", "toy", "--suite", "simulated,eq-bench3,pairwise", "--limit", "1", "--turns", "1"]
    words += ["--judge-url", server.url, "--judge-model", "judge"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    assert {*server.authorizations} == {"Bearer not-to-be-shown"}
    assert len(read_rows(run / "scores" / "simulated.sft.jsonl", Talk)) == 1
    html = (run / "report.html").read_text(encoding="utf-8")
    for title in ("Simulated talks", "EQ-Bench 3"):
        assert title in html
    files = {file: file.read_bytes() for file in run.rglob("*") if file.suffix in {".jsonl", ".json", ".html", ".md"}}
    assert all(b"not-to-be-shown" not in content for content in files.values())
    rows = {file: content for file, content in files.items() if file.suffix == ".jsonl"}
    num_asked = len(server.bodies)
    assert CliRunner().invoke(app, words).exit_code == 0
    assert {file: file.read_bytes() for file in rows} == rows
    assert len(server.bodies) == num_asked
