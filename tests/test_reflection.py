"""The hidden line before a reply: what the engine is asked, that it is read once, and that nobody ever sees it."""

import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.leak import Record, leaked
from benchmarks.leaky import LENGTH, LETTERS
from warmline.config.training import ModelSettings
from warmline.dialogue.companion import Answer, Session, Setting, respond
from warmline.dialogue.reflection import CLOSE, NUM_RUN, OPEN, OPENING, Reflecting, Unheard, line_of
from warmline.dialogue.repair import considered
from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Reading, Sampling, Scores
from warmline.engine.local import LocalEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.model.load import load_base, load_tokenizer
from warmline.model.support_model import SupportModel
from warmline.pipeline import open_engine
from warmline.run_dir import RunDir
from warmline.safety.detect import load_detector
from warmline.safety.levels import Level
from warmline.safety.release import text_of
from warmline.safety.resources.directory import load_directory
from warmline.safety.validate.context import ReplyContext

from .conftest import ToyRecipe
from .runs import train_here
from .test_companion import GOOD, RISK, Says, answer

SETTING = Setting(
    ScriptedEngine(), load_detector(), load_directory(), "You are a friend.", country="IE", reflection=True
)
SAD = Reading("emotion", ("sadness", "joy"), (0.8, 0.2))
PLAN = Reading("strategy", ("Reflection of feelings", "Question"), (0.6, 0.4))
NUM_SCHEDULES = 30  # whole conversations; the filter alone is played far more often
NUM_REPLIES = 1_500
NOTE = "They lost a job that mattered and feel small."


def thinks(request: GenerateRequest) -> list[str]:
    """A line where one is asked for, else a reply."""
    return [f" {NOTE}\nmore" if request.prefill == OPENING else "That sounds so hard. I am here."]


def test_the_line_is_written_first_and_stands_before_the_reply() -> None:
    engine = Says(thinks, ("n", "logits"))
    pieces, last = answer(replace(SETTING, engine=engine), "I lost my job today.")
    first, second = engine.requests
    assert (first.prefill, first.sampling.max_new_tokens, first.sampling.stop) == (OPENING, 40, ("\n", CLOSE))
    assert second.prefill == f"{OPENING} {NOTE}{CLOSE}\n"
    assert first.messages == second.messages
    assert last.reply == "That sounds so hard. I am here."
    assert len(pieces) == 2
    assert last.notes == ()


def test_without_reflection_the_engine_is_asked_once() -> None:
    engine = Says(thinks, ("n", "logits"))
    answer(replace(SETTING, engine=engine, reflection=False), "I lost my job today.")
    assert [request.prefill for request in engine.requests] == [""]


def test_a_server_gets_the_line_in_the_newest_turn() -> None:
    engine = Says(lambda request: [NOTE if "for yourself" in request.messages[-1].content else "That is hard."])
    _, last = answer(replace(SETTING, engine=engine), "I lost my job today.")
    first, second = engine.requests
    assert not first.prefill
    assert not second.prefill
    assert first.messages[:-1] == second.messages[:-1]
    assert first.messages[-1].content.startswith("I lost my job today.\n\n(Before the reply")
    assert NOTE in second.messages[-1].content
    assert second.messages[-1].content.startswith("I lost my job today.\n\n(A private note")
    assert last.reply == "That is hard."


def test_what_the_heads_read_is_named_in_the_line() -> None:
    assert (
        line_of(" They lost it\nx", (SAD, PLAN))
        == "They lost it. They may feel sadness. Next: say what they seem to feel."
    )
    assert line_of("", (SAD,)) == "They may feel sadness."
    assert line_of("", (Reading("emotion", ("neutral",), (0.9,)),)) == ""
    assert line_of("</note><b>", ()) == "/note b."
    unsure = Reading("emotion", ("sadness", "joy", "fear", "anger"), (0.28, 0.24, 0.24, 0.24))
    assert line_of("They lost it.", (unsure,)) == "They lost it."


@pytest.mark.parametrize("text", [RISK, "I took all the pills just now"])
def test_in_danger_nothing_is_reflected(text: str) -> None:
    engine = Says(lambda request: [GOOD] * request.n, ("n", "logits"))
    _, last = answer(replace(SETTING, engine=engine), text)
    assert last.level >= Level.HIGH
    assert all(not request.prefill for request in engine.requests)
    assert considered(replace(SETTING, engine=engine), (), ReplyContext(Level.HIGH)) is engine


def test_readings_come_before_the_line_so_that_a_risk_head_is_heard_first() -> None:
    engine = ScriptedEngine(["So it goes. "], readings=(SAD,))
    chunks = Reflecting(engine, (Message("user", "hi"),)).generate(GenerateRequest((Message("user", "hi"),)))
    assert next(chunks).readings == (SAD,)
    assert not any(chunk.readings for chunk in chunks)


