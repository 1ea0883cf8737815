"""What was read before is not read again, changes nothing that is said or read, and stays inside its bounds."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Phi3Config

from warmline.config.training import ModelSettings
from warmline.engine.continuous import Batching, Runner
from warmline.engine.engine import GenerateRequest, Message, Sampling
from warmline.engine.local import LocalEngine
from warmline.engine.prefix import MIN_SHARED, PrefixCache
from warmline.model.load import load_base, load_tokenizer
from warmline.model.support_model import SupportModel

from .test_local import near, texts, with_stage
from .test_local_batch import DIALOGPT, GREEDY
from .test_local_scoring import labelled
from .toys import phi3_tokenizer, saved, small

SYSTEM = Message("system", "Thank you for listening to me . I feel so alone here")
HURT = GenerateRequest((SYSTEM, Message("user", "I lost my job today . It hurts")), replace(GREEDY, max_new_tokens=24))
Ask = Callable[[GenerateRequest], Any]


def layers_of(num_tokens: int, value: float = 0.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two layers of one row: 2 heads of width 4; 128 bytes a token."""
    return [(torch.full((2, num_tokens, 4), value), torch.full((2, num_tokens, 4), value)) for _ in range(2)]


def ids_of(*runs: tuple[int, int]) -> list[int]:
    return [token for token, count in runs for _ in range(count)]


def test_the_longest_common_beginning_is_found_and_the_last_token_left_to_read() -> None:
    cache = PrefixCache()
    cache.keep("sft", ids_of((1, 20)), layers_of(20, 1.0))
    cache.keep("sft", ids_of((1, 10), (2, 20)), layers_of(30, 2.0))
    num, layers = cache.find("sft", ids_of((1, 10), (2, 5), (3, 9)))
    assert num == 15
    assert [keys.shape for keys, _ in layers] == [(2, 15, 4)] * 2
    assert {float(each.unique()) for pair in layers for each in pair} == {2.0}
    assert cache.find("sft", ids_of((1, 20)))[0] == 19
    assert cache.find("sft", ids_of((1, MIN_SHARED), (4, 9)))[0] == MIN_SHARED
    assert cache.find("sft", ids_of((1, MIN_SHARED - 1), (4, 9))) == (0, [])
    assert cache.find("base", ids_of((1, 20))) == (0, []), "other weights read otherwise"


def test_what_is_kept_is_a_copy() -> None:
    cache, layers = PrefixCache(), layers_of(10, 1.0)
    cache.keep("sft", ids_of((1, 10)), layers)
    layers[0][0].zero_()
    assert float(cache.find("sft", ids_of((1, 10), (2, 1)))[1][0][0].min()) == 1.0


def test_a_longer_prompt_takes_the_place_of_its_beginning() -> None:
    cache = PrefixCache()
    cache.keep("sft", ids_of((1, 10)), layers_of(10))
    cache.keep("sft", ids_of((1, 20)), layers_of(20))
    cache.keep("sft", ids_of((1, 15)), layers_of(15))
    cache.keep("base", ids_of((1, 15)), layers_of(15))
    assert (len(cache), cache.num_bytes) == (2, 35 * 128)


def test_the_longest_unused_goes_first_and_what_is_too_large_is_not_kept() -> None:
    cache = PrefixCache(max_bytes=30 * 128)
    for token in (1, 2, 3):
        cache.keep("sft", ids_of((token, 10)), layers_of(10))
    assert cache.find("sft", ids_of((1, 11)))[0] == 10
    cache.keep("sft", ids_of((4, 10)), layers_of(10))
    assert [cache.find("sft", ids_of((token, 11)))[0] for token in (1, 2, 3, 4)] == [10, 0, 10, 10]
    cache.keep("sft", ids_of((5, 31)), layers_of(31))
    assert (len(cache), cache.num_bytes) == (3, 30 * 128)
    cache.clear()
    assert (len(cache), cache.num_bytes, cache.expire()) == (0, 0, None)


