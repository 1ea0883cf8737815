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
        piece = self._decode.step(self._tokenizer, token)
        return self._texts.push(piece) if piece else ""

    def rest(self) -> str:
        return self._texts.rest()


@dataclass
class Row:
    """One request of a batch, and what was written for it so far."""

    index: int  # of the request
    prompt: list[int]
    sampling: Sampling
    reply: Reply
    generator: torch.Generator  # its own, so that a draw does not hang on who else is in the batch
    grammar: Grammar | None = None
    text: str = ""
    num_tokens: int = 0

    def draw(self, logits_1V: Tensor) -> int:
        """The next token."""
        if self.grammar is not None:
            logits_1V = inside([self.grammar], logits_1V)
        token = int(draw(logits_1V, self.sampling, self.generator))
        if self.grammar is not None:
            self.grammar.take(token)
        return token

    def push(self, token: int, *, is_stop: bool) -> bool:
        """Take the token; whether the reply is over."""
        self.text += self.reply.push(token, is_stop=is_stop)
        self.num_tokens += 1
        if not self.reply.done and self.num_tokens < self.sampling.max_new_tokens:
            return False
        self.text += self.reply.rest()
        return True


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
        tokens = _draw_all(live, logits(state_BD))
        ended = [row.push(token, is_stop=token in stop_ids) for row, token in zip(live, tokens, strict=True)]
        yield from ((row.index, row.text) for row, is_over in zip(live, ended, strict=True) if is_over)
        keep = [at for at, is_over in enumerate(ended) if not is_over]
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


def _draw_all(rows: Sequence[Row], logits_BV: Tensor) -> list[int]:
    if all(row.sampling.temperature == 0 and row.grammar is None for row in rows):
        return logits_BV.argmax(dim=-1).tolist()
    return [row.draw(logits_BV[at : at + 1]) for at, row in enumerate(rows)]


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
    # The highest logit is taken off first: a tiny temperature would else overflow to infinity minus infinity.
    scaled_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / max(sampling.temperature, TINY)
    probabilities, order = scaled_BV.softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= sampling.top_p] = 0
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return order.gather(1, drawn).squeeze(1)


def generator_of(sampling: Sampling, device: torch.device) -> torch.Generator:
    """Random numbers by the sampling's seed; without one, never the same twice."""
    generator = torch.Generator(device)
    generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    return generator
