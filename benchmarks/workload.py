"""What every contender trains on: the same conversations in the same steps, one tokenizer, one random base."""

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from warmline.config.fields import Dtype
from warmline.config.reading import load_recipe
from warmline.config.recipe import Recipe
from warmline.data.conversation import Conversation, Turn
from warmline.data.labels import EMOTIONS
from warmline.data.mixture import step_items
from warmline.data.prepare import load_corpus
from warmline.data.tokenize import Encoder, Example
from warmline.model.load import DTYPES
from warmline.model.tiny import build_model, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BATCH_SIZE = 8  # conversations per optimizer step, of every contender
LEARNING_RATE = 2e-4
VOCABS = {"8k": 8192, "152k": 151_936}  # rows of the embedding; the second is Qwen2.5's
# A CPU recipe of ours, cut to what all contenders have: no system prompt, no dropout, no safety term.
SETTINGS = (
    "model.system_prompt=null",
    "model.max_seq_len=1024",  # what TRL keeps by default: conversations are chosen so that nobody cuts one
    "model.lora={r: 16, alpha: 32, dropout: 0}",
    "sft.optim.micro_batch_tokens=1024",  # one conversation at a time
    "sft.logits_chunk=128",  # supervised positions: 80 MB of logits at 152k
    "base.vocab_size=8192",
    "base.hidden_size=256",
    "base.num_layers=6",
    "heads.situation.weight=0",
    "sft.safety_kl.weight=0",
    "sft.epochs=null",
    "sft.steps=1000000",  # the benchmark sets the number of steps
    "sft.validate_every=1000000",
    "sft.save_every=1000000",
    f"sft.optim.batch_size={BATCH_SIZE}",
    f"sft.optim.learning_rate={LEARNING_RATE}",
)


@dataclass(frozen=True)
class Workload:
    recipe: Recipe
    tokenizer: "PreTrainedTokenizerFast"
    conversations: tuple[Conversation, ...]  # as they stand in the corpus
    num_steps: int  # that are timed

    @property
    def source(self) -> str:
        return self.conversations[0].source

    @property
    def pad_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.tokenizer.pad_token)  # type: ignore[return-value]

    def step(self, step: int) -> list[Conversation]:
        """The conversations of one optimizer step, in the order in which warmline's own mixture draws them."""
        sizes = {self.source: len(self.conversations)}
        items = step_items(sizes, self.recipe.data.alpha, self.recipe.seed, BATCH_SIZE, step)
        return [self.conversations[item.row] for item in items]

    def warm_up(self) -> list[Conversation]:
        """A step that costs next to nothing: the first step's conversations up to their first answer."""
        return [_first_pair(conversation) for conversation in self.step(0)]

    def all_steps(self) -> list[list[Conversation]]:
        """The warm-up and every timed step."""
        return [self.warm_up(), *map(self.step, range(self.num_steps))]

    def first_steps(self, num_steps: int | None) -> "Workload":
        """The same with fewer timed steps; with all of them if None."""
        return self if num_steps is None else replace(self, num_steps=min(num_steps, self.num_steps))

    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer, self.recipe.model.max_seq_len, self.recipe.model.system_prompt)

    def example(self, conversation: Conversation) -> Example:
        """The one example of a whole conversation."""
        [example] = self.encoder().examples(conversation)
        return example

    def build_base(self, vocab: str, dtype: Dtype) -> "PreTrainedModel":
        """The frozen base with seeded random weights. Rows of its embedding that no token names are padding."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        assert self.recipe.base is not None
        small = build_model(self.recipe.base, self.tokenizer, self.recipe.model.max_seq_len)
        config = Qwen2Config(**{**small.config.to_dict(), "vocab_size": VOCABS[vocab]})
        torch.manual_seed(self.recipe.seed)
        base = Qwen2ForCausalLM(config)
        base.requires_grad_(False)
        base.eval()
        return base.to(DTYPES[dtype])  # type: ignore[arg-type]


def build(source: str, num_conversations: int, settings: Sequence[str] = ()) -> Workload:
    """The first `num_conversations` of the source's train split that fit in one example.

    Raises ValueError if there are fewer.
    """
    recipe = load_recipe("tiny-real", [*_only(source), *SETTINGS, *settings])
    root = os.environ.get("WARMLINE_DATA")
    train = load_corpus(recipe, Path(root) if root else None).conversations["train"][source]
    assert recipe.base is not None
    texts = (turn.text for conversation in train for turn in conversation.turns)
    tokenizer = train_tokenizer(texts, recipe.base.vocab_size)
    encoder = Encoder(tokenizer, recipe.model.max_seq_len, recipe.model.system_prompt)
    chosen: list[Conversation] = []
    for conversation in filter(None, map(_prepared, train)):
        if len(encoder.examples(conversation)) == 1:
            chosen.append(conversation)
        if len(chosen) == num_conversations:
            return Workload(recipe, tokenizer, tuple(chosen), num_conversations // BATCH_SIZE)
    raise ValueError(f"{source} has {len(chosen)} conversations of one example, expected {num_conversations}")


def _only(source: str) -> Iterator[str]:
    """The overrides that leave one source in the recipe, with that source's own defaults."""
    yield from (f"data.sources.{name}=null" for name in load_recipe("tiny-real").data.sources)
    yield f"data.sources.{source}={{}}"
    yield f"base.sources=[{source}]"


def _prepared(conversation: Conversation) -> Conversation | None:
    """Up to the last answer, with a label wherever a head can have one; None if there is no answer to a user.

    ESConv labels strategies only. Its user turns get the emotions in turn, so that the emotion head has as much to do
    as in a run on several corpora; what a label says costs no time.
    """
    turns = conversation.turns[:-1] if conversation.turns[-1].role == "user" else conversation.turns
    if not any(turn.role == "assistant" for turn in turns[1:]):
        return None
    number = count()
    labelled = [
        Turn("user", turn.text, emotions=(EMOTIONS[next(number) % len(EMOTIONS)],))
        if turn.role == "user"
        else Turn("assistant", turn.text, strategy=turn.strategy)
        for turn in turns
    ]
    return Conversation(conversation.id, conversation.source, tuple(labelled))


def _first_pair(conversation: Conversation) -> Conversation:
    answer = next(at for at, turn in enumerate(conversation.turns) if at and turn.role == "assistant")
    return Conversation(conversation.id, conversation.source, conversation.turns[: answer + 1])


def save(work: Workload, file: Path) -> None:
    file.write_bytes(pickle.dumps(work))


def load(file: Path) -> Workload:
    """Only ever a file that this benchmark wrote a moment ago."""
    work = pickle.loads(file.read_bytes())
    assert isinstance(work, Workload)
    return work
