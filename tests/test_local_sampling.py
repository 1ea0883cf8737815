"""Drawing a token: as often as its probability says, and never from outside the smallest set that reaches top_p."""

import re
from pathlib import Path

import pytest
import torch

from warmline.engine.decoding import draw
from warmline.engine.engine import GenerateRequest, Message, Sampling
from warmline.engine.local import LocalEngine
from warmline.model.load import load_tokenizer

from .test_local import load


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.75), (2.0, 0.9)])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature: float, top_p: float) -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.5, -3.0])
    probabilities = (logits / temperature).softmax(0)
    kept, mass = [], 0.0
    for token in probabilities.argsort(descending=True).tolist():
        kept.append(token)
        mass += float(probabilities[token])
        if mass >= top_p:
            break
    assert len(kept) == 5 or top_p < 1
    sampling = Sampling(temperature=temperature, top_p=top_p)
    drawn = draw(logits.expand(40_000, 5), sampling, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    expected = torch.zeros(5)
    expected[kept] = probabilities[kept] / mass
    assert set(shares.nonzero().flatten().tolist()) == set(kept)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.012)  # 5 standard deviations


def test_at_temperature_0_the_likeliest_token_of_each_row_is_taken() -> None:
    logits = torch.tensor([[0.0, 1e-6, -1.0], [5.0, 3.0, 4.0]])
    for sampling in (Sampling(temperature=0), Sampling(temperature=1e-50, top_p=1.0), Sampling(top_p=1e-9)):
        assert draw(logits, sampling, torch.Generator()).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_inside_a_grammar_is_one_of_its_words(toy_base: Path, temperature: float) -> None:
    engine = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    hello = (Message("user", "Hello"),)
    lark = 'start: "I hear " ("you" | "that this hurts") END\nEND: "." | ", truly."'
    sampling = Sampling(temperature=temperature, top_p=1.0, max_new_tokens=60, seed=1)
    texts = dict.fromkeys(range(3), "")
    for chunk in engine.generate(GenerateRequest(hello, sampling, n=3, constraint=lark)):
        texts[chunk.index] += chunk.text
    for text in texts.values():
        assert re.fullmatch(r"I hear (you|that this hurts)(\.|, truly\.)", text), text
