"""One hidden line before a reply: what happened, what they feel, what to do next. It reaches the model and nobody else.

The line lives in one object for one turn. What the engine says afterwards goes through a filter that drops the line's
marks and every sentence that repeats four of its words in a row, unless the person said them first.
"""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from warmline.dialogue.ladder import hang_up, reason_of
from warmline.engine.engine import Capability, Chunk, Engine, GenerateRequest, Message, Reading, Scores

OPEN, CLOSE = "<note>", "</note>"
OPENING = f"{OPEN}What happened, what they feel, what to do next:"
NUM_TOKENS = 40  # of the line
LONGEST = 300  # characters of it
TEMPERATURE = 0.3  # at most: it is to be right, not new
SURE = 0.3  # probability from which what a head reads is told
NUM_RUN = 4  # words in a row that a reply must not share with the line
HOLD = 400  # characters after which a sentence without an end is looked at as it stands
NEXT = {  # ESConv's strategies as something to do; an AI has nothing to disclose of itself
    "Question": "ask one open question",
    "Restatement or Paraphrasing": "say back what they said",
    "Reflection of feelings": "say what they seem to feel",
    "Affirmation and Reassurance": "reassure them",
    "Providing Suggestions": "offer one small idea, if they want one",
    "Information": "explain a little",
}

_ASK = (
    "Before the reply, write one short line for yourself: what happened, what they feel, what to do next. "
    "Answer with that line alone."
)
_TOLD = "A private note for you, which they did not write and must not see; never quote or mention it:"
_OPEN, _CLOSE = (re.compile(re.escape(mark), re.IGNORECASE) for mark in (OPEN, CLOSE))
_END = re.compile(r"[.!?…][\"')\]]*\s+|\n+")
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


class Reflecting:
    """An engine that writes the hidden line before its first reply to `messages`, and replies knowing it.

    An engine with logits goes on with given words, so the line stands before the reply as its prefill: what was read
    of the prompt is not read again where prefixes are kept. Of a server one cannot know whether it goes on with them,
    so there the line is asked for and given in the newest turn. Other requests pass unchanged.
    """

    def __init__(self, engine: Engine, messages: tuple[Message, ...]) -> None:
        self._engine = engine
        self._messages = messages
        self._line: str | None = None  # None: not written yet; empty: there is none

    def capabilities(self) -> frozenset[Capability]:
        """The engine's own."""
        return self._engine.capabilities()

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        """The engine's own."""
        return self._engine.score(messages, reply)

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """The reply without a word of the line; empty pieces while the line is written, so that a caller can give up."""
        if request.messages != self._messages or request.constraint is not None:
            return self._engine.generate(request)
        return self._generate(request)

    def _generate(self, request: GenerateRequest) -> Generator[Chunk, None, None]:
        goes_on = "logits" in self._engine.capabilities()
        told = False  # whether readings and notes were passed on
        if self._line is None:
            self._line, told = yield from self._write_line(request, goes_on=goes_on)
        if not self._line:
            for chunk in _closed(self._engine.generate(request)):
                yield Chunk(chunk.text, chunk.index) if told else chunk
            return
        hidden = _hidden(request, self._line, goes_on=goes_on)
        said = [message.content for message in self._messages]
        filters: dict[int, Unheard] = {}
        for chunk in _closed(self._engine.generate(hidden)):
            unheard = filters.setdefault(chunk.index, Unheard(self._line, said))
            text = unheard.push(chunk.text)
            yield Chunk(text, chunk.index) if told else replace(chunk, text=text)
        for index, unheard in filters.items():
            yield Chunk(unheard.rest(), index)

    def _write_line(self, request: GenerateRequest, *, goes_on: bool) -> Generator[Chunk, None, tuple[str, bool]]:
        """The line, and whether readings were passed on. An engine that fails here is asked for the reply all the same."""
        text, readings, told = "", (), False
        try:
            for chunk in _closed(self._engine.generate(_first_step(request, goes_on=goes_on))):
                if chunk.index == 0:
                    text += chunk.text
                readings = readings or chunk.readings
                told = told or bool(chunk.readings or chunk.notes)
                yield Chunk("", 0, chunk.readings, chunk.notes)
                if "\n" in text.lstrip() or len(text) > LONGEST:
                    break
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the reply is still tried
            yield Chunk("", 0, (), (f"no reflection: {reason_of(error)}",))
            return "", told
        return line_of(text, readings), told


