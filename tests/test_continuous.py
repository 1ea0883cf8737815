"""Written beside others, a reply is what it is alone; and who waits, leaves or fails takes nothing from the others."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from warmline.engine.continuous import Batching, ContinuousEngine, Runner, Stream
from warmline.engine.engine import BatchEngine, Chunk, EngineError, GenerateRequest, Message, Sampling, ScoresMany
from warmline.engine.local import LocalEngine
from warmline.engine.slots import Reader, SlotCache
from warmline.model.load import load_tokenizer

from .conftest import WORDS
from .test_local import LONG, load, near, short_of, texts, with_stage
from .test_local_batch import DIALOGPT, GREEDY, alone, asks, said
from .toys import TOYS, save_toy

HURT = GenerateRequest((Message("user", "I hurt"),), GREEDY)
DRAWN = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=20)
LARK = 'start: "so " ("alone" | "here")'


@pytest.fixture(scope="module", params=[*TOYS])
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    """A toy of each architecture; GPT-2 has a table of positions, Phi-3 a tokenizer that falls back to bytes."""
    base = save_toy(request.param, " ".join(WORDS), tmp_path_factory.mktemp(request.param))
    return LocalEngine(load(base), load_tokenizer(base, DIALOGPT if request.param == "gpt2" else None))


@pytest.fixture(scope="module")
def plain(toy_base: Path) -> LocalEngine:
    return LocalEngine(load(toy_base), load_tokenizer(toy_base))


@pytest.fixture(params=[0, 2**24], ids=["no prefixes", "prefixes"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    with Runner(Batching(prefix_bytes=request.param)) as runner:
        yield runner


def written(engine: ContinuousEngine, requests: Sequence[GenerateRequest]) -> list[list[str]]:
    """The replies to requests that all wait at once."""
    streams = [engine.generate(request) for request in requests]
    return [texts(stream) for stream in streams]


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.005)


def sizes_of(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens a row of each pass from now on, as they come."""
    shapes: list[tuple[int, int]] = []
    forward = local._model.hidden

    def watching(ids_BT: torch.Tensor, **options: Any) -> Any:
        shapes.append((ids_BT.shape[0], ids_BT.shape[1]))
        return forward(ids_BT, **options)

    monkeypatch.setattr(local._model, "hidden", watching)
    return shapes


