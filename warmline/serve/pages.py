"""What a server shows without a model: helplines, its health, the public protocol, its counters, and the web page."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from warmline import __version__
from warmline.safety.detect import Detector
from warmline.safety.levels import Level
from warmline.safety.policy import POLICY_VERSION
from warmline.safety.release import text_of
from warmline.safety.resources.card import card_for
from warmline.safety.resources.directory import load_directory
from warmline.safety.resources.services import HIDDEN_AFTER, PROVISIONAL_AFTER, Directory, overdue
from warmline.serve.completions import Serving
from warmline.serve.keys import owner_of
from warmline.serve.metrics import CONTENT_TYPE
from warmline.serve.shapes import ERRORS, HealthShape

WEB = Path(str(files("warmline.serve").joinpath("web")))  # the page; the API works without it
SAFETY_PAGE = "safety.html"

pages = APIRouter()


def today() -> date:
    return datetime.now(UTC).date()


def directory_of(serving: Serving) -> Directory:
    """The directory of the first model: all have the same. Without a model, the one that ships with warmline."""
    return next((model.setting.directory for model in serving.models.values()), None) or load_directory()


@pages.get("/resources", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **ERRORS})
def resources(
    request: Request,
    country: Annotated[
        str | None, Query(description="Two letters, as IE; another gives the international card.")
    ] = None,
    language: Annotated[str, Query(description="A tag, as pt-BR.")] = "en",
    about: Annotated[Literal["self", "other"], Query(description="Who needs support.")] = "self",
    format: Annotated[Literal["json", "text"], Query()] = "json",  # noqa: A002 - the name in the address
) -> Response:
    """Who can be reached: the card of a country. No model takes part, no key is asked for and no limit applies."""
    serving: Serving = request.app.state.serving
    own = next((model.setting.country for model in serving.models.values()), None)
    directory, is_other = directory_of(serving), about == "other"
    card = card_for(directory, country or own, Level.NONE, about_other=is_other, language=language, today=today())
    return PlainTextResponse(text_of(card)) if format == "text" else JSONResponse(card.as_json())


@pages.get("/health", response_model=HealthShape)
def health(request: Request) -> dict[str, Any]:
    """Versions, thresholds, and what does not work. Always 200: help is given even while a part is broken."""
    serving: Serving = request.app.state.serving
    directory = directory_of(serving)
    detector = next((model.setting.detector for model in serving.models.values()), None)
    self_test = card_self_test(directory, today())
    degraded = [*_missing(detector), *([directory.degraded] if directory.degraded else [])]
    late = overdue((each for country in directory.countries.values() for each in country.services), today())
    degraded += [late] if late else []
    degraded += ["card"] if self_test != "ok" else []
    return {
        "status": "degraded" if degraded else "ok",
        "version": __version__,
        "policy_version": POLICY_VERSION,
        "models": [{"id": name, **model.about} for name, model in serving.models.items()],
        "thresholds": {} if detector is None else thresholds(detector),
        "degraded": degraded,
        "card_self_test": self_test,
        "directory": _directory_facts(directory, today()),
        "replies": {"running": serving.places.num_running, "waiting": serving.places.num_waiting},
        "sessions": len(serving.sessions),
    }


def thresholds(detector: Detector) -> dict[str, float]:
    """From which probability a level is given."""
    calibration = detector.calibration
    return {name: getattr(calibration, name) for name in ("elevated", "sure", "high", "emergency")}


def _missing(detector: Detector | None) -> list[str]:
    if detector is None:
        return ["detector"]
    return [name for name in ("linear", "network") if getattr(detector, name) is None]


def card_self_test(directory: Directory, day: date) -> str:
    """`ok` where every country's card can be made and says something; else the country and what broke."""
    for country in (None, *directory.countries):
        for level in Level:
            try:
                card = card_for(directory, country, level, today=day)
                fine = bool(text_of(card).strip() and card.as_json()["international"])
            except Exception as error:  # noqa: BLE001 - a card that breaks is what this looks for
                return f"{country}: {type(error).__name__}"
            if not fine:
                return f"{country}: empty"
    return "ok"


def _directory_facts(directory: Directory, day: date) -> dict[str, Any]:
    dated = [
        service.dated
        for country in directory.countries.values()
        for service in country.services
        if service.status != "withheld"
    ]
    if not dated:
        return {"version": directory.version, "oldest_days": None, "unchecked_from": None, "hidden_from": None}
    oldest = min(dated)
    return {
        "version": directory.version,
        "oldest_days": (day - oldest).days,
        "unchecked_from": (oldest + timedelta(days=PROVISIONAL_AFTER + 1)).isoformat(),
        "hidden_from": (oldest + timedelta(days=HIDDEN_AFTER + 1)).isoformat(),
    }


@pages.get("/safety", response_class=HTMLResponse)
def safety(request: Request) -> HTMLResponse:
    """The protocol in public words, and its limits."""
    page = files("warmline.serve").joinpath(SAFETY_PAGE).read_text(encoding="utf-8")
    facts: Mapping[str, str] = {
        "version": __version__,
        "policy": POLICY_VERSION,
        "directory": directory_of(request.app.state.serving).version,
    }
    for name, value in facts.items():
        page = page.replace("{" + name + "}", escape(value))
    return HTMLResponse(page)


@pages.get("/metrics", responses={**ERRORS, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format. Where keys are asked for, here too."""
    serving: Serving = request.app.state.serving
    owner_of(request, serving.options.keys)
    serving.metrics.running.set(serving.places.num_running)
    serving.metrics.waiting.set(serving.places.num_waiting)
    return Response(serving.metrics.text(), media_type=CONTENT_TYPE)


@pages.get("/", include_in_schema=False)
def index() -> Response:
    """The web page; without it, the public protocol."""
    page = WEB / "index.html"
    return FileResponse(page) if page.is_file() else HTMLResponse(status_code=307, headers={"Location": "/safety"})


@pages.get("/sw.js", include_in_schema=False)
def service_worker() -> Response:
    """The page's offline copy of the card. At this address it may answer for every page; below /static it could not."""
    return FileResponse(WEB / "sw.js")
