"""What is packaged: one finished stage of a run, its tokenizer, and what identifies its base."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmline.config.recipe import Recipe
from warmline.model import checkpoint
from warmline.model.load import fingerprint, load_tokenizer
from warmline.run_dir import RunDir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"} | {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}


class PackageError(ValueError):
    """A package cannot be made, or is not what was made; says why and what to do."""


@dataclass(frozen=True)
class Subject:
    run: RunDir
    recipe: Recipe
    stage: str
    about: Mapping[str, Any]  # stage.json
    base: Path  # the folder of the base
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def folder(self) -> Path:
        """The stage's."""
        return self.run.stage(self.stage)

    @property
    def base_name(self) -> str:
        """The base as others know it: a hub id, or a local folder's own name without where it lies."""
        base = self.recipe.model.base
        return Path(base).name if self.is_local else base

    @property
    def is_local(self) -> bool:
        """Whether nobody else can get the base by its name."""
        base = self.recipe.model.base
        return base == "tiny" or base.startswith((".", "/", "~")) or Path(base).is_dir()

    @property
    def name(self) -> str:
        """What servers call the packaged model: the recipe's name in letters that a command line and a URL take.

        A name of other letters alone becomes `companion`.
        """
        kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in self.recipe.name)
        return kept.strip("-").lower() or "companion"

    @property
    def system_prompt(self) -> str | None:
        """As in use: the companion's own, else the one of training."""
        own = self.recipe.companion.system_prompt
        return self.recipe.model.system_prompt if own is None else own


def subject_of(run: RunDir, stage: str, base: Path) -> Subject:
    """A finished stage over the base in `base`. Raises CheckpointError for a stage that is altered or another base's."""
    recipe = run.recipe()
    tokenizer = load_tokenizer(base, recipe.model.chat_template)
    identity = fingerprint(base, recipe.model, str(tokenizer.chat_template or ""))
    about = checkpoint.verified(run.stage(stage), identity)
    return Subject(run, recipe, stage, about, base, tokenizer)


def dtype_of(asked: str | None, usual: str, target: str) -> str:
    """The dtype of what is written. Raises PackageError for one that weights cannot be merged into.

    >>> dtype_of("bf16", "float32", "merged"), dtype_of(None, "float16", "merged")
    ('bfloat16', 'float16')
    """
    if asked is None:
        return usual
    if asked.lower() in DTYPES:
        return DTYPES[asked.lower()]
    way_out = (
        "" if target in {"int8", "nf4"} else "; --to int8 or nf4 quantises the merged model and says how far it drifts"
    )
    raise PackageError(
        f"--dtype {asked}: an adapter is merged into 16 or 32 bits only (float32, bfloat16, float16), "
        f"for fewer round away what it learned{way_out}"
    )
