"""What ordinary replies are asked for: they acknowledge or name a feeling, and ask one question at most; else drawn again.

The first sentence decides, so that a reply that begins well is not held: it is passed on as it comes. One that does not
is finished, a few more are drawn, and the best of them is passed on.
"""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from warmline.config.fields import Persona
from warmline.dialogue.ladder import hang_up, reason_of
from warmline.dialogue.manner import acknowledges, advises, asks, asks_for_advice, names_feeling, num_questions
from warmline.dialogue.reflection import Reflecting
from warmline.dialogue.session import Setting
from warmline.engine.engine import Capability, Chunk, Engine, GenerateRequest, Message, Reading, Scores
from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext, last_user_turn
from warmline.safety.validate.release import validate

MAX_QUESTIONS = 1
SEEDS = 10  # between the first draw and the others, beyond those of refused sentences
HOLD = 400  # characters after which a first sentence without an end is judged as it stands
NUM_WORDS = 3  # a shorter turn carries nothing that a reply could miss
SURE = 0.5  # probability from which the emotion head is believed that a turn is neutral

_END = re.compile(r"[.!?…][\"')\]]*\s+|\n+")


def considered(setting: Setting, messages: tuple[Message, ...], context: ReplyContext) -> Engine:
    """The setting's engine, with the hidden line and the choice of a reply where they are asked for; below `high` alone."""
    engine = setting.engine
    if context.level >= Level.HIGH:
        return engine
    if setting.reflection:
        engine = Reflecting(engine, messages)
    if setting.candidates > 1 and context.lang == "en":  # the readers of manner know English alone
        engine = Repairing(engine, messages, context, setting.style.persona, setting.candidates)
    return engine


class Repairing:
    """An engine that draws again when a reply to `messages` begins without warmth, and asks one question at most."""

    def __init__(
        self,
        engine: Engine,
        messages: tuple[Message, ...],
        context: ReplyContext,
        persona: Persona | None,
        num_candidates: int,
    ) -> None:
        self._engine = engine
        self._messages = messages
        self._context = context
        self._persona = persona
        self._num = num_candidates

    def capabilities(self) -> frozenset[Capability]:
        """The engine's own."""
        return self._engine.capabilities()

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        """The engine's own."""
        return self._engine.score(messages, reply)

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """One reply. A request for several, for the rest of a reply or for something else passes unchanged."""
        is_other = request.messages != self._messages or request.n > 1
        if is_other or request.constraint is not None or request.prefill:
            return self._engine.generate(request)
        return self._generate(request)

    def _generate(self, request: GenerateRequest) -> Generator[Chunk, None, None]:
        chunks = self._engine.generate(request)
        text, decided, missed, readings, questions = "", False, False, (), OneQuestion()
        try:
            for chunk in chunks:
                readings = readings or chunk.readings
                text += chunk.text
                if decided:
                    yield replace(chunk, text=questions.push(chunk.text))
                    continue
                if not missed and (_END.search(text.lstrip()) or len(text) > HOLD):
                    decided = self._begins_well(text, readings)
                    missed = not decided
                yield replace(chunk, text=questions.push(text) if decided else "")
        finally:
            hang_up(chunks)
        if decided or self._begins_well(text, readings):
            yield Chunk(questions.rest() if decided else questions.push(text) + questions.rest())
            return
        others: list[str] = []
        notes = yield from self._others(request, others)
        best = max([text, *others], key=self._rank)  # the first of equals
        yield Chunk(questions.push(best) + questions.rest(), 0, (), notes)

    def _others(self, request: GenerateRequest, found: list[str]) -> Generator[Chunk, None, tuple[str, ...]]:
        """More replies into `found`; empty pieces meanwhile. Returns a note if the engine failed."""
        at_once = "n" in self._engine.capabilities()
        try:
            for draw in range(1 if at_once else self._num - 1):
                sampling = request.sampling
                if sampling.seed is not None:
                    sampling = replace(sampling, seed=sampling.seed + SEEDS + draw)
                count = self._num - 1 if at_once else 1
                texts = [""] * count
                chunks = self._engine.generate(replace(request, sampling=sampling, n=count))
                try:
                    for chunk in chunks:
                        texts[chunk.index] += chunk.text
                        yield Chunk("")
                finally:
                    hang_up(chunks)
                found += [text for text in texts if text.strip()]
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the first reply stands
            return (f"one reply alone: {reason_of(error)}",)
        return ()

    def _begins_well(self, text: str, readings: Sequence[Reading]) -> bool:
        """Whether the reply so far can stand: it is warm, or there is nothing to be warm about."""
        said = last_user_turn(self._context)
        emotion = next((reading.top()[0] for reading in readings if reading.head == "emotion"), ("", 0.0))
        if len(said.split()) < NUM_WORDS or (emotion[0] == "neutral" and emotion[1] >= SURE):
            return True
        return acknowledges(text) or names_feeling(text)

    def _rank(self, text: str) -> tuple[bool, int]:
        """What passes the rules first, then what does most of what is asked for."""
        unasked = self._persona != "counselor" and not asks_for_advice(last_user_turn(self._context))
        points = acknowledges(text) + names_feeling(text) - (num_questions(text) > MAX_QUESTIONS)
        return validate(text, self._context).passed, points - (unasked and advises(text))


class OneQuestion:
    """A reply without the sentences that ask a second question.

    >>> one = OneQuestion()
    >>> one.push("Oh no! What happened? When was it? ") + one.rest()
    'Oh no! What happened? '
    """

    def __init__(self) -> None:
        self._held = ""
        self._asked = 0

    def push(self, piece: str) -> str:
        """The sentences that are complete now."""
        self._held += piece
        out, start = "", 0
        for found in _END.finditer(self._held):
            out += self._kept(self._held[start : found.end()])
            start = found.end()
        self._held = self._held[start:]
        return out

    def rest(self) -> str:
        """The last one, now that the reply has ended."""
        held, self._held = self._held, ""
        return self._kept(held)

    def _kept(self, sentence: str) -> str:
        self._asked += asks(sentence)
        return "" if asks(sentence) and self._asked > MAX_QUESTIONS else sentence