def test_what_no_one_needed_for_long_goes() -> None:
    now = 0.0
    cache = PrefixCache(max_age_s=100, clock=lambda: now)
    cache.keep("sft", ids_of((1, 10)), layers_of(10))
    now = 60.0
    cache.keep("sft", ids_of((2, 10)), layers_of(10))
    assert cache.expire() == 40
    now = 100.0
    assert cache.find("sft", ids_of((1, 11))) == (0, [])
    assert cache.find("sft", ids_of((2, 11)))[0] == 10  # and now it is used
    now = 199.0
    assert (cache.expire(), len(cache)) == (1, 1)
    now = 200.0
    assert (cache.expire(), len(cache), cache.num_bytes) == (None, 0, 0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 1), min_size=1, max_size=14)), max_size=20),
    st.integers(0, 60),
)
def test_what_is_found_was_read_from_the_same_tokens(steps: list[tuple[bool, list[int]]], max_tokens: int) -> None:
    """Keys here are the tokens that they were read from: a position gives back what stands at it."""
    cache = PrefixCache(max_bytes=max_tokens * 8)
    for keeps, tail in steps:
        ids = [7] * MIN_SHARED + tail
        as_layer = torch.tensor(ids, dtype=torch.float32)[None, :, None]
        if keeps:
            cache.keep("sft", ids, [(as_layer, as_layer)])
        else:
            num, layers = cache.find("sft", ids)
            assert num < len(ids)
            for keys, values in layers:
                assert keys.flatten().tolist() == values.flatten().tolist() == ids[:num]
        assert cache.num_bytes <= max_tokens * 8
        assert cache.num_bytes == sum(entry.num_bytes for entry in cache._entries.values())


