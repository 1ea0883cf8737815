"""Every knob of every run: strict, frozen settings from one YAML or JSON file plus `--set a.b=c`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

Dtype = Literal["float32", "bfloat16", "float16"]
HeadKind = Literal["softmax", "sigmoid", "ordinal", "regression"]
Tone = Literal["warm", "gentle", "supportive", "calm", "encouraging", "empathetic"]
Persona = Literal["best friend", "counselor", "mentor", "peer", "companion"]
SUFFIXES = (".yaml", ".yml", ".json")  # of recipe files
SECRETIVE = ("api_key_env", "url")  # settings that somebody may paste a key into: no message shows it


class ConfigError(ValueError):
    """A recipe or an override is wrong; the message names the dotted path."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_country(value: Any) -> Any:
    """Two letters in upper case. YAML reads Norway's as false."""
    value = "NO" if value is False else value
    if isinstance(value, str):
        if len(value) != 2 or not value.isascii() or not value.isalpha():
            raise ValueError("expected two letters, as IE")
        return value.upper()
    return value


class LoraSettings(Settings):
    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ("all-linear",)  # module names, or all-linear


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


class StyleSettings(Settings):
    """What a style tag says: how a reply should sound, and whose voice it has."""

    tone: Tone | None = None
    persona: Persona | None = None


class SourceSettings(Settings):
    reader: str | None = None  # name of the source function; default: this section's own name
    location: str | None = None  # file, folder or hub id; default: in WARMLINE_DATA, else the hub's
    max_conversations: int | None = Field(default=None, ge=1)  # of the train split, drawn with the run's seed
    max_validation_conversations: int | None = Field(default=None, ge=1)  # the first of that split
    columns: dict[str, str] = {}  # the names that a table gives to what its reader calls question, answer, ...
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


class CategorySettings(Settings):
    """What one category of a guard means here."""

    level: Literal["none", "elevated", "high", "emergency"]
    domain: str | None = None  # one of safety/levels.py's


class GuardSettings(Settings):
    """A guard model behind an OpenAI-compatible server, asked about the user's last turn."""

    url: str  # with or without /v1
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(default=None, pattern="^[A-Z_][A-Z0-9_]*$")  # the variable that holds the key
    deadline_s: float = Field(default=0.2, gt=0, le=10, allow_inf_nan=False)  # seconds; a later answer counts as none
    categories: dict[str, CategorySettings] = {}  # beside Llama Guard's, which safety/guards.py names

    @field_validator("url")
    @classmethod
    def _of_a_server(cls, url: str) -> str:
        try:
            parsed = urlsplit(url)
            sound = parsed.scheme in {"http", "https"} and parsed.hostname and not parsed.username and parsed.port != 0
        except ValueError:  # whose message quotes what stands in the port's place
            sound = False
        if not sound:
            raise ValueError("expected a server's URL without a user name, as http://127.0.0.1:8000/v1")
        return url


class ThresholdSettings(Settings):
    """P(level >= k) from which the models give a level. None: as shipped; higher than that misses more people."""

    elevated: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    high: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    emergency: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)


class SafetySettings(Settings):
    """What whoever runs the companion may choose of its safety. Nothing here belongs to training."""

    country: Annotated[str | None, BeforeValidator(_as_country)] = None  # of the helplines
    question_policy: Literal["none", "safety_check"] = "none"
    question_owner: str = ""  # the clinician who answers for safety_check, by name
    guards: tuple[GuardSettings, ...] = ()
    thresholds: ThresholdSettings = ThresholdSettings()
    accept_missed_crises: bool = False  # allows thresholds above the shipped ones; said at every start


class CompanionSettings(Settings):  # how it speaks where nothing is at risk
    style: StyleSettings = StyleSettings()  # a conversation may choose another
    reflection: bool = False  # a hidden line before each reply: what happened, what they feel, what to do next
    candidates: int = Field(default=1, ge=1, le=4)  # above 1: a reply that begins without warmth is drawn again


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


