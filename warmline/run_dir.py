"""A run's folder: resolved settings, provenance, metrics, atomic writes, one process at a time."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from pydantic import ValidationError
from safetensors import SafetensorError

from warmline.config.recipe import Recipe

STAGES = ("base", "sft", "dpo")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "warmline")


class RunError(ValueError):
    """A run folder cannot be used as asked."""


def home() -> Path:
    """Where caches live: WARMLINE_HOME, else the platform's user cache folder."""
    configured = os.environ.get("WARMLINE_HOME")
    return Path(configured) if configured else user_cache_path("warmline")


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file or folder beside `path`, then put it in `path`'s place in one step.

    A reader sees the old content or the new, never half of it. A full disk leaves the old content. What is written
    when this returns is still there after a power cut. Raises OSError that names `path` or a file in its draft.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    draft = path.with_name(f".{path.name}.draft")
    _remove(draft)
    try:
        with _named(path):
            write(draft)
            sync(draft)
            _put_in_place(draft, path)
    finally:
        _remove(draft)
        recover(path)


def _put_in_place(draft: Path, path: Path) -> None:
    aside = path.with_name(f".{path.name}.old")
    if path.is_dir():  # a folder cannot be replaced in one step: the old one steps aside first
        _remove(aside)
        path.rename(aside)
        draft.rename(path)
        _sync_one(path.parent)  # a rename is lost in a power cut until its folder is on disk
        _remove(aside)
    else:
        draft.replace(path)
        _sync_one(path.parent)


def recover(path: Path) -> None:
    """Bring back a folder whose replacement was cut between its two renames."""
    aside = path.with_name(f".{path.name}.old")
    if aside.exists() and not path.exists():
        aside.rename(path)


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Have a file, or a folder with all that is in it, on disk before going on."""
    for each in (path, *path.rglob("*")):
        _sync_one(each)


def _sync_one(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A disk that is full while `path` is written is an OSError that names it: Python's own names only what it cannot
    open, and safetensors has an error of its own."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class RunDir:
    """`runs/NAME/`: paths, and the few files that every stage shares."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stage(self, name: str) -> Path:
        return self.path / "stages" / name

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.path / "timing.jsonl"

    def recipe(self) -> Recipe:
        """The settings that this run was started with."""
        file = self.path / "recipe.yaml"
        if not file.is_file():
            raise RunError(f"{self.path} is not a run folder: it has no recipe.yaml")
        try:
            return Recipe.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{file} was written by another version of warmline, or altered: {reason}") from None

    def claim(self, recipe: Recipe) -> None:
        """Start the run with `recipe`, or go on with it. Raises RunError if its settings changed; those of `safety` and
        `serve` may, and are written down anew: they are of its use, not of its training.

        Until there is a manifest, data and base have not been read once: whoever corrects a path starts anew.
        """
        file = self.path / "recipe.yaml"
        if (self.path / "manifest.json").is_file():
            then = self.recipe()
            before, now = (each.model_dump(mode="json", exclude={"safety", "serve"}) for each in (then, recipe))
            changed = list(_differences(before, now))
            if changed:
                lines = "\n".join(f"  {path}: {old!r} -> {new!r}" for path, old, new in changed)
                raise RunError(
                    f"{self.path} was started with other settings:\n{lines}\n"
                    "go on with the old ones, or start another run with --name"
                )
            if then == recipe:
                return
        write_text(file, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. Raises RunError if another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            with lock.acquire(timeout=0):
                yield
        except Timeout:
            raise RunError(f"{self.path} is in use by another process; wait for it, or use --name") from None

    def manifest(self) -> dict[str, Any]:
        """What is known of this run; empty before it started. Raises RunError if the file was altered."""
        file = self.path / "manifest.json"
        if not file.is_file():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not UTF-8
            raise RunError(f"{file} is truncated or altered: {error}") from None
        if not isinstance(content, dict):
            raise RunError(f"{file} is truncated or altered: it holds no parts")
        return content

    def add_to_manifest(self, **parts: object) -> None:
        """Merge `parts` into manifest.json, top-level key by key."""
        write_json(self.path / "manifest.json", self.manifest() | parts)


def cut_back(file: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Drop the rows of a JSONL file that `keep` does not want, and a last line that was cut off."""
    if not file.is_file():
        return
    kept = []
    text = file.read_text(encoding="utf-8", errors="replace")  # the cut may lie inside a character
    for line in text.split("\n"):  # splitlines() would also split inside a string
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if keep(row):
            kept.append(line)
    write_text(file, "".join(f"{line}\n" for line in kept))


def append_row(file: Path, row: Mapping[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with _named(file), file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def provenance() -> dict[str, object]:
    """What this run was made with: code version, package versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"git": _git_hash(), "versions": versions}


def _git_hash() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout, or no git here


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted paths at which two settings trees differ.

    >>> list(_differences({"a": {"b": 1}}, {"a": {"b": 2}}))
    [('a.b', 1, 2)]
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new
