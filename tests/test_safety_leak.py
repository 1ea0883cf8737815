"""Nothing unchecked gets out: thousands of schedules, a real terminal, and no way in the code around the door."""

import ast
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import leak
from benchmarks.leaky import ALLOWED, BLOCKED, CRISIS, LENGTH, LETTERS, Leaky
from warmline.dialogue import ladder, stream
from warmline.dialogue.companion import Answer, Session, Setting
from warmline.engine.engine import EngineError
from warmline.engine.remote import RemoteEngine
from warmline.safety.levels import Level
from warmline.safety.validate import release, rules
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.release import Verdict, validate

from .test_architecture import MODULES, part_of

NUM_SCHEDULES = 5_000
CANARY = "bcdfghjklmnp"


def test_nothing_unchecked_leaks() -> None:
    total = leak.total_of(leak.play_all(0, NUM_SCHEDULES, seed=0))
    assert total.leaks == {}, f"python -m benchmarks.leak --only {total.leaky[0]}"
    assert total.canaries > 2 * NUM_SCHEDULES
    # It would show nothing if its schedules went nowhere.
    assert {"pieces", "answer", "session", "notes", "terminal", "json", "audit"} <= total.sinks.keys()
    assert {level for level, _ in total.answers} == {level.label for level in Level}
    assert {source for _, source in total.answers} >= {"model", "rewrite", "slots", "guided", "notice"}


def test_a_schedule_hangs_on_its_number_and_the_seed_alone() -> None:
    assert leak.play_all(7, 12, seed=3) == leak.play_all(7, 12, seed=3)


@pytest.mark.parametrize("text", BLOCKED)
def test_the_blocked_sentences_are_blocked_at_every_level(text: str) -> None:
    """The leak test would show nothing if the rules let its canaries pass."""
    for level in Level:
        assert validate(text.format(CANARY), ReplyContext(level)).violations


def test_the_allowed_sentences_pass() -> None:
    for text in (*ALLOWED, *CRISIS):
        for level in Level if text in CRISIS else (Level.NONE, Level.ELEVATED):
            assert validate(text, ReplyContext(level)).passed, (text, level)


def _passed(*_: object) -> Verdict:
    return Verdict((), (), ())


@pytest.mark.parametrize(
    ("places", "broken", "sinks"),
    [
        ([(release, "validate_sentence")], _passed, {"pieces", "terminal", "session", "answer"}),
        ([(release, "validate"), (ladder, "validate")], _passed, {"pieces", "terminal", "session", "answer"}),
        ([(ladder, "reason_of"), (stream, "reason_of")], str, {"notes", "answer", "terminal"}),
    ],
)
def test_a_broken_release_is_found(
    places: list, broken: object, sinks: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in places:
        monkeypatch.setattr(module, name, broken)
    assert leak.total_of(leak.play_all(0, 400, seed=1)).leaks.keys() >= sinks


@pytest.mark.parametrize("sink", ["stdout", "stderr", "log", "home", "exceptions"])
def test_a_part_that_tells_what_it_read_is_found(sink: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(text: str, _: object) -> list:
        if sink == "log":
            logging.getLogger("some.library").debug(text)
        elif sink == "home":
            Path(os.environ["WARMLINE_HOME"], "cache.txt").write_text(text, encoding="utf-8")
        else:
            print(text, file=sys.stderr if sink == "stderr" else sys.stdout)
        return []

    if sink == "exceptions":
        monkeypatch.setattr(leak, "respond", _without_a_net)
    for of in (rules.RULES, rules.OF_A_SENTENCE):
        monkeypatch.setitem(of, "promise_of_secrecy", told)  # type: ignore[arg-type]
    assert sink in leak.total_of(leak.play_all(0, 30, seed=1)).leaks


def _without_a_net(setting: Setting, _: Session, text: str, now: float) -> Iterator[Answer]:
    """A door that lets an engine's error out."""
    assert isinstance(setting.engine, Leaky)
    setting.engine._fail()
    yield from ()


# -- whose words an error may show -------------------------------------------------------------------------------------


def test_an_engines_error_is_shown_where_the_engine_layer_wrote_it() -> None:
    with pytest.raises(EngineError) as caught:
        RemoteEngine("http://127.0.0.1:1", "m").score([], "")
    assert ladder.reason_of(caught.value).startswith("http://127.0.0.1:1/")
    with pytest.raises(EngineError) as caught:
        raise EngineError(CANARY)
    assert ladder.reason_of(caught.value) == "EngineError"
    assert ladder.reason_of(EngineError(CANARY)) == "EngineError"
    assert ladder.reason_of(RuntimeError(CANARY)) == "RuntimeError"


# -- a real terminal ---------------------------------------------------------------------------------------------------

PROGRAM = """
import random, sys
from dataclasses import replace
from benchmarks.leak import setting
from benchmarks.leaky import Clock, Leaky
from warmline.serve.terminal import chat, console_lines, console_write
engine = Leaky(random.Random(5), Clock())
engine._trouble = 0.0
chat(replace(setting(), engine=engine), read_line=console_lines(), write=console_write(), title="leak")
with open(sys.argv[1], "w") as file:
    file.write("\\n".join(engine.canaries))
"""


def test_a_terminal_shows_only_what_was_released(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "canaries")]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=Path(__file__).parents[1]) as process:
        os.close(slave)
        os.write(master, b"hello\nI made soup today.\nI want to kill myself tonight\nnever mind\n/quit\n")
        shown = b""
        try:
            while piece := os.read(master, 4096):
                shown += piece
        except OSError:  # Linux reports the closed other end so
            pass
        assert process.wait(60) == 0
    os.close(master)
    record = leak.Record()
    record.shown["terminal"].append(shown.decode("utf-8", "replace"))
    canaries = (tmp_path / "canaries").read_text().split()
    assert len(canaries) > 4
    assert b"companion: " in shown
    assert leak.leaked(record, canaries) == ()
    record.shown["terminal"].append(canaries[0][:7])
    assert leak.leaked(record, canaries) == ("terminal",)
    assert all(len(word) == LENGTH and {*word} <= {*LETTERS} for word in canaries)