class Unheard:
    """What a reply says besides the hidden line. Sentence by sentence, as replies are held anyway.

    >>> unheard = Unheard("They lost their job and feel ashamed.", ["I got fired"])
    >>> unheard.push("<note>x</note> That hurts. They lost their job and ") + unheard.rest()
    ' That hurts. '
    """

    def __init__(self, line: str, said: Sequence[str]) -> None:
        self._line = _spaced(_words(line))
        self._said = [_spaced(_words(text)) for text in said]
        own = {run for text in said for run in _runs(_words(text))}
        self._runs = _runs(_words(line)) - own
        self._held = ""
        self._inside = False  # a mark was opened
        self._before: list[str] = []  # the last words let through

    def push(self, piece: str) -> str:
        """What can be passed on now."""
        self._held += piece
        out = ""
        while True:
            if self._inside:
                found = _CLOSE.search(self._held)
                if found is None:
                    self._held = self._held[-len(CLOSE) :]
                    return out
                self._held, self._inside = self._held[found.end() :], False
            elif found := _OPEN.search(self._held):
                out += self._sentences(self._held[: found.start()], is_all=True)
                self._held, self._inside = self._held[found.end() :], True
            else:
                ends = [*_END.finditer(self._held)]
                end = ends[-1].end() if ends else 0
                out += self._sentences(self._held[:end], is_all=True)
                self._held = self._held[end:]
                return out + self._overlong()

    def rest(self) -> str:
        """What was held back, now that the reply has ended; nothing of a mark that was never closed."""
        held, self._held = self._held, ""
        if self._inside or _may_open(held):
            return ""
        is_ended = held.rstrip().endswith((".", "!", "?", "…", '"', "'", ")"))
        return "" if not is_ended and self._breaks_off(held) else self._sentences(held, is_all=True)

    def _overlong(self) -> str:
        """The beginning of a sentence without an end. Its last words stay until it is known what follows them, and so
        do words before them that may be the line's."""
        if len(self._held) <= HOLD:
            return ""
        words = [*_WORD.finditer(self._held)]
        last = max(len(words) - NUM_RUN - 1, 0)
        while last and _spaced(_words(words[last - 1][0])) in self._line:
            last -= 1
        cut = words[last].start() if last else 0
        out, self._held = self._sentences(self._held[:cut], is_all=False), self._held[cut:]
        return out

    def _sentences(self, text: str, *, is_all: bool) -> str:
        """Each sentence that does not repeat the line. `is_all`: the last one ends here."""
        out, start = "", 0
        for end in [*(found.end() for found in _END.finditer(text)), len(text)]:
            sentence, start = text[start:end], end
            words = _words(_CLOSE.sub(" ", sentence))
            if not sentence or self._repeats(words, whole=is_all):
                self._before = [*self._before, *words][-(NUM_RUN - 1) :]
                continue
            self._before = [*self._before, *words][-(NUM_RUN - 1) :]
            out += _CLOSE.sub("", sentence)
        return out

    def _repeats(self, words: list[str], *, whole: bool) -> bool:
        if _runs([*self._before, *words]) & self._runs:
            return True
        sentence = _spaced(words)
        is_short = whole and 0 < len(words) < NUM_RUN
        return is_short and sentence in self._line and not any(sentence in said for said in self._said)

    def _breaks_off(self, text: str) -> bool:
        """Whether a sentence that was cut off ends in words of the line, or in half a one. An unfinished one is no loss."""
        words = _words(text)
        if not words:
            return False
        if len(words[-1]) >= NUM_RUN:  # letters: one long word is enough
            return any(word.startswith(words[-1]) for run in self._runs for word in run)
        return f" {' '.join(words[-2:])}" in self._line


def line_of(text: str, readings: Sequence[Reading]) -> str:
    """The hidden line from the model's words and what the heads read with some certainty; empty if there is neither.

    >>> line_of(" they lost their job ", [Reading("emotion", ("sadness", "joy"), (0.8, 0.2))])
    'they lost their job. They may feel sadness.'
    """
    words = " ".join(re.sub(r"[<>]", " ", text.strip().split("\n")[0]).split())[:LONGEST]
    parts = [words if words.endswith((".", "!", "?")) else f"{words}."] if _WORD.search(words) else []
    top = {reading.head: reading.top()[0] for reading in readings if reading.head in ("emotion", "strategy")}
    feeling, probability = top.get("emotion", ("neutral", 0.0))
    if probability >= SURE and feeling != "neutral":
        parts.append(f"They may feel {feeling}.")
    strategy, probability = top.get("strategy", ("", 0.0))
    if probability >= SURE and strategy in NEXT:
        parts.append(f"Next: {NEXT[strategy]}.")
    return " ".join(parts)


def _first_step(request: GenerateRequest, *, goes_on: bool) -> GenerateRequest:
    sampling = request.sampling
    short = replace(
        sampling,
        temperature=min(sampling.temperature, TEMPERATURE),
        max_new_tokens=NUM_TOKENS,
        stop=("\n", CLOSE) if goes_on else (),  # a server's reply may begin with a line break
    )
    if goes_on:
        return GenerateRequest(request.messages, short, prefill=OPENING)
    return GenerateRequest(_with_aside(request.messages, _ASK), short)


def _hidden(request: GenerateRequest, line: str, *, goes_on: bool) -> GenerateRequest:
    """The request with the line where the engine reads it."""
    if goes_on:
        return replace(request, prefill=f"{OPENING} {line}{CLOSE}\n{request.prefill}")
    return replace(request, messages=_with_aside(request.messages, f"{_TOLD} {line}"))


def _with_aside(messages: tuple[Message, ...], aside: str) -> tuple[Message, ...]:
    """An instruction behind the newest turn, so that all before it is read once by servers that keep prefixes."""
    last = messages[-1]
    return (*messages[:-1], Message(last.role, f"{last.content}\n\n({aside})"))


def _closed(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    try:
        yield from chunks
    finally:
        hang_up(chunks)


def _may_open(text: str) -> bool:
    """Whether the end of a text could be the beginning of a mark."""
    return any(text.lower().endswith(OPEN[:size]) for size in range(2, len(OPEN)))


def _words(text: str) -> list[str]:
    return [word.lower().replace("\u2019", "'") for word in _WORD.findall(text)]


def _spaced(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of NUM_RUN words; of a shorter text the whole."""
    size = min(NUM_RUN, len(words))
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} if size else set()
