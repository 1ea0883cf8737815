"""What the linear model and the network read of a message: windows of its words, hashed or embedded."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warmline.safety.fit_network import _Network, tensors, weights_of
from warmline.safety.grams import char_grams, word_grams
from warmline.safety.lexicon import load_lexicon
from warmline.safety.linear import DIM, features, load_linear
from warmline.safety.matcher import read
from warmline.safety.network import encode, load_network
from warmline.safety.windows import FEWEST, LONG, PART_WORDS, Kind, Window, row, windows

WORDS = ("i", "am", "so", "tired", "of", "rain", "caf\u00e9", "today")
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=90), max_size=40)


@pytest.mark.parametrize("hashed", [char_grams, word_grams])
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), st.data())
def test_words_read_by_place_are_the_same_words_read_alone(hashed, words: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    weights_DK = np.random.default_rng(0).normal(size=(1 << 12, 3))
    within_NK, num_N = hashed(words, 1 << 12).sums(weights_DK, np.array([first]), np.array([last]))
    alone = hashed(words[first : last + 1], 1 << 12).all()
    np.testing.assert_allclose(within_NK[0], weights_DK[alone].sum(axis=0), atol=1e-9)
    assert num_N[0] == len(alone)


@given(SENTENCES)
def test_windows_leave_no_word_out(sentences: list[list[str]]) -> None:
    words = row(sentences)
    found = list(windows(sentences))
    num_words = sum(map(len, sentences))
    read_at = set(chain(*(range(each.start, each.end) for each in found if each.kind != Kind.PASSAGE)))
    assert read_at == set(range(len(words)))
    assert (found[0].kind == Kind.WHOLE) == (num_words <= 1.5 * PART_WORDS)
    passages = [each for each in found if each.kind == Kind.PASSAGE]
    assert bool(passages) == (num_words > LONG)
    if passages:  # what is too short for a passage ends in a longer one
        missed = set(range(len(words))) - set(chain(*(range(each.start, each.end) for each in passages)))
        assert len(missed) < FEWEST + 2


def test_a_sentence_of_a_long_message_is_read_as_it_would_be_alone() -> None:
    """The sign must not drown: some passage holds the sentence and at most a few words of its neighbours."""
    sentences = [["we", "went", "to", "the", "market", "and", "bought", "bread"]] * 30
    sentences[15] = ["i", "have", "written", "the", "letters", "now", "and", "fed", "the", "cat"]
    words = row(sentences)
    at = words.index("letters")
    assert any(
        each.start <= at - 3 and at + 6 <= each.end and each.end - each.start <= 40 for each in windows(sentences)
    )


@pytest.mark.parametrize("text", ["I want to stay in bed", "", "\ud800", "\u4e16 " * 300])
def test_features_are_hashed_into_their_ranges(text: str) -> None:
    found = features(read(text, load_lexicon("en")))
    assert (found.index >= 0).all()
    assert (found.index < DIM).all()
    assert np.isfinite(found.value).all()


@pytest.mark.parametrize("text", ["I want to stay in bed. No more of this", "", "a b c " * 40])
def test_the_linear_model_reads_windows_as_it_learned_messages(text: str) -> None:
    reading = read(text, load_lexicon("en"))
    linear, found = load_linear(), features(reading)
    expected = found.value @ linear.level_DK[found.index] + linear.level_bias_K
    whole = Window(0, len(row(reading.words)), Kind.WHOLE)
    np.testing.assert_allclose(linear.logits(reading, [whole, whole])[1], expected, atol=1e-4)


def test_a_message_is_read_alike_alone_and_among_others() -> None:
    """The network pads; what stands at padding must mean nothing."""
    network = load_network()
    texts = ["i am tired", "we went to the market and it rained all day but the bread was good", "no", ""]
    rows = [row([text.split()]) for text in texts]
    for together, words in zip(network.logits(rows), rows, strict=True):
        np.testing.assert_allclose(network.logits([words])[0], together, atol=1e-4)


def test_the_network_reads_as_torch_does() -> None:
    """numpy's steps against torch's own convolutions, on a network with random weights."""
    torch.manual_seed(0)
    words = ["bread", "day", "rain", "the"]
    network = _Network(len(words) + 2, 3).eval()
    weights = weights_of(network, words)
    rows = [row([["the", "rain"], ["the", "bread"], ["day"] * 20]), row([["rain", "the", "unknownword"]]), []]
    with torch.no_grad():
        expected, _ = network(*tensors(encode(rows, weights.word_ids)))
    np.testing.assert_allclose(weights.logits(rows), expected.numpy(), atol=1e-5)
