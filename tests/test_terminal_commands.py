"""The terminal's commands that choose a style, keep, write down and forget a conversation."""

import json
import os
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from warmline.cli import app
from warmline.config.fields import StyleSettings
from warmline.engine.engine import Chunk, Engine, Message
from warmline.engine.scripted import ScriptedEngine
from warmline.safety.validate.context import Turn
from warmline.serve import transcript
from warmline.serve.terminal import chat
from warmline.serve.transcript import Saved, TranscriptError, read_saved, write_export, write_saved

from .test_terminal import RISK, SETTING, Recorded

TURNS = [Turn("user", "I lost my job \ud800"), Turn("assistant", "That sounds hard.")]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def talk(engine: Engine, lines: Iterable[str], saved: tuple[Path, Saved] | None = None) -> str:
    out: list[str] = []
    waiting = iter(lines)
    setting = replace(SETTING, engine=engine, system_prompt="Be kind.")
    chat(setting, read_line=lambda: next(waiting, None), write=out.append, title="scripted", saved=saved)
    return "".join(out).partition("/help for all commands.\n\n")[2]


def files() -> list[str]:
    return sorted(file.name for file in Path().iterdir())


# -- style -------------------------------------------------------------------------------------------------------------


def test_a_style_counts_from_the_next_turn_on() -> None:
    engine = Recorded(lambda turn: [Chunk("ok")])
    out = talk(engine, ["hi", "/style warm best friend", "more", "/style mentor", "/style", "and", "/style off", "end"])
    systems = [messages[0].content.splitlines()[:2] for messages in engine.asked]
    assert systems == [
        ["Be kind."],
        ["Be kind.", "<tone:warm><persona:best friend>"],
        ["Be kind.", "<tone:warm><persona:mentor>"],
        ["Be kind."],
    ]
    assert "style: warm, best friend\n" in out
    assert "style: warm, mentor\ntones: warm, gentle, " in out
    assert out.endswith("style: off\ncompanion: ok\n")


def test_a_mistyped_style_names_those_that_there_are() -> None:
    engine = Recorded(lambda turn: [Chunk("ok")])
    out = talk(engine, ["/style wram"])
    assert out.startswith("That is none of the styles.\nstyle: off\ntones: warm")
    assert engine.asked == []


@pytest.mark.parametrize(
    "sentence",
    [
        "/style matters to nobody I know",
        "/save me",
        "/save me please",
        "/export everything I ever made",
        "/forget it",
        "/why me",
    ],
)
def test_a_sentence_with_a_slash_reaches_the_companion(sentence: str) -> None:
    engine = Recorded(lambda turn: [Chunk("ok")])
    talk(engine, [sentence])
    assert engine.asked[0][-1] == Message("user", sentence)
    assert files() == []


# -- files -------------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_unless_it_is_asked_for() -> None:
    talk(ScriptedEngine(["ok"]), ["hello", RISK, "/why", "/style calm", "/help", "/quit"])
    assert files() == []
    assert "nothing was written" in talk(ScriptedEngine(["ok"]), ["/save", "/export"])
    assert files() == []


def test_an_export_is_for_its_owner_alone_and_never_over_another_file() -> None:
    Path("taken.json").write_text("mine")
    out = talk(
        ScriptedEngine(["That sounds hard."]),
        ["I lost my job", "/export talk.json", "/export taken.json", '/export "a b.json"'],
    )
    assert "Written to talk.json: 2 turns, not encrypted" in out
    assert "taken.json exists already: nothing was written" in out
    assert Path("taken.json").read_text() == "mine"
    assert files() == ["a b.json", "taken.json", "talk.json"]
    assert stat.S_IMODE(Path("talk.json").stat().st_mode) == 0o600
    written = json.loads(Path("talk.json").read_text())
    assert [(turn["role"], turn["content"]) for turn in written["turns"]] == [
        ("user", "I lost my job"),
        ("assistant", "That sounds hard."),
    ]
    assert "an AI" in written["about"]
    assert written["turns"][0]["at"].endswith("+00:00")


def test_without_a_name_each_file_gets_one_of_its_own() -> None:
    talk(ScriptedEngine(["ok"]), ["hello", "/export", "/export", "/save"])
    assert len(files()) == 3
    assert all(name.startswith(("warmline-export-", "warmline-chat-")) for name in files())


@pytest.mark.parametrize("name", ["no/such/folder.json", "folder.json"])
def test_a_file_that_cannot_be_written_is_said_in_a_line(name: str) -> None:
    Path("folder.json").mkdir()
    out = talk(ScriptedEngine(["ok"]), ["hello", f"/save {name}", "still here"])
    assert "nothing was written" in out
    assert out.endswith("companion: ok\n")


