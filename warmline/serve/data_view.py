"""Shows an example token by token: what is trained, what is only read, and where the heads look."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from warmline.data.labels import IGNORE
from warmline.data.tokenize import Anchor, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED, READ, ANCHOR = "bold green", "dim", "reverse yellow"


def show(tokenizer: "PreTrainedTokenizerBase", example: Example, console: Console | None = None) -> None:
    """Print one example. Without colours, trained text stands in [[ ]] and anchors are marked by ^.

    An anchor is the last prompt token before an answer: the place where the heads read.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    num_trained = int((example.labels != IGNORE).sum())
    console.print(
        Text(
            f"{example.source} {example.id}: {len(example)} tokens, {num_trained} trained, {len(example.anchors)} anchors"
        )
    )
    anchors = {anchor.position: anchor for anchor in example.anchors}
    text = Text()
    marks = console.color_system is None
    trained = False
    for position, token in enumerate(example.input_ids.tolist()):
        is_trained = bool(example.labels[position] != IGNORE)
        if marks and is_trained != trained:
            text.append("[[" if is_trained else "]]")
        trained = is_trained
        piece = tokenizer.decode([token])
        assert isinstance(piece, str)
        if position in anchors:
            text.append("^" if marks else "", style=ANCHOR)
            text.append(_labels(anchors[position]), style=ANCHOR)
        text.append(piece, style=TRAINED if is_trained else READ)
    if marks and trained:
        text.append("]]")
    console.print(text)
    console.print()


def _labels(anchor: Anchor) -> str:
    known = {
        "emotion": "+".join(anchor.emotions),
        "situation": anchor.situation,
        "strategy": anchor.strategy,
        "risk": anchor.risk,
        "affect": anchor.affect and f"{anchor.affect.valence:+.1f}/{anchor.affect.arousal:+.1f}",
    }
    return "<" + ", ".join(f"{head}: {label}" for head, label in known.items() if label) + ">"
