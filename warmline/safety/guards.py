"""External guard models over HTTP: a second opinion on the user's last turn, which may raise its level and never lowers it."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import httpx

from warmline.config.operator import GuardSettings
from warmline.safety.detect import Observation
from warmline.safety.levels import LEVELS, Level, Reason

MAX_TEXT = 8_000  # characters that are sent: a longer turn's two ends, so that padding does not turn a guard off
MAX_TOKENS = 256  # of a guard's answer
MAX_ANSWER = 65_536  # bytes of a response
NAMED_FROM = 0.5  # the score from which a category counts as named


class Category(NamedTuple):
    """What a category of a guard means here."""

    level: Level
    domain: str | None = None


# Llama Guard 3 and 4 (MLCommons hazards). What says nothing about the safety of the person who writes raises nothing.
CATEGORIES: Mapping[str, Category] = {
    "S1": Category(Level.ELEVATED, "harm_others"),  # violent crimes
    "S2": Category(Level.NONE),  # non-violent crimes
    "S3": Category(Level.ELEVATED, "abuse_victim"),  # sex-related crimes
    "S4": Category(Level.ELEVATED, "abuse_child"),  # child sexual exploitation
    "S5": Category(Level.NONE),  # defamation
    "S6": Category(Level.NONE),  # specialised advice
    "S7": Category(Level.NONE),  # privacy
    "S8": Category(Level.NONE),  # intellectual property
    "S9": Category(Level.ELEVATED, "harm_others"),  # indiscriminate weapons
    "S10": Category(Level.NONE),  # hate
    "S11": Category(Level.HIGH, "suicide"),  # suicide and self-harm
    "S12": Category(Level.NONE),  # sexual content
    "S13": Category(Level.NONE),  # elections
    "S14": Category(Level.NONE),  # code interpreter abuse
}
UNNAMED = Category(Level.ELEVATED)  # `unsafe` without a category, or with one that the settings do not know


@dataclass(frozen=True)
class Verdict:
    """What a guard said of a turn, in our terms."""

    level: Level
    domains: frozenset[str] = frozenset()
    categories: tuple[str, ...] = ()  # as the settings spell them: no words of the guard's, which could quote somebody


class Guard:
    """One guard model behind an OpenAI-compatible server. Unknown is None, and is never taken for safe."""

    def __init__(self, settings: GuardSettings, api_key: str | None = None) -> None:
        self._url = _endpoint(settings.url)
        self._model = settings.model
        self._deadline_s = settings.deadline_s
        self._lacks_key = settings.api_key_env is not None and not api_key
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(timeout=settings.deadline_s)
        own = {name: Category(LEVELS[each.level], each.domain) for name, each in settings.categories.items()}
        self._categories = {name.casefold(): (name, each) for name, each in (*CATEGORIES.items(), *own.items())}

    @property
    def highest(self) -> Level:
        """The highest level that this guard can give: a turn that has it already need not be sent."""
        return max(each.level for _, each in (*self._categories.values(), ("", UNNAMED)))

    def assess(self, text: str) -> Verdict | None:
        """What the guard says of one user turn, or None: unknown, for whatever reason. Never raises."""
        return self.ask(text)()

    def ask(self, text: str) -> Callable[[], Verdict | None]:
        """Send the turn, and give what waits for the verdict. The deadline runs from now.

        A thread of its own: httpx bounds each read and each write, not the whole, and looking up a name not at all.
        """
        ends = time.monotonic() + self._deadline_s
        answers: SimpleQueue[Verdict | None] = SimpleQueue()
        try:
            Thread(target=lambda: answers.put(self._asked(text, ends)), daemon=True).start()
        except RuntimeError:  # no thread is to be had
            answers.put(None)

        def wait() -> Verdict | None:
            try:
                return answers.get(timeout=max(0.0, ends - time.monotonic()))
            except Empty:
                return None

        return wait

    def close(self) -> None:
        """End the connections that are kept open for the next turn."""
        self._client.close()

    def _asked(self, text: str, ends: float) -> Verdict | None:
        if self._lacks_key:
            return None
        answer = b""
        try:
            body = {
                "model": self._model,
                "messages": [{"role": "user", "content": _sendable(text)}],
                "temperature": 0,
                "max_tokens": MAX_TOKENS,
            }
            with self._client.stream("POST", self._url, json=body, headers=self._headers) as response:
                if response.status_code != httpx.codes.OK:
                    return None
                for blob in response.iter_bytes():
                    answer += blob
                    if len(answer) > MAX_ANSWER or time.monotonic() > ends:
                        return None
            content = json.loads(answer)["choices"][0]["message"]["content"]
            return self._verdict(content)
        except Exception:  # noqa: BLE001 - whatever a guard does, the other detectors' verdict stands
            return None

    def _verdict(self, content: object) -> Verdict | None:
        named = named_categories(content) if isinstance(content, str) else None
        if named is None:
            return None
        found = [self._categories.get(name.strip().casefold(), ("", UNNAMED)) for name in named]
        return Verdict(
            max((category.level for _, category in found), default=Level.NONE),
            frozenset(category.domain for _, category in found if category.level and category.domain is not None),
            tuple(dict.fromkeys(name for name, _ in found if name)),
        )


def assess_all(guards: Sequence[Guard], text: str) -> list[Verdict | None]:
    """Every guard's verdict on one user turn, asked at the same time; None where it is unknown."""
    waiting = [guard.ask(text) for guard in guards]
    return [wait() for wait in waiting]