def test_threads_may_share_it() -> None:
    cache = PrefixCache(max_bytes=200 * 128)
    wrong: list[int] = []

    def use(token: int) -> None:
        for length in range(8, 40):
            cache.keep("sft", ids_of((token, length)), layers_of(length, float(token)))
            num, layers = cache.find("sft", ids_of((token, length + 1)))
            wrong.extend(token for pair in layers for each in pair if float(each.sum()) != token * 8 * num)

    threads = [threading.Thread(target=use, args=(token,)) for token in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.num_bytes <= 200 * 128


def turns(ask: Ask) -> list[Any]:
    """Chunks of a conversation as it goes on, of the same prompt again, of a longer prefill, of a prompt that differs."""
    first = ask(HURT)
    said = "".join(chunk.text for chunk in first)
    second = replace(HURT, messages=(*HURT.messages, Message("assistant", said), Message("user", "Thank you")))
    other = replace(HURT, messages=(SYSTEM, Message("user", "I lost my keys today . Help")))
    step = [replace(HURT, prefill=text) for text in ("I feel so", "I feel so alone here , and")]
    many = replace(second, sampling=Sampling(temperature=1.0, seed=3, max_new_tokens=12), n=3)
    return [first, *(ask(request) for request in (HURT, second, other, *step, second, many))]


def agree(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(texts(one) == texts(two) and near(one[0].readings, two[0].readings) for one, two in pairs)


def lengths_of(model: SupportModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each prompt's passes from now on."""
    lengths: list[int] = []
    hidden = model.hidden

    def watching(ids_BT: torch.Tensor, **options: Any) -> Any:
        if ids_BT.shape[1] > 1:
            lengths.append(ids_BT.shape[1])
        return hidden(ids_BT, **options)

    monkeypatch.setattr(model, "hidden", watching)
    return lengths


@pytest.mark.parametrize("stage", ["base", "sft"])
@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2", "phi3"])
def test_nothing_that_is_said_or_read_changes(tmp_path: Path, name: str, stage: str) -> None:
    if name == "gpt2":
        model, _ = labelled(tmp_path, name)
        tokenizer = load_tokenizer(tmp_path / name, DIALOGPT)
    else:
        model, tokenizer = labelled(tmp_path, name)
    bare = LocalEngine(model, tokenizer, stage)
    expected = turns(lambda request: list(bare.generate(request)))
    kept = LocalEngine(model, tokenizer, stage, PrefixCache())
    assert agree(turns(lambda request: list(kept.generate(request))), expected)
    with Runner() as runner:
        engine = runner.engine(bare)
        assert agree(turns(lambda request: list(engine.generate(request))), expected)
        streams = [engine.generate(HURT) for _ in range(3)]  # one pass for rows of which each was read before
        assert agree([list(stream) for stream in streams], [expected[0]] * 3)
        assert runner.prefixes


@pytest.mark.parametrize("way", ["alone", "together"])
def test_only_what_is_new_is_read(toy_base: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    model, tokenizer = with_stage(toy_base), load_tokenizer(toy_base)
    with Runner() as runner:
        engine = (
            LocalEngine(model, tokenizer, "sft", PrefixCache())
            if way == "alone"
            else runner.engine(LocalEngine(model, tokenizer, "sft"))
        )
        said = texts(engine.generate(HURT))[0]
        lengths = lengths_of(model, monkeypatch)
        read: list[list[int]] = []
        for request in (
            HURT,
            replace(HURT, prefill="I feel so alone"),
            replace(HURT, messages=(*HURT.messages, Message("assistant", said), Message("user", "Thank you"))),
        ):
            lengths.clear()
            assert texts(engine.generate(request))
            read.append([*lengths])
    assert read[0] == [], "its last token alone"
    assert sum(read[1]) <= 6, "the prefill alone"
    whole = len(tokenizer(said, add_special_tokens=False)["input_ids"])
    assert sum(read[2]) < whole + 20, "the reply's end and what came after it"


def test_stages_do_not_share_what_they_read(toy_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, prefixes = with_stage(toy_base), load_tokenizer(toy_base), PrefixCache()
    drawn = replace(HURT, sampling=Sampling(temperature=1.0, seed=1, max_new_tokens=16))
    engines = [LocalEngine(model, tokenizer, stage, prefixes) for stage in ("base", "sft")]
    expected = [texts(LocalEngine(model, tokenizer, stage).generate(drawn)) for stage in ("base", "sft")]
    assert expected[0] != expected[1]
    lengths = lengths_of(model, monkeypatch)
    assert [texts(engine.generate(drawn)) for engine in engines] == expected
    assert len(lengths) == 2
    assert [texts(engine.generate(drawn)) for engine in engines] == expected
    assert len(lengths) == 2


def test_it_can_be_switched_off_and_ends_with_its_runner(toy_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = with_stage(toy_base), load_tokenizer(toy_base)
    local = LocalEngine(model, tokenizer, "sft")
    lengths = lengths_of(model, monkeypatch)
    with Runner(Batching(prefix_bytes=0)) as off:
        assert off.prefixes is None
        found = [texts(off.engine(local).generate(HURT)) for _ in range(2)]
    assert found[0] == found[1]
    assert lengths[-1] == lengths[-2] > 6
    with Runner() as on:
        list(on.engine(local).generate(HURT))
        prefixes = on.prefixes
        assert prefixes
    assert len(prefixes) == prefixes.num_bytes == 0


def test_a_sliding_window_is_right_in_slots_and_left_out_alone(tmp_path: Path) -> None:
    tokenizer = phi3_tokenizer()
    base = saved(
        small(Phi3Config, vocab_size=len(tokenizer), max_position_embeddings=4096, sliding_window=12), tmp_path
    )
    tokenizer.save_pretrained(base)
    model = SupportModel(load_base(base, ModelSettings(base="toy"), torch.device("cpu")), "float32")
    bare = LocalEngine(model, load_tokenizer(base))
    expected = turns(lambda request: list(bare.generate(request)))
    prefixes = PrefixCache()
    alone = LocalEngine(model, load_tokenizer(base), prefixes=prefixes)
    assert agree(turns(lambda request: list(alone.generate(request))), expected)
    assert len(prefixes) == 0
    with Runner(Batching(prefill_tokens=16)) as runner:
        engine = runner.engine(bare)
        assert agree(turns(lambda request: list(engine.generate(request))), expected)
        assert runner._readers[bare] is not None
        assert runner.prefixes
    wide = small(Phi3Config, vocab_size=len(tokenizer), max_position_embeddings=4096)
    other = LocalEngine(
        SupportModel(
            load_base(saved(wide, tmp_path / "wide"), ModelSettings(base="toy"), torch.device("cpu")), "float32"
        ),
        load_tokenizer(base),
    )
    assert texts(other.generate(HURT)) != texts(expected[0]), "the window matters at this length"
