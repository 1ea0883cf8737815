"""Scoring the turns of a conversation in order reads each token once, and gives what a fresh engine gives."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from warmline.config.training import LoraSettings, ModelSettings
from warmline.data.labels import RISKS, HeadSpec
from warmline.data.tokenize import render
from warmline.engine.batching import Encoded, plan
from warmline.engine.engine import EngineError, Message
from warmline.engine.local import LocalEngine
from warmline.model.load import load_base, load_tokenizer
from warmline.model.support_model import SupportModel
from warmline.model.tiny import CHATML

from .toys import save_toy

TALK = [
    Message("user", "I lost my job today ."),
    Message("assistant", "What happened then ?"),
    Message("user", "It hurts , and I feel so alone here"),
    Message("assistant", "Thank you for listening"),
    Message("user", "Thank you"),
    Message("assistant", "I feel so alone"),
]
ASKED = [(TALK[:at], TALK[at].content) for at in (1, 3, 5)]


@pytest.fixture
def model(toy_base: Path) -> SupportModel:
    return SupportModel(load_base(toy_base, ModelSettings(base="toy"), torch.device("cpu")), "float32")


@pytest.mark.parametrize(
    "order",
    [
        pytest.param([0, 1, 2], id="in order"),
        pytest.param([2, 1, 0], id="backwards"),
        pytest.param([1, 1, 0, 2], id="repeated"),
    ],
)
def test_what_was_read_before_changes_no_score(model: SupportModel, toy_base: Path, order: list[int]) -> None:
    tokenizer = load_tokenizer(toy_base)
    kept = LocalEngine(model, tokenizer)
    for number in order:
        messages, reply = ASKED[number]
        fresh = LocalEngine(model, tokenizer).score(messages, reply)
        found = kept.score(messages, reply)
        assert found.num_tokens == fresh.num_tokens
        assert found.logprob == pytest.approx(fresh.logprob, abs=1e-5)
        other = kept.score([Message("user", "Something else")], reply)
        assert other.logprob == pytest.approx(
            LocalEngine(model, tokenizer).score([Message("user", "Something else")], reply).logprob, abs=1e-5
        )


def test_turns_scored_in_order_cost_one_pass(
    model: SupportModel, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(toy_base)
    num_read: list[int] = []
    hidden = SupportModel.hidden

    def counting(self: SupportModel, input_ids_BT: torch.Tensor, **options: object) -> object:
        num_read.append(input_ids_BT.shape[1])
        return hidden(self, input_ids_BT, **options)

    monkeypatch.setattr(SupportModel, "hidden", counting)
    engine = LocalEngine(model, tokenizer)
    for messages, reply in ASKED:
        engine.score(messages, reply)
    whole = render(tokenizer, [message._asdict() for message in TALK], add_generation_prompt=False)
    length = len(tokenizer(whole, add_special_tokens=False)["input_ids"])
    assert length - 1 <= sum(num_read) <= length  # the line break after the last stop token is never read


def labelled(folder: Path, name: str) -> tuple[SupportModel, PreTrainedTokenizerBase]:
    """A toy of an architecture with a stage whose adapter and heads do something."""
    toy = save_toy(name, " ".join(f"{role}\n{text}" for role, text in TALK), folder / name)
    loaded = SupportModel(load_base(toy, ModelSettings(base="toy"), torch.device("cpu")), "float32")
    specs = {"emotion": HeadSpec("softmax", ("joy", "fear", "anger")), "risk": HeadSpec("ordinal", RISKS)}
    loaded.add_stage("sft", LoraSettings(r=4, alpha=8, dropout=0.0), specs, "toy")
    torch.manual_seed(3)
    for parameter in loaded.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return loaded, load_tokenizer(toy, None if name != "gpt2" else CHATML)


def batch_items() -> list[tuple[list[Message], str]]:
    """Turns of two conversations, single turns of many lengths, turns with nothing to score, and one that stands twice."""
    words = " ".join(message.content for message in TALK).split()
    singles = [([Message("user", " ".join(words[: 1 + at * 3]))], "" if at % 2 else "Thank you") for at in range(9)]
    other = [([Message("user", "Something else"), *TALK[1:at]], TALK[at].content) for at in (3, 5)]
    return [*singles, *ASKED, *other, (TALK, ""), ASKED[1]]


@pytest.mark.parametrize("stage", ["base", "sft"])
@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_a_batch_gives_what_one_by_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stage: str, budget: int
) -> None:
    monkeypatch.setattr("warmline.engine.local.BATCH_TOKENS", budget)
    monkeypatch.setattr("warmline.engine.local.LOGITS", 2000)  # a few positions at a time
    engine = LocalEngine(*labelled(tmp_path, name), stage)
    items = batch_items()
    found = engine.score_batch(items)
    for (messages, reply), scores in zip(items, found, strict=True):
        expected = engine.score(messages, reply)
        assert scores.num_tokens == expected.num_tokens
        assert scores.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert [reading[:2] for reading in scores.readings] == [reading[:2] for reading in expected.readings]
        assert len(scores.readings) == (2 if stage == "sft" else 0)
        for reading, other in zip(scores.readings, expected.readings, strict=True):
            assert reading.values == pytest.approx(other.values, abs=1e-4)
    assert len({scores.readings for scores in found}) > (5 if stage == "sft" else 0)  # the heads tell texts apart
    assert engine.score_batch([]) == []


def test_a_batch_reads_the_turns_of_a_conversation_in_one_pass(
    model: SupportModel, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    hidden = SupportModel.hidden

    def watching(self: SupportModel, input_ids_BT: torch.Tensor, **options: object) -> object:
        shapes.append(tuple(input_ids_BT.shape))
        return hidden(self, input_ids_BT, **options)

    monkeypatch.setattr(SupportModel, "hidden", watching)
    LocalEngine(model, load_tokenizer(toy_base)).score_batch([*ASKED, ([Message("user", "Thank you")], "I feel")])
    [(num_rows, _)] = shapes
    assert num_rows == 2


def test_what_all_rows_begin_with_is_read_once(
    model: SupportModel, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    hidden = SupportModel.hidden

    def watching(self: SupportModel, input_ids_BT: torch.Tensor, **options: object) -> object:
        shapes.append(tuple(input_ids_BT.shape))
        return hidden(self, input_ids_BT, **options)

    engine = LocalEngine(model, load_tokenizer(toy_base))
    system = Message("system", "Thank you for listening to me . I feel so alone here")
    items = [([system, *messages], reply) for messages, reply in batch_items()]
    expected = [engine.score(*item) for item in items]
    monkeypatch.setattr(SupportModel, "hidden", watching)
    found = engine.score_batch(items)
    assert [scores.logprob for scores in found] == pytest.approx([scores.logprob for scores in expected], abs=1e-4)
    (one, start), (num_rows, rest) = shapes
    assert (one, num_rows) == (1, 11)  # nine single turns and two conversations
    assert start > 8
    assert start + rest < start + max(len(engine._encode(*item).ids) for item in items)


def test_an_item_that_does_not_fit_is_refused_before_any_pass(model: SupportModel, toy_base: Path) -> None:
    engine = LocalEngine(model, load_tokenizer(toy_base))
    with pytest.raises(EngineError, match="the context is"):
        engine.score_batch([ASKED[0], ([Message("user", "job " * 3000)], "Thank you")])


def test_positions_that_hang_on_the_longest_row_are_scored_one_by_one(
    model: SupportModel, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setitem(model.causal.config.rope_parameters, "rope_type", "longrope")
    score = LocalEngine.score
    monkeypatch.setattr(LocalEngine, "score", lambda self, *item: asked.append(item[1]) or score(self, *item))
    assert len(LocalEngine(model, load_tokenizer(toy_base)).score_batch(ASKED)) == 3
    assert asked == [reply for _, reply in ASKED]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=12), st.integers(1, 30))
def test_a_plan_reads_every_item_once_in_a_row_that_it_begins(rows: list[list[int]], max_tokens: int) -> None:
    batches = plan([Encoded(ids, 0) for ids in rows], max_tokens)
    assert sorted(number for batch in batches for row in batch for number in row.items) == list(range(len(rows)))
    distinct = [list(row.ids) for batch in batches for row in batch]
    for batch in batches:
        longest = len(batch[0].ids)
        assert len(batch) == 1 or longest * len(batch) <= max_tokens
        for row in batch:
            assert len(row.ids) <= longest
            assert all(row.ids[: len(rows[number])] == rows[number] for number in row.items)
    # no row is another's beginning: nothing is read twice
    assert not any(one != other and other[: len(one)] == one for one in distinct for other in distinct)
    assert len({tuple(row) for row in distinct}) == len(distinct)
