"""A reply sentence by sentence, at the levels none and elevated: each is held until it has passed the rules."""

import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from warmline.dialogue.ladder import Attempt, Overtaken, TooLateError, fault_of, hang_up, never, reason_of
from warmline.engine.engine import Chunk, Engine, GenerateRequest, Message, Reading, Sampling
from warmline.safety.policy import Plan
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.release import Validated, release_sentence_if_valid, validate_sentence

HOLD = 400  # characters after which a sentence without an end is checked as it stands
NUM_RESAMPLES = 2  # of a sentence that was refused

_WORDS = re.compile(rf"(?s).{{1,{HOLD}}}(?=\s)|\s*\S+(?=\s)")  # as many as fit, or one that is longer
_END = re.compile(r"[.!?…][\"')\]]*\s+|\n+")


def stream(
    engine: Engine,
    messages: tuple[Message, ...],
    plan: Plan,
    context: ReplyContext,
    sampling: Sampling,
    pieces: list[Validated],
    overtaken: Overtaken = never,
) -> Generator[Validated, None, Attempt]:
    """The released sentences, which `pieces` holds too; returns the attempt. Raises nothing of what an engine raises.

    A refused sentence is drawn again; then the reply ends there. `overtaken`: asked with what the heads read before the
    first word was released; a yes ends the stream without one.
    """
    readings: tuple[Reading, ...] = ()
    notes: tuple[str, ...] = ()
    broken: list[str] = []
    degraded: set[str] = set()
    ends = time.monotonic() + plan.deadline_s
    draw = 0
    sampling = replace(sampling, temperature=plan.temperature)
    for draw in range(1 + NUM_RESAMPLES):
        seed = None if sampling.seed is None else sampling.seed + draw
        request = GenerateRequest(messages, replace(sampling, seed=seed), prefill=_so_far(pieces))
        refused = False
        try:
            with closing(_sentences(engine.generate(request), ends)) as sentences:
                for sentence, read, noted in sentences:
                    readings, notes = readings or read, notes or noted
                    if read and not pieces and overtaken(readings):
                        return Attempt(None, "model", readings, notes, 1 + draw, tuple(broken), frozenset(degraded))
                    released = release_sentence_if_valid(sentence, _so_far(pieces), context) if sentence else None
                    if released is not None:
                        pieces.append(released)
                        yield released
                    elif sentence:
                        verdict = validate_sentence(sentence, _so_far(pieces), context)
                        broken += verdict.violations
                        degraded |= {"validators"} if verdict.degraded else set()
                        refused = True
                        break
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, what was released stands
            notes = (*notes, reason_of(error))
            degraded.add(fault_of(error))
            break
        if not refused:
            break
    return Attempt(None, "model", readings, notes, 1 + draw, tuple(broken), frozenset(degraded))


def _so_far(pieces: Sequence[str]) -> str:
    return " ".join(pieces)


def _sentences(
    chunks: Iterator[Chunk], ends: float
) -> Generator[tuple[str, tuple[Reading, ...], tuple[str, ...]], None, None]:
    """Whole sentences as they are complete, with readings and notes; the last without waiting for its end.

    One that does not end is cut between words: half a word could hide from the rules what it is a part of. Raises
    TooLateError at the first piece after `ends`, seconds on the monotonic clock.
    """
    buffer = ""
    try:
        for chunk in chunks:
            if time.monotonic() >= ends:
                raise TooLateError
            buffer += chunk.text
            if chunk.readings or chunk.notes:
                yield "", chunk.readings, chunk.notes
            start = 0
            for found in _END.finditer(buffer):
                yield buffer[start : found.end()].strip(), (), ()
                start = found.end()
            buffer = buffer[start:]
            while len(buffer) > HOLD and (words := _WORDS.match(buffer)):
                yield words[0].strip(), (), ()
                buffer = buffer[words.end() :]
        if buffer.strip():
            yield buffer.strip(), (), ()
    finally:
        hang_up(chunks)
