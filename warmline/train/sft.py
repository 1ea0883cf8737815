"""Supervised fine-tuning: assembles one-pass examples, heads and objectives, and hands them to the loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from warmline.config.recipe import Recipe
from warmline.config.training import SftSettings
from warmline.data.batches import Batch, collate
from warmline.data.labels import HeadSpec
from warmline.data.tokenize import Example
from warmline.model.support_model import Outputs, SupportModel, trainable_groups
from warmline.objectives import HEAD_OBJECTIVES, Term, chunked_lm_and_kl
from warmline.train.stage import Rows, Stage, held_out_batches, sampled_batches

if TYPE_CHECKING:
    from accelerate import Accelerator


def sft_stage(
    recipe: Recipe, model: SupportModel, train: Rows, validation: Rows, accelerator: "Accelerator", pad_id: int
) -> Stage:
    """The SFT stage of `recipe` on `model`, whose stage in use is the one to train."""
    settings, optim = recipe.sft, recipe.sft.optim
    specs = model.specs[model.stage]
    collate_rows = collator(settings, specs, pad_id)
    if optim.gradient_checkpointing:
        model.checkpoint_activations()
    return Stage(
        name=model.stage,
        model=model,
        parameters=trainable_groups(model, optim.learning_rate, optim.head_learning_rate),
        batches=sampled_batches(train, collate_rows, optim, accelerator, alpha=recipe.data.alpha, seed=recipe.seed),
        collate=collate_rows,
        validation=held_out_batches(validation, collate_rows, optim, accelerator),
        terms=lambda module, batch: terms(module, model, batch, settings),
        weights=term_weights(recipe, specs),
        num_steps=num_steps(settings, sum(map(len, train.values()))),
        validate_every=settings.validate_every,
        save_every=settings.save_every,
        seed=recipe.seed,
        dtype=recipe.model.dtype,
    )


def collator(settings: SftSettings, specs: Mapping[str, HeadSpec], pad_id: int) -> Callable[[Sequence[Example]], Batch]:
    """How rows become a batch under these settings."""
    min_kl_risk = settings.safety_kl.min_risk if settings.safety_kl.weight > 0 else None

    def collate_rows(rows: Sequence[Example]) -> Batch:
        return collate(
            rows,
            specs,
            pad_id=pad_id,
            min_kl_risk=min_kl_risk,
            ordinary_kl_share=settings.safety_kl.ordinary_share,
            packing=settings.optim.packing,
        )

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
