"""Follow a grammar while decoding: which tokens may come next, by llguidance. Needs no torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from warmline.engine.engine import EngineError

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerFast


class Grammar:
    """One reply inside a grammar in Lark's syntax; `end` is the token that ends it.

    Raises EngineError for a grammar that llguidance refuses.
    """

    def __init__(self, tokenizer: "LLTokenizer", lark: str, end: int) -> None:
        from llguidance import LLMatcher

        self._end = end
        self._matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark))
        self._check()

    def allowed(self, num_tokens: int) -> NDArray[np.bool_]:
        """For each of the first `num_tokens` token ids, whether it may come next; once all is said, the end alone."""
        mask = np.zeros(num_tokens, np.bool_)
        if self._matcher.is_stopped():
            mask[self._end] = True
            return mask
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        self._check()
        mask[: len(bits)] = bits[:num_tokens].astype(np.bool_)
        return mask

    def take(self, token: int) -> None:
        """Go on by one allowed token."""
        if self._matcher.is_stopped():
            return
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot be followed: {self._matcher.get_error()}")


def tokenizer_of_bytes(tokens: Sequence[bytes], end: int) -> "LLTokenizer":
    """A tokenizer for llguidance of given byte strings; `end` is the id of the token that ends a reply."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes(tokens, end)), n_vocab=len(tokens))


class _Bytes:
    """What TokenizerWrapper asks for: a text's ids, one a byte."""

    def __init__(self, tokens: Sequence[bytes], end: int) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = end
        self.bos_token_id = None
        self.special_token_ids = [end]
        self._ids = {token: number for number, token in enumerate(tokens)}

    def __call__(self, text: bytes) -> list[int]:
        return [self._ids[bytes([byte])] for byte in text if bytes([byte]) in self._ids]


def tokenizer_of(tokenizer: "PreTrainedTokenizerFast", num_tokens: int, end: int) -> "LLTokenizer":
    """The same for a tokenizer of transformers. `num_tokens`: rows of the model's logits."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=num_tokens, eos_token=end)
