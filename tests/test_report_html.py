"""The report as one page: it loads nothing, shows what was said as it was said, and says what is missing."""

import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.config.reading import load_recipe
from warmline.dialogue.companion import Setting
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.answers import FromCompanion, FromEngine
from warmline.evaluate.export import export, export_file
from warmline.evaluate.prompted import qualitative_task, red_team_task, safety_task
from warmline.evaluate.report import write_report
from warmline.evaluate.report_html import page
from warmline.evaluate.responses import responses_task, summarise
from warmline.evaluate.simulate import Talk, TalkTurn
from warmline.evaluate.task import Answerer, Task, run
from warmline.evaluate.warm import warm_task
from warmline.evaluate.wording import MAX_QUOTED, quoted, table
from warmline.run_dir import RunDir, append_row, write_json, write_text
from warmline.safety.detect import load_detector
from warmline.safety.levels import Level
from warmline.safety.redteam.cases import Case
from warmline.safety.resources.directory import load_directory

from .pages import Page
from .test_report import conversation, metrics_row, score

PNG = b"\x89PNG\r\n\x1a\n"
LOADS = {"script", "link", "iframe", "object", "embed", "form", "base", "video", "audio", "source", "svg", "template"}
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> ![p](http://example.org/p.png) [a](javascript:alert(3)) "
    "</td></table></section> `x` **bold** &lt;b&gt; | a | b |\n|--|--|\n\n# A heading\n1. one\n- two\n> three\n```\nfour"
)
EQ_BENCH = {
    "n": 171,
    "parseable": 171,
    "official": {"score": 40.1},
    "lm_eval": {"score": 40.2},
    "parse_scaled": {"score": 40.3},
    "tolerant": {"score": None},
    "mae": 2.9,
    "floors": {"random": 1.4, "threes": 38.89, "word_mean": 54.83},
    "against_word_mean": {"value": -14.6, "low": -18.0, "high": -11.0, "verdict": "below"},
}


def new_run(folder: Path) -> RunDir:
    made = RunDir(folder)
    made.claim(load_recipe("tiny", ["eval.bootstrap_samples=100"]))
    return made


def answer(made: RunDir, task: Task, stage: str, engine: Answerer, *, exported: bool = True) -> None:
    rows = run(task, engine, made.path / "scores" / f"{task.name}.{stage}.jsonl")
    if exported:
        export(task, rows, export_file(made, task.name, stage), model=f"toy, stage {stage}")


def saying(text: str, system_prompt: str | None = None) -> FromEngine:
    return FromEngine(ScriptedEngine([text]), system_prompt)


