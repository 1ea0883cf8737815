"""Recipes and sections from one YAML or JSON file plus `--set a.b=c`."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from warmline.config.fields import ConfigError
from warmline.config.operator import OperatorSettings
from warmline.config.recipe import Recipe

SUFFIXES = (".yaml", ".yml", ".json")  # of recipe files
SECRETIVE = ("api_key_env", "url")  # settings that somebody may paste a key into: no message shows it


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


def load_operator(name: str) -> OperatorSettings:
    """The sections `safety`, `companion` and `serve` of a recipe, or of a YAML file of their own. Raises ConfigError."""
    tree = _read_tree(name, seen=())
    sections = {section: tree[section] for section in OperatorSettings.model_fields if section in tree}
    if not sections:
        raise ConfigError(f"{name}: it has none of the sections {', '.join(OperatorSettings.model_fields)}")
    try:
        return OperatorSettings.model_validate(sections)
    except ValidationError as error:
        raise _refusal(error) from None


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


def _refusal(error: ValidationError) -> ConfigError:
    """Every problem in a line of its own, by its path from the top of the file."""
    return ConfigError("\n".join(_explain(problem) for problem in error.errors()))


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
