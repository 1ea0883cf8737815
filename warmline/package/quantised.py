"""A merged model in bitsandbytes' int8 or NF4, as transformers saves it."""

import warnings
from pathlib import Path
from typing import Literal

import torch

from warmline.config.training import ModelSettings
from warmline.model.load import ModelError, load_base
from warmline.package.subject import PackageError


def write_quantised(merged: Path, folder: Path, to: Literal["int8", "nf4"], dtype: str, device: torch.device) -> None:
    """Quantise the linear layers of the model in `merged` and save them. Raises PackageError where that cannot be."""
    settings = ModelSettings(base=str(merged), quantization=to, dtype=dtype)  # type: ignore[arg-type]
    try:
        model = load_base(merged, settings, device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*offloaded modules.*")  # so it calls a model on the CPU
            model.save_pretrained(folder)
    except (ModelError, NotImplementedError) as error:
        raise PackageError(f"--to {to}: {str(error).replace(str(merged), 'the merged model')}") from None
