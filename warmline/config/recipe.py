"""All settings of a run, checked against each other."""

from typing import Literal

from pydantic import model_validator

from warmline.config.fields import Settings
from warmline.config.operator import CompanionSettings, SafetySettings, ServeSettings
from warmline.config.training import BaseSettings, DataSettings, EvalSettings, HeadsSettings, ModelSettings, SftSettings


class Recipe(Settings):
    name: str
    description: str
    seed: int = 7
    model: ModelSettings
    base: BaseSettings | None = None  # needed when model.base is `tiny`
    data: DataSettings
    heads: HeadsSettings
    sft: SftSettings
    eval: EvalSettings = EvalSettings()
    safety: SafetySettings = SafetySettings()
    companion: CompanionSettings = CompanionSettings()
    serve: ServeSettings = ServeSettings()
    tracking: Literal["none", "tensorboard", "wandb"] = "none"  # beside metrics.jsonl; needs the extra [tracking]

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.model.base == "tiny" and self.base is None:
            raise ValueError("model.base is tiny: the recipe needs a section base")
        for name in self.base.sources if self.base else ():
            if name not in self.data.sources:
                raise ValueError(f"base.sources names {name!r}, which is not in data.sources")
        if self.sft.lm_weight == 0 and not any(self.heads.active()):
            raise ValueError("every weight is 0: nothing to train")
        return self
