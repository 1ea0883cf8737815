"""API keys: only their hashes are kept, and every comparison takes the same time."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request

from warmline.serve.wire import ApiError

PREFIX = "wl-"
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<digest>[0-9a-f]{64})")


class KeysError(ValueError):
    """A file of API keys that cannot be used."""


class Key(NamedTuple):
    name: str  # whose it is
    digest: str  # SHA-256 of the key, hexadecimal; the keys are random, so that a slow hash would add nothing


@dataclass(frozen=True)
class Keys:
    keys: tuple[Key, ...]

    def name_of(self, given: str) -> str | None:
        """Whose key `given` is; None for nobody's. Every line is compared, whichever fits."""
        digest = digest_of(given)
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.name
        return found


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def line_of(name: str, key: str) -> str:
    """The line of a file of keys. Raises KeysError for a name that it cannot hold."""
    line = f"{name} {digest_of(key)}"
    if _LINE.fullmatch(line) is None:
        raise KeysError(f"{name!r}: expected up to 64 letters, digits, dots, dashes and underscores")
    return line


def read_keys(file: Path) -> Keys:
    """The keys of a file: a line for each, NAME and SHA-256; blank lines and # comments are skipped.

    Raises KeysError, which quotes nothing of the file: somebody may have written a key itself into it.
    """
    found: dict[str, Key] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise KeysError(f"{file}: not text in UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fits = _LINE.fullmatch(line.strip())
        if fits is None:
            raise KeysError(f"{file}, line {number}: expected NAME and a SHA-256 in hexadecimal (`warmline serve-key`)")
        if fits["name"] in found:
            raise KeysError(f"{file}, line {number}: {fits['name']} has a line already")
        found[fits["name"]] = Key(fits["name"], fits["digest"])
    if not found:
        raise KeysError(f"{file}: no key in it (`warmline serve-key NAME` makes a line)")
    return Keys(tuple(found.values()))


def owner_of(request: Request, keys: Keys | None) -> str:
    """Whose request it is, by its API key; empty where none is asked for. Raises ApiError 401."""
    if keys is None:
        return ""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    name = keys.name_of(given.strip()) if scheme.lower() == "bearer" else None
    if name is None:
        raise ApiError(
            401,
            "The API key is missing or wrong.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return name
