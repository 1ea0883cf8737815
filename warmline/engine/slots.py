"""Keys and values of rows that join and leave a running batch: each row counts from the start of a slot of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

Layers = list[tuple[Tensor, Tensor]]  # keys and values of one row, a pair a layer: [heads, tokens, width]
Forward = Callable[..., Any]  # input ids [B, T] and options of the decoder -> its output

ATTENTION = {"full_attention", "sliding_attention"}  # kinds of layers whose cache is keys and values by position
ROUND = 64  # positions: slots grow by whole blocks of so many
PROBE = 6  # tokens
TOLERANCE = 0.05  # of the largest number of a hidden state: rounding of 16-bit formats, and no more


class SlotCache(Cache):
    """A cache of transformers with room for `num_rows` rows of `length` tokens, allocated at the first token.

    A pass reads the first rows of it; `aim` says where each of their tokens stands. All layers keep all tokens: a sliding
    window is a matter of the mask. So nothing moves when a row joins, and one row is copied when one leaves.
    """

    def __init__(self, num_layers: int, num_rows: int, length: int) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in range(num_layers)])
        self.num_rows, self.length = num_rows, length
        self.positions_BT = torch.zeros((0, 0), dtype=torch.long)
        self.width = 0  # positions that the pass at hand may see

    def aim(self, positions_BT: Tensor) -> None:
        """The next pass writes the tokens of the first B rows at these positions."""
        self.positions_BT = positions_BT
        self.width = int(positions_BT.max()) + 1

    def reserve(self, num_rows: int, length: int) -> None:
        """Make room for so many rows of so many tokens; what is there stays."""
        if num_rows > self.num_rows or length > self.length:
            self.num_rows = max(self.num_rows, -(-num_rows // 8) * 8)
            self.length = max(self.length, -(-length // ROUND) * ROUND)
            for layer in self._slots():
                layer.resize()

    def row(self, at: int, num_tokens: int) -> Layers:
        """The first tokens of row `at`, not copied; nothing before the first pass."""
        return [(layer.keys[at, :, :num_tokens], layer.values[at, :, :num_tokens]) for layer in self._slots()]

    def fill(self, at: int, layers: Layers) -> None:
        """Let row `at` begin with these tokens."""
        for layer, (keys_HTD, values_HTD) in zip(self._slots(), layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys_HTD[None], values_HTD[None])
            layer.keys[at, :, : keys_HTD.shape[1]] = keys_HTD
            layer.values[at, :, : values_HTD.shape[1]] = values_HTD

    def _slots(self) -> "list[_SlotLayer]":
        return self.layers  # type: ignore[return-value]


class _SlotLayer(CacheLayerMixin):
    # [rows, heads, positions, width]
    keys: Tensor  # pyright: ignore
    values: Tensor  # pyright: ignore

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: a position that no token has reached is masked, but nothing times not-a-number is not a number.
        rows, length = self._cache.num_rows, self._cache.length
        self.keys, self.values = (  # type: ignore[assignment] - tensors from here on
            each.new_zeros((rows, each.shape[1], length, each.shape[3])) for each in (key_states, value_states)
        )
        self.is_initialized = True

    def resize(self) -> None:
        if self.is_initialized:
            before = self.keys, self.values
            rows, _, length, _ = self.keys.shape
            self.lazy_initialization(*before)
            self.keys[:rows, :, :length], self.values[:rows, :, :length] = before

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at_BT, width = self._cache.positions_BT, self._cache.width
        rows_B1 = torch.arange(len(at_BT), device=at_BT.device)[:, None]
        self.keys[rows_B1, :, at_BT] = key_states.transpose(1, 2)
        self.values[rows_B1, :, at_BT] = value_states.transpose(1, 2)
        return self.keys[: len(at_BT), :, :width], self.values[: len(at_BT), :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - transformers asks by this name
        return self._cache.width, 0

    def get_seq_length(self) -> int:
        return self._cache.width

    def get_max_length(self) -> int:
        return -1


class Reader:
    """Reads tokens of many rows into slots, each row from its own position on."""

    def __init__(self, config: Any, forward: Forward, device: torch.device) -> None:
        self._forward = forward
        self._device = device
        layers = DynamicCache(config=config).layers
        self.num_layers = len(layers)
        self._windows = [getattr(layer, "sliding_window", None) for layer in layers]
        self.pace = 0.0  # seconds a token that passes over prompts took lately; 0: not known
        self.is_able = _has_plain_layers(config) and self._probe()

    def slots(self, num_rows: int, length: int) -> SlotCache:
        return SlotCache(self.num_layers, num_rows, length)

    def read(self, cache: SlotCache, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Final hidden states [B, D] at the last token of each row's piece, which stands from `starts` on in its slot."""
        width = max(len(piece) for piece in pieces)
        ids_BT = torch.tensor([[*piece, *[0] * (width - len(piece))] for piece in pieces])
        at_BT = (torch.tensor(starts)[:, None] + torch.arange(width)).to(self._device)
        last_B = torch.tensor([len(piece) - 1 for piece in pieces], device=self._device)
        # What fills a short row up is read too, behind its last token, where no one looks and the next token will stand.
        cache.aim(at_BT)
        states_BTD = self._forward(
            ids_BT,
            attention_mask=self._masks(at_BT, cache.width),
            position_ids=at_BT.minimum(at_BT.gather(1, last_B[:, None])),  # a table of positions may end there
            past_key_values=cache,
        ).last_hidden_state
        return states_BTD[torch.arange(len(pieces), device=self._device), last_B]

    def _masks(self, at_BT: Tensor, width: int) -> Any:
        """True where a token may look, [B, 1, T, width]; by kind of layer where there are two."""
        keys_W = torch.arange(width, device=self._device)
        seen_BTW = keys_W <= at_BT[..., None]
        masks = {
            window: (seen_BTW if window is None else seen_BTW & (keys_W > at_BT[..., None] - window))[:, None]
            for window in set(self._windows)
        }
        if len(masks) == 1:
            [mask_B1TW] = masks.values()
            return mask_B1TW
        return {
            "full_attention" if window is None else "sliding_attention": mask_B1TW
            for window, mask_B1TW in masks.items()
        }

    def _probe(self) -> bool:
        """Whether this decoder gives in slots what it gives alone: some build masks or positions in ways of their own."""
        ids = list(range(1, PROBE + 1))
        try:
            alone_TD = self._forward(torch.tensor([ids])).last_hidden_state[0]
            cache = self.slots(2, PROBE + 1)
            self.read(cache, [ids[:3], ids[:1]], [0, 0])
            found_BD = self.read(cache, [ids[3:], ids[1:3]], [3, 1])
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
            return False
        expected_BD = alone_TD[[PROBE - 1, 2]]
        return bool((found_BD - expected_BD).abs().max() <= TOLERANCE * expected_BD.abs().max())


def _has_plain_layers(config: Any) -> bool:
    kinds = set(getattr(config, "layer_types", None) or ATTENTION)
    is_sdpa = getattr(config, "_attn_implementation", None) == "sdpa"  # others want masks in forms of their own
    return is_sdpa and kinds <= ATTENTION and getattr(config, "attention_chunk_size", None) is None
