"""What an operator's `safety` settings make of detection: thresholds, guards, and what must be said at every start."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import httpx
import numpy as np

from warmline.config.fields import ConfigError
from warmline.config.operator import SafetySettings
from warmline.config.reading import nearest
from warmline.safety.detect import Calibration, shipped_calibration, sureness
from warmline.safety.guards import Guard
from warmline.safety.levels import DOMAINS
from warmline.safety.policy import PolicyError, check_question_policy


class Chosen(NamedTuple):
    """Settings that were checked, as the parts that they set."""

    calibration: Calibration
    guards: tuple[Guard, ...]
    notices: tuple[str, ...]  # for whoever starts a chat or a server, at every start


def chosen(settings: SafetySettings, environment: Mapping[str, str]) -> Chosen:
    """The parts that the settings ask for; `environment` holds the guards' keys.

    Raises ConfigError, naming the setting, for a threshold above the shipped one that nobody accepted, a question policy
    that nobody answers for, and a domain that does not exist.
    """
    try:
        check_question_policy(settings.question_policy, settings.question_owner)
    except PolicyError as error:
        raise ConfigError(f"safety.question_owner: {error}") from None
    calibration, notices = _calibrated(settings)
    guards = tuple(_guard(settings, number, environment) for number in range(len(settings.guards)))
    for number, guard in enumerate(settings.guards):
        host = httpx.URL(guard.url).host
        if guard.api_key_env is None or environment.get(guard.api_key_env):
            notices.append(f"each message is also sent to the guard {guard.model} at {host}")
        else:
            notices.append(
                f"safety.guards.{number}.api_key_env: {guard.api_key_env} is not set, so {guard.model} is never asked"
            )
    return Chosen(calibration, guards, tuple(notices))


def _calibrated(settings: SafetySettings) -> tuple[Calibration, list[str]]:
    """The shipped calibration with the operator's thresholds, and a warning for each that misses more people."""
    shipped = shipped_calibration()
    wanted = {name: value for name, value in settings.thresholds.model_dump().items() if value is not None}
    warnings: list[str] = []
    for name, value in wanted.items():
        limit = getattr(shipped, name)
        if value <= limit:
            continue
        if not settings.accept_missed_crises:
            raise ConfigError(
                f"safety.thresholds.{name}: {value} is above the shipped {limit}, so that more people in danger would be "
                "missed; lower it, or state safety.accept_missed_crises: true"
            )
        warnings.append(
            f"WARNING: safety.thresholds.{name} is {value}, above the shipped {limit}: more people in danger are missed "
            "(safety.accept_missed_crises)"
        )
    calibration = replace(shipped, **wanted)
    if calibration.high < shipped.high:  # or its other limit would hold back whom the operator wants noticed
        asked = sureness(np.array([calibration.elevated, calibration.high]))
        calibration = replace(calibration, sure=min(shipped.sure, asked))
    return calibration, warnings


def _guard(settings: SafetySettings, number: int, environment: Mapping[str, str]) -> Guard:
    guard = settings.guards[number]
    for name, category in guard.categories.items():
        if category.domain is not None and category.domain not in DOMAINS:
            raise ConfigError(
                f"safety.guards.{number}.categories.{name}.domain: {category.domain!r} is no domain"
                f"{nearest(category.domain, DOMAINS)}; known: {', '.join(DOMAINS)}"
            )
    try:
        return Guard(guard, None if guard.api_key_env is None else environment.get(guard.api_key_env))
    except httpx.InvalidURL:
        raise ConfigError(f"safety.guards.{number}.url: not a URL") from None
