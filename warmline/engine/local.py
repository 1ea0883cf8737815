"""The engine that holds the weights: one forward pass gives the first token and what the heads read."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from warmline.data.tokenize import TemplateError, answer_span, control_tokens, defuse, render
from warmline.engine.batching import Encoded, SharedRow, common_start, plan
from warmline.engine.decoding import Reply, Row, batches, draw_all, generator_of, write_together
from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Reading, Scores
from warmline.engine.grammar import Grammar, tokenizer_of
from warmline.engine.prefix import PrefixCache
from warmline.engine.slots import Reader
from warmline.model.heads import values
from warmline.model.support_model import SupportModel
from warmline.objectives import lm

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase


BATCH_TOKENS = 2048  # padded tokens of one pass of `score_batch`: measured, the fastest on a CPU
MIN_SHARED = 8  # tokens: a shorter common beginning is not worth a pass of its own
LOGITS = 2**24  # numbers that exist at one time there: 64 MiB
LENGTH_BOUND = frozenset({"dynamic", "longrope"})  # rotary positions that the longest row of a batch changes for all


class Prepared(NamedTuple):
    """A request as tokens."""

    prompt: list[int]  # with the words that a reply was given to begin with
    last: int  # place of the prompt's own last token, where the heads read
    rows: list[Row]  # one a reply
    notes: tuple[str, ...]


class LocalEngine:
    """One stage of a loaded model. Engines of several stages may share the model: each switches to its own.

    `prefixes`: what was read before and need not be read again; engines may share it.
    """

    def __init__(
        self,
        model: SupportModel,
        tokenizer: "PreTrainedTokenizerBase",
        stage: str = "base",
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._prefixes = prefixes
        self._model = model
        self._tokenizer = tokenizer
        self._stage = stage
        self._context = int(model.causal.config.max_position_embeddings)  # tokens
        self._stop_ids = _stop_ids(model, tokenizer)
        self._control_tokens = control_tokens(tokenizer)
        self._scored: tuple[list[int], Any] | None = None  # the ids of the last `score` and their cache
        self._guide: LLTokenizer | None = None  # made at the first grammar
        self._prefix_key = (model, stage)
        model.use(stage)

    def capabilities(self) -> frozenset[Capability]:
        """`heads` only where the stage has some: the base has none."""
        heads: tuple[Capability, ...] = ("heads",) if self._model.specs.get(self._stage) else ()
        return frozenset(("logits", "n", "grammar", *heads))

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """Stream `request.n` replies from one prefill. The oldest turns are left out if the context is too short."""
        return self.stream(self.prepare(request))

    def prepare(self, request: GenerateRequest) -> Prepared:
        """The request as tokens: from any thread, for no weight is touched. Raises EngineError if it cannot be answered."""
        if request.n < 1:
            raise EngineError(f"n is {request.n}; expected at least 1 reply")
        sampling, prefill = request.sampling, defuse(request.prefill, self._control_tokens)
        prompt, last, notes = self._prompt(request.messages, prefill, sampling.max_new_tokens)
        given = self._ids(prefill) if prefill else []
        rows = []
        for index in range(request.n):
            grammar = None if request.constraint is None else self._grammar(request.constraint)
            generator = generator_of(sampling, self._model.device, index)
            rows.append(Row(index, prompt, sampling, Reply(self._tokenizer, sampling, given), generator, grammar))
        return Prepared(prompt, last, rows, notes)

    def generate_batch(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Chunk | EngineError]]:
        """Number and whole reply of each request as it ends, many written at once; what `generate` gives alone.

        Equal up to the rounding of sums in another order: a tie of two tokens may fall otherwise. A request that cannot
        be answered gives its error, and the others go on.
        """
        from transformers import DynamicCache

        rows: list[Row] = []
        notes: dict[int, tuple[str, ...]] = {}
        for index, request in enumerate(requests):
            try:
                row, notes[index] = self._row(index, request)
                rows.append(row)
            except EngineError as error:
                yield index, error
        for batch in [[row] for row in rows] if self._is_length_bound() else batches(rows):
            cache = DynamicCache(config=self._model.causal.config)
            for index, text in write_together(batch, self.forward, self.logits, cache, self._stop_ids):
                yield index, Chunk(text, notes=notes[index])

    def _row(self, index: int, request: GenerateRequest) -> tuple[Row, tuple[str, ...]]:
        if request.n != 1:
            raise EngineError(f"n is {request.n}; a batch writes one reply a request")
        prepared = self.prepare(request)
        [row] = prepared.rows
        row.index = index
        return row, prepared.notes

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        """One pass over what is new in prompt and reply. Raises EngineError if they do not fit into the context."""
        ids, first = self._encode(messages, reply)
        states = self._states(ids, first)
        readings = self.read(states[:1])[0]
        answer = ids[first + 1 :]
        if not answer:
            return Scores(0.0, 0, readings)
        with torch.inference_mode():
            before_answer = states[:-1].to(self._model.lm_weight_VD.dtype)
            labels = torch.tensor(answer, device=states.device)
            total = lm(before_answer @ self._model.lm_weight_VD.T, labels).total
        return Scores(-float(total), len(answer), readings)

    def count(self, messages: Sequence[Message], reply: str) -> tuple[int, int]:
        """Tokens of the rendered conversation and of the reply."""
        return len(self._ids(self._render(messages, add_generation_prompt=True))), len(self._ids(reply))

    def score_batch(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[Scores]:
        """Many scores from few passes: rows of like length together, the turns of one conversation in one row.

        Equal to `score` of each item up to rounding. Raises EngineError if an item does not fit.
        """
        if self._is_length_bound():
            return [self.score(messages, reply) for messages, reply in items]
        encoded = [self._encode(messages, reply) for messages, reply in items]
        scores: dict[int, Scores] = {}
        for batch in plan(encoded, BATCH_TOKENS):
            states_BTD, start = self._batch_states(
                batch, min(encoded[number].first for row in batch for number in row.items)
            )
            wanted = [(number, at) for at, row in enumerate(batch) for number in row.items]
            firsts_A = torch.tensor([encoded[number].first - start for number, _ in wanted])
            rows_A = torch.tensor([at for _, at in wanted])
            readings = self.read(states_BTD[rows_A, firsts_A])
            spans = [(at, encoded[number].first - start, encoded[number].answer) for number, at in wanted]
            for (number, _), logprob, reading in zip(wanted, self._logprobs(states_BTD, spans), readings, strict=True):
                scores[number] = Scores(logprob, len(encoded[number].answer), reading)
        return [scores[number] for number in range(len(items))]

    def _encode(self, messages: Sequence[Message], reply: str) -> Encoded:
        """Prompt and reply as tokens. Raises EngineError if they do not fit into the context."""
        reply = defuse(reply, self._control_tokens)
        prompt = self._ids(self._render(messages, add_generation_prompt=True))
        answer = self._answer(messages, reply, prompt) if reply else []
        ids = [*prompt, *answer]
        if len(ids) > self._context:
            raise EngineError(f"prompt and reply are {len(ids)} tokens, the context is {self._context}")
        return Encoded(ids, len(prompt) - 1)

    def reader(self) -> Reader | None:
        """What reads many rows side by side, each at its own position; None where this decoder cannot be read so."""
        if self._is_length_bound():
            return None
        reader = Reader(self._model.causal.config, self.forward, self._model.device)
        return reader if reader.is_able else None

    def _is_length_bound(self) -> bool:
        rope = getattr(self._model.causal.config, "rope_parameters", None) or {}
        return rope.get("rope_type") in LENGTH_BOUND

    def _batch_states(self, batch: Sequence[SharedRow], first: int) -> tuple[Tensor, int]:
        """Final hidden states of a batch from some position on, at most `first`; and that position.

        What all rows begin with (a system prompt) is read once.
        """
        from transformers import DynamicCache

        ids_BT = torch.zeros((len(batch), len(batch[0].ids)), dtype=torch.long)
        for at, row in enumerate(batch):
            ids_BT[at, : len(row.ids)] = torch.tensor(row.ids)
        # No position sees one to its right: padding there needs no mask, and which token it is makes no difference.
        cache: Any = DynamicCache(config=self._model.causal.config)
        start = min(common_start([row.ids for row in batch]), first)
        if len(batch) == 1 or start < MIN_SHARED or any(layer.is_sliding for layer in cache.layers):
            return self.forward(ids_BT).last_hidden_state, 0
        self.forward(ids_BT[:1, :start], past_key_values=cache)
        cache.batch_repeat_interleave(len(batch))
        return self.forward(ids_BT[:, start:], past_key_values=cache).last_hidden_state, start

    @torch.inference_mode()
    def _logprobs(self, states_BTD: Tensor, spans: Sequence[tuple[int, int, Sequence[int]]]) -> list[float]:
        """The log-probability of each answer in a batch; a span is its row, the position before it, its tokens."""
        weight_VD = self._model.lm_weight_VD
        rows_N = torch.tensor([row for row, _, answer in spans for _ in answer], dtype=torch.long)
        at_N = torch.tensor(
            [first + step for _, first, answer in spans for step in range(len(answer))], dtype=torch.long
        )
        labels_N = torch.tensor([token for _, _, answer in spans for token in answer], dtype=torch.long)
        states_ND = states_BTD[rows_N, at_N].to(weight_VD.dtype)
        labels_N = labels_N.to(states_ND.device)
        losses = [
            torch.nn.functional.cross_entropy((states @ weight_VD.T).float(), labels, reduction="none")
            for states, labels in zip(
                *(each.split(max(1, LOGITS // len(weight_VD))) for each in (states_ND, labels_N)), strict=True
            )
        ]
        losses_N = torch.cat(losses).double().cpu() if spans else torch.zeros(0)
        return [-float(each.sum()) for each in losses_N.split([len(answer) for _, _, answer in spans])]

    def _states(self, ids: list[int], first: int) -> Tensor:
        """Final hidden states from position `first` on. What these ids share with those of the last call is not read
        again: the turns of one conversation, scored in order, cost little more than one pass over it."""
        from transformers import DynamicCache

        before, cache = self._scored or ([], None)
        shared = next((at for at, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]), len(before))
        shared = min(shared, first, len(ids) - 1)
        if cache is None or any(layer.is_sliding for layer in cache.layers):  # a sliding window cannot be cut back
            cache, shared = DynamicCache(config=self._model.causal.config), 0
        elif shared < len(before):
            cache.crop(shared - len(before))
        self._scored = None  # while a pass may fail half way
        states_TD = self.forward(torch.tensor([ids[shared:]]), past_key_values=cache).last_hidden_state[0]
        self._scored = (ids, cache)
        return states_TD[first - shared :]

    @torch.inference_mode()
    def forward(self, ids_BT: Tensor, **options: Any) -> Any:
        """The decoder's output with the stage's adapter; `options` go to the decoder."""
        self._model.use(self._stage)
        device = self._model.device
        on_device = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}
        return self._model.hidden(ids_BT.to(device), use_cache=bool(options), **on_device)

    def stream(self, prepared: Prepared) -> Iterator[Chunk]:
        """The replies to one request, alone; what `generate` gives."""
        from transformers import DynamicCache

        prompt, last, rows, notes = prepared
        cache: Any = DynamicCache(config=self._model.causal.config)
        num_known = self._recall(prompt[: last + 1], cache)
        states_BTD = self.forward(torch.tensor([prompt[num_known:]]), past_key_values=cache).last_hidden_state
        self._remember(prompt, cache)
        yield Chunk("", 0, self.read(states_BTD[:, last - num_known])[0], notes)
        state_BD = states_BTD[:, -1]
        if len(rows) > 1:
            cache.batch_repeat_interleave(len(rows))
            state_BD = state_BD.repeat_interleave(len(rows), dim=0)
        read = [*prompt]
        try:
            while tokens := self._draw(rows, state_BD):
                for row, token in zip(rows, tokens, strict=True):
                    if not row.is_over and (piece := row.push(token, is_stop=token in self._stop_ids)):
                        yield Chunk(piece, row.index)
                if all(row.is_over for row in rows):
                    return
                ids_B1 = torch.tensor(tokens)[:, None]
                state_BD = self.forward(ids_B1, past_key_values=cache).last_hidden_state[:, -1]
                read += tokens
        finally:
            if len(rows) == 1:  # of several replies none is known to be the one that the next turn goes on from
                self._remember(read, cache)

    def _draw(self, rows: Sequence[Row], state_BD: Tensor) -> list[int]:
        logits_BV = self.logits(state_BD)
        for at, row in enumerate(rows):
            if not row.is_over:
                row.confine(logits_BV[at : at + 1])
        return draw_all(rows, logits_BV)

    def _recall(self, prompt: list[int], cache: Any) -> int:
        """How many tokens of the prompt were read before; their keys and values are in the cache now."""
        if self._prefixes is None or any(layer.is_sliding for layer in cache.layers):
            return 0
        num_known, layers = self._prefixes.find(self._prefix_key, prompt)
        for number, (keys_HTD, values_HTD) in enumerate(layers):
            cache.update(keys_HTD[None], values_HTD[None], number)
        return num_known

    def _remember(self, ids: list[int], cache: Any) -> None:
        if self._prefixes is None or any(layer.is_sliding for layer in cache.layers):
            return
        if all(layer.get_seq_length() == len(ids) for layer in cache.layers):  # not where a pass failed half way
            self._prefixes.keep(self._prefix_key, ids, [(layer.keys[0], layer.values[0]) for layer in cache.layers])

    def is_stop(self, token: int) -> bool:
        """Whether the token ends a reply."""
        return token in self._stop_ids

    def _grammar(self, lark: str) -> Grammar:
        own = self._tokenizer.eos_token_id
        end = own if own in self._stop_ids else min(self._stop_ids)
        if self._guide is None:
            self._guide = tokenizer_of(self._tokenizer, len(self._model.lm_weight_VD), end)  # type: ignore[arg-type]
        return Grammar(self._guide, lark, end)  # type: ignore[arg-type]

    @torch.inference_mode()
    def logits(self, state_BD: Tensor) -> Tensor:
        """Float32, [B, V]."""
        weight_VD = self._model.lm_weight_VD
        return (state_BD.to(weight_VD.dtype) @ weight_VD.T).float()

    @torch.inference_mode()
    def read(self, states_AD: Tensor) -> list[tuple[Reading, ...]]:
        """What every head of the stage reads at each of these states."""
        self._model.use(self._stage)
        specs = self._model.specs.get(self._stage, {})
        read = {name: values(specs[name], head(states_AD.float())).tolist() for name, head in self._model.heads.items()}
        return [
            tuple(Reading(name, specs[name].labels, tuple(read[name][at])) for name in read)
            for at in range(len(states_AD))
        ]

    def _prompt(self, messages: Sequence[Message], prefill: str, room: int) -> tuple[list[int], int, tuple[str, ...]]:
        """The ids that fit into the context with `room` tokens to spare; where the prompt ends and the prefill begins,
        which is where heads read; and a note if turns were left out."""
        system = [message for message in messages[:1] if message.role == "system"]
        turns = list(messages[len(system) :])
        starts = [0, *(at for at, turn in enumerate(turns) if at > 0 and turn.role == "user")]

        def ids_from(start: int, prefill: str = prefill) -> list[int]:
            return self._ids(self._render([*system, *turns[start:]], add_generation_prompt=True) + prefill)

        first, ids = 0, ids_from(0)
        if len(ids) + room > self._context:
            # Halving, for a conversation may be thousands of turns long: each turn left out makes the prompt shorter.
            first = bisect_left(starts, True, lo=1, key=lambda start: len(ids_from(start)) + room <= self._context)
            ids = ids_from(starts[min(first, len(starts) - 1)])
        if first == len(starts):
            raise EngineError(
                f"the last message is too long: {len(ids)} tokens and {room} for the reply, "
                f"the context is {self._context}"
            )
        last = max(common_start([ids_from(starts[first], ""), ids]), 1) - 1 if prefill else len(ids) - 1
        left_out = f"the oldest {starts[first]} turns were left out: the context is full"
        return ids, last, (left_out,) if first else ()

    def _answer(self, messages: Sequence[Message], reply: str, prompt_ids: list[int]) -> list[int]:
        """The reply's tokens and its stop token, as the template writes them and training learns them."""
        prompt = self._render(messages, add_generation_prompt=True)
        whole = self._render([*messages, Message("assistant", reply)], add_generation_prompt=False)
        if not whole.startswith(prompt + reply):
            raise EngineError("the chat template changes the prompt or the reply once the reply is known")
        encoding = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        try:
            begin, end = answer_span(encoding["offset_mapping"], len(prompt), len(prompt) + len(reply))
        except TemplateError as error:
            raise EngineError(f"the reply cannot be scored: {error}") from None
        ids = encoding["input_ids"]
        if ids[:begin] != prompt_ids:
            raise EngineError("the tokenizer reads the prompt otherwise once the reply is known")
        return ids[begin : end + 1]

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        as_dicts = [{"role": role, "content": defuse(content, self._control_tokens)} for role, content in messages]
        try:
            return render(self._tokenizer, as_dicts, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise EngineError(f"the conversation cannot be rendered: {error}") from None

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def _stop_ids(model: SupportModel, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The tokens that end a reply: the tokenizer's and all that the base names."""
    configured = model.causal.generation_config.eos_token_id
    named = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    return frozenset(token for token in named if isinstance(token, int))
