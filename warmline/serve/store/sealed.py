"""What only the person can open: keys derived from the one that their client holds, and texts sealed with them."""

import base64
import binascii
import hmac
import os
import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES, NONCE_BYTES = 32, 12  # AES-256-GCM, with the nonce that NIST SP 800-38D recommends
PADDED_TO = 1024  # bytes: what is sealed is a multiple of this, so that its length says little
FEWEST_BYTE_VALUES = 8  # of 32 random bytes; a key with fewer is a client's placeholder, which others would share

KEY_HEADER = "Warmline-Key"  # in which a client sends its key

Kind = Literal["key", "name", "turns", "risk"]


class KeyFormatError(ValueError):
    """A client's key that is none. The text never shows it."""


class AlteredError(ValueError):
    """Something kept does not open: it was altered, swapped with another row, or cut. The text shows nothing of it."""


@dataclass(frozen=True)
class ClientKey:
    """What is derived from the key that a client sends; the key itself is not kept. No field shows in a repr."""

    owner: bytes = field(repr=False)  # by which rows are found: 32 bytes that say nothing of the key or the person
    wrapping: bytes = field(repr=False)  # opens the keys of conversations
    naming: bytes = field(repr=False)  # makes a conversation's id of its name
    hearing: bytes = field(repr=False)  # makes a digest of what a state has heard

    def id_of(self, session: str) -> bytes:
        """The id of a conversation in the database: an HMAC of its name, 32 bytes."""
        return hmac.digest(self.naming, session.encode("utf-8", "surrogatepass"), sha256)


@dataclass(frozen=True)
class Place:
    """Where something sealed stands. It opens nowhere else, nor as another kind or version."""

    owner: bytes
    id: bytes
    kind: Kind
    version: int = 0

    @property
    def bound(self) -> bytes:
        """The associated data: every part but the last two has a fixed length."""
        return b"warmline-store-1" + self.owner + self.id + self.version.to_bytes(8, "big") + self.kind.encode()


def client_key(text: str) -> ClientKey:
    """The keys of a client that sent `text`: base64url of 32 random bytes, with or without padding.

    HKDF-SHA256 (RFC 5869) without a salt, which 256 random bits do not need. Raises KeyFormatError.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}=?", text):
        raise KeyFormatError("the client's key must be base64url of 32 bytes")
    try:
        raw = base64.urlsafe_b64decode(text[:43] + "=")
    except binascii.Error:
        raise KeyFormatError("the client's key must be base64url of 32 bytes") from None
    if len({*raw}) < FEWEST_BYTE_VALUES:
        raise KeyFormatError("the client's key must be 32 random bytes")
    return ClientKey(*(_derived(raw, use) for use in (b"owner", b"wrapping", b"naming", b"hearing")))


def _derived(raw: bytes, use: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, None, b"warmline store 1 " + use).derive(raw)


def fresh_key() -> bytes:
    """A key for one conversation."""
    return AESGCM.generate_key(256)


def wrap(key: ClientKey, conversation_key: bytes, id_: bytes) -> bytes:
    """A conversation's key as it is kept: destroy this, and nobody can open the conversation again."""
    return _seal(key.wrapping, conversation_key, Place(key.owner, id_, "key"))


def unwrap(key: ClientKey, wrapped: bytes, id_: bytes) -> bytes:
    """The key of a conversation. Raises AlteredError."""
    return _open(key.wrapping, wrapped, Place(key.owner, id_, "key"))


def seal(conversation_key: bytes, text: bytes, place: Place) -> bytes:
    """A JSON text as it is kept: padded with spaces, then nonce, ciphertext and tag."""
    return _seal(conversation_key, text + b" " * (-len(text) % PADDED_TO), place)


def opened(conversation_key: bytes, sealed: bytes, place: Place) -> bytes:
    """The JSON text that was sealed for this place, padding included. Raises AlteredError."""
    return _open(conversation_key, sealed, place)


def _seal(key: bytes, text: bytes, place: Place) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, place.bound)


def _open(key: bytes, sealed: bytes, place: Place) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place.bound)
    except (InvalidTag, ValueError):  # ValueError: too short for a nonce
        raise AlteredError("what is kept of a conversation does not open: it was altered") from None
