"""From logits to text: drawing tokens, one reply as it grows, and many replies written together."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from warmline.engine.engine import Sampling
from warmline.engine.grammar import Grammar
from warmline.engine.stop_texts import StopTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY = torch.finfo(torch.float32).tiny  # a temperature below it would be 0 in float32
BATCH_ROWS = 64
BATCH_TOKENS = 65_536  # positions in the cache of one batch, padding and room for the replies included

Forward = Callable[..., Any]  # input ids [B, T] and options of the decoder -> its output
Logits = Callable[[Tensor], Tensor]  # states [B, D] -> logits [B, V]


class Reply:
    """One reply as it grows: tokens to text, up to its end."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", sampling: Sampling, given: list[int]) -> None:
        self._tokenizer: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        # Some tokenizers drop the first space of a text: what follows a prefill is not the first.
        self._decode = DecodeStream(ids=given, skip_special_tokens=True)
        self._texts = StopTexts(sampling.stop)
        self._ended = False

    @property
    def done(self) -> bool:
        return self._ended or self._texts.done

    def push(self, token: int, *, is_stop: bool) -> str:
        """The text that `token` completes; nothing once the reply has ended."""
        if self.done or is_stop:
            self._ended = True
            return ""
        piece = self._step(token)
        return self._texts.push(piece) if piece else ""

    def rest(self) -> str:
        return self._texts.rest()

    def _step(self, token: int) -> str | None:
        try:
            return self._decode.step(self._tokenizer, token)
        except Exception as error:
            if not str(error).startswith("Invalid prefix"):
                raise
            # Bytes that are no character read otherwise once more bytes follow: from here on the text begins anew.
            self._decode = DecodeStream(skip_special_tokens=True)
            return self._decode.step(self._tokenizer, token)


@dataclass
class Row:
    """One reply of a batch, and what was written of it so far."""

    index: int  # of the reply or of the request
    prompt: list[int]
    sampling: Sampling
    reply: Reply
    generator: torch.Generator  # its own, so that a draw does not hang on who else is in the batch
    grammar: Grammar | None = None
    text: str = ""
    num_tokens: int = 0
    is_over: bool = False

    def confine(self, logits_1V: Tensor) -> None:
        """Minus infinity at each token that the row's grammar does not allow next. Raises EngineError if it fails."""
        if self.grammar is not None:
            inside([self.grammar], logits_1V)

    def push(self, token: int, *, is_stop: bool) -> str:
        """The text that `token` completes, and all that is left of it if the reply is over with it."""
        if self.grammar is not None:
            self.grammar.take(token)
        piece = self.reply.push(token, is_stop=is_stop)
        self.num_tokens += 1
        self.is_over = self.reply.done or self.num_tokens >= self.sampling.max_new_tokens
        if self.is_over:
            piece += self.reply.rest()
        self.text += piece
        return piece


def batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows, shortest prompt first so that little is padding, in batches that fit BATCH_ROWS and BATCH_TOKENS."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.prompt)):
        room = max(each.sampling.max_new_tokens for each in (*batch, row))
        if batch and (len(batch) == BATCH_ROWS or (len(batch) + 1) * (len(row.prompt) + room) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def write_together(
    rows: Sequence[Row], forward: Forward, logits: Logits, cache: Any, stop_ids: frozenset[int]
) -> Iterator[tuple[int, str]]:
    """Index and text of each row as it ends; a row that ended leaves the batch.

    Prompts are padded on the left, masked, and each row counts its positions from its own first token, so that a row
    reads what it would read alone.
    """
    live = [*rows]
    width = max(len(row.prompt) for row in live)
    ids_BT = torch.tensor([[0] * (width - len(row.prompt)) + row.prompt for row in live])
    mask_BT = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in live])
    while True:
        state_BD = _step(ids_BT, mask_BT, forward, cache)
        logits_BV = logits(state_BD)
        for at, row in enumerate(live):
            row.confine(logits_BV[at : at + 1])
        tokens = draw_all(live, logits_BV)
        for row, token in zip(live, tokens, strict=True):
            row.push(token, is_stop=token in stop_ids)
        yield from ((row.index, row.text) for row in live if row.is_over)
        keep = [at for at, row in enumerate(live) if not row.is_over]
        if not keep:
            return
        if len(keep) < len(live):
            cache.batch_select_indices(torch.tensor(keep, device=state_BD.device))
            mask_BT = mask_BT[keep]
            live = [live[at] for at in keep]
        ids_BT = torch.tensor([[tokens[at]] for at in keep])
        mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=1)


def _step(ids_BT: Tensor, mask_BT: Tensor, forward: Forward, cache: Any) -> Tensor:
    """Final hidden states at each row's last token."""
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
    output = forward(ids_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache)
    return output.last_hidden_state[:, -1]


@torch.inference_mode()
def draw_all(rows: Sequence[Row], logits_BV: Tensor) -> list[int]:
    """The next token of each row, by its own sampling and its own random numbers."""
    tokens: list[int] = logits_BV.argmax(dim=-1).tolist()
    drawn = [at for at, row in enumerate(rows) if row.sampling.temperature > 0]
    if not drawn:
        return tokens
    temperatures, top_ps = ([getattr(rows[at].sampling, name) for at in drawn] for name in ("temperature", "top_p"))
    likeliest_BV, order_BV = _nucleus(logits_BV[drawn], temperatures, top_ps)
    picks = [torch.multinomial(likeliest_BV[n], 1, generator=rows[at].generator) for n, at in enumerate(drawn)]
    for at, token in zip(drawn, order_BV.gather(1, torch.stack(picks)).squeeze(1).tolist(), strict=True):
        tokens[at] = token
    return tokens


@torch.inference_mode()
def inside(grammars: Sequence[Grammar], logits_BV: Tensor) -> Tensor:
    """The logits with minus infinity at each token that the row's grammar does not allow next."""
    for row, grammar in enumerate(grammars):
        allowed_V = torch.from_numpy(grammar.allowed(logits_BV.shape[-1])).to(logits_BV.device)
        logits_BV[row, ~allowed_V] = -math.inf
    return logits_BV


def draw(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token a row: the most likely at temperature 0, else from the smallest set that reaches top_p."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    likeliest_BV, order_BV = _nucleus(logits_BV, [sampling.temperature], [sampling.top_p])
    return order_BV.gather(1, torch.multinomial(likeliest_BV, 1, generator=generator)).squeeze(1)


def _nucleus(logits_BV: Tensor, temperatures: Sequence[float], top_ps: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Probabilities from the largest down, 0 outside the smallest set that reaches top_p; and whose they are."""
    temperature_B1 = torch.tensor(temperatures, device=logits_BV.device).clamp(min=TINY)[:, None]
    top_p_B1 = torch.tensor(top_ps, device=logits_BV.device)[:, None]
    # The highest logit is taken off first: a tiny temperature would else overflow to infinity minus infinity.
    scaled_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature_B1
    likeliest_BV, order_BV = scaled_BV.softmax(dim=-1).sort(dim=-1, descending=True)
    before_BV = likeliest_BV.cumsum(dim=-1) - likeliest_BV
    return likeliest_BV.masked_fill_(before_BV >= top_p_B1, 0), order_BV


def generator_of(sampling: Sampling, device: torch.device, index: int = 0) -> torch.Generator:
    """Random numbers of reply `index` by the sampling's seed; without one, never the same twice.

    Reply 2 of seed 5 is what seed 7 gives alone.
    """
    generator = torch.Generator(device)
    generator.seed() if sampling.seed is None else generator.manual_seed((sampling.seed + index) % 2**64)
    return generator