def recipe_names() -> list[str]:
    """The recipes that ship with warmline."""
    names = (entry.name for entry in (resources.files("warmline") / "recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or file, follow `extends`, apply `a.b=c` overrides, and check everything.

    Raises ConfigError with one line per problem, each naming the dotted path.
    """
    tree = _read_tree(name, seen=())
    for override in overrides:
        tree = _merge(tree, _override(override))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise _refusal(error) from None


def load_safety(name: str) -> SafetySettings:
    """The `safety` section of a recipe, or of a YAML file that need hold nothing else. Raises ConfigError."""
    if (section := _read_tree(name, seen=()).get("safety")) is None:
        raise ConfigError(f"{name}: it has no section safety")
    try:
        return SafetySettings.model_validate(section)
    except ValidationError as error:
        raise _refusal(error, "safety") from None


def _read_tree(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    text, label = _find(name, Path(seen[-1]).parent if seen else None)
    if label in seen:
        raise ConfigError(f"{label}: extends itself ({' -> '.join((*seen, label))})")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{label}: not valid YAML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{label}: expected a mapping of settings, found {type(tree).__name__}")
    tree.setdefault("name", Path(label).stem if label.endswith(SUFFIXES) else label)  # qwen2.5-7b has no suffix
    if not isinstance(parent := tree.pop("extends", None), str | None):
        raise ConfigError(f"{label}: extends: expected the name or file of one recipe (found {parent!r})")
    return _merge(_read_tree(parent, (*seen, label)), tree) if parent else tree


def _find(name: str, beside: Path | None) -> tuple[str, str]:
    """The text of a recipe and the label that messages use for it."""
    if name.endswith(SUFFIXES):
        if not (path := (beside or Path()) / name).is_file():
            raise ConfigError(f"recipe file {path} does not exist")
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    shipped = resources.files("warmline") / "recipes" / f"{name}.yaml"
    if not shipped.is_file():
        raise ConfigError(f"no recipe {name!r}{nearest(name, recipe_names())}; `warmline recipes` lists them")
    return shipped.read_text(encoding="utf-8"), name


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping; null removes what stood there (JSON merge patch, RFC 7386).

    >>> _merge({"a": {"b": 1, "c": 2, "d": 4}}, {"a": {"c": 3, "d": None}})
    {'a': {'b': 1, 'c': 3}}
    """
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = _merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _override(text: str) -> dict[str, Any]:
    """One `--set` as the mapping that it stands for.

    >>> _override("sft.optim.learning_rate=1e-4")
    {'sft': {'optim': {'learning_rate': 0.0001}}}
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {text!r}: expected a.b=value")
    try:
        tree = _number_or_yaml(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML") from None
    for key in reversed(keys):
        tree = {key: tree}
    return tree


def _number_or_yaml(text: str) -> Any:
    """YAML, and numbers as people write them: YAML 1.1 reads 1e-4 as text."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint for a mistyped word, or nothing.

    >>> nearest("tniy", ["tiny", "qwen2.5-7b"])
    " (did you mean 'tiny'?)"
    """
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _refusal(error: ValidationError, *section: str) -> ConfigError:
    """Every problem in a line of its own, by its path from the top of the file."""
    problems = ({**problem, "loc": (*section, *problem["loc"])} for problem in error.errors())
    return ConfigError("\n".join(_explain(problem) for problem in problems))


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key{nearest(str(problem['loc'][-1]), _fields_at(problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: missing, and it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    found = problem.get("input")
    hidden = isinstance(found, dict | BaseModel) or path.rpartition(".")[2] in SECRETIVE
    return f"{path or 'recipe'}: {message}{'' if hidden else f' (found {found!r})'}"


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    """The names of the settings at a dotted path, through mappings and optional sections."""
    section: Any = Recipe
    for part in loc:
        if isinstance(section, type) and part in section.model_fields:
            section = next(iter(_models_in(section.model_fields[str(part)].annotation)), None)
        if section is None:
            return []
    return list(section.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