@pytest.fixture
def endless(toy_base: Path, monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    """An engine whose replies end at their limit alone, 10 ms a step: what is to happen meanwhile does."""
    local = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    local._stop_ids = frozenset({-1})
    logits = local.logits
    monkeypatch.setattr(local, "logits", lambda state_BD: time.sleep(0.01) or logits(state_BD))
    return local


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_replies_are_those_of_each_alone(local: LocalEngine, runner: Runner, sampling: Sampling) -> None:
    requests = asks(sampling)
    expected = [[text] for text in alone(local, requests)]
    engine = runner.engine(local)
    assert written(engine, requests) == expected
    assert written(engine, requests[::-1])[::-1] == expected  # now some of it was read before
    assert runner._readers[local] is not None, "these rows can stand side by side"


def test_several_replies_stop_texts_prefill_and_grammar_hold_side_by_side(local: LocalEngine, runner: Runner) -> None:
    whole = texts(local.generate(HURT))[0]
    requests = [
        replace(HURT, sampling=replace(DRAWN, seed=4), n=3),
        replace(HURT, n=2),
        replace(HURT, sampling=replace(GREEDY, stop=(whole[3:5], "never said"))),
        replace(HURT, prefill="I feel"),
        replace(HURT, constraint=LARK),
        replace(HURT, sampling=replace(DRAWN, seed=5), constraint=LARK, n=2),
        replace(HURT, sampling=replace(GREEDY, max_new_tokens=1)),
    ]
    expected = [texts(local.generate(request)) for request in requests]
    found = written(runner.engine(local), requests)
    assert found == expected
    assert len(found[0]) == 3
    assert {*found[4], *found[5]} <= {"so alone", "so here"}


def test_a_reply_of_several_is_what_its_own_seed_gives_alone(plain: LocalEngine, runner: Runner) -> None:
    many = replace(HURT, sampling=replace(DRAWN, seed=7), n=3)
    single = [replace(HURT, sampling=replace(DRAWN, seed=seed)) for seed in (7, 8, 9)]
    assert texts(plain.generate(many)) == alone(plain, single)
    assert written(runner.engine(plain), [many]) == [alone(plain, single)]
    assert len(set(alone(plain, single))) == 3


def test_readings_and_notes_stand_on_the_first_chunk(toy_base: Path, tmp_path: Path, runner: Runner) -> None:
    local = short_of(toy_base, tmp_path / "short", 120)
    engine = runner.engine(local)
    assert engine.capabilities() == local.capabilities() >= {"heads"}
    requests = [*asks(GREEDY, 5), GenerateRequest(LONG, GREEDY)]
    streams = [engine.generate(request) for request in requests]
    expected = Chunk("")
    for request, stream in zip(requests, streams, strict=True):
        first, *rest = stream
        expected = next(iter(local.generate(request)))
        assert near(first.readings, expected.readings)
        assert first.notes == expected.notes
        assert (first.text, first.index) == ("", 0)
        assert not any(chunk.readings or chunk.notes for chunk in rest)
    assert "turns were left out" in expected.notes[0]


def test_requests_join_while_others_are_written(plain: LocalEngine, runner: Runner, monkeypatch: Any) -> None:
    shapes = sizes_of(plain, monkeypatch)
    requests = asks(replace(GREEDY, max_new_tokens=60))
    expected = alone(plain, requests)
    engine = runner.engine(plain)
    shapes.clear()
    streams: list[Stream] = []
    for request in requests:
        streams.append(engine.generate(request))
        before = len(shapes)
        eventually(lambda before=before: len(shapes) > before + 3)
    assert [texts(stream)[0] for stream in streams] == expected
    steps = [rows for rows, tokens in shapes if tokens == 1]
    assert max(steps) > 2
    assert sum(steps) > len(steps) * 1.5, "they were written together"


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(toy_base: Path, monkeypatch: Any) -> None:
    local = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    long = GenerateRequest((Message("user", "I hurt " * 60),), GREEDY)
    expected = [texts(local.generate(request)) for request in (HURT, long)]
    shapes = sizes_of(local, monkeypatch)
    with Runner(Batching(prefill_tokens=32, prefix_bytes=0)) as runner:
        engine = runner.engine(local)
        short = engine.generate(HURT)
        next(short)
        shapes.clear()
        late = engine.generate(long)
        assert [texts(short), texts(late)] == expected
    pieces = [at for at, (_, tokens) in enumerate(shapes) if tokens > 1]
    assert len(pieces) >= 4
    assert all(tokens <= 32 for _, tokens in shapes)
    assert all(after - before > 1 for before, after in pairwise(pieces[:4])), "a step lies between"


def test_short_prompts_that_wait_together_are_read_in_one_pass(plain: LocalEngine, monkeypatch: Any) -> None:
    with Runner(Batching(prefix_bytes=0)) as runner:
        engine = runner.engine(plain)
        held = threading.Event()
        job = threading.Thread(target=lambda: runner.call(held.wait))
        job.start()
        streams = [engine.generate(request) for request in asks(GREEDY)]
        shapes = sizes_of(plain, monkeypatch)
        held.set()
        assert all(texts(stream) for stream in streams)
        job.join()
    assert next(rows for rows, tokens in shapes if tokens > 6) == len(streams)  # the first passes try the decoder out


def test_a_stream_that_is_closed_gives_its_rows_free(endless: LocalEngine, runner: Runner) -> None:
    expected = alone(endless, [HURT])
    engine = runner.engine(endless)
    stream = engine.generate(replace(HURT, sampling=replace(DRAWN, max_new_tokens=200), n=3))
    other = engine.generate(HURT)
    next(stream)
    eventually(lambda: runner.load().num_rows >= 3)
    stream.close()
    assert texts(other) == expected
    eventually(lambda: runner.load() == (0, 0))
    assert list(stream) == []


def test_a_stream_that_nobody_holds_gives_its_rows_free(endless: LocalEngine, runner: Runner) -> None:
    stream = runner.engine(endless).generate(replace(HURT, sampling=replace(DRAWN, max_new_tokens=200)))
    ticket = stream._ticket
    next(stream)
    del stream
    eventually(lambda: runner.load() == (0, 0))
    assert ticket.rows[0].num_tokens < 200


def test_a_reader_who_waits_is_let_go_when_another_thread_closes(endless: LocalEngine) -> None:
    with Runner(Batching(max_rows=1)) as runner:
        engine = runner.engine(endless)
        first = engine.generate(replace(HURT, sampling=replace(DRAWN, max_new_tokens=200)))
        waiting = engine.generate(HURT)
        read: list[list[Chunk]] = []
        reader = threading.Thread(target=lambda: read.append(list(waiting)))
        reader.start()
        waiting.close()
        reader.join(timeout=20)
        assert read == [[]]
        first.close()


def test_who_leaves_the_queue_is_passed_over(plain: LocalEngine) -> None:
    with Runner(Batching(max_rows=1)) as runner:
        engine = runner.engine(plain)
        first, second, third = (engine.generate(HURT) for _ in range(3))
        second.close()
        eventually(lambda: runner.load().num_waiting <= 1)
        assert texts(first) == texts(third) == alone(plain, [HURT])


def test_many_threads_get_what_they_asked_for(plain: LocalEngine, runner: Runner) -> None:
    requests = asks(DRAWN) + asks(GREEDY)
    expected = alone(plain, requests)
    engine = runner.engine(plain)
    found: dict[tuple[int, int], str] = {}

    def talk(who: int) -> None:
        for turn in range(3):
            number = (who * 5 + turn) % len(requests)
            found[who, number] = texts(engine.generate(requests[number]))[0]

    threads = [threading.Thread(target=talk, args=(who,)) for who in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 72
    assert all(text == expected[number] for (_, number), text in found.items())


def test_a_reader_who_does_not_read_holds_up_nobody(plain: LocalEngine, runner: Runner) -> None:
    engine = runner.engine(plain)
    unread = engine.generate(replace(HURT, sampling=replace(GREEDY, max_new_tokens=100)))
    assert written(engine, asks(GREEDY)) == [[text] for text in alone(plain, asks(GREEDY))]
    eventually(lambda: runner.load() == (0, 0))
    assert unread._ticket.chunks.qsize() <= 102  # a chunk a token, the readings, the end
    assert texts(unread) == alone(plain, [replace(HURT, sampling=replace(GREEDY, max_new_tokens=100))])


def test_stages_of_one_model_take_turns(toy_base: Path, runner: Runner) -> None:
    model, tokenizer = with_stage(toy_base), load_tokenizer(toy_base)
    stages = [LocalEngine(model, tokenizer, stage) for stage in ("base", "sft")]
    requests = asks(GREEDY)
    expected = [alone(stage, requests) for stage in stages]
    assert expected[0] != expected[1]
    engines = [runner.engine(stage) for stage in stages]
    streams = [(engine.generate(request), engine) for request in requests for engine in engines]
    found = [[texts(stream)[0] for stream, engine in streams if engine is mine] for mine in engines]
    assert found == expected


def test_a_step_that_fails_takes_only_its_own_rows_along(toy_base: Path, monkeypatch: Any) -> None:
    model, tokenizer = with_stage(toy_base), load_tokenizer(toy_base)
    base, sft = LocalEngine(model, tokenizer, "base"), LocalEngine(model, tokenizer, "sft")
    with Runner() as runner:
        engines = runner.engine(base), runner.engine(sft)
        assert [texts(engine.generate(HURT)) for engine in engines] == [alone(each, [HURT]) for each in (base, sft)]
        forward = sft.forward

        def failing(ids_BT: torch.Tensor, **options: Any) -> Any:
            if ids_BT.shape[1] == 1:
                raise torch.OutOfMemoryError("no room")
            return forward(ids_BT, **options)

        monkeypatch.setattr(runner._readers[sft], "_forward", failing)
        lost, kept = [engines[1].generate(request) for request in asks(GREEDY, 4)], engines[0].generate(HURT)
        for stream in lost:
            with pytest.raises(EngineError, match="the model failed: OutOfMemoryError"):
                list(stream)
        assert texts(kept) == alone(base, [HURT])
        monkeypatch.undo()
        assert texts(engines[1].generate(HURT)) == alone(sft, [HURT])
        eventually(lambda: runner.load() == (0, 0))


def test_a_prompt_that_cannot_be_read_leaves_those_that_are_written(toy_base: Path, monkeypatch: Any) -> None:
    local = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    slow = replace(HURT, sampling=replace(GREEDY, max_new_tokens=120))
    expected = alone(local, [slow])
    with Runner(Batching(prefix_bytes=0)) as runner:
        engine = runner.engine(local)
        stream = engine.generate(slow)
        next(stream)
        read, bad = Reader.read, engine.generate

        def failing(self: Reader, cache: SlotCache, pieces: Any, starts: Any) -> Any:
            if len(pieces[0]) > 1:
                raise MemoryError
            return read(self, cache, pieces, starts)

        monkeypatch.setattr(Reader, "read", failing)
        with pytest.raises(EngineError, match="the model failed: MemoryError"):
            list(bad(HURT))
        assert texts(stream) == expected


@pytest.mark.parametrize(("at", "what"), [(3, float("nan")), (0, -float("inf"))])
def test_numbers_that_are_none_end_one_reply(plain: LocalEngine, monkeypatch: Any, at: int, what: float) -> None:
    requests = asks(GREEDY, 3)
    expected = alone(plain, requests)
    num_steps = 0
    logits = plain.logits

    def broken(state_BD: torch.Tensor) -> torch.Tensor:
        nonlocal num_steps
        found_BV = logits(state_BD)
        if num_steps == at:
            found_BV[0] = what
        num_steps += 1
        return found_BV

    with Runner(Batching(prefix_bytes=0)) as runner:
        monkeypatch.setattr(plain, "logits", broken)
        found = [said(written) for _, written in runner.engine(plain).generate_batch(requests)]
    assert sum("not finite" in each for each in found) == 1
    assert sum(text == other for text, other in zip(found, expected, strict=True)) == 2


def test_what_cannot_be_answered_is_refused_before_it_waits(plain: LocalEngine, runner: Runner) -> None:
    engine = runner.engine(plain)
    with pytest.raises(EngineError, match="n is 0"):
        engine.generate(replace(HURT, n=0))
    with pytest.raises(EngineError, match="n is 65; at most 64"):
        engine.generate(replace(HURT, n=65))
    with pytest.raises(EngineError, match="too long"):
        engine.generate(GenerateRequest((Message("user", "I hurt " * 3000),), GREEDY))
    with pytest.raises(EngineError, match="grammar cannot be followed"):
        engine.generate(replace(HURT, constraint="start: NOWHERE"))
    found = dict(engine.generate_batch([HURT, replace(HURT, n=2), HURT]))
    assert found[0] == found[2] == Chunk(alone(plain, [HURT])[0])
    assert "n is 2" in str(found[1])


def test_scores_come_between_the_steps(plain: LocalEngine, runner: Runner) -> None:
    engine = runner.engine(plain)
    assert isinstance(engine, BatchEngine)
    assert isinstance(engine, ScoresMany)
    items = [(request.messages, "Thank you") for request in asks(GREEDY, 40)]
    expected = [plain.score(*item).logprob for item in items]
    stream = engine.generate(replace(HURT, sampling=replace(GREEDY, max_new_tokens=100)))
    assert [each.logprob for each in engine.score_batch(items)] == pytest.approx(expected, abs=1e-4)
    assert engine.score(*items[3]).logprob == pytest.approx(expected[3], abs=1e-4)
    assert texts(stream) == alone(plain, [replace(HURT, sampling=replace(GREEDY, max_new_tokens=100))])
    with pytest.raises(EngineError, match="the context is"):
        engine.score([Message("user", "job " * 3000)], "Thank you")


def test_a_closed_runner_ends_what_it_had_and_takes_no_more(endless: LocalEngine) -> None:
    runner = Runner(Batching(max_rows=1))
    engine = runner.engine(endless)
    streams = [engine.generate(replace(HURT, sampling=replace(GREEDY, max_new_tokens=200))) for _ in range(3)]
    next(streams[0])
    runner.close()
    assert not runner._thread.is_alive()
    for stream in streams:
        with pytest.raises(EngineError, match="the engine is closed"):
            list(stream)
    for ask in (lambda: engine.generate(HURT), lambda: engine.score(HURT.messages, "Yes")):
        with pytest.raises(EngineError, match="the engine is closed"):
            ask()
    runner.close()


def test_a_process_can_end_in_the_middle_of_a_reply(toy_base: Path) -> None:
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from tests.test_continuous import DRAWN, HURT, LocalEngine, Runner, load, load_tokenizer, replace\n"
        f"base = Path({str(toy_base)!r})\n"
        "engine = Runner().engine(LocalEngine(load(base), load_tokenizer(base)))\n"
        "stream = engine.generate(replace(HURT, sampling=replace(DRAWN, max_new_tokens=200)))\n"
        "print(next(stream).index, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert "Traceback" not in done.stderr
