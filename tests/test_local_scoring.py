"""Scoring the turns of a conversation in order reads each token once, and gives what a fresh engine gives."""

from pathlib import Path

import pytest
import torch

from warmline.config import ModelSettings
from warmline.data.tokenize import render
from warmline.engine.engine import Message
from warmline.engine.local import LocalEngine
from warmline.model.load import load_base, load_tokenizer
from warmline.model.support_model import SupportModel

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