def with_verdicts(seen: Observation, verdicts: Iterable[Verdict | None]) -> Observation:
    """What a turn shows once the guards were asked: never less than before.

    An unknown verdict leaves the others' and is named in `degraded`. What a guard raised, no head may lower.
    """
    for verdict in verdicts:
        if verdict is None:
            seen = replace(seen, degraded=seen.degraded | {"guard"})
        elif verdict.level:
            level = max(seen.level, verdict.level)
            named = ", ".join(verdict.categories) or "a category that the settings do not name"
            seen = replace(
                seen,
                level=level,
                settled=max(seen.settled, verdict.level),
                p=max(seen.p, 0.5 + 0.15 * level),
                domains=seen.domains | verdict.domains,
                reasons=(*seen.reasons, Reason(f"GUARD.{verdict.level:d}", f"An external guard named {named}")),
            )
    return seen


def named_categories(answer: str) -> list[str] | None:
    r"""The categories that a guard's answer names: none for safe, an empty name for unsafe without one; None if unclear.

    >>> named_categories("\n\nunsafe\nS11,S1"), named_categories("safe"), named_categories("I cannot say")
    (['S11', 'S1'], [], None)
    >>> named_categories('{"unsafe": true, "categories": {"S11": 0.93, "S1": 0.02}}')
    ['S11']
    """
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if text.startswith("{"):
        return _named_in(json.loads(text))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    word = lines[0].casefold() if lines else ""
    if word == "safe" and len(lines) == 1:
        return []
    if word == "unsafe":
        return [name for name in ",".join(lines[1:]).split(",") if name.strip()] or [""]
    return None


def _named_in(answer: dict[str, Any]) -> list[str] | None:
    """The same of a JSON answer: `safe`, `unsafe` or `flagged`, and `categories` as a list, a text or a mapping."""
    unsafe: bool | None = None
    for key, meaning in (("safe", False), ("unsafe", True), ("flagged", True)):
        if key in answer:
            if not isinstance(answer[key], bool):
                return None
            unsafe = bool(unsafe) or answer[key] is meaning  # of two that disagree, the one that is afraid
    named: list[str] = []
    match answer.get("categories"):
        case None:
            pass
        case str(text):
            named = [name for name in text.split(",") if name.strip()]
        case list(names) if all(isinstance(name, str) for name in names):
            named = list(names)
        case dict(scores) if all(
            isinstance(score, bool | int | float) and 0 <= score <= 1 for score in scores.values()
        ):
            named = [name for name, score in scores.items() if score >= NAMED_FROM]
            unsafe = bool(named) if unsafe is None and scores else unsafe
        case _:
            return None
    if named:
        return named
    return None if unsafe is None else [""] * unsafe


def _sendable(text: str) -> str:
    """The two ends of a long turn, in characters that UTF-8 can hold."""
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]}\n{text[-MAX_TEXT // 2 :]}"
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _endpoint(url: str) -> httpx.URL:
    parsed = httpx.URL(url.strip())
    base = parsed.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
    return parsed.copy_with(path=f"{base}/v1/chat/completions")
