"""Pre-trains the embedded base from scratch, once, and caches it as a folder that loads like any other."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from warmline.config.recipe import Recipe
from warmline.config.training import OptimSettings
from warmline.data.batches import Batch, collate
from warmline.data.conversation import Conversation
from warmline.data.labels import IGNORE
from warmline.data.prepare import Corpus
from warmline.data.tokenize import Example, render
from warmline.model.load import DTYPES
from warmline.model.tiny import PAD, build_model, train_tokenizer
from warmline.objectives import Term, lm
from warmline.run_dir import home, write_atomic, write_json
from warmline.train.loop import train
from warmline.train.stage import Files, Rows, Stage, held_out_batches, sampled_batches

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerFast

FORMAT = 1  # of the cached folder; part of its key


def base_folder(recipe: Recipe, corpus: Corpus) -> Path:
    """Where the base of this recipe and this corpus is cached, whether or not it is there yet."""
    assert recipe.base is not None
    key = hashlib.sha256()
    about = {"format": FORMAT, "seed": recipe.seed, "max_seq_len": recipe.model.max_seq_len}
    key.update(json.dumps(about | recipe.base.model_dump(), sort_keys=True).encode())
    for source in recipe.base.sources:
        for split in ("train", "validation"):
            for conversation in corpus.conversations[split][source]:
                key.update(json.dumps([(turn.role, turn.text) for turn in conversation.turns]).encode())
    return home() / "bases" / f"tiny-{key.hexdigest()[:16]}"


def ensure_base(recipe: Recipe, corpus: Corpus, accelerator: "Accelerator") -> Path:
    """The folder of the embedded base, pre-trained now if the cache does not have it."""
    folder = base_folder(recipe, corpus)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))  # another run may be building the same base
    if accelerator.is_main_process:
        lock.acquire()
    try:
        accelerator.wait_for_everyone()
        if not (folder / "config.json").is_file():
            _pretrain(recipe, corpus, folder, accelerator)
        accelerator.wait_for_everyone()
    finally:
        lock.release()
    return folder


def ensure_tokenizer(recipe: Recipe, corpus: Corpus) -> "PreTrainedTokenizerFast":
    """The embedded base's tokenizer alone: seconds, and the same as the one in its folder."""
    assert recipe.base is not None
    of_train = [corpus.conversations["train"][source] for source in recipe.base.sources]
    texts = (turn.text for conversations in of_train for conversation in conversations for turn in conversation.turns)
    return train_tokenizer(texts, recipe.base.vocab_size)


class _Language(nn.Module):
    """A causal language model in the loop's terms: final hidden states at the supervised positions."""

    def __init__(self, causal: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.causal = causal
        self.dtype = dtype

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.input_ids_BT.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.causal(input_ids=batch.input_ids_BT, use_cache=False).logits.flatten(0, 1)[batch.lm_index_N]


def _pretrain(recipe: Recipe, corpus: Corpus, folder: Path, accelerator: "Accelerator") -> None:
    assert recipe.base is not None
    settings = recipe.base
    tokenizer = ensure_tokenizer(recipe, corpus)
    train_rows, held_out = (
        {
            source: list(_documents(tokenizer, corpus.conversations[split][source], recipe))
            for source in settings.sources
        }
        for split in ("train", "validation")
    )
    torch.manual_seed(recipe.seed)
    model = _Language(build_model(settings, tokenizer, recipe.model.max_seq_len), DTYPES[settings.dtype])
    pad_id = tokenizer.get_vocab()[PAD]
    optim = OptimSettings(learning_rate=settings.learning_rate, batch_size=settings.batch_size, weight_decay=0.01)
    stage = _stage(recipe, model.to(accelerator.device), train_rows, held_out, pad_id, optim, accelerator)
    work = folder.with_name(f"{folder.name}.training")  # resumable: an interrupted build goes on
    best = train(stage, optim, accelerator, Files(work / "trainer", work / "metrics.jsonl", work / "timing.jsonl"))

    def write(draft: Path) -> None:
        model.causal.save_pretrained(draft)  # type: ignore[operator]
        tokenizer.save_pretrained(draft)
        about = {"sources": settings.sources, "best_step": best.step, "validation_loss": best.loss}
        write_json(draft / "warmline.json", about | {"recipe": recipe.name})

    if accelerator.is_main_process:
        write_atomic(folder, write)
        shutil.rmtree(work / "trainer")


def _stage(
    recipe: Recipe,
    model: nn.Module,
    rows: Rows,
    held_out: Rows,
    pad_id: int,
    optim: OptimSettings,
    accelerator: "Accelerator",
) -> Stage:
    assert recipe.base is not None

    def collate_rows(examples: Sequence[Example]) -> Batch:
        return collate(examples, {}, pad_id=pad_id)

    def terms(module: nn.Module, batch: Batch) -> dict[str, Term]:
        return {"lm": lm(module(batch), batch.lm_labels_N)}

    return Stage(
        name="base",
        model=model,
        parameters=[{"params": list(model.parameters()), "lr": optim.learning_rate}],
        batches=sampled_batches(rows, collate_rows, optim, accelerator, alpha=recipe.data.alpha, seed=recipe.seed),
        collate=collate_rows,
        validation=held_out_batches(held_out, collate_rows, optim, accelerator),
        terms=terms,
        weights={"lm": 1.0},
        num_steps=recipe.base.steps,
        validate_every=max(1, recipe.base.steps // 10),
        save_every=max(1, recipe.base.steps // 10),
        seed=recipe.seed,
        dtype=recipe.base.dtype,
    )


def _documents(
    tokenizer: "PreTrainedTokenizerFast", conversations: Sequence[Conversation], recipe: Recipe
) -> Iterator[Example]:
    """Every conversation as plain text to be learned whole, cut where it is longer than the model reads."""
    for conversation in conversations:
        messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
        text = render(tokenizer, messages, add_generation_prompt=False)
        ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
        for start in range(0, len(ids), recipe.model.max_seq_len):
            piece = ids[start : start + recipe.model.max_seq_len]
            labels = piece.copy()
            labels[0] = IGNORE  # nothing stands before it to predict it from
            yield Example(conversation.id, conversation.source, piece, labels, ())
