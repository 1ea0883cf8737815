"""Who is served when: first come, first served, but for those who are in danger; and how much is written at once."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from warmline.dialogue.ladder import climb
from warmline.dialogue.stream import stream as sentences
from warmline.engine.continuous import Batching, Runner, Stream
from warmline.engine.engine import Chunk, EngineError, GenerateRequest, Message, Sampling
from warmline.engine.lanes import LEAST_TOKENS, Lane
from warmline.engine.local import LocalEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.model.load import load_tokenizer
from warmline.safety.levels import Level
from warmline.safety.policy import plan_for
from warmline.safety.validate.context import ReplyContext, Turn

from .test_continuous import DRAWN, GREEDY, HURT, alone, endless, eventually, load, sizes_of, texts
from .test_local_batch import asks, said

__all__ = ["endless"]  # a fixture

SLOW = replace(HURT, sampling=replace(GREEDY, max_new_tokens=60))


@pytest.fixture(scope="module")
def plain(toy_base: Path) -> LocalEngine:
    return LocalEngine(load(toy_base), load_tokenizer(toy_base))


class Held:
    """Keeps a runner from working until it is let go, so that what waits together waits together."""

    def __init__(self, runner: Runner) -> None:
        self._event = threading.Event()
        self._job = threading.Thread(target=lambda: runner.call(self._event.wait))

    def __enter__(self) -> None:
        self._job.start()

    def __exit__(self, *_: object) -> None:
        self._event.set()
        self._job.join()


def order_of(streams: dict[str, Stream]) -> list[str]:
    """The names in the order in which their first chunks came."""
    came: list[str] = []

    def read(name: str, stream: Stream) -> None:
        next(stream)
        came.append(name)
        list(stream)

    threads = [threading.Thread(target=read, args=item) for item in streams.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return came


def test_first_come_first_served_and_whoever_is_in_danger_before_all(plain: LocalEngine) -> None:
    with Runner(Batching(max_rows=1, urgent_rows=0)) as runner:
        engine = runner.engine(plain)
        with Held(runner):
            streams = {name: engine.generate(HURT) for name in "abcd"}
            streams["in danger"] = engine.generate(replace(HURT, urgent=True))
        assert order_of(streams) == ["in danger", "a", "b", "c", "d"]


def test_a_full_batch_has_room_for_whoever_is_in_danger(endless: LocalEngine) -> None:
    expected = alone(endless, [HURT])
    with Runner(Batching(max_rows=2, urgent_rows=1)) as runner:
        engine = runner.engine(endless)
        slow = [engine.generate(replace(SLOW, sampling=replace(DRAWN, max_new_tokens=200))) for _ in range(2)]
        for each in slow:
            next(each)
        late, urgent = engine.generate(HURT), engine.generate(replace(HURT, urgent=True))
        assert texts(urgent) == expected
        assert not slow[0]._ticket.is_over
        for each in slow:
            each.close()
        assert texts(late) == expected


def test_an_urgent_prompt_is_read_before_a_long_one_that_is_half_read(plain: LocalEngine) -> None:
    long = GenerateRequest((Message("user", "I hurt " * 60),), GREEDY)
    with Runner(Batching(prefill_tokens=8, prefix_bytes=0)) as runner:
        engine = runner.engine(plain)
        with Held(runner):
            streams = {"long": engine.generate(long), "urgent": engine.generate(replace(HURT, urgent=True))}
        assert order_of(streams) == ["urgent", "long"]
        eventually(lambda: runner.load() == (0, 0))


def test_pieces_of_a_prompt_are_as_long_as_there_is_time_for(plain: LocalEngine, monkeypatch: Any) -> None:
    long = GenerateRequest((Message("user", "I hurt " * 60),), GREEDY)
    expected = texts(plain.generate(long))
    shapes = sizes_of(plain, monkeypatch)
    with Runner(Batching(prefill_s=1e-6, prefix_bytes=0)) as runner:
        engine = runner.engine(plain)
        assert texts(engine.generate(long)) == expected
        reader = runner._readers[plain]
        assert reader is not None
        assert reader.pace > 1e-6 / LEAST_TOKENS
        shapes.clear()
        assert texts(engine.generate(long)) == expected
    pieces = [tokens for _, tokens in shapes if tokens > 1]
    assert set(pieces[:-1]) == {LEAST_TOKENS}


def test_rows_and_positions_are_bounded(plain: LocalEngine, monkeypatch: Any) -> None:
    shapes = sizes_of(plain, monkeypatch)
    requests = asks(GREEDY)
    expected = alone(plain, requests)
    widest = 200
    for batching in (Batching(max_rows=3), Batching(max_tokens=3 * widest)):
        shapes.clear()
        with Runner(batching) as runner:
            assert [said(written) for _, written in runner.engine(plain).generate_batch(requests)] == expected
        assert 2 <= max(rows for rows, tokens in shapes if tokens == 1) <= (3 if batching.max_rows == 3 else 9)
    shapes.clear()
    with Runner(Batching(max_tokens=1)) as runner:  # one that fits nowhere is written when it is alone
        assert [said(written) for _, written in runner.engine(plain).generate_batch(requests)] == expected
    assert {rows for rows, _ in shapes[3:]} == {1}  # behind the three that try the decoder out


def test_a_wide_request_waits_for_room_and_is_not_overtaken(plain: LocalEngine) -> None:
    with Runner(Batching(max_rows=4, prefix_bytes=0)) as runner:
        engine = runner.engine(plain)
        with Held(runner):
            streams = {"first": engine.generate(SLOW)}
            streams["four"] = engine.generate(replace(HURT, n=4))
            streams["single"] = engine.generate(HURT)
        assert order_of(streams) == ["first", "four", "single"]


def test_more_replies_than_the_batch_has_rows_are_written_alone(plain: LocalEngine, monkeypatch: Any) -> None:
    many = replace(HURT, sampling=replace(DRAWN, seed=1), n=8, urgent=True)
    expected, single = texts(plain.generate(many)), alone(plain, [HURT])
    with Runner(Batching(max_rows=2, urgent_rows=1, prefix_bytes=0)) as runner:
        engine = runner.engine(plain)
        with Held(runner):
            streams = [engine.generate(request) for request in (HURT, many, HURT)]
        shapes = sizes_of(plain, monkeypatch)
        assert [texts(stream) for stream in streams] == [single, expected, single]
        assert max(rows for rows, _ in shapes) == 8


def test_long_and_short_requests_are_batched_apart(plain: LocalEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr("warmline.engine.continuous.NARROW", 64)
    lanes: list[int] = []
    step = Lane.step
    monkeypatch.setattr(Lane, "step", lambda self: lanes.append(self.width) or step(self))
    requests = [GenerateRequest((Message("user", "I hurt " * words),), GREEDY) for words in (1, 40, 2, 41)]
    expected = alone(plain, requests)
    with Runner() as runner:
        assert [said(written) for _, written in runner.engine(plain).generate_batch(requests)] == expected
    assert min(lanes) <= 64 < max(lanes)


@pytest.mark.parametrize("change", ["longrope", "eager"])
def test_what_cannot_stand_side_by_side_is_written_in_turns(toy_base: Path, monkeypatch: Any, change: str) -> None:
    model = load(toy_base)
    if change == "longrope":
        monkeypatch.setitem(model.causal.config.rope_parameters, "rope_type", "longrope")
    else:
        model.causal.set_attn_implementation("eager")
    local = LocalEngine(model, load_tokenizer(toy_base))
    shapes = sizes_of(local, monkeypatch)
    requests = [*asks(GREEDY), replace(HURT, n=2)]
    expected = [texts(local.generate(request)) for request in requests]
    with Runner() as runner:
        engine = runner.engine(local)
        shapes.clear()
        streams = [engine.generate(request) for request in requests]
        assert [texts(stream) for stream in streams] == expected
        assert runner._readers[local] is None
        assert {rows for rows, _ in shapes} == {1, 2}
        stopped = engine.generate(replace(HURT, sampling=replace(GREEDY, max_new_tokens=200)))
        next(stopped)
        stopped.close()
        eventually(lambda: runner.load() == (0, 0))
        monkeypatch.setattr(local, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(EngineError, match="the model failed: ZeroDivisionError"):
            list(engine.generate(HURT))


class Asked(ScriptedEngine):
    """Remembers what it was asked."""

    def __init__(self, replies: list[str]) -> None:
        super().__init__(replies)
        self.asked: list[GenerateRequest] = []

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.asked.append(request)
        return super().generate(request)


@pytest.mark.parametrize("level", [*Level])
def test_from_high_on_a_reply_is_urgent(level: Level) -> None:
    engine = Asked(["You are a burden."])
    plan = plan_for(level, frozenset({"suicide"}) if level else frozenset())
    said = "I do not want to be here any more"
    context = ReplyContext(level=level, domains=frozenset(), turns=(Turn("user", said),), lang="en")
    messages = (Message("user", said),)
    if plan.release == "whole":
        climb(engine, messages, plan, context, Sampling(seed=1), 'start: "I hear you."')
    else:
        list(sentences(engine, messages, plan, context, Sampling(seed=1), []))
    assert {request.urgent for request in engine.asked} == {level >= Level.HIGH}
