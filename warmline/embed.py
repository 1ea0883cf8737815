"""A companion inside another program: `warmline.open_companion(RUN or URL or MODEL)`, then `reply` or `stream`.

Every reply goes through the same door as in the chat and the server: danger is read first, the card comes first, and only
checked words are given. Nothing is kept between calls: hand in the whole conversation each time, as the risk of a turn is
read from the turns before it too.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from warmline.config.fields import StyleSettings
from warmline.config.operator import CompanionSettings, SafetySettings
from warmline.dialogue.companion import Answer, Session, Setting, help_now, respond, resume, told
from warmline.dialogue.style import style_of, styled
from warmline.dialogue.tally import Audit
from warmline.engine.engine import Engine, Reading, Sampling
from warmline.safety.detect import load_detector
from warmline.safety.disclosure import Use
from warmline.safety.head import RiskHead
from warmline.safety.operator_settings import chosen
from warmline.safety.policy import check_policy
from warmline.safety.release import text_of
from warmline.safety.resources.card import Card
from warmline.safety.resources.country import checked_country
from warmline.safety.resources.directory import load_directory
from warmline.safety.validate.context import Turn
from warmline.safety.validate.notice import Notice

Said = Mapping[str, Any] | tuple[str, str]  # {"role": ..., "content": ...}, or the two


class ConversationError(ValueError):
    """A conversation that cannot be answered; says which turn and why, and nothing that was said."""


@dataclass(frozen=True)
class Reply:
    """A turn's answer. Show `card` first where there is one, then `text`; `notice` stands where there is no text."""

    text: str  # the companion's words; empty where only a notice came
    level: str  # none, elevated, high or emergency: how the turn was answered, for the program and not for the person
    card: Card | None  # people who can help; `.text()` and `.as_json()`
    reply_source: str  # model, rewrite, slots, guided or notice
    readings: tuple[Reading, ...]  # of the heads, on the person's last turn
    disclosure: tuple[str, ...]  # what the program must tell the person: that this is an AI, and about rest
    notice: str | None = None  # what the app itself says in place of a reply
    notes: tuple[str, ...] = ()
    degraded: frozenset[str] = frozenset()


class Piece(NamedTuple):
    """What may be shown now: the card as text, a sentence of the reply, or a notice of the app's."""

    kind: str  # card, reply or notice
    text: str


class Opened(NamedTuple):
    setting: Setting
    title: str
    notices: tuple[str, ...]  # what whoever runs it must be told of their settings


class Companion:
    """One engine and its settings, for any number of conversations and threads. Made by `open_companion`."""

    def __init__(self, opened: Opened) -> None:
        self._setting = opened.setting
        self.title = opened.title
        self.notices = opened.notices

    def reply(self, messages: Sequence[Said], *, style: StyleSettings | None = None) -> Reply:
        """Answer the last user turn of a conversation. Raises ConversationError for one that has none."""
        *_, last = self.stream(messages, style=style)
        assert isinstance(last, Reply)
        return last

    def stream(
        self, messages: Sequence[Said], *, style: StyleSettings | None = None
    ) -> Generator[Piece | Reply, None, None]:
        """The pieces to show as they are released, and the `Reply` last. Close it to stop the engine."""
        setting, session, text = self._begun(messages, style)
        return _answered(setting, session, text)

    async def areply(self, messages: Sequence[Said], *, style: StyleSettings | None = None) -> Reply:
        """`reply`, in a thread."""
        return await asyncio.to_thread(self.reply, messages, style=style)

    async def astream(
        self, messages: Sequence[Said], *, style: StyleSettings | None = None
    ) -> AsyncIterator[Piece | Reply]:
        """`stream`, each piece in a thread."""
        pieces = self.stream(messages, style=style)
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
        finally:
            await asyncio.shield(asyncio.to_thread(_close, pieces))

    def help_now(self, country: str | None = None) -> Card:
        """The card, whenever somebody asks for it. No engine takes part."""
        setting = self._setting if country is None else replace(self._setting, country=country)
        return help_now(setting, Session())

    def close(self) -> None:
        """Let go of the engine and its weights."""
        self._setting = replace(self._setting, engine=_Closed())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _begun(self, messages: Sequence[Said], style: StyleSettings | None) -> tuple[Setting, Session, str]:
        if isinstance(self._setting.engine, _Closed):
            raise ConversationError("this companion is closed")
        turns = [_turn(number, each) for number, each in enumerate(messages)]
        said = [turn for turn in turns if turn.role != "system"]
        if not said or said[-1].role != "user":
            raise ConversationError("messages: the last one must be the user's")
        own = [turn.content for turn in turns if turn.role == "system"]
        setting = self._setting if style is None else styled(self._setting, style)
        if own:  # behind the operator's, which it cannot take away
            prompt = "\n\n".join([*([setting.system_prompt] if setting.system_prompt else []), *own])
            setting = replace(setting, system_prompt=prompt)
        session = resume(setting, said[:-1])
        if any(turn.role == "assistant" for turn in said):  # the notice of the start was given with the first reply
            now = time.time()
            session.use = Use(now, now, now, 0.0, night_break_shown=False)
        return setting, session, said[-1].content


