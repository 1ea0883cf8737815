"""One pass over a conversation is the per-turn design: same losses, head logits and gradients; heads see no answer."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from warmline.config.training import LoraSettings, ModelSettings
from warmline.data.batches import Batch, collate
from warmline.data.conversation import Conversation, Turn
from warmline.data.labels import AFFECTS, RISKS, HeadSpec
from warmline.data.sources.chat_jsonl import turns_of
from warmline.data.tokenize import Encoder, Example
from warmline.model.load import load_base, load_tokenizer
from warmline.model.support_model import Outputs, SupportModel
from warmline.objectives import HEAD_OBJECTIVES, Term, chunked_lm_and_kl, combine, lm

from .conftest import EMOTIONS, SITUATIONS, STRATEGIES, toy_row

SPECS = {
    "emotion": HeadSpec("sigmoid", EMOTIONS),
    "situation": HeadSpec("softmax", SITUATIONS),
    "strategy": HeadSpec("softmax", STRATEGIES),
    "risk": HeadSpec("ordinal", RISKS),
    "affect": HeadSpec("regression", AFFECTS),
}
TERMS = ("lm", "safety_kl", *SPECS)
WEIGHTS = dict(zip(TERMS, (1.0, 0.7, 0.3, 0.2, 0.4, 0.5, 0.6), strict=True))


@pytest.fixture(scope="module")
def model(toy_base: Path) -> SupportModel:
    """The toy base with an adapter and heads that are not zero, and no dropout.

    In float64, so that what differs is design and not rounding; heads stay float32.
    """
    base = load_base(toy_base, ModelSettings(base=str(toy_base)), torch.device("cpu")).double()
    support = SupportModel(base, "float32")
    support.add_stage("sft", LoraSettings(r=4, alpha=8, dropout=0.0), SPECS, str(toy_base))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in support.named_parameters():
            if "lora_B" in name or "stage_heads" in name:
                parameter.normal_(0, 0.1, generator=generator)
    return support


@pytest.fixture(scope="module")
def encoder(toy_base: Path) -> Encoder:
    return Encoder(load_tokenizer(toy_base), 256, "Listen.", Counter())


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    """Two to five pairs; one opens with the supporter, one ends on a labelled user turn, one is a single message."""
    rows = [(f"c{seed}", toy_row(f"c{seed}", seed, 2 + seed % 4)) for seed in range(4)]
    talks = [tuple(turn for turn in turns_of(json.dumps(row)) if isinstance(turn, Turn)) for _, row in rows]
    talks[1] = (Turn("assistant", "Thank you for listening", strategy=("Others",)), *talks[1])
    talks[2] = (*talks[2], Turn("user", "It hurts", risk="high", emotions=("fear",)))
    talks.append((Turn("user", "I lost my job", emotions=("joy", "fear")),))
    return [Conversation(f"c{at}", "talks", turns) for at, turns in enumerate(talks)]


class Result(NamedTuple):
    lm_per_answer: list[float]  # nats, in the order of the conversations' answers
    heads: dict[str, Tensor]  # by head: [anchors, outputs]
    totals: dict[str, float]
    counts: dict[str, int]
    gradient: Tensor  # of the combined loss, by every LoRA parameter


def batch_terms(model: SupportModel, batch: Batch, outputs: Outputs) -> dict[str, Term]:
    both = chunked_lm_and_kl(
        outputs.hidden_ND,
        batch.lm_labels_N,
        model.lm_weight_VD,
        outputs.teacher_MD,
        batch.kl_index_M,
        tau=2.0,
        chunk=32,
    )
    heads = {name: HEAD_OBJECTIVES[SPECS[name].kind](outputs.heads[name], batch.targets[name]) for name in SPECS}
    return dict(zip(("lm", "safety_kl"), both, strict=True)) | heads


def losses_of_answers(model: SupportModel, batch: Batch, outputs: Outputs) -> Iterator[float]:
    logits_NV = outputs.hidden_ND.detach() @ model.lm_weight_VD.T
    sizes = [anchor.num_answer_tokens for row in batch.examples for anchor in row.anchors if anchor.num_answer_tokens]
    for logits, labels in zip(logits_NV.split(sizes), batch.lm_labels_N.split(sizes), strict=True):
        yield lm(logits, labels).total.item()


def run(model: SupportModel, batches: Sequence[Batch]) -> Result:
    """All batches as one optimizer step."""
    counts = {name: sum(batch.counts[name] for batch in batches) for name in TERMS}
    losses, heads, totals = [], {name: [] for name in SPECS}, dict.fromkeys(TERMS, 0.0)
    model.zero_grad()
    for batch in batches:
        outputs = model(batch)
        terms = batch_terms(model, batch, outputs)
        combine({name: term.total for name, term in terms.items()}, WEIGHTS, counts).backward()
        losses += losses_of_answers(model, batch, outputs)
        for name in SPECS:
            heads[name].append(outputs.heads[name].detach())
        for name in TERMS:
            totals[name] += terms[name].total.item()
    lora = [parameter.grad for name, parameter in model.named_parameters() if "lora_" in name]
    gradient = torch.cat([grad.reshape(-1) for grad in lora if grad is not None])
    return Result(losses, {name: torch.cat(each) for name, each in heads.items()}, totals, counts, gradient)


def batch_of(examples: Sequence[Example], *, packing: bool = False) -> Batch:
    return collate(examples, SPECS, pad_id=0, min_kl_risk="elevated", packing=packing)


def assert_same(one: Result, other: Result) -> None:
    assert one.counts == other.counts
    assert min(one.counts.values()) > 0
    assert one.lm_per_answer == pytest.approx(other.lm_per_answer, rel=1e-9)
    for name in SPECS:
        assert other.heads[name].std() > 0.01
        torch.testing.assert_close(one.heads[name], other.heads[name], rtol=0, atol=1e-6)
    for name in TERMS:
        assert other.totals[name] > 1e-4
        assert one.totals[name] == pytest.approx(other.totals[name], rel=1e-6)
    assert other.gradient.abs().max() > 1e-3
    torch.testing.assert_close(one.gradient, other.gradient, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def one_pass(model: SupportModel, encoder: Encoder, conversations: list[Conversation]) -> Result:
    """Each conversation encoded once, one row a batch."""
    examples = [example for talk in conversations for example in encoder.examples(talk)]
    assert len(examples) == len(conversations)
    return run(model, [batch_of([example]) for example in examples])


def test_one_pass_is_the_per_turn_design(
    model: SupportModel, encoder: Encoder, conversations: list[Conversation], one_pass: Result
) -> None:
    examples = [example for talk in conversations for example in encoder.per_turn(talk)]
    assert all(len(example.anchors) == 1 for example in examples)
    assert len(examples) == len(one_pass.heads["emotion"]) == 16
    assert len(one_pass.lm_per_answer) == 14
    assert_same(one_pass, run(model, [batch_of([example]) for example in examples]))


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("size", [2, 5])
def test_rows_of_a_batch_do_not_see_each_other(
    model: SupportModel,
    encoder: Encoder,
    conversations: list[Conversation],
    one_pass: Result,
    size: int,
    packing: bool,
) -> None:
    examples = [example for talk in conversations for example in encoder.examples(talk)]
    batches = [batch_of(examples[at : at + size], packing=packing) for at in range(0, len(examples), size)]
    assert_same(run(model, batches), one_pass)


def test_the_teacher_is_the_base_and_not_the_adapter(
    model: SupportModel, encoder: Encoder, conversations: list[Conversation]
) -> None:
    [example] = encoder.examples(conversations[2])
    batch = batch_of([example])
    tuned = model(batch)
    model.use("base")
    base = model(batch)
    model.use("sft")
    assert tuned.teacher_MD is not None
    torch.testing.assert_close(tuned.teacher_MD, base.hidden_ND[batch.kl_index_M], rtol=0, atol=0)
    assert (tuned.hidden_ND[batch.kl_index_M] - tuned.teacher_MD).abs().max() > 0.01


def changed_answers(conversation: Conversation, first: int) -> Conversation:
    """Other words, and more of them, in every answer from turn `first` on."""
    turns = tuple(
        Turn("assistant", "here I feel listening to me and alone today", strategy=turn.strategy)
        if turn.role == "assistant" and at >= first
        else turn
        for at, turn in enumerate(conversation.turns)
    )
    return Conversation(conversation.id, conversation.source, turns)


@pytest.mark.parametrize("packing", [False, True])
def test_heads_are_blind_to_the_answer(
    model: SupportModel, encoder: Encoder, conversations: list[Conversation], packing: bool
) -> None:
    talk, other = conversations[3], encoder.examples(conversations[0])
    answers = [at for at, turn in enumerate(talk.turns) if turn.role == "assistant"]
    assert len(answers) == 5
    with torch.no_grad():
        before = model(batch_of([*encoder.examples(talk), *other], packing=packing)).heads
        for index, at in enumerate(answers):
            changed = encoder.examples(changed_answers(talk, at))
            after = model(batch_of([*changed, *other], packing=packing)).heads
            for name in SPECS:  # equal up to and at the anchor before the first changed answer, and not behind it
                torch.testing.assert_close(after[name][: index + 1], before[name][: index + 1], rtol=0, atol=1e-6)
                if at != answers[-1]:
                    assert (after[name][index + 1 : 5] - before[name][index + 1 : 5]).abs().max() > 1e-3


def test_a_prompt_alone_gives_the_logits_of_its_anchor(
    model: SupportModel, encoder: Encoder, conversations: list[Conversation]
) -> None:
    """What a head learned from is what it reads in use, when no answer is written yet."""
    [example] = encoder.examples(conversations[3])
    with torch.no_grad():
        learned = model(batch_of([example])).heads
        for index, anchor in enumerate(example.anchors):
            prompt = torch.from_numpy(example.input_ids[: anchor.position + 1])[None]
            state = model.hidden(prompt, use_cache=True).last_hidden_state[:, -1]
            for name, head in model.heads.items():
                torch.testing.assert_close(head(state.float())[0], learned[name][index], rtol=0, atol=1e-5)
