"""What a run trains: the model, the data, the heads, the loss and its optimizer."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from warmline.config.fields import Dtype, HeadKind, Settings, StyleSettings, as_tuple


class LoraSettings(Settings):
    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ("all-linear",)  # module names, or all-linear


class ModelSettings(Settings):
    base: str  # hub id, local folder, or `tiny` (pre-trained here from section `base`)
    revision: str | None = None  # of a hub id: branch, tag or commit
    quantization: Literal["none", "nf4", "int8"] = "none"  # nf4 always with double quantisation
    dtype: Dtype = "float32"  # of frozen weights and of matrix products; float16 adds a GradScaler
    max_seq_len: int = Field(default=1024, ge=16)  # tokens of one example
    system_prompt: str | None = None  # first message of every conversation, in training and in use
    chat_template: str | None = None  # Jinja; for a base whose tokenizer has none
    lora: LoraSettings = LoraSettings()


class BaseSettings(Settings):
    """The embedded base: a Qwen2 architecture pre-trained from scratch on `sources`' train splits."""

    sources: tuple[str, ...]  # names in data.sources
    vocab_size: int = Field(default=4096, ge=300)
    hidden_size: int = Field(default=256, ge=16)
    intermediate_size: int = Field(default=704, ge=16)
    num_layers: int = Field(default=6, ge=1)
    num_heads: int = Field(default=4, ge=1)
    num_key_value_heads: int = Field(default=2, ge=1)
    steps: int = Field(default=400, ge=1)
    batch_size: int = Field(default=16, ge=1)  # conversations per optimizer step
    learning_rate: float = Field(default=1e-3, gt=0)
    dtype: Dtype = "float32"  # of matrix products; weights are float32


class SourceSettings(Settings):
    reader: str | None = None  # name of the source function; default: this section's own name
    location: str | None = None  # file, folder or hub id; default: in WARMLINE_DATA, else the hub's
    max_conversations: int | None = Field(default=None, ge=1)  # of the train split, drawn with the run's seed
    max_validation_conversations: int | None = Field(default=None, ge=1)  # the first of that split
    columns: dict[str, str] = Field(
        default={}
    )  # the names that a table gives to what its reader calls question, answer, ...
    map_situations: bool = False  # a situation also labels the turn's emotion, by data/labels.py's table
    style: StyleSettings | None = None  # of its assistant's turns; told to the model on a share of the examples


class DataSettings(Settings):
    sources: dict[str, SourceSettings] = Field(min_length=1)
    alpha: float = Field(default=0.5, gt=0, le=1)  # mixture: p_i = n_i^alpha / sum_j n_j^alpha
    max_rejected_share: float = Field(default=0.02, ge=0, le=1)  # of a source's rows; above it the run refuses
    max_overlap_share: float = Field(
        default=0.01, ge=0, le=1
    )  # of a source's train rows that stand in an evaluation split
    allow_fallbacks: bool = False  # an unreachable hub dataset is replaced by the source's next mirror
    style_share: float = Field(default=0.0, ge=0, le=1)  # of the train examples of a source with a style that name it


class HeadSettings(Settings):
    weight: float = Field(ge=0)  # in the loss; 0 removes the head
    kind: HeadKind
    labels: tuple[str, ...] | None = None  # allowed labels; default: the field's set (see data/labels.py)


class HeadsSettings(Settings):
    emotion: HeadSettings
    situation: HeadSettings
    strategy: HeadSettings
    risk: HeadSettings
    affect: HeadSettings

    def active(self) -> Iterator[tuple[str, HeadSettings]]:
        """The heads that train, by name."""
        return ((name, head) for name in type(self).model_fields if (head := getattr(self, name)).weight > 0)


class SafetyKlSettings(Settings):
    weight: float = Field(default=0.0, ge=0)
    tau: float = Field(default=2.0, gt=0)  # softmax temperature of teacher and student
    min_risk: Literal["elevated", "high", "emergency"] = "elevated"  # of the turn a safety reply answers
    ordinary_share: float = Field(default=0.0, ge=0, le=1)  # of all conversations: their replies stay near the base too


class OptimSettings(Settings):
    learning_rate: float = Field(default=2e-4, gt=0)
    head_learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)  # of all optimizer steps; then cosine to zero
    max_grad_norm: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=32, ge=1)  # conversations per optimizer step, over all devices
    micro_batch_tokens: int = Field(default=4096, ge=16)  # padded tokens of one forward pass on one device
    packing: bool = False  # rows of a micro-batch joined into one sequence
    gradient_checkpointing: bool = False  # measured: 1.43x the time for 0.64x the memory


class SftSettings(Settings):
    lm_weight: float = Field(default=1.0, ge=0)
    safety_kl: SafetyKlSettings = SafetyKlSettings()
    optim: OptimSettings = OptimSettings()
    epochs: float | None = Field(default=None, gt=0)  # exactly one of epochs and steps
    steps: int | None = Field(default=None, ge=1)  # optimizer steps
    validate_every: int = Field(default=50, ge=1)  # optimizer steps
    save_every: int = Field(default=50, ge=1)  # optimizer steps
    logits_chunk: int = Field(default=1024, ge=1)  # positions whose logits exist at one time

    @model_validator(mode="after")
    def _one_budget(self) -> "SftSettings":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("state exactly one of epochs and steps (set the other to null)")
        return self


EvalSuite = Literal["eq-bench", "responses", "qualitative", "redteam", "warm", "safety", "simulated"]  # without a judge


class EvalSettings(Settings):
    split: Literal["validation", "test"] = "test"
    max_conversations: int | None = Field(default=None, ge=1)  # of each source, in file order
    bootstrap_samples: int = Field(default=1000, ge=100)
    suites: tuple[EvalSuite, ...] = ()  # asked of every stage after training, besides the held-out pass
    limit: int | None = Field(default=None, ge=1)  # samples or talks of each of these suites, a seeded choice
