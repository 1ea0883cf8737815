"""BLEU, ROUGE-L and Distinct of replies: sums per reply, so that whole conversations can be drawn, and their scores.

* BLEU-2, BLEU-4: corpus BLEU up to 2- and 4-grams by sacrebleu (Post 2018), one reference; `bleu_signature` says how.
* ROUGE-L: F1 of the longest common subsequence (Lin 2004) by rouge-score, no stemming, mean over replies.
* Distinct-n, corpus form (Li et al. 2016): different n-grams of all replies / all n-grams of all replies. It falls as
  the corpus grows: compare equal numbers of replies only.
* Distinct-n, sentence form: the same within each reply, mean over the replies that have an n-gram.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from warmline.evaluate.stats import MIN_CLUSTERS, Floats, Interval, Resampling, ratio_draws

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

ORDERS = (2, 4)  # of BLEU
DISTINCT = (1, 2)
_Z = 1.959963984540054  # of the normal distribution at 97.5 %


class Overlap(NamedTuple):
    """What one reply adds to the sums, beside its reference."""

    matches: tuple[int, ...]  # n-grams of the reply that the reference has, n = 1 to 4
    totals: tuple[int, ...]  # n-grams of the reply
    length: int  # tokens of the reply
    reference_length: int
    rouge_l: float


def overlap(reply: str, reference: str) -> Overlap:
    """Counts by sacrebleu's tokenizer, and ROUGE-L.

    >>> overlap("I am sorry.", "I am so sorry.").matches
    (4, 2, 0, 0)
    """
    score = _bleu(max(ORDERS)).sentence_score(reply, [reference])
    rouge = _rouge().score(reference, reply)["rougeL"].fmeasure
    return Overlap(tuple(score.counts), tuple(score.totals), score.sys_len, score.ref_len, rouge)


def bleu_draws(overlaps: Sequence[Overlap], order: int, resampling: Resampling) -> Floats:
    """Corpus BLEU, 0 to 100, for every row of weights."""
    flat = [(*each.matches[:order], *each.totals[:order], each.length, each.reference_length) for each in overlaps]
    sums_RK = resampling.sums(flat)
    bleu = _bleu(order)
    return np.array(
        [
            bleu.compute_bleu(
                correct=[int(value) for value in row[:order]],
                total=[int(value) for value in row[order : 2 * order]],
                sys_len=int(row[-2]),
                ref_len=int(row[-1]),
                smooth_method="exp",
                max_ngram_order=order,
            ).score
            for row in np.rint(sums_RK)
        ]
    )


def bleu_signature(order: int) -> str:
    """How sacrebleu computed it, in its own words.

    >>> bleu_signature(2).split("|version")[0]
    'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|order:2'
    """
    bleu = _corpus_bleu(order)
    signature = str(bleu.get_signature())
    head, _, version = signature.partition("|version:")
    return f"{head}|order:{order}|version:{version}"


def distinct(replies: Sequence[str], n: int) -> float | None:
    """The corpus form; None where no reply has an n-gram.

    >>> distinct(["so sad", "so so sad"], 1), distinct(["so sad", "so so sad"], 2)
    (0.4, 0.6666666666666666)
    """
    grams = Counter(gram for reply in replies for gram in ngrams(reply, n))
    return len(grams) / grams.total() if grams else None


def distinct_interval(replies: Sequence[str], clusters: Sequence[str], n: int) -> Interval | None:
    """The corpus form with an interval by the jackknife over clusters (Efron 1982).

    A bootstrap draws some conversations twice, which adds n-grams but no different ones: its draws all lie too low.
    """
    value = distinct(replies, n)
    if value is None:
        return None
    by_cluster: dict[str, Counter[tuple[str, ...]]] = {}
    for reply, cluster in zip(replies, clusters, strict=True):
        by_cluster.setdefault(cluster, Counter()).update(ngrams(reply, n))
    holders = Counter(gram for counts in by_cluster.values() for gram in counts)  # in how many clusters
    num_all = sum(counts.total() for counts in by_cluster.values())
    without = [
        (len(holders) - sum(holders[gram] == 1 for gram in counts)) / (num_all - counts.total())
        for counts in by_cluster.values()
        if num_all > counts.total()
    ]
    num = len(without)
    if num < MIN_CLUSTERS:
        return Interval(value, None, None)
    error = float(np.sqrt((num - 1) / num * np.square(np.array(without) - np.mean(without)).sum()))
    return Interval(value, max(0.0, value - _Z * error), min(1.0, value + _Z * error))


def distinct_in_sentences(replies: Sequence[str], n: int, resampling: Resampling) -> Floats:
    """Draws of the sentence form."""
    grams = [ngrams(reply, n) for reply in replies]
    return ratio_draws(
        [len(set(each)) / max(len(each), 1) for each in grams], [bool(each) for each in grams], resampling
    )


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """N-grams of the lower-cased tokens that sacrebleu's 13a tokenizer finds."""
    tokens = _tokens(text)
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def _tokens(text: str) -> list[str]:
    return _tokenizer()(text.lower()).split()


@cache
def _tokenizer() -> Any:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


@cache
def _bleu(order: int) -> "BLEU":
    """For counts of one reply: effective order only silences the warning of short texts."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(max_ngram_order=order, effective_order=True)


@cache
def _corpus_bleu(order: int) -> "BLEU":
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(max_ngram_order=order)
    bleu.corpus_score(["a b c d e"], [["a b c d e"]])  # the number of references is known from a score on
    return bleu


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)