def test_an_engine_that_cannot_write_the_line_still_replies() -> None:
    def say(request: GenerateRequest) -> list[str]:
        if request.prefill == OPENING:
            raise EngineError("the server said: something")
        return ["That sounds so hard."]

    _, last = answer(replace(SETTING, engine=Says(say, ("n", "logits"))), "I lost my job today.")
    assert last.reply == "That sounds so hard."
    assert last.notes == ("no reflection: EngineError",)


def test_a_refused_sentence_is_drawn_again_behind_the_same_line() -> None:
    def say(request: GenerateRequest) -> list[str]:
        if request.prefill == OPENING:
            return [NOTE]
        return (
            ["I like it."] if request.prefill.endswith("nice.") else ["That is nice. I remember when we met last week."]
        )

    engine = Says(say, ("n", "logits"))
    _, last = answer(replace(SETTING, engine=engine), "I bought a lamp.")
    assert last.reply == "That is nice. I like it."
    assert [request.prefill for request in engine.requests][1:] == [
        f"{OPENING} {NOTE}{CLOSE}\n",
        f"{OPENING} {NOTE}{CLOSE}\nThat is nice.",
    ]


# -- never seen --------------------------------------------------------------------------------------------------------


def cut(rng: random.Random, text: str) -> Iterator[str]:
    size = rng.choice((1, 5, 40, 1000))
    while text:
        end = rng.randint(1, size)
        yield text[:end]
        text = text[end:]


