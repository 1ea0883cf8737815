"""From a plan to a reply that passes every rule: freer ways first, each with what is left of the time."""

import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

from warmline.engine.engine import Chunk, Engine, EngineError, GenerateRequest, Message, Reading, Sampling
from warmline.safety.levels import Level
from warmline.safety.policy import Plan
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.release import Validated, release_if_valid, validate

NUM_REWRITES, REWRITE_ROUNDS = 2, 2
NUM_SLOT_SAMPLES = 8  # of each half
NUM_HALVES = 12  # of each kind that are paired
SLOT_TOKENS = 48  # of one sentence
IDEAL_WORDS = (25, 70)
NUM_GUIDED = 4  # draws inside the grammar
GUIDED_TEMPERATURE, GUIDED_TOKENS = 0.9, 900  # the grammar ends the reply; a token may be one character

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+")

Overtaken = Callable[[tuple[Reading, ...]], bool]  # whether what the heads read calls for another plan


def never(_: tuple[Reading, ...]) -> bool:
    """No reading calls for another plan."""
    return False


class TooLateError(EngineError):
    """The time for a reply is over."""

    def __init__(self) -> None:
        super().__init__("the reply took too long")


@dataclass(frozen=True)
class Attempt:
    """What the ladder gave: a reply and the tier that it came from, or none."""

    reply: Validated | None
    source: str  # of policy.TIERS
    readings: tuple[Reading, ...] = ()  # what the heads read, whichever tier spoke
    notes: tuple[str, ...] = ()
    num_candidates: int = 0
    broken: tuple[str, ...] = ()  # rules that candidates broke, one entry a candidate and rule
    degraded: frozenset[str] = frozenset()  # of engine, deadline, validators


@dataclass
class _Climb:
    """What the tiers share while one reply is sought."""

    engine: Engine
    messages: tuple[Message, ...]
    plan: Plan
    context: ReplyContext
    sampling: Sampling
    ends: float  # on the monotonic clock
    candidates: list[str]
    broken: list[str]
    degraded: set[str]
    overtaken: Overtaken = never
    readings: tuple[Reading, ...] = ()
    notes: tuple[str, ...] = ()
    is_overtaken: bool = False

    def out_of_time(self) -> bool:
        """Whether the tier that asks must stop; that one had to is remembered."""
        late = time.monotonic() >= self.ends
        self.degraded |= {"deadline"} if late else set()
        return late


def climb(
    engine: Engine,
    messages: Sequence[Message],
    plan: Plan,
    context: ReplyContext,
    sampling: Sampling,
    grammar: str,
    overtaken: Overtaken = never,
) -> Attempt:
    """Try the plan's tiers from the left until a reply passes. Never raises: an engine that fails is a tier that failed.

    `grammar`: for the guided tier, in Lark's syntax. A tier that the engine cannot do is passed over.
    `overtaken`: asked once, with what the heads read before the first word; a yes ends the climb without a reply.
    """
    limited = replace(sampling, temperature=plan.temperature, max_new_tokens=plan.max_new_tokens)
    ends = time.monotonic() + plan.deadline_s
    state = _Climb(engine, tuple(messages), plan, context, limited, ends, [], [], set(), overtaken)
    tiers: dict[str, Callable[[], Validated | None]] = {
        "model": lambda: _best(state, _sample(state, state.messages, plan.num_candidates)),
        "rewrite": lambda: _rewrite(state),
        "slots": lambda: _slots(state),
        "guided": lambda: _guided(state, grammar),
    }
    for tier in plan.ladder:
        if state.is_overtaken:
            break
        if tier not in tiers or (tier != "guided" and state.out_of_time()):
            continue
        try:
            reply = tiers[tier]()
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the tiers below it still speak
            state.notes = (*state.notes, f"{tier}: {reason_of(error)}")
            state.degraded.add(fault_of(error))
            continue
        if reply is not None:
            return _attempt(state, reply, tier)
    return _attempt(state, None, "notice")


def reason_of(error: Exception) -> str:
    """Why an engine failed, for a note: our own layers' words, up to the first colon; of any other error its kind
    alone, because the words of a server, a library or somebody else's engine could quote the conversation."""
    places = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = places[-1].f_globals.get("__name__", "") if places else ""
    is_own = isinstance(error, EngineError) and raised_in.startswith(("warmline.engine.", "warmline.dialogue."))
    return str(error).partition(": ")[0] if is_own else type(error).__name__


def hang_up(chunks: Iterator[Chunk]) -> None:
    """End a stream: a generator that is only dropped would keep its server busy. What it says on its way out is dropped."""
    close = getattr(chunks, "close", None)
    if close is not None:
        with suppress(Exception):
            close()


def fault_of(error: Exception) -> str:
    """The part that an error of a tier is put down to."""
    return "deadline" if isinstance(error, TooLateError) else "engine"


def _attempt(state: _Climb, reply: Validated | None, source: str) -> Attempt:
    broken, degraded = tuple(state.broken), frozenset(state.degraded)
    return Attempt(reply, source, state.readings, state.notes, len(state.candidates), broken, degraded)


