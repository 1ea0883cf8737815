"""A package's folder: what travels with every target, checksums of all of it, and how it is opened again.

README.md     what it is, how to use it, data, licences, figures, limits
SHA256SUMS    of every other file; `sha256sum -c SHA256SUMS` checks them
companion/    package.json, heads.safetensors, heads.json, settings.yaml: in a folder of their own, for other programs
              take every .safetensors file beside a model for weights
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from warmline import __version__
from warmline.config.operator import CompanionSettings, OperatorSettings, SafetySettings, ServeSettings
from warmline.config.reading import load_operator
from warmline.model.checkpoint import specs_of
from warmline.model.support_model import SupportModel
from warmline.package.licences import Terms
from warmline.package.subject import PackageError, Subject
from warmline.run_dir import sha256

COMPANION = "companion"
ABOUT, HEADS, LABELS, SETTINGS = "package.json", "heads.safetensors", "heads.json", "settings.yaml"
SUMS = "SHA256SUMS"
OF_THIS_MACHINE = (
    "api_keys",
    "store",
    "host",
    "port",
    "allow_host",
    "cors_origin",
)  # of `serve`; a store has a password


@dataclass(frozen=True)
class Package:
    folder: Path
    about: Mapping[str, Any]  # package.json
    safety: SafetySettings
    companion: CompanionSettings

    @property
    def heads(self) -> Path:
        return self.folder / COMPANION / HEADS

    @property
    def title(self) -> str:
        return f"{self.about['recipe']}, stage {self.about['stage']}, packaged as {self.about['target']}"


def write_companion(subject: Subject, draft: Path, about: Mapping[str, Any], *, public: bool) -> None:
    """Heads, label spaces, settings and what the package is. `public`: without what is its operator's alone."""
    folder = draft / COMPANION
    folder.mkdir()
    heads = subject.about["heads"]
    shutil.copyfile(subject.folder / HEADS, folder / HEADS)
    reads = "the final hidden state of the last prompt token, float32: outputs = weight @ state + bias"
    _write_json(folder / LABELS, {"stage": subject.stage, "reads": reads, "heads": heads})
    (folder / SETTINGS).write_text(settings_yaml(subject, public=public), encoding="utf-8")
    _write_json(
        folder / ABOUT,
        {
            "warmline": __version__,
            "recipe": subject.recipe.name,
            "stage": subject.stage,
            "base": subject.base_name,
            "system_prompt": subject.recipe.model.system_prompt,
            "heads": heads,
            "fingerprint": subject.about["fingerprint"],
            **about,
        },
    )


def settings_yaml(subject: Subject, *, public: bool) -> str:
    """The sections `safety`, `companion` and `serve` for `warmline serve --settings FILE`."""
    recipe = subject.recipe
    safety = recipe.safety.model_dump(mode="json")
    if public:  # a guard's address, and the name of a person who answers for something here
        safety |= {"guards": [], "question_policy": "none", "question_owner": ""}
    usual = ServeSettings().model_dump(mode="json")
    serve = recipe.serve.model_dump(mode="json") | {name: usual[name] for name in OF_THIS_MACHINE}
    companion = recipe.companion.model_dump(mode="json") | {"system_prompt": subject.system_prompt}
    return yaml.safe_dump(
        {"safety": safety, "companion": companion, "serve": serve}, sort_keys=False, allow_unicode=True
    )


def write_sums(folder: Path) -> None:
    """SHA-256 of every file, as `sha256sum` writes them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path, *, within: str = "") -> None:
    """Raises PackageError for the first file that is missing or altered; `within`: only in that folder of it."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"{folder / SUMS} cannot be read: the package is not whole ({error})") from None
    wanted = {name: expected for expected, _, name in (line.partition("  ") for line in lines)}
    for name in (ABOUT, HEADS, LABELS, SETTINGS):
        if f"{COMPANION}/{name}" not in wanted:
            raise PackageError(f"{folder / SUMS} is truncated or altered: it does not name {COMPANION}/{name}")
    for name, expected in wanted.items():
        if not name.startswith(within):
            continue
        if not (folder / name).is_file():
            raise PackageError(f"{folder / name} is missing: the package is not whole")
        if sha256(folder / name) != expected:
            raise PackageError(f"{folder / name} is truncated or altered: its checksum is not the one in {SUMS}")


def is_package(folder: Path) -> bool:
    return (folder / COMPANION / ABOUT).is_file()


def read_package(folder: Path) -> Package:
    """What a package says of itself; its small files are checked. Raises PackageError and ConfigError."""
    check_sums(folder, within=f"{COMPANION}/")
    about = json.loads((folder / COMPANION / ABOUT).read_text(encoding="utf-8"))
    own: OperatorSettings = load_operator(str(folder / COMPANION / SETTINGS))
    return Package(folder, about, own.safety or SafetySettings(), own.companion or CompanionSettings())


def load_heads(model: SupportModel, file: Path, about: Mapping[str, Any]) -> None:
    """Give a merged model the heads of `file`; `about`: stage and heads, as in stage.json and package.json.

    Raises PackageError if they are another model's.
    """
    try:
        model.load_merged(about["stage"], specs_of(about["heads"]), load_file(file))
    except (RuntimeError, KeyError) as error:
        raise PackageError(f"{file}: these heads do not fit the weights: {str(error).splitlines()[0]}") from None


def licences_json(terms: Terms) -> dict[str, Any]:
    """For package.json."""
    names = {name: licence.name if licence else None for name, licence in terms.data.items()}
    base = "as the data that it was pre-trained on" if terms.base_is_own else terms.base.name if terms.base else None
    return {"data": names, "base": base, "non_commercial": terms.non_commercial(), "unknown": terms.unknown()}


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
