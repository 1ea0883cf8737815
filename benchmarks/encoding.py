"""How fast conversations become examples: tokenised, supervised and anchored, over all of EmpatheticDialogues."""

import os
import time
from pathlib import Path

from warmline.config.reading import load_recipe
from warmline.data.prepare import encode, load_corpus
from warmline.data.tokenize import Encoder
from warmline.model.tiny import train_tokenizer

SOURCE = "empathetic_dialogues"
REPEATS = 3


def encoding_report() -> str:
    """Utterances per second through the real encoder, the median of three passes. Needs WARMLINE_DATA."""
    recipe = load_recipe("tiny-real", ["data.sources.esconv=null", "data.sources.goemotions=null"])
    root = os.environ.get("WARMLINE_DATA")
    conversations = {SOURCE: load_corpus(recipe, Path(root) if root else None).conversations["train"][SOURCE]}
    turns = [turn for conversation in conversations[SOURCE] for turn in conversation.turns]
    assert recipe.base is not None
    tokenizer = train_tokenizer((turn.text for turn in turns), recipe.base.vocab_size)
    passes = []
    for _ in range(REPEATS):
        encoder = Encoder(tokenizer, recipe.model.max_seq_len, recipe.model.system_prompt)
        cpu, wall = time.process_time(), time.monotonic()
        examples = encode(conversations, encoder)[SOURCE]
        spent = (time.process_time() - cpu, time.monotonic() - wall)
        passes.append((*spent, sum(len(example.anchors) for example in examples)))
    cpu, wall, num_anchors = sorted(passes)[REPEATS // 2]
    return (
        f"{len(turns):,} utterances of {len(conversations[SOURCE]):,} conversations, {num_anchors:,} anchors: "
        f"{len(turns) / cpu:,.0f} utterances per CPU second, {len(turns) / wall:,.0f} per second of wall time"
    )
