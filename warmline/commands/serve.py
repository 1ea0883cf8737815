"""`warmline serve`: the API server over a run, a model, another server, or no model at all."""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from warmline.commands.shared import Country, SafetyFile, audit_folder, companion, country_here, errors, run_dir

if TYPE_CHECKING:
    from fastapi import FastAPI

    from warmline.config import SafetySettings
    from warmline.engine.engine import Engine
    from warmline.safety.head import RiskHead
    from warmline.serve.models import Model

EngineKind = Literal["local", "scripted", "remote"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")

StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Where people may keep a history: sqlite:///FILE or postgresql://..."),
]
KeepDays = Annotated[float, typer.Option(min=0.01, help="After so many days without use a history goes.")]
ShowReasons = Annotated[bool, typer.Option(help="Which rules gave a level, in each answer: not for users.")]
AllowedHosts = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A host name that is answered to as well; repeatable.")
]


def serve(
    run_or_model: Annotated[
        str | None, typer.Argument(metavar="[RUN|MODEL]", help="A run (name or folder), a model folder or a hub id.")
    ] = None,
    engine: Annotated[
        EngineKind, typer.Option(help="scripted: seeded logits without a model; remote: the server at --url.")
    ] = "local",
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server that holds MODEL.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that other machines reach needs --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may talk: lines that `warmline serve-key` makes.")
    ] = None,
    store: StoreUrl = None,
    keep_days: KeepDays = 30.0,
    safety_file: SafetyFile = None,
    country: Country = None,
    audit: Annotated[bool, typer.Option(help="Keep daily counts without any words.")] = True,
    show_readings: Annotated[
        bool, typer.Option("--show-readings/--hide-readings", help="What the heads read, in each answer.")
    ] = True,
    show_reasons: ShowReasons = False,
    max_running: Annotated[int, typer.Option(min=1, help="Replies written at once.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that wait for a place; one more gets 429.")] = 64,
    allow_host: AllowedHosts = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A web page's origin that may call the API; repeatable.")
    ] = None,
) -> None:
    """Serve the companion over HTTP: OpenAI's chat API, a web page, and helplines that need no model.

    A request cannot lower safety. Nothing that anyone says is logged. See docs/serving.md.

    Example: warmline serve tiny
    """
    with errors():
        from warmline.serve.app import create_app
        from warmline.serve.keys import read_keys
        from warmline.serve.models import Options
        from warmline.serve.store.history import Store

        if not is_loopback(host) and api_keys is None:
            raise ValueError(
                f"--host {host} can be reached from other machines: give --api-keys FILE (`warmline serve-key NAME`)"
            )
        options = Options(
            keys=None if api_keys is None else read_keys(api_keys),
            show_readings=show_readings,
            show_reasons=show_reasons,
            max_running=max_running,
            max_waiting=max_waiting,
            cors_origins=tuple(cors_origin or ()),
            hosts=(*LOOPBACK, *(allow_host or ())) if is_loopback(host) else None,
        )
        models = served_models(run_or_model, engine, url, safety_file, country, audit_folder() if audit else None)
        kept = None if store is None else Store(store, keep_days=keep_days)
        _listen(create_app(models, options, store=kept), host, port, models)


def serve_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is: letters, digits, dot, dash, _.")],
) -> None:
    """Make an API key: the key on standard error, once; on standard output the line for the --api-keys file.

    Only the key's SHA-256 is in that line. Whoever has lost a key gets another.

    Example: warmline serve-key alice >> keys.txt
    """
    with errors():
        from warmline.serve.keys import line_of, new_key

        key = new_key()
        typer.echo(line_of(name, key))
        typer.echo(f"warmline: the key of {name}, shown this once: {key}", err=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Opened(NamedTuple):
    engine: "Engine"
    system_prompt: str | None
    safety: "SafetySettings"
    risk_head: "RiskHead | None"
    about: Mapping[str, object]


def served_models(
    name: str | None,
    kind: EngineKind,
    url: str | None,
    safety_file: str | None,
    country: str | None,
    audit: Path | None,
) -> "dict[str, Model]":
    """What is served, by the name that clients say. Raises ValueError for what cannot be opened."""
    from warmline.config import load_safety
    from warmline.engine.engine import Sampling
    from warmline.serve.models import Model

    own = None if safety_file is None else load_safety(safety_file)
    openers = {"scripted": _scripted, "remote": _remote, "local": _local}
    models = {}
    for each, opened in openers[kind](name, url).items():
        safety = opened.safety if own is None else own
        here = country or safety.country or country_here()
        setting = companion(opened.engine, opened.system_prompt, Sampling(), here, safety, opened.risk_head, audit)
        models[each] = Model(each, setting, opened.about)
    return models


def _scripted(name: str | None, _: str | None) -> dict[str, Opened]:
    from warmline.config import SafetySettings
    from warmline.engine.scripted import ScriptedEngine

    return {name or "scripted": Opened(ScriptedEngine(), None, SafetySettings(), None, {"engine": "scripted"})}


def _remote(name: str | None, url: str | None) -> dict[str, Opened]:
    from warmline.config import SafetySettings
    from warmline.engine.remote import RemoteEngine

    if url is None or name is None:
        raise ValueError("--engine remote needs a MODEL and --url")
    engine = RemoteEngine(url, name, api_key=os.environ.get("OPENAI_API_KEY"))
    return {name: Opened(engine, None, SafetySettings(), None, {"engine": "remote"})}


def _local(name: str | None, url: str | None) -> dict[str, Opened]:
    """Every finished stage of a run as NAME:STAGE, and NAME for the latest; of a model its one."""
    if url is not None:
        return _remote(name, url)
    if name is None:
        raise ValueError("name a run or a model, or give --engine scripted")
    from warmline.engine.continuous import Runner
    from warmline.pipeline import finished_stages, open_engine, open_run

    run = run_dir(name)
    is_run = (run.path / "recipe.yaml").is_file()
    loaded = open_run(run) if is_run else None
    stages = {stage: open_engine(name, run, stage, loaded) for stage in (finished_stages(run) if is_run else (None,))}
    runner = Runner()  # once every stage is open: from then on its thread owns the model
    found: dict[str, Opened] = {}
    for stage, opened in stages.items():
        about = {"engine": "local", "stage": stage or "base"}
        engine = runner.engine(opened.engine)
        found[stage or ""] = Opened(engine, opened.system_prompt, opened.safety, opened.risk_head, about)
    label = run.path.name if is_run else name
    staged = {f"{label}:{stage}": opened for stage, opened in found.items() if stage}
    return {label: [*found.values()][-1], **staged}


def _listen(app: "FastAPI", host: str, port: int, models: "Mapping[str, Model]") -> None:
    import uvicorn

    from warmline.serve.listen import no_core_dumps, settings
    from warmline.serve.turns import warm_up

    no_core_dumps()
    warm_up(next(iter(models.values())).setting)
    where = f"[{host}]" if ":" in host else host
    typer.echo(f"warmline: {', '.join(models)} at http://{where}:{port} (Ctrl-C to stop)", err=True)
    uvicorn.run(app, host=host, port=port, **settings())