# -- no way around the door, read in the code --------------------------------------------------------------------------

SINKS = ("serve", "commands", "cli", "__main__")  # parts that show or write words


def around_the_door(tree: ast.AST) -> list[str]:
    """What a module of the sinks must not do: ask an engine itself, read its chunks, or show a piece that `text_of` has
    not seen."""
    found: list[str] = []
    streams = {"respond"}  # names of what gives pieces
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _calls(node.value, streams):
            streams |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"generate", "climb"}:
            found.append(f"{node.lineno}: asks an engine")
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {alias.name.rsplit(".", 1)[-1] for alias in node.names}
            found += [f"{node.lineno}: imports {name}" for name in names & {"Chunk", "GenerateRequest", "climb"}]
        if isinstance(node, ast.For) and _calls(node.iter, streams):
            found += [f"{line}: shows a piece" for line in _bare_uses(node)]
    return found


def _calls(node: ast.AST, names: set[str]) -> bool:
    inner = node.func if isinstance(node, ast.Call) else node
    return isinstance(inner, ast.Name) and inner.id in names


def _bare_uses(loop: ast.For) -> list[int]:
    """Lines in which the loop's variable is used but to ask what it is, through `text_of`, or to be kept as answer."""
    assert isinstance(loop.target, ast.Name)
    fine: set[ast.AST] = set()
    for node in ast.walk(loop):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"isinstance", "text_of"}:
            fine |= {*node.args}
        if isinstance(node, ast.Attribute) and node.attr == "as_json":  # which a card alone has: the words of its text
            fine.add(node.value)
        if isinstance(node, ast.If) and ast.unparse(node.test) == f"isinstance({loop.target.id}, Answer)":
            fine |= {each for line in node.body for each in ast.walk(line)}
    uses = [node for line in loop.body for node in ast.walk(line) if isinstance(node, ast.Name)]
    return [node.lineno for node in uses if node.id == loop.target.id and node not in fine]


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) in SINKS])
def test_no_sink_goes_around_the_door(module: str) -> None:
    assert around_the_door(ast.parse(MODULES[module].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "for chunk in engine.generate(request): print(chunk.text)",
        "from warmline.engine.engine import Chunk",
        "for piece in respond(setting, session, text): write(piece)",
        "stream = respond(setting, session, text)\nfor piece in stream:\n    write(str(piece))",
        "for piece in respond(a, b, c):\n    if isinstance(piece, Answer): x = piece\n    else: write(f'{piece}')",
    ],
)
def test_the_check_above_sees_ways_around(code: str) -> None:
    assert len(around_the_door(ast.parse(code))) == 1


def test_the_check_above_has_sinks_to_look_at() -> None:
    code = MODULES["warmline.serve.terminal"].read_text(encoding="utf-8")
    assert "in stream" in code
    assert around_the_door(ast.parse(code.replace("text_of(piece)", "str(piece)")))


# They ask engines to measure them: what comes back goes into files of scores, and nobody is talked to.
ASK_TO_MEASURE = {
    f"warmline.evaluate.{name}" for name in ("answers", "eq_bench3", "eq_bench_questions", "judge", "simulate")
}


def test_engines_are_asked_and_released_text_is_made_in_one_place_each() -> None:
    asks, makes = set(), set()
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                asks |= {module} if called.endswith(".generate") else set()
                makes |= {module} if called in {"Validated", "release.Validated", "str.__new__"} else set()
    # Engines around an engine, which show nothing themselves.
    passes_on = {"warmline.engine.wrapped", "warmline.engine.continuous"}
    # The last two stand between the engine and the first two, and release nothing themselves.
    doors = {f"warmline.dialogue.{name}" for name in ("ladder", "stream", "reflection", "repair")}
    assert asks - ASK_TO_MEASURE - passes_on == doors
    assert asks >= ASK_TO_MEASURE
    talks = [file.read_text(encoding="utf-8") for module, file in MODULES.items() if part_of(module) == "serve"]
    assert talks
    assert not [code for code in talks if "warmline.evaluate" in code]
    assert makes == {"warmline.safety.validate.release"}


WORDS_OF_OTHERS = ("str(", "_server_message", "get_error", "reason_phrase", "error", "message")


def test_the_engine_layer_repeats_nobody_before_a_colon() -> None:
    """What a server or a library answered may quote the conversation; what stands before it is shown."""
    raised = 0
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if part_of(module) == "engine" and isinstance(node, ast.Call) and ast.unparse(node.func) == "EngineError":
                raised += 1
                said = [each for each in _own_words(node.args[0]) for words in WORDS_OF_OTHERS if words in each]
                assert said == [], f"{module}:{node.lineno}"
    assert raised > 10


def _own_words(message: ast.expr) -> Iterator[str]:
    """The values that stand in a message before its first colon."""
    for part in message.values if isinstance(message, ast.JoinedStr) else [message]:
        if not isinstance(part, ast.Constant):
            yield ast.unparse(part)
        elif ": " in str(part.value):
            return
