"""Many replies written together are, token for token, the replies that each request gets alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from warmline.engine.decoding import Reply, Row, batches, generator_of
from warmline.engine.engine import BatchEngine, Chunk, EngineError, GenerateRequest, Message, Sampling, whole
from warmline.engine.local import LocalEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.model.load import load_tokenizer

from .conftest import WORDS
from .test_local import load, reply, texts, with_stage
from .toys import save_toy

DIALOGPT = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
GREEDY = Sampling(temperature=0, max_new_tokens=40)


def asks(sampling: Sampling, count: int = 9) -> list[GenerateRequest]:
    """Prompts of different lengths, the longest in the middle, each with its own limit and seed."""
    requests = []
    for number in range(count):
        said = " ".join(WORDS[(number * 3 + step) % len(WORDS)] for step in range(1 + (number * 7) % 11))
        turns = [Message("user", said)]
        if number % 2:
            turns += [Message("assistant", "I hear you"), Message("user", "Thank you")]
        own = replace(sampling, max_new_tokens=sampling.max_new_tokens - number, seed=number)
        requests.append(GenerateRequest(tuple(turns), own))
    return requests


def together(engine: LocalEngine, requests: Sequence[GenerateRequest]) -> list[str]:
    found = dict(engine.generate_batch(requests))
    assert sorted(found) == [*range(len(requests))]
    return [said(found[index]) for index in range(len(requests))]


def said(written: Chunk | EngineError) -> str:
    return str(written) if isinstance(written, EngineError) else written.text


def alone(engine: LocalEngine, requests: Sequence[GenerateRequest]) -> list[str]:
    return [texts(engine.generate(request))[0] for request in requests]


@pytest.fixture(scope="module", params=["qwen2", "gpt2", "llama"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    """A toy of each architecture; GPT-2 counts absolute positions, the others turn by them."""
    base = save_toy(request.param, " ".join(WORDS), tmp_path_factory.mktemp(request.param))
    tokenizer = load_tokenizer(base, DIALOGPT if request.param == "gpt2" else None)
    return LocalEngine(load(base), tokenizer)


def test_greedy_replies_are_those_of_each_alone(engine: LocalEngine) -> None:
    requests = asks(GREEDY)
    found = together(engine, requests)
    assert found == alone(engine, requests)


def test_a_drawn_reply_hangs_on_its_seed_and_not_on_the_batch(engine: LocalEngine) -> None:
    requests = asks(Sampling(temperature=1.0, top_p=0.9, max_new_tokens=20))
    found = together(engine, requests)
    assert found == alone(engine, requests)
    assert len(set(found)) == len(found)
    assert together(engine, requests[::-1])[::-1] == found
    assert together(engine, requests[3:5]) == found[3:5]
    other = [replace(each, sampling=replace(each.sampling, seed=99)) for each in requests]
    assert together(engine, other) != found


def test_rows_stop_each_for_itself(engine: LocalEngine) -> None:
    requests = asks(Sampling(temperature=1.0, top_p=0.9, max_new_tokens=30))
    whole = alone(engine, requests)
    stop = tuple({text[5:7] for text in whole[::2] if len(text) > 7})
    stopping = [replace(each, sampling=replace(each.sampling, stop=stop)) for each in requests]
    assert together(engine, stopping) == alone(engine, stopping) != whole


def test_a_stage_answers_with_its_adapter_though_another_used_the_model(toy_base: Path) -> None:
    model, tokenizer = with_stage(toy_base), load_tokenizer(toy_base)
    base, sft = LocalEngine(model, tokenizer, "base"), LocalEngine(model, tokenizer, "sft")
    requests = asks(GREEDY)
    expected = alone(base, requests), alone(sft, requests)
    assert expected[0] != expected[1]
    steps = zip(base.generate_batch(requests), sft.generate_batch(requests), strict=True)  # one step of each in turn
    mixed = [*steps]
    assert tuple([said(text) for _, text in sorted(pairs)] for pairs in zip(*mixed, strict=True)) == expected


def test_a_row_that_ended_leaves_the_batch(toy_base: Path) -> None:
    model = load(toy_base)
    engine = LocalEngine(model, load_tokenizer(toy_base))
    sizes: list[int] = []
    hook = model._decoder.register_forward_pre_hook(
        lambda _module, _args, options: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    limits = [1, 3, 3, 6]
    requests = [GenerateRequest((Message("user", "I hurt"),), replace(GREEDY, max_new_tokens=n)) for n in limits]
    try:
        together(engine, requests)
    finally:
        hook.remove()
    assert sizes == [4, 3, 3, 1, 1, 1]


def test_what_cannot_be_answered_says_why_and_the_others_go_on(toy_base: Path) -> None:
    engine = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    good = GenerateRequest((Message("user", "I hurt"),), GREEDY)
    long = GenerateRequest((Message("user", "I hurt " * 3000),), GREEDY)
    found = together(engine, [good, long, replace(good, n=2), good])
    assert found[0] == found[3] == reply(engine, good.messages, max_new_tokens=40)
    assert "too long" in found[1]
    assert "n is 2" in found[2]
    assert list(engine.generate_batch([])) == []


def test_what_was_left_out_of_a_prompt_is_said_as_alone(toy_base: Path) -> None:
    engine = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    long = [Message(role, "I hurt " * 300) for role in ("user", "assistant") * 4]
    turns = (*long, Message("user", "I hurt"))
    requests = [GenerateRequest(turns, GREEDY), GenerateRequest(turns[-1:], GREEDY)]
    found = dict(sorted(engine.generate_batch(requests), key=lambda pair: pair[0]))
    assert [*found.values()] == [whole(engine.generate(request)) for request in requests]
    notes = [each.notes for each in found.values() if isinstance(each, Chunk)]
    assert [len(each) for each in notes] == [1, 0]
    assert "left out" in notes[0][0]


def test_prefill_and_grammar_hold_in_a_batch(toy_base: Path) -> None:
    engine = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    plain = GenerateRequest((Message("user", "I hurt"),), GREEDY)
    requests = [plain, replace(plain, prefill="I feel"), replace(plain, constraint='start: "so " ("alone" | "here")')]
    found = together(engine, requests)
    assert found == alone(engine, requests)
    assert found[2] in {"so alone", "so here"}


def test_positions_that_hang_on_the_longest_row_are_written_one_by_one(
    toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(toy_base)
    monkeypatch.setitem(model.causal.config.rope_parameters, "rope_type", "longrope")
    engine, sizes = LocalEngine(model, load_tokenizer(toy_base)), list[int]()
    hook = model._decoder.register_forward_pre_hook(
        lambda _module, _args, options: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    requests = asks(GREEDY)
    try:
        assert len(together(engine, requests)) == len(requests)
    finally:
        hook.remove()
    assert set(sizes) == {1}


def test_batches_are_bounded_in_rows_and_in_tokens(toy_base: Path) -> None:
    tokenizer = load_tokenizer(toy_base)
    sampling = Sampling(temperature=0, max_new_tokens=100)
    generator = generator_of(sampling, load(toy_base).device)

    def row(index: int, length: int) -> Row:
        return Row(index, [1] * length, sampling, Reply(tokenizer, sampling, []), generator)

    short = list(batches([row(index, 10 + index % 2) for index in range(150)]))
    assert [len(batch) for batch in short] == [64, 64, 22]
    assert [each.index % 2 for batch in short for each in batch] == [0] * 75 + [1] * 75
    long = list(batches([row(0, 40_000), row(1, 32_000), row(2, 32_000), row(3, 70_000)]))
    assert [[each.index for each in batch] for batch in long] == [[1, 2], [0], [3]]


def test_only_engines_that_can_are_batch_engines(toy_base: Path) -> None:
    assert isinstance(LocalEngine(load(toy_base), load_tokenizer(toy_base)), BatchEngine)
    assert not isinstance(ScriptedEngine(["Hello."]), BatchEngine)
