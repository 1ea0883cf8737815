"""`warmline chat`: a conversation in the terminal with a run, a model or a server."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warmline.commands.shared import (
    Country,
    OperatorFile,
    audit_folder,
    companion,
    country_here,
    errors,
    operator_settings,
)

if TYPE_CHECKING:
    from warmline.dialogue.companion import Setting
    from warmline.embed import OpenedEngine

RunOrModel = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run (name or folder), a model folder or a hub id.")
]


def chat(
    run_or_model: RunOrModel,
    stage: Annotated[str | None, typer.Option(help="base or sft; default: the run's latest.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Share of probability that is drawn from.")] = 0.9,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one reply.")] = 192,
    seed: Annotated[int | None, typer.Option(help="Makes the draw repeatable.")] = None,
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server that holds MODEL.")] = None,
    tone: Annotated[str | None, typer.Option(help="warm, gentle, supportive, calm, encouraging, empathetic.")] = None,
    persona: Annotated[str | None, typer.Option(help="best friend, counselor, mentor, peer, companion.")] = None,
    reflection: Annotated[
        bool | None, typer.Option(help="A hidden line before each reply. Default: the run's.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, max=4, help="Replies drawn where the first begins without warmth.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on with a conversation that /save kept.")
    ] = None,
    settings: OperatorFile = None,
    country: Country = None,
    audit: Annotated[
        bool, typer.Option(help="Keep daily counts without any words; `warmline safety report` shows them.")
    ] = True,
) -> None:
    """Talk in the terminal. /help-now shows helplines; /style how you are spoken to; /help lists the commands.

    Daily counts (levels, rule ids, versions, timings; no words) are kept under $WARMLINE_HOME/audit unless --no-audit.
    Nothing that is said is kept, unless you ask for it with /save or /export.

    Example: warmline chat tiny --tone warm --persona "best friend"
    """
    with errors():
        from warmline.config.operator import CompanionSettings
        from warmline.embed import chosen_style
        from warmline.engine.engine import Sampling

        sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
        own = operator_settings(settings)
        opened = _opened(run_or_model, stage, url)
        safety, usual = own.safety or opened.safety, own.companion or opened.companion
        wanted = CompanionSettings(
            style=chosen_style(usual, tone, persona),
            reflection=usual.reflection if reflection is None else reflection,
            candidates=usual.candidates if candidates is None else candidates,
            system_prompt=usual.system_prompt,
        )
        country = country or safety.country or country_here()
        folder = audit_folder() if audit else None
        engine, system_prompt = opened.engine, opened.system_prompt
        setting = companion(engine, system_prompt, sampling, country, safety, opened.risk_head, folder, wanted)
        converse(setting, opened.title, resume)


def _opened(run_or_model: str, stage: str | None, url: str | None) -> "OpenedEngine":
    """The engine of a run or a model; or of a server that calls it so."""
    from warmline.config.operator import CompanionSettings, SafetySettings
    from warmline.embed import OpenedEngine, opened_engine

    if url is None:
        return opened_engine(run_or_model, stage=stage)
    from warmline.engine.remote import RemoteEngine

    engine = RemoteEngine(url, run_or_model, api_key=os.environ.get("OPENAI_API_KEY"))
    return OpenedEngine(engine, None, f"{run_or_model} at {url}", SafetySettings(), None, CompanionSettings())


def converse(setting: "Setting", title: str, resumed: Path | None = None) -> None:
    """The terminal's conversation with a setting."""
    from warmline.serve import terminal
    from warmline.serve.transcript import read_saved

    saved = None if resumed is None else (resumed, read_saved(resumed))
    terminal.chat(setting, read_line=terminal.console_lines(), write=terminal.console_write(), title=title, saved=saved)