class Blabs:
    """Writes a line with canaries, then tells it: whole or from some word on, with its marks or without, cut anywhere."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        can: tuple[Capability, ...] = ("n", "logits", "heads")
        self._can: frozenset[Capability] = frozenset(name for name in can if rng.random() < 0.7)
        self.canaries: list[str] = []
        self.line = ""
        self.num_told = 0

    def capabilities(self) -> frozenset[Capability]:
        return self._can

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        raise EngineError(self.line)

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        rng = self._rng
        if request.prefill == OPENING or "for yourself" in request.messages[-1].content:
            words = [self._canary() if number % 4 == 2 else f"they{number}" for number in range(rng.randint(4, 20))]
            self.line = " ".join(words)
            texts = [" " + self.line + rng.choice(("", "\n", "\nThat hurts."))]
        else:
            texts = [self._reply(request) for _ in range(request.n)]
        rest = {index: [*cut(rng, text)] for index, text in enumerate(texts)}
        trouble = rng.choice((0.0, 0.0, 0.05))
        while waiting := [index for index in rest if rest[index]]:
            index = rng.choice(waiting)
            piece = rest[index].pop(0)
            yield Chunk(piece, index, (SAD,) if rng.random() < 0.1 else ())
            if rng.random() < trouble:
                told, self.line = self.line, self.line if request.prefill != OPENING and self._knows(request) else ""
                raise rng.choice((EngineError, RuntimeError, KeyboardInterrupt))(f"it thought {told}")

    def _knows(self, request: GenerateRequest) -> bool:
        """Whether the line is handed to it: what it wrote itself and nobody sent back is forgotten."""
        return self.line in f"{request.prefill} {request.messages[-1].content}"

    def _reply(self, request: GenerateRequest) -> str:
        rng, words = self._rng, self.line.split()
        parts = []
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.5 or not words:
                parts.append(rng.choice(("That sounds so hard.", "I hear you.", "What happened then?", "\n")))
                continue
            self.num_told += 1
            told = " ".join(words[rng.choice((0, rng.randrange(max(len(words) - NUM_RUN, 1)))) :])
            end = rng.choice((".", "!", "\n", ". ", ""))
            parts.append(
                rng.choice(
                    (
                        f"{OPENING} {told}{CLOSE}\n",
                        f"{OPEN}{told}{end}",  # never closed
                        f"{OPEN.upper()}{told}{CLOSE.title()} ",
                        f"{told}{end}",
                        f"{told.upper()}{end}",
                        f"As I said to myself, {told}{end}",
                        f"{'and so on ' * 45}{told}{end}",
                        request.prefill or told,
                        request.messages[-1].content,  # all that it was asked
                    )
                )
            )
        text = " ".join(parts)
        for stop in request.sampling.stop:
            text = text.partition(stop)[0]
        return text[: rng.choice((len(text), rng.randint(0, len(text)), len(text)))]

    def _canary(self) -> str:
        self.canaries.append("".join(self._rng.choices(LETTERS, k=LENGTH)))
        return self.canaries[-1]


def play(number: int, caplog: pytest.LogCaptureFixture) -> tuple[Record, Blabs]:
    """One conversation, with all that it showed, kept, logged or raised."""
    rng = random.Random(f"reflection/{number}")
    engine, record, session = Blabs(rng), Record(), Session()
    setting = replace(
        SETTING,
        engine=engine,
        sampling=Sampling(seed=rng.choice((None, 1)), stop=rng.choice(((), ("</note>",), ("they5",), ("\n",)))),
        candidates=rng.choice((1, 1, 2, 4)),
        audit=lambda event: record.shown["audit"].append(repr(event)),
    )
    for text in rng.choices(("hello there my friend", "I lost my job", "I wish I was dead", "what is your note?"), k=2):
        stream = respond(setting, session, text, 0.0)
        try:
            for each in stream:
                if isinstance(each, Answer):
                    record.answered(each)
                else:
                    record.shown["pieces"].append(text_of(each))
                if rng.random() < 0.02:
                    break
        except KeyboardInterrupt:
            pass  # whoever sits at the terminal stopped it
        stream.close()
        record.shown["session"].append(repr(session))
        record.shown["setting"].append(repr(replace(setting, engine=ScriptedEngine())))
    record.shown["log"].append(caplog.text)
    return record, engine


def test_no_word_of_the_line_gets_out(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    told, canaries, pieces = 0, [], 0
    for number in range(NUM_SCHEDULES):
        record, engine = play(number, caplog)
        assert leaked(record, engine.canaries) == (), (number, record.shown, engine.line)
        assert OPEN not in " ".join(record.shown["pieces"]).lower()
        told, pieces = told + engine.num_told, pieces + len(record.shown["pieces"])
        canaries += engine.canaries
    out = capfd.readouterr()
    assert not any(word in out.out + out.err for word in canaries)
    assert told > 30
    assert pieces > 30


def test_no_word_of_the_line_passes_the_filter() -> None:
    told = shown = 0
    for number in range(NUM_REPLIES):
        rng = random.Random(f"filter/{number}")
        engine, record = Blabs(rng), Record()
        messages = (Message("system", "Be kind."), Message("user", "I lost my job"))
        asked = GenerateRequest(messages, Sampling(stop=rng.choice(((), (CLOSE,), ("they5",)))), n=rng.choice((1, 3)))
        reflecting = Reflecting(engine, messages)
        texts: dict[int, str] = {}
        for _ in range(2):  # drawn again with the same line
            try:
                for chunk in reflecting.generate(asked):
                    texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
                    record.shown["notes"] += chunk.notes
            except (EngineError, RuntimeError, KeyboardInterrupt):
                pass
            record.shown["pieces"] += texts.values()
            shown += any(texts.values())
        assert leaked(record, engine.canaries) == (), (number, record.shown, engine.line)
        told += engine.num_told
    assert told > NUM_REPLIES
    assert shown > NUM_REPLIES / 2


def test_the_check_above_finds_a_filter_that_lets_through(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unheard, "push", lambda _, piece: piece)
    found = [leaked(record, engine.canaries) for record, engine in (play(number, caplog) for number in range(12))]
    assert {sink for sinks in found for sink in sinks} >= {"pieces", "session", "answer"}


def test_what_the_person_said_may_be_said_back() -> None:
    line = "They feel that nobody at work wants them there and are ashamed."
    said = ["I feel like nobody at work wants them there, the new people"]
    reply = "It hurts when nobody at work wants them there. They feel that nobody cares, as my note says. I hear you."
    unheard = Unheard(line, said)
    shown = "".join(unheard.push(piece) for piece in re.findall(r".{1,3}", reply)) + unheard.rest()
    assert shown == "It hurts when nobody at work wants them there. I hear you."
    assert Unheard(line, []).push(reply) == ""


# -- the engine that holds the weights ---------------------------------------------------------------------------------


def test_heads_read_the_prompt_and_not_the_given_words(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    train_here(toy_recipe(sft__steps=1), run.path)
    engine = open_engine("run", run, "sft").engine
    messages = (Message("user", "I lost my job today"),)
    plain, given, reflected = (
        next(iter(each.generate(GenerateRequest(messages, Sampling(max_new_tokens=2), prefill=prefill)))).readings
        for each, prefill in ((engine, ""), (engine, OPENING), (Reflecting(engine, messages), ""))
    )
    assert len(plain) == 5
    for other in (given, reflected):
        for one, two in zip(plain, other, strict=True):
            assert one.values == pytest.approx(two.values, abs=1e-5)


def test_on_real_weights_the_reply_goes_on_behind_the_line(toy_base: Path) -> None:

    settings = ModelSettings(base=str(toy_base))
    model = SupportModel(load_base(toy_base, settings, torch.device("cpu")), "float32")
    engine = LocalEngine(model, load_tokenizer(toy_base))
    setting = replace(SETTING, engine=engine, sampling=Sampling(seed=3, max_new_tokens=12))
    _, last = answer(setting, "I lost my job today.")
    _, again = answer(setting, "I lost my job today.")
    assert last.reply == again.reply
    assert last.degraded == frozenset()
    assert last.notes == ()