def open_companion(
    name: str | Engine,
    *,
    model: str | None = None,
    stage: str | None = None,
    tone: str | None = None,
    persona: str | None = None,
    reflection: bool | None = None,
    candidates: int | None = None,
    sampling: Sampling | None = None,
    system_prompt: str | None = None,
    country: str | None = None,
    safety: SafetySettings | None = None,
    api_key: str | None = None,
    audit: Audit | None = None,
) -> Companion:
    """A companion over a run (name under ./runs, or folder), a model folder or hub id, a server's URL, or an engine.

    `model`: what a server calls its model. `system_prompt`: wins over the run's. `audit`: where each turn is counted,
    a folder or a function; None: nowhere. Raises ValueError for settings that nobody may choose, and OSError.

        with warmline.open_companion("tiny", tone="warm", persona="best friend") as companion:
            print(companion.reply([{"role": "user", "content": "I didn't get the job."}]).text)
    """
    opened = opened_engine(name, model=model, stage=stage, api_key=api_key)
    own = opened.companion
    wanted = CompanionSettings(
        style=chosen_style(own, tone, persona),
        reflection=own.reflection if reflection is None else reflection,
        candidates=own.candidates if candidates is None else candidates,
        system_prompt=own.system_prompt if system_prompt is None else system_prompt,
    )
    setting, notices = setting_of(
        opened.engine,
        opened.system_prompt,
        sampling or Sampling(),
        country,
        opened.safety if safety is None else safety,
        opened.risk_head,
        audit,
        wanted,
    )
    return Companion(Opened(setting, opened.title, notices))


class OpenedEngine(NamedTuple):
    """An engine with what its run or server says of it."""

    engine: Engine
    system_prompt: str | None
    title: str
    safety: SafetySettings
    risk_head: RiskHead | None
    companion: CompanionSettings


def opened_engine(
    name: str | Engine, *, model: str | None = None, stage: str | None = None, api_key: str | None = None
) -> OpenedEngine:
    """What `name` stands for: a run, a model, a server at a URL with its `model`, or an engine that is there already."""
    plain = CompanionSettings()
    if not isinstance(name, str):
        return OpenedEngine(name, None, type(name).__name__, SafetySettings(), None, plain)
    if name.startswith(("http://", "https://")):
        from warmline.engine.remote import RemoteEngine

        if model is None:
            raise ValueError("a server's URL needs `model`: what the server calls its model")
        engine = RemoteEngine(name, model, api_key=api_key)
        return OpenedEngine(engine, None, f"{model} at {engine.url}", SafetySettings(), None, plain)
    from warmline.pipeline import companion_of, open_engine
    from warmline.run_dir import RunDir

    run = RunDir(Path(name) if (Path(name) / "recipe.yaml").is_file() else Path("runs") / name)
    return OpenedEngine(*open_engine(name, run, stage), companion_of(name, run))


def chosen_style(own: CompanionSettings, tone: str | None, persona: str | None) -> StyleSettings:
    """The run's style, but for what is asked for. Raises StyleError.

    >>> chosen_style(CompanionSettings(style=StyleSettings(tone="calm")), None, "mentor")
    StyleSettings(tone='calm', persona='mentor')
    """
    style = style_of(tone, persona)
    return StyleSettings(tone=style.tone or own.style.tone, persona=style.persona or own.style.persona)


def setting_of(
    engine: Engine,
    system_prompt: str | None,
    sampling: Sampling,
    country: str | None,
    safety: SafetySettings,
    risk_head: RiskHead | None = None,
    audit: Audit | None = None,
    wanted: CompanionSettings | None = None,
) -> tuple[Setting, tuple[str, ...]]:
    """What an engine needs to be talked to, and what whoever runs it must be told of their settings.

    `country`: two letters; wins over the settings'. `wanted.system_prompt` wins over `system_prompt`. Raises ValueError for a country that is not, for settings that
    nobody may choose and for a policy.yaml that is altered.
    """
    check_policy()
    wanted = wanted or CompanionSettings()
    parts = chosen(safety, os.environ)
    setting = Setting(
        engine,
        replace(load_detector(), calibration=parts.calibration),
        load_directory(),
        system_prompt if wanted.system_prompt is None else wanted.system_prompt,
        sampling,
        checked_country(country) or safety.country,
        safety.question_policy,
        safety.question_owner,
        parts.guards,
        risk_head,
        audit,
        wanted.style,
        wanted.reflection,
        wanted.candidates,
    )
    return setting, tuple(parts.notices)


class _Closed:
    """Stands where the engine was."""

    def capabilities(self) -> frozenset[Any]:
        return frozenset()

    def generate(self, _: Any) -> Iterator[Any]:
        raise ConversationError("this companion is closed")

    score = generate  # type: ignore[assignment]


def _answered(setting: Setting, session: Session, text: str) -> Generator[Piece | Reply, None, None]:
    notice = None
    for each in respond(setting, session, text):
        if isinstance(each, Answer):
            disclosure = told(session, time.time())
            yield Reply(
                each.reply,
                each.level.label,
                each.card,
                each.reply_source,
                each.readings,
                disclosure,
                notice,
                each.notes,
                each.degraded,
            )
        elif isinstance(each, Notice):
            notice = text_of(each)
            yield Piece("notice", notice)
        else:
            yield Piece("card" if isinstance(each, Card) else "reply", text_of(each))


def _turn(number: int, said: Said) -> Turn:
    """A turn of the caller's. The error says nothing of what was said."""
    role, content = (said.get("role"), said.get("content")) if isinstance(said, Mapping) else said
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise ConversationError(f"messages[{number}]: expected a role of system, user or assistant and content as text")
    return Turn(role, content)


def _close(pieces: Generator[Piece | Reply, None, None]) -> None:
    pieces.close()
