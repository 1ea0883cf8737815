"""Decoding inside the grammar: whatever the logits and the tokenizer, a reply comes, passes, and asks and counts nothing."""

import random
import re

import numpy as np
import pytest

from benchmarks import guided
from warmline.engine.grammar import Grammar, tokenizer_of
from warmline.safety.grammar.grammar import derive, frames_of, lark, spec_for
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.validate.context import ReplyContext, Turn
from warmline.safety.validate.release import validate

from .toys import TOYS

NUM_TURNS, NUM_LADDER = 50, 3
TOLD = (Turn("user", "everything is too much and i do not know how to go on"),)


def test_random_logits_give_valid_and_different_replies() -> None:
    replies = [
        reply
        for number in range(NUM_TURNS // guided.TURNS_OF_ONE + 1)
        for reply in guided.converse(number, 0, only_guided=True)
    ]
    found = guided.figures(replies)
    assert found.num_replies > NUM_TURNS // 2
    assert (found.num_missing, found.num_broken, found.num_marks) == (0, 0, 0), found.rules
    assert found.sources.keys() == {"guided"}
    assert found.distinct == 1
    assert found.words[0] >= 20


def test_so_does_the_whole_ladder() -> None:
    replies = guided.converse(0, 1, only_guided=False)
    found = guided.figures(replies)
    assert 1 < found.num_replies <= NUM_LADDER  # at high or above, which the detector decides
    assert (found.num_missing, found.num_broken, found.num_marks) == (0, 0, 0), found.rules


@pytest.mark.parametrize("architecture", ["qwen2", "phi3", "gpt2"])
def test_every_kind_of_tokenizer_is_held_by_the_grammar(architecture: str) -> None:
    """Byte-level pairs (Qwen's and GPT-2's) and marks for spaces with bytes for rare letters (SentencePiece's)."""
    rng = random.Random(7)
    example = " ".join(derive(spec_for(Level.HIGH, [domain], []), rng)[0] for domain in DOMAINS)
    tokenizer = TOYS[architecture][0](example + " Why? 0123456789?")
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    size = len(tokenizer) + 5  # models have rows that no token uses
    guide = tokenizer_of(tokenizer, size, end)
    texts, num_tokens = set(), 0
    for seed in range(20):
        level, domain = rng.choice((Level.HIGH, Level.EMERGENCY)), rng.choice(DOMAINS)
        spec = spec_for(level, [domain], [])
        grammar, logits_of, ids = Grammar(guide, lark(spec), end), np.random.default_rng(seed), []
        while not ids or ids[-1] != end:
            allowed_V = grammar.allowed(size)
            assert allowed_V.any()
            ids.append(int(np.where(allowed_V, logits_of.normal(scale=2.0, size=size), -np.inf).argmax()))
            grammar.take(ids[-1])
            assert len(ids) < 900
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        num_tokens += len(ids)
        assert not re.search(r"[?\d]", text), text
        assert frames_of(spec, text) is not None, text
        assert validate(text, ReplyContext(level, frozenset({domain}), TOLD)).passed, text
        texts.add(text)
    assert len(texts) == 20
    assert num_tokens > 1_000
