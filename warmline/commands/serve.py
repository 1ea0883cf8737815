"""`warmline serve`: the API server over a run, a model, another server, or no model at all."""

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from warmline.commands.shared import (
    Country,
    SafetyFile,
    audit_folder,
    companion,
    country_here,
    errors,
    run_dir,
)

if TYPE_CHECKING:
    from warmline.serve.models import Model

EngineKind = Literal["local", "scripted", "remote"]


def serve(
    run_or_model: Annotated[
        str | None, typer.Argument(metavar="[RUN|MODEL]", help="A run, a model folder, a hub id.")
    ] = None,
    engine: Annotated[EngineKind, typer.Option(help="scripted needs no RUN; remote needs --url.")] = "local",
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server that holds MODEL.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but this machine's own needs --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may talk: lines of `warmline serve-key`.")
    ] = None,
    safety_file: SafetyFile = None,
    country: Country = None,
    audit: Annotated[bool, typer.Option(help="Keep daily counts without any words.")] = True,
    show_readings: Annotated[
        bool, typer.Option("--show-readings/--hide-readings", help="What the heads read, in answers.")
    ] = True,
    show_reasons: Annotated[
        bool, typer.Option(help="Which rules gave a level, in answers: for operators only.")
    ] = False,
    max_running: Annotated[int, typer.Option(min=1, help="Replies written at once.")] = 4,
    max_waiting: Annotated[int, typer.Option(min=0, help="Replies that wait; one more gets 429.")] = 64,
) -> None:
    """Serve the companion over HTTP: OpenAI's chat API, a web page, and help that works without a model.

    Example: warmline serve tiny
    """
    with errors():
        from warmline.serve.app import create_app
        from warmline.serve.keys import read_keys
        from warmline.serve.models import Options

        if not _is_loopback(host) and api_keys is None:
            raise ValueError(f"--host {host} can be reached from other machines: give --api-keys FILE")
        keys = None if api_keys is None else read_keys(api_keys)
        options = Options(
            keys=keys,
            show_readings=show_readings,
            show_reasons=show_reasons,
            max_running=max_running,
            max_waiting=max_waiting,
        )
        folder = audit_folder() if audit else None
        models = _models(run_or_model, engine, url, safety_file, country, folder)
        _run(create_app(models, options), host, port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _models(
    name: str | None,
    kind: EngineKind,
    url: str | None,
    safety_file: str | None,
    country: str | None,
    folder: Path | None,
) -> "dict[str, Model]":
    from warmline.config import SafetySettings, load_safety
    from warmline.engine.engine import Sampling
    from warmline.serve.models import Model

    own = None if safety_file is None else load_safety(safety_file)
    if kind == "scripted":
        from warmline.engine.scripted import ScriptedEngine

        opened = {name or "scripted": (ScriptedEngine(), None, SafetySettings(), None)}
    elif name is None:
        raise ValueError("name a run or a model, or give --engine scripted")
    elif kind == "remote":
        from warmline.engine.remote import RemoteEngine

        if url is None:
            raise ValueError("--engine remote needs --url")
        remote = RemoteEngine(url, name, api_key=os.environ.get("OPENAI_API_KEY"))
        opened = {name: (remote, None, SafetySettings(), None)}
    else:
        opened = _local(name)
    models = {}
    for each, (engine, prompt, safety, risk_head) in opened.items():
        chosen = safety if own is None else own
        here = country or chosen.country or country_here()
        models[each] = Model(each, companion(engine, prompt, Sampling(), here, chosen, risk_head, folder))
    return models


def _local(name: str):
    from warmline.pipeline import finished_stages, open_engine, open_run

    run = run_dir(name)
    if not (run.path / "recipe.yaml").is_file():
        opened = open_engine(name, run, None)
        return {name: (opened.engine, opened.system_prompt, opened.safety, opened.risk_head)}
    loaded = open_run(run)
    label = Path(name).name
    found = {}
    for stage in finished_stages(run):
        opened = open_engine(name, run, stage, loaded)
        found[f"{label}:{stage}"] = (opened.engine, opened.system_prompt, opened.safety, opened.risk_head)
    return {label: [*found.values()][-1], **found}


def _run(app, host: str, port: int) -> None:
    import uvicorn

    uvicorn.run(app, host=host, port=port, **server_settings())


def server_settings() -> dict[str, Any]:
    """What uvicorn is told wherever warmline is served: no access log, because a path may quote what somebody typed."""
    return {
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "http": "h11",
        "ws": "none",
        "lifespan": "off",
        "timeout_keep_alive": 10,  # seconds
    }
