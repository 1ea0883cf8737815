"""Supervised fine-tuning: assembles one-pass examples, heads and objectives, and hands them to the loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from warmline.config import Recipe, SftSettings
from warmline.data.batches import Batch, collate, micro_batches
from warmline.data.labels import HeadSpec
from warmline.data.mixture import step_items
from warmline.data.tokenize import Example
from warmline.model.support_model import Outputs, SupportModel, trainable_groups
from warmline.objectives import HEAD_OBJECTIVES, Term, chunked_lm_and_kl
from warmline.train.loop import Stage, TrainError

if TYPE_CHECKING:
    from accelerate import Accelerator

Examples = Mapping[str, Sequence[Example]]  # by source


def sft_stage(
    recipe: Recipe, model: SupportModel, train: Examples, validation: Examples, accelerator: "Accelerator", pad_id: int
) -> Stage:
    """The SFT stage of `recipe` on `model`, whose stage in use is the one to train."""
    settings, optim = recipe.sft, recipe.sft.optim
    sizes = {source: len(examples) for source, examples in train.items()}
    if not sizes:
        raise TrainError("no training example is left: see rejected.jsonl and the counts in manifest.json")
    if optim.batch_size < accelerator.num_processes:
        raise TrainError(
            f"sft.optim.batch_size {optim.batch_size} is less than the {accelerator.num_processes} processes"
        )
    specs = model.specs[model.stage]
    collate_rows = collator(settings, specs, pad_id)
    rank, world = accelerator.process_index, accelerator.num_processes

    def batches(step: int) -> list[Batch]:
        items = step_items(sizes, recipe.data.alpha, recipe.seed, optim.batch_size, step)
        mine = [train[item.source][item.row] for item in items[rank::world]]
        return [collate_rows(rows) for rows in micro_batches(mine, optim.micro_batch_tokens)]

    held_out = [example for examples in validation.values() for example in examples][rank::world]
    return Stage(
        name=model.stage,
        model=model,
        parameters=trainable_groups(model, optim.learning_rate, optim.head_learning_rate),
        batches=batches,
        collate=collate_rows,
        validation=[collate_rows(rows) for rows in micro_batches(held_out, optim.micro_batch_tokens)],
        terms=lambda module, batch: terms(module, model, batch, settings),
        weights=term_weights(recipe, specs),
        num_steps=num_steps(settings, sum(sizes.values())),
        validate_every=settings.validate_every,
        save_every=settings.save_every,
        seed=recipe.seed,
        dtype=recipe.model.dtype,
    )


def collator(settings: SftSettings, specs: Mapping[str, HeadSpec], pad_id: int) -> Callable[[Sequence[Example]], Batch]:
    """How rows become a batch under these settings."""
    min_kl_risk = settings.safety_kl.min_risk if settings.safety_kl.weight > 0 else None

    def collate_rows(rows: Sequence[Example]) -> Batch:
        return collate(rows, specs, pad_id=pad_id, min_kl_risk=min_kl_risk, packing=settings.optim.packing)

    return collate_rows


def term_weights(recipe: Recipe, specs: Mapping[str, HeadSpec]) -> dict[str, float]:
    """The weight of each term; a head whose labels no source has takes no part."""
    heads = {name: head.weight for name, head in recipe.heads.active() if name in specs}
    return {"lm": recipe.sft.lm_weight, "safety_kl": recipe.sft.safety_kl.weight} | heads


def num_steps(settings: SftSettings, num_examples: int) -> int:
    """The budget in optimizer steps."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    return max(1, round(settings.epochs * num_examples / settings.optim.batch_size))


def terms(module: nn.Module, model: SupportModel, batch: Batch, settings: SftSettings) -> dict[str, Term]:
    """Every term of one batch. `module` is `model` as data-parallel training may have wrapped it."""
    outputs: Outputs = module(batch)
    lm, safety_kl = chunked_lm_and_kl(
        outputs.hidden_ND,
        batch.lm_labels_N,
        model.lm_weight_VD,
        outputs.teacher_MD,
        batch.kl_index_M,
        tau=settings.safety_kl.tau,
        chunk=settings.logits_chunk,
    )
    found: dict[str, Any] = {"lm": lm, "safety_kl": safety_kl}
    for name, logits in outputs.heads.items():
        spec = model.specs[model.stage][name]
        found[name] = HEAD_OBJECTIVES[spec.kind](logits, batch.targets[name])
    return found