def _sample(state: _Climb, messages: Sequence[Message], count: int, max_new_tokens: int | None = None) -> list[str]:
    """`count` replies, at once where the engine can; what is unfinished when time is up is dropped."""
    at_once = "n" in state.engine.capabilities()
    sampling = state.sampling if max_new_tokens is None else replace(state.sampling, max_new_tokens=max_new_tokens)
    found: list[str] = []
    while len(found) < count and not state.out_of_time():
        request = GenerateRequest(
            tuple(messages),
            _reseeded(sampling, len(state.candidates)),
            n=count if at_once else 1,
            urgent=state.plan.level >= Level.HIGH,
        )
        texts = _collect(state, state.engine.generate(request))
        found += texts
        state.candidates += texts
        if not texts:
            break
    return [_cut(text, state.plan.max_sentences) for text in found if text.strip()]


def _reseeded(sampling: Sampling, offset: int) -> Sampling:
    """The same draw again would be the same words again."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + offset)


def _collect(state: _Climb, chunks: Iterator[Chunk]) -> list[str]:
    """The replies of a stream; none if time runs out before it ends, or another plan is called for."""
    texts: dict[int, str] = {}
    try:
        for chunk in chunks:
            texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
            if chunk.readings and not state.readings:  # of the conversation itself: a rewrite asks something else
                state.readings, state.is_overtaken = chunk.readings, state.overtaken(chunk.readings)
            state.notes = state.notes or chunk.notes
            if state.is_overtaken or state.out_of_time():
                return []
    finally:
        hang_up(chunks)
    return [texts[index].strip() for index in sorted(texts)]


def _cut(text: str, max_sentences: int | None) -> str:
    """The first sentences; a sentence that was cut off by the token limit goes, if another stands before it."""
    parts = [part for part in _SENTENCE_END.split(text.strip()) if part]
    if len(parts) > 1 and parts[-1][-1] not in ".!?…\"')":
        parts.pop()
    return " ".join(parts[:max_sentences])


def _best(state: _Climb, texts: Sequence[str]) -> Validated | None:
    """The best of the replies that pass: fewest soft violations, then a length that can be read in one breath."""
    passing: list[tuple[tuple[int, int], str]] = []
    for text in texts:
        verdict = validate(text, state.context)
        state.broken += verdict.violations
        state.degraded |= {"validators"} if verdict.degraded else set()
        if verdict.passed:
            words = len(text.split())
            strays = max(IDEAL_WORDS[0] - words, words - IDEAL_WORDS[1], 0)
            passing.append(((len(verdict.soft), strays), text))
    return release_if_valid(min(passing)[1], state.context) if passing else None


def _rewrite(state: _Climb) -> Validated | None:
    """Ask the model to repair its best candidate, with the rules named that it broke."""
    for _ in range(REWRITE_ROUNDS):
        texts = [_cut(text, state.plan.max_sentences) for text in state.candidates if text.strip()]
        if not texts or state.out_of_time():
            return None
        nearest = min(texts, key=lambda text: len(validate(text, state.context).violations))
        broken = ", ".join(rule.replace("_", " ") for rule in validate(nearest, state.context).violations)
        ask = (
            f"That reply must not be sent. It broke these rules: {broken}. Write it again, in two to four short "
            "sentences, so that it keeps every rule of your instructions. Answer with the reply alone."
        )
        messages = (*state.messages, Message("assistant", nearest), Message("user", ask))
        reply = _best(state, _sample(state, messages, NUM_REWRITES))
        if reply is not None:
            return reply
    return None


def _slots(state: _Climb) -> Validated | None:
    """Two halves, each sampled by itself: what the person feels, and an invitation to people; then pairs that pass."""
    asks = (
        "Answer with one short sentence that says how hard this is and names what they seem to feel. Nothing else.",
        "Answer with one short sentence that invites them, without telling them what to do, to let someone they trust "
        "and a trained helper in. Nothing else.",
    )
    halves: list[list[str]] = []
    for ask in asks:
        last = state.messages[-1]
        messages = (*state.messages[:-1], Message(last.role, f"{last.content}\n\n({ask})"))
        sampled = _sample(state, messages, NUM_SLOT_SAMPLES, SLOT_TOKENS)
        earlier = [part for text in state.candidates for part in _SENTENCE_END.split(text.strip()) if part]
        sentences = dict.fromkeys([*(_cut(text, 1) for text in sampled), *earlier])
        halves.append([each for each in sentences if _only_lacks(each, state)][:NUM_HALVES])
    pairs = (f"{first} {second}" for first, second in product(*halves) if first != second)
    for pair in pairs:
        if state.out_of_time():
            return None
        reply = release_if_valid(pair, state.context)
        if reply is not None:
            return reply
    return None


def _only_lacks(sentence: str, state: _Climb) -> bool:
    """Whether a sentence breaks no rule but those that another sentence can still make good."""
    return all(rule.startswith("missing_") for rule in validate(sentence, state.context).violations)


def _guided(state: _Climb, grammar: str) -> Validated | None:
    """The model's own choice of words inside the policy grammar; validated all the same."""
    if "grammar" not in state.engine.capabilities():
        return None
    state.ends = max(
        state.ends, time.monotonic() + state.plan.deadline_s
    )  # the last tier that speaks gets its own time
    free = replace(state.sampling, temperature=GUIDED_TEMPERATURE, top_p=1.0, max_new_tokens=GUIDED_TOKENS)
    for draw in range(NUM_GUIDED):  # one that repeats an earlier reply is drawn again
        request = GenerateRequest(
            state.messages, _reseeded(free, draw), constraint=grammar, urgent=state.plan.level >= Level.HIGH
        )
        texts = _collect(state, state.engine.generate(request))
        state.candidates += texts
        reply = _best(state, texts)
        if reply is not None or not texts or state.is_overtaken:
            return reply
    return None
