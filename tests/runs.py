"""Runs a recipe in this process, and reads what it wrote."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from warmline.config.reading import load_recipe
from warmline.config.recipe import Recipe
from warmline.pipeline import accelerator, prepare, run_sft
from warmline.run_dir import RunDir


def train_here(recipe: Path | Recipe, folder: Path, *overrides: str) -> RunDir:
    """Corpus, base and SFT in this process."""
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe), overrides)
    run = RunDir(folder)
    run.claim(settings)
    here = accelerator()
    corpus, loaded = prepare(settings, run, None, here)
    run_sft(settings, run, corpus, loaded, here)
    return run


def rows_of(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def weights_of(run: RunDir) -> dict[str, torch.Tensor]:
    folder = run.stage("sft")
    return load_file(folder / "adapter" / "adapter_model.safetensors") | load_file(folder / "heads.safetensors")