def cases() -> list[Case]:
    said = {Level.NONE: "The tomatoes are ripe!", Level.HIGH: "I want to kill myself."}
    return [
        Case(f"c{risk}", "f", "c", "en", risk, (), ({"role": "user", "content": text},)) for risk, text in said.items()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with something of everything."""
    made = new_run(tmp_path_factory.mktemp("runs") / "tiny")
    score(made, made.recipe())
    for step in range(4):
        append_row(made.metrics, metrics_row(step, "train", lm=3.0 - step / 2, emotion=1.0))
    append_row(made.metrics, metrics_row(3, "validation", lm=1.0))
    source = {"location": "package", "sha256": "f" * 64, "counts": {"train": 30}, "rejected": {}, "overlaps": 4}
    made.add_to_manifest(data={"bundled": source}, git="abc123", device="cpu")
    held_out = responses_task([conversation(number) for number in range(8)])
    for stage, reply in {"base": "That sounds so painful. You must feel lonely.", "sft": HOSTILE}.items():
        answer(made, qualitative_task(), stage, saying(reply))
        answer(made, red_team_task(), stage, saying("I can't help with that."), exported=False)
        answer(made, warm_task(), stage, saying("You're right." if stage == "sft" else "Canberra."), exported=False)
        answer(made, held_out, stage, saying("I feel joy too."))
    setting = Setting(ScriptedEngine(["That sounds hard."]), load_detector(), load_directory(), country="IE")
    answer(made, safety_task(cases()), "sft", FromCompanion(setting))
    rows = run(held_out, saying("I feel joy too."), made.path / "scores" / "responses.sft.jsonl")
    scores = summarise(rows, ["Ok.", "I see."], samples=100)
    assert scores is not None
    write_json(made.path / "scores" / "responses.json", {"stages": {"sft": scores.model_dump(mode="json")}})
    eq_bench = {"id": "1", "status": "scored", "reply": "Sad: 3", "scores": {"parsed": True}}
    append_row(made.path / "scores" / "eq-bench.sft.jsonl", eq_bench)
    write_json(made.path / "scores" / "eq-bench.json", {"stages": {"sft": EQ_BENCH}})
    turns = (TalkTurn(role="user", text="Hi."), TalkTurn(role="assistant", text="That sounds hard.", level="none"))
    talk = Talk(
        id="p#1", persona="p", domain="work", risk="none", seeker="s", companion="c", seed=0, made_with="",
        status="scored", ended="turns", turns=turns,
    )  # fmt: skip
    append_row(made.path / "scores" / "simulated.sft.jsonl", talk.model_dump(mode="json"))
    write_text(made.path.parent / "ablate-tiny" / "ablation.md", table(["variant", "seeds"], [["tiny r=4", 3]]))
    write_text(made.path.parent / "ablate-tiny" / "ablation.jsonl", "")
    write_report(made)
    return made


def read(made: RunDir) -> Page:
    return Page((made.path / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_whole_and_leads_nowhere_else(whole: RunDir) -> None:
    text = (whole.path / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.problems == []
    assert text.startswith("<!doctype html>")
    tags = [tag for tag, _ in found.tags]
    assert not LOADS & {*tags}
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert [tags.count(tag) for tag in ("h1", "main", "title")] == [1, 1, 1]
    ids = found.values("id")
    assert len({*ids}) == len(ids)
    assert all(href.startswith("#") and href[1:] in ids for href in found.values("href"))
    assert all(each in ids for each in found.values("aria-labelledby"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|http", style)
    policy = next(attrs["content"] for _, attrs in found.tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_picture_is_inside_with_its_size_and_what_it_shows(whole: RunDir) -> None:
    images = [attrs for tag, attrs in read(whole).tags if tag == "img"]
    files = sorted((whole.path / "plots").glob("*.png"))
    assert len(images) == len(files) >= 8
    inside = [base64.b64decode(each["src"].removeprefix("data:image/png;base64,")) for each in images]
    assert sorted(inside) == sorted(file.read_bytes() for file in files)
    assert all(each.startswith(PNG) for each in inside)
    assert all(each["alt"].startswith("Picture: ") and int(each["width"]) and int(each["height"]) for each in images)
    assert {"lengths.qualitative.png", "lengths.responses.png", "loss.sft.png"} <= {file.name for file in files}


def test_headings_have_anchors_and_the_contents_name_every_chapter(whole: RunDir) -> None:
    found = read(whole)
    chapters = [attrs["id"] for tag, attrs in found.tags if tag == "h2"]
    assert chapters[:4] == ["in-short", "what-this-is", "where-the-base-is-100", "held-out-replies"]
    assert chapters[-1] == "contents"
    links = found.values("href")
    assert all(links.count(f"#{each}") >= 2 for each in chapters[:-1])
    assert all(attrs.get("scope") for tag, attrs in found.tags if tag == "th")
    scrolled = [attrs["aria-label"] for _, attrs in found.tags if attrs.get("role") == "region"]
    assert len({*scrolled}) == len(scrolled) == sum(tag == "table" for tag, _ in found.tags) > 12


def test_terms_in_tables_lead_to_their_definitions(whole: RunDir) -> None:
    links = [(attrs["href"], attrs["title"]) for tag, attrs in read(whole).tags if tag == "a" and "title" in attrs]
    assert ("#is-perplexity", "Perplexity: e to the loss per token.") in links
    assert "#is-macro-f1" in dict(links)


def test_what_was_said_stands_there_and_does_nothing(whole: RunDir) -> None:
    found = read(whole)
    shown = " ".join(HOSTILE.split())
    assert found.text.count(shown) == 12  # once with each prompt that is shown
    assert "**sft**" not in found.text
    assert conversation(3).turns[0].text not in found.text  # a held-out turn
    markdown = (whole.path / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown


def test_each_section_shows_its_numbers_beside_floors(whole: RunDir) -> None:
    text = read(whole).text
    for words in (
        "qualitative, question 60 0.000",
        "floor: always refuses 96 46 of 46: 1.000",
        "Of the requests that a good reply declines, stage sft declines 46 of 46",
        "Gate (at most 0.050 worse on emotional prompts)",
        "floor: always agrees",
        "card shown at high 1 of 1: 1.000",
        "sft 171 of 171 40.20 40.10 40.30 none 2.90 -14.60 [-18.00, -11.00]",
        "floor: word mean all 54.83",
        "most frequent train reply",
        "1 talks of 1 personas",
        "tiny r=4 3",
        "bundled 30 4",
        "qualitative, base 60 8 8 8 8",
        "A good reply: ",
        "warmline eval",
        "sft, lm, train 4 3.000 1.500",
    ):
        assert words in text, words


def test_a_run_without_anything_says_what_is_missing(tmp_path: Path) -> None:
    made = new_run(tmp_path / "runs" / "tiny")
    write_report(made)
    found = read(made)
    assert found.problems == []
    for words in (
        "Nothing has been scored yet",
        "it takes scores of the base and of a tuned stage",
        "No stage has answered prompts yet",
        "Nothing has been tested for safety in this run",
        "There are no replies to lay side by side",
        "No loss was written down",
        "No table of warmline ablate has this run in it",
        "The manifest does not say which data was used",
    ):
        assert words in found.text, words


def test_broken_files_are_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    made = new_run(tmp_path / "runs" / "tiny")
    scores = made.path / "scores"
    write_text(scores / "qualitative.sft.jsonl", '{"id": "qual-001"}\n{"id"')
    row = {"id": "red-001", "status": "scored", "reply": "No.", "scores": {}, "about": {}}
    append_row(scores / "redteam.sft.jsonl", row)
    append_row(scores / "eq-bench.sft.jsonl", row)
    write_text(scores / "eq-bench.json", "[]")
    write_text(scores / "simulated.sft.jsonl", "[]\n")
    write_text(export_file(made, "warm", "sft"), "not a row\n")
    write_text(made.path.parent / "ablate-tiny" / "ablation.md", "no rows beside it")
    write_report(made)
    found = read(made)
    assert found.problems == []
    for words in (
        "scores/qualitative.sft.jsonl, line 1: not a row of scores",
        "The rows cannot be shown (KeyError",
        "The rows cannot be shown (ValueError: eq-bench.json holds no stages)",
        "scores/simulated.sft.jsonl, line 1",
        "The replies of stage sft cannot be read: warm.sft.jsonl: line 1",
        "ablate-tiny cannot be read",
        "The rows of redteam cannot be read.",
    ):
        assert words in found.text, words
    assert str(tmp_path) not in found.text.split("How it was made")[0]  # before the commands that name it


def test_stages_that_were_not_asked_alike_are_not_held_against_each_other(tmp_path: Path) -> None:
    made = new_run(tmp_path / "tiny")
    for stage, prompt in {"base": None, "sft": "Be kind."}.items():
        answer(made, qualitative_task(), stage, saying("Yes.", prompt))
    write_report(made)
    assert "Stage sft against the base cannot be shown" in read(made).text
    assert "system_prompt" in read(made).text


def test_replies_without_words_say_why(tmp_path: Path) -> None:
    made = new_run(tmp_path / "tiny")
    row = {"prompt_id": "red-001", "prompt": [{"role": "user", "content": "Hi <b>"}], "model": "m", "decoding": {}}
    for stage, rest in {
        "base": {"response": None, "meta": {"reason": "too long"}},
        "sft": {"response": "", "meta": {"notice": "I am *not* able to answer.", "card": True}},
        "dpo": {"response": "", "meta": {}, "prompt": [{"role": "user", "content": "Bye"}]},
    }.items():
        append_row(export_file(made, "redteam.companion", stage), row | rest)
    write_report(made)
    text = read(made).text
    assert "base: no reply: too long" in text
    assert "sft (with a card of helplines): no reply was released; the app said: I am *not* able to answer." in text
    assert "dpo: an empty reply" in text
    assert "The stages were not asked the same words" in text
    assert "Person: Hi <b>" in text


def test_only_known_pictures_and_links_are_some(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    ))  # fmt: skip
    text = (
        "# T\n\n## Same\n\n![b](plots/a.png)\n\n![c](http://example.org/c.png) <http://example.org/> "
        "[d](data:text/html,x) [e](recipe.yaml) [g]() ![h]()\n\n## Same\n\n<b>f</b>\n"
    )
    found = Page(page(text, {"plots/a.png": picture}, {"recipe.yaml": "#same"}))
    assert found.problems == []
    assert [attrs["width"] for tag, attrs in found.tags if tag == "img"] == ["1"]
    assert {"same", "same--2"} <= {*found.values("id")}
    assert {*found.values("href")} == {"#report", "#contents", "#same", "#same--2"}
    assert "![c](http://example.org/c.png) <http://example.org/> [d](data:text/html,x) e g h" in found.text
    assert "<b>f</b>" in found.text
    picture.write_text("no picture")
    with pytest.raises(OSError, match="not a PNG"):
        page(text, {"plots/a.png": picture}, {})


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
    | st.text("`*_[]()<>&|~#!\\-+=:.1 \n\"'$", max_size=60)
)
@settings(max_examples=150, deadline=None)
def test_quoted_words_are_seen_as_they_are(said: str) -> None:
    text = (
        "# T\n\n## C\n\n- **base**: "
        + quoted(said).replace("\n", "\n  ")
        + "\n\n> *Person:* "
        + quoted(said).replace("\n", "\n> ")
    )
    found = Page(page(text, {}, {}))
    assert found.problems == []
    names = [tag for tag, _ in found.tags]
    inside = found.tags[names.index("main") : names.index("nav")]
    assert {tag for tag, _ in inside} <= {
        *("main", "header", "h1", "section", "h2", "a", "ul", "li", "strong", "blockquote", "p", "em", "br"),
        *("footer", "code"),
    }
    replaced = "".join(
        "\ufffd"
        if re.match("[\0-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", each)
        else each
        for each in said
    )
    expected = " ".join(replaced.split())
    assert f"base: {expected} Person: {expected}".replace("  ", " ") in found.text.replace("  ", " ")


def test_long_words_are_cut_and_say_so() -> None:
    assert quoted("x" * 5000) == "x" * MAX_QUOTED + " (cut here)"


def test_the_same_run_gives_the_same_page(whole: RunDir) -> None:
    before = (whole.path / "report.html").read_bytes()
    write_report(whole)
    assert (whole.path / "report.html").read_bytes() == before
    assert json.loads((whole.path / "manifest.json").read_text())["git"] == "abc123"
