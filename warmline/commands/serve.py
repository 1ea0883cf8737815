"""`warmline serve`: the API server over a run, a model, another server, or no model at all."""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from warmline.commands.shared import (
    Country,
    OperatorFile,
    audit_folder,
    companion,
    country_here,
    errors,
    operator_settings,
    run_dir,
)

if TYPE_CHECKING:
    from warmline.config.operator import CompanionSettings, OperatorSettings, SafetySettings, ServeSettings
    from warmline.engine.engine import Engine
    from warmline.safety.head import RiskHead
    from warmline.serve.models import Model, Options

EngineKind = Literal["local", "scripted", "remote"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")

ShowReadings = Annotated[
    bool | None, typer.Option("--show-readings/--hide-readings", help="What the heads read, in each answer.")
]
ShowReasons = Annotated[bool | None, typer.Option(help="Which rules gave a level, in each answer: not for users.")]
StoreUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Where people may keep a history: sqlite:///FILE or postgresql://...")
]
Hosts = Annotated[list[str] | None, typer.Option(metavar="NAME", help="A host name answered to as well; repeatable.")]
Origins = Annotated[
    list[str] | None, typer.Option(metavar="ORIGIN", help="A web page's origin that may call the API; repeatable.")
]
ApiKeys = Annotated[
    str | None, typer.Option(metavar="FILE", help="Who may talk: lines that `warmline serve-key` makes.")
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
        str | None, typer.Option(help="Where to listen; what other machines reach needs --api-keys.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    api_keys: ApiKeys = None,
    store: StoreUrl = None,
    keep_days: Annotated[float | None, typer.Option(min=0.01, help="So many days without use: a history goes.")] = None,
    settings: OperatorFile = None,
    country: Country = None,
    audit: Annotated[bool | None, typer.Option(help="Keep daily counts without any words.")] = None,
    show_readings: ShowReadings = None,
    show_reasons: ShowReasons = None,
    max_running: Annotated[int | None, typer.Option(min=1, help="Replies written at once.")] = None,
    max_waiting: Annotated[int | None, typer.Option(min=0, help="Requests that wait; one more gets 429.")] = None,
    allow_host: Hosts = None,
    cors_origin: Origins = None,
) -> None:
    """Serve the companion over HTTP: OpenAI's chat API, a web page, and helplines that need no model.

    A request cannot lower safety. Nothing that anyone says is logged. What no option says stands in the section `serve`
    of --settings FILE or of the run's recipe, or is the default. See docs/serving.md.

    Example: warmline serve tiny
    """
    given = {
        "host": host,
        "port": port,
        "api_keys": api_keys,
        "store": store,
        "keep_days": keep_days,
        "audit": audit,
        "show_readings": show_readings,
        "show_reasons": show_reasons,
        "max_running": max_running,
        "max_waiting": max_waiting,
        "allow_host": allow_host,
        "cors_origin": cors_origin,
    }
    with errors():
        from warmline.config.operator import ServeSettings

        own = operator_settings(settings)
        usual = own.serve or serve_of(run_or_model)
        wanted = ServeSettings(
            **usual.model_dump() | {name: value for name, value in given.items() if value is not None}
        )
        options = options_of(wanted)
        folder = audit_folder() if wanted.audit else None
        _listen(wanted, options, served_models(run_or_model, engine, url, own, country, folder))


def serve_of(run_or_model: str | None) -> "ServeSettings":
    """What a run's recipe says of its server."""
    from warmline.config.operator import ServeSettings

    if run_or_model is None or not ((run := run_dir(run_or_model)).path / "recipe.yaml").is_file():
        return ServeSettings()
    return run.recipe().serve


def options_of(wanted: "ServeSettings") -> "Options":
    """What the app is told. Raises ValueError for an address that others reach without keys."""
    from warmline.serve.keys import read_keys
    from warmline.serve.models import Options

    if not is_loopback(wanted.host) and wanted.api_keys is None:
        raise ValueError(
            f"--host {wanted.host} can be reached from other machines: give --api-keys FILE (`warmline serve-key NAME`)"
        )
    return Options(
        keys=None if wanted.api_keys is None else read_keys(Path(wanted.api_keys)),
        show_readings=wanted.show_readings,
        show_reasons=wanted.show_reasons,
        max_running=wanted.max_running,
        max_waiting=wanted.max_waiting,
        cors_origins=wanted.cors_origin,
        hosts=(*LOOPBACK, *wanted.allow_host) if is_loopback(wanted.host) else None,
    )


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
    companion: "CompanionSettings"
    about: Mapping[str, object]


def served_models(
    name: str | None,
    kind: EngineKind,
    url: str | None,
    own: "OperatorSettings",
    country: str | None,
    audit: Path | None,
) -> "dict[str, Model]":
    """What is served, by the name that clients say. Raises ValueError for what cannot be opened."""
    from warmline.engine.engine import Sampling
    from warmline.serve.models import Model

    openers = {"scripted": _scripted, "remote": _remote, "local": _local}
    models = {}
    for each, opened in openers[kind](name, url).items():
        safety, wanted = own.safety or opened.safety, own.companion or opened.companion
        here = country or safety.country or country_here()
        setting = companion(
            opened.engine, opened.system_prompt, Sampling(), here, safety, opened.risk_head, audit, wanted
        )
        models[each] = Model(each, setting, opened.about)
    return models


def _scripted(name: str | None, _: str | None) -> dict[str, Opened]:
    from warmline.engine.scripted import ScriptedEngine

    return {name or "scripted": _without_a_run(ScriptedEngine(), "scripted")}


def _remote(name: str | None, url: str | None) -> dict[str, Opened]:
    from warmline.engine.remote import RemoteEngine

    if url is None or name is None:
        raise ValueError("--engine remote needs a MODEL and --url")
    engine = RemoteEngine(url, name, api_key=os.environ.get("OPENAI_API_KEY"))
    return {name: _without_a_run(engine, "remote")}


def _without_a_run(engine: "Engine", kind: str) -> Opened:
    from warmline.config.operator import CompanionSettings, SafetySettings

    return Opened(engine, None, SafetySettings(), None, CompanionSettings(), {"engine": kind})


def _local(name: str | None, url: str | None) -> dict[str, Opened]:
    """Every finished stage of a run as NAME:STAGE, and NAME for the latest; of a model its one."""
    if url is not None:
        return _remote(name, url)
    if name is None:
        raise ValueError("name a run or a model, or give --engine scripted")
    from warmline.engine.continuous import Runner
    from warmline.pipeline import companion_of, finished_stages, open_engine, open_run

    run = run_dir(name)
    is_run = (run.path / "recipe.yaml").is_file()
    loaded = open_run(run) if is_run else None
    stages = {stage: open_engine(name, run, stage, loaded) for stage in (finished_stages(run) if is_run else (None,))}
    runner = Runner()  # once every stage is open: from then on its thread owns the model
    found: dict[str, Opened] = {}
    for stage, opened in stages.items():
        about = {"engine": "local", "stage": stage or "base"}
        engine = runner.engine(opened.engine)
        found[stage or ""] = Opened(
            engine, opened.system_prompt, opened.safety, opened.risk_head, companion_of(name, run), about
        )
    label = run.path.name if is_run else name
    staged = {f"{label}:{stage}": opened for stage, opened in found.items() if stage}
    return {label: [*found.values()][-1], **staged}


def _listen(wanted: "ServeSettings", options: "Options", models: "Mapping[str, Model]") -> None:
    import uvicorn

    from warmline.serve.app import create_app
    from warmline.serve.listen import no_core_dumps, settings
    from warmline.serve.store.history import Store
    from warmline.serve.turns import warm_up

    kept = None if wanted.store is None else Store(wanted.store, keep_days=wanted.keep_days)
    application = create_app(models, options, store=kept)
    no_core_dumps()
    warm_up(next(iter(models.values())).setting)
    where = f"[{wanted.host}]" if ":" in wanted.host else wanted.host
    typer.echo(f"warmline: {', '.join(models)} at http://{where}:{wanted.port} (Ctrl-C to stop)", err=True)
    uvicorn.run(application, host=wanted.host, port=wanted.port, **settings())