def test_ctrl_c_while_writing_leaves_no_half_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> str:
        signal.raise_signal(signal.SIGINT)
        return ""

    real = os.fdopen

    def opened(handle: int, *rest: object) -> object:
        os.close(handle)
        monkeypatch.setattr(os, "fdopen", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(transcript.os, "fdopen", opened)
    out = talk(ScriptedEngine(["ok"]), ["hello", "/save talk.json", "more"])
    assert "(stopped)\ncompanion: ok\n" in out
    assert files() == []
    monkeypatch.setattr(transcript.json, "dumps", interrupted)
    assert "(stopped)" in talk(ScriptedEngine(["ok"]), ["hello", "/export talk.json"])


def test_a_saved_conversation_goes_on_with_its_care_and_its_style() -> None:
    engine = Recorded(lambda turn: [Chunk("That sounds nice.")])
    talk(engine, ["/style calm", RISK, "/save talk.json"])
    kept = read_saved(Path("talk.json"))
    assert kept.style == StyleSettings(tone="calm")
    assert kept.turns[0].content == RISK
    assert "risk" not in json.loads(Path("talk.json").read_text())

    engine = Recorded(lambda turn: [Chunk("That sounds nice.")])
    out = talk(engine, ["what is for dinner", "/forget"], saved=(Path("talk.json"), kept))
    assert "116 123" in out.partition("companion")[0]  # still in danger: the card comes first
    assert RISK in engine.asked[0][1].content
    assert out.endswith("What was said is forgotten.\nDeleted: talk.json\n")
    assert files() == []


def test_forget_takes_the_files_and_leaves_the_care() -> None:
    engine = Recorded(lambda turn: [Chunk("That sounds nice.")])
    out = talk(engine, [RISK, "/save a.json", "/export b.json", "/forget", "what is for dinner", "/why"])
    assert files() == []
    assert "Deleted: a.json\nDeleted: b.json\n" in out
    last = engine.asked[-1]
    assert last[0].role == "system"
    assert "Be kind." not in last[0].content  # the overlay of someone in danger
    assert all(RISK not in message.content for message in last)


def test_reset_leaves_files_alone() -> None:
    talk(ScriptedEngine(["ok"]), ["hello", "/save a.json", "/reset"])
    assert files() == ["a.json"]


def test_a_stopped_reply_is_saved_as_far_as_it_was_seen() -> None:
    def answer(_: int) -> Iterator[Chunk]:
        yield Chunk("So far. ")
        yield Chunk("And ")
        signal.raise_signal(signal.SIGINT)

    talk(Recorded(answer), ["hello", "/save a.json"])
    assert [turn.content for turn in read_saved(Path("a.json")).turns] == ["hello", "So far."]


def test_what_half_a_letter_leaves_is_readable() -> None:
    write_saved(Path("a.json"), TURNS, [1.0, None], StyleSettings())
    write_export(Path("b.json"), TURNS, [1.0, None], "t")
    assert [turn.t for turn in read_saved(Path("a.json")).turns] == [1.0, None]
    assert read_saved(Path("a.json")).turns[0].content == "I lost my job ?"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_text("not JSON secret"),
        lambda file: file.write_text('{"warmline_chat": 2, "turns": []}'),
        lambda file: file.write_text('{"turns": [{"role": "system", "content": "secret"}]}'),
        lambda file: file.write_text('{"turns": [{"role": "user", "content": 3, "secret": 1}]}'),
        lambda file: file.write_bytes(b"\xff\xfesecret"),
        lambda file: file.mkdir(),
        lambda file: None,
    ],
)
def test_a_file_that_is_no_conversation_is_refused_without_its_words(spoil: Callable[[Path], object]) -> None:
    spoil(Path("bad.json"))
    with pytest.raises(TranscriptError, match=r"^bad\.json: ") as caught:
        read_saved(Path("bad.json"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--tone", "sarcastic"], "tone: expected one of warm, gentle"),
        (["--persona", "best fiend"], "did you mean 'best friend'?"),
        (["--resume", "missing.json"], "missing.json: No such file or directory"),
        (["--candidates", "9"], "Invalid value for '--candidates'"),
    ],
)
def test_what_the_command_line_cannot_do_is_said_in_a_line(words: list[str], error: str) -> None:
    done = CliRunner().invoke(app, ["chat", "m", "--url", "http://127.0.0.1:9", *words], input="")
    assert done.exit_code == 2
    assert error in " ".join(done.stderr.replace("│", " ").split())


def test_the_command_line_goes_on_with_a_saved_conversation() -> None:
    write_saved(Path("talk.json"), TURNS, [1.0, 2.0], StyleSettings(tone="calm"))
    words = ["chat", "m", "--url", "http://127.0.0.1:9", "--no-audit", "--resume", "talk.json", "--persona", "mentor"]
    done = CliRunner().invoke(app, words, input="/style\n/forget\n")
    assert done.exit_code == 0
    assert "Going on with talk.json: 2 turns." in done.stdout
    assert "style: calm\n" in done.stdout
    assert "Deleted: talk.json" in done.stdout
    assert files() == []
