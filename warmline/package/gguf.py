"""GGUF through llama.cpp's own converter, where it is installed."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from warmline.package.subject import PackageError

SCRIPT = "convert_hf_to_gguf.py"
FILE = "model.gguf"
OUT_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
MISSING = (
    f"llama.cpp's converter is not here: `git clone https://github.com/ggml-org/llama.cpp`, `pip install gguf`, and set "
    f"LLAMA_CPP to that folder (or have {SCRIPT} on PATH)"
)


def find_converter(environment: Mapping[str, str]) -> Path:
    """llama.cpp's script: in $LLAMA_CPP, on PATH, or beside an installed package. Raises PackageError with the way to it."""
    for place in _places(environment):
        if place.is_file():
            return place
    raise PackageError(MISSING)


def _places(environment: Mapping[str, str]) -> Iterator[Path]:
    if configured := environment.get("LLAMA_CPP"):
        given = Path(configured).expanduser()
        yield from (given, given / SCRIPT) if given.name == SCRIPT else (given / SCRIPT,)
    if on_path := shutil.which(SCRIPT, path=environment.get("PATH")):
        yield Path(on_path)
    for folder in environment.get("PATH", "").split(os.pathsep):
        yield Path(folder) / SCRIPT  # a script without its executable bit
    for package in ("llama_cpp", "gguf"):
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            yield Path(found.origin).parent / SCRIPT


def write_gguf(converter: Path, model: Path, folder: Path, dtype: str) -> None:
    """`model.gguf` in `folder`, made from the model folder `model`. Raises PackageError with the converter's own words."""
    file = folder / FILE
    command = [sys.executable, str(converter), str(model), "--outfile", str(file), "--outtype", OUT_TYPES[dtype]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        raise PackageError(f"{SCRIPT} failed: {said[-1]}")
    if not file.is_file() or _magic(file) != b"GGUF":
        raise PackageError(f"{SCRIPT} ended well and left no GGUF file")


def _magic(file: Path) -> bytes:
    with file.open("rb") as handle:
        return handle.read(4)
