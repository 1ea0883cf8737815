"""What was read before is not read again: keys and values of recent prompts, for prompts that begin like one of them.

A position's keys and values hang on the tokens up to it and on nothing else, so a prompt takes from here only what it
would have computed itself: nothing of another person's text can be reached but through the time that a reply takes to
begin. Everything stays in the memory of this process, for as long as it is used and a while longer.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from warmline.engine.slots import Layers

MIN_SHARED = 8  # tokens: a shorter common beginning is not worth a copy
MAX_BYTES = 256 * 2**20
MAX_AGE_S = 900.0


class _Entry(NamedTuple):
    key: Hashable
    ids_T: NDArray[np.int64]
    layers: "Layers"
    num_bytes: int


class PrefixCache:
    """The recently used beginnings of prompts, `max_bytes` in all; one that `max_age_s` seconds long no one needed goes.

    `key` names the weights that read the tokens. Safe to use from several threads.
    """

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._used_at: OrderedDict[int, float] = OrderedDict()  # of each entry's number, longest unused first
        self._entries: dict[int, _Entry] = {}
        self._num_kept = 0
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Hashable, ids: Sequence[int]) -> "tuple[int, Layers]":
        """How many tokens of `ids` are known, and their keys and values; never the last one, whose state is wanted."""
        with self._lock:
            self._expire()
            number, shared = self._nearest(key, np.array(ids[:-1], dtype=np.int64))
            if shared < MIN_SHARED:
                return 0, []
            self._touch(number)
            layers = self._entries[number].layers
        return shared, [(keys_HTD[:, :shared], values_HTD[:, :shared]) for keys_HTD, values_HTD in layers]

    def keep(self, key: Hashable, ids: Sequence[int], layers: "Layers") -> None:
        """Remember a copy of the keys and values of `ids`. A beginning of them that was kept before is let go."""
        num_bytes = sum(each.numel() * each.element_size() for pair in layers for each in pair)
        ids_T = np.array(ids, dtype=np.int64)
        if num_bytes > self._max_bytes or len(ids_T) < MIN_SHARED:
            return
        with self._lock:
            self._expire()
            for number, entry in [*self._entries.items()]:
                shared = _num_shared(entry, key, ids_T)
                if shared == len(ids_T):
                    self._touch(number)
                    return
                if shared == len(entry.ids_T):
                    self._forget(number)
            while self.num_bytes + num_bytes > self._max_bytes:
                self._forget(next(iter(self._used_at)))
            self._num_kept += 1
            copies = [(keys_HTD.clone(), values_HTD.clone()) for keys_HTD, values_HTD in layers]
            self._entries[self._num_kept] = _Entry(key, ids_T, copies, num_bytes)
            self._touch(self._num_kept)
            self.num_bytes += num_bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for number in [*self._entries]:
                self._forget(number)

    def expire(self) -> float | None:
        """Forget what is too old; seconds until the next entry is, None if there is none."""
        with self._lock:
            self._expire()
            oldest = next(iter(self._used_at.values()), None)
        return None if oldest is None else max(0.0, oldest + self._max_age_s - self._clock())

    def _expire(self) -> None:
        now = self._clock()
        for number, used_at in [*self._used_at.items()]:
            if now - used_at < self._max_age_s:
                return
            self._forget(number)

    def _nearest(self, key: Hashable, ids_T: NDArray[np.int64]) -> tuple[int, int]:
        shared = {number: _num_shared(entry, key, ids_T) for number, entry in self._entries.items()}
        number = max(shared, key=lambda number: shared[number], default=0)
        return number, shared.get(number, 0)

    def _touch(self, number: int) -> None:
        self._used_at[number] = self._clock()
        self._used_at.move_to_end(number)

    def _forget(self, number: int) -> None:
        self.num_bytes -= self._entries.pop(number).num_bytes
        del self._used_at[number]


def _num_shared(entry: _Entry, key: Hashable, ids_T: NDArray[np.int64]) -> int:
    if entry.key != key:
        return 0
    length = min(len(entry.ids_T), len(ids_T))
    differs = entry.ids_T[:length] != ids_T[:length]
    return int(differs.argmax()) if differs.any() else length
