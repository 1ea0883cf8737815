"""What each level does: how a reply is decoded, held and backed up, and what the model is told beforehand."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from warmline.safety.levels import DOMAINS, Level

POLICY_VERSION = "2026.11"  # raise it with every change of policy.yaml or of how it is read

QuestionPolicy = Literal["none", "safety_check"]
QUESTION_POLICIES: tuple[QuestionPolicy, ...] = ("none", "safety_check")
TIERS = ("model", "rewrite", "drop_sentence", "slots", "guided", "notice")  # of the ladder, in their order


class PolicyError(ValueError):
    """A policy that must not be used: policy.yaml is altered, or settings ask for what nobody answers for."""


@dataclass(frozen=True)
class Plan:
    """How one turn is answered at its level."""

    level: Level
    temperature: float
    num_candidates: int  # sampled at once
    max_new_tokens: int
    min_new_tokens: int
    max_sentences: int | None  # None: as many as fit
    max_questions: int | None  # None: as many as it likes
    bans: Literal["none", "soft", "hard"]  # soft makes what is banned less likely, hard impossible
    ban_digits: bool
    banned_phrases: tuple[str, ...]  # lower case, anywhere in the reply
    slots: tuple[str, ...]  # what the reply must contain
    release: Literal["sentence", "whole"]  # how much is held until it has passed the validators
    card: Literal["none", "chip", "first", "full"]
    persona_allowed: bool
    memory: Literal["normal", "recall_only", "none"]  # recall_only: nothing of the turn is stored
    ladder: tuple[str, ...]  # of TIERS, tried from the left
    deadline_s: float  # seconds for the whole ladder; then the last tier

    @property
    def ban_questions(self) -> bool:
        """Whether question marks and their kin are banned in decoding."""
        return self.max_questions == 0


def check_question_policy(question_policy: str, owner: str) -> None:
    """Raises PolicyError for an unknown policy, and for `safety_check` without a named owner."""
    if question_policy not in QUESTION_POLICIES:
        raise PolicyError(f"question_policy is {question_policy!r}; it is one of {', '.join(QUESTION_POLICIES)}")
    if question_policy == "safety_check" and not owner.strip():
        raise PolicyError(
            "question_policy: safety_check needs a named owner: the clinician who answers for asking people in danger "
            "whether they are safe. Name one, or use question_policy: none"
        )


def check_policy() -> None:
    """Raises PolicyError for a policy.yaml that cannot be read or is altered: before the first turn, not in one."""
    try:
        for level in Level:
            for device in ("cpu", "gpu"):
                plan_for(level, DOMAINS, device=device)
            for minor in ("yes", "no", "unknown"):
                overlay_for(level, DOMAINS, minor, max_questions=0)
        overlay_for(Level.HIGH, DOMAINS, "unknown", max_questions=1)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"policy.yaml is altered: {type(error).__name__}: {error}") from None


def plan_for(
    level: Level,
    domains: Collection[str] = (),
    question_policy: str = "none",
    *,
    owner: str = "",
    questions_asked: int = 0,
    temperature: float = 0.8,
    device: Literal["gpu", "cpu"] = "cpu",
) -> Plan:
    """The plan of a level, changed by what the domains add.

    `owner`: who answers for `safety_check`, by name. `questions_asked`: safety questions so far in this episode; there
    is one at most, and at `high` only. `temperature`: what the person or the operator asked for; the level's range wins.
    Raises PolicyError for a question policy that nobody answers for, and for an altered policy.yaml.

    >>> plan_for(Level.HIGH).ban_questions, plan_for(Level.NONE).ban_questions
    (True, False)
    """
    check_question_policy(question_policy, owner)
    plan = _rows(device)[level]
    lowest, highest = _table()["levels"][level.label]["temperature"]
    asks = question_policy == "safety_check" and level == Level.HIGH and questions_asked == 0
    plan = replace(
        plan,
        temperature=min(max(temperature, lowest), highest),
        max_questions=1 if asks else plan.max_questions,
    )
    for domain in DOMAINS:  # in this order, so that the same set gives the same plan
        if domain in domains:
            plan = _with_additions(plan, _table()["domains"].get(domain, {}))
    return plan


def guarded(plan: Plan) -> Plan:
    """The plan while no detector works: at least `elevated`, and nothing goes out before the whole reply is checked."""
    if plan.level < Level.ELEVATED:
        plan = replace(plan_for(Level.ELEVATED, temperature=plan.temperature), deadline_s=plan.deadline_s)
    return replace(plan, release="whole")


def overlay_for(level: Level, domains: Collection[str], minor: str, *, max_questions: int | None = 0) -> str:
    """What is added to the system prompt: instructions to the model in English, nothing that it could copy.

    Empty where there is nothing to add. `minor`: yes, no or unknown. `max_questions`: the plan's; it counts at `high`.
    """
    texts, additions = _table()["overlays"], _table()["domain_overlays"]
    parts: list[str] = []
    if level == Level.ELEVATED:
        parts.append(texts["elevated"])
    elif level > Level.ELEVATED:
        asks = level == Level.HIGH and max_questions == 1
        parts += [texts["crisis"], texts[level.label], texts["safety_check" if asks else "no_questions"]]
    parts += [additions[domain] for domain in DOMAINS if domain in domains and domain in additions]
    age = "yes" if "minor_signal" in domains else minor
    parts.append(texts.get(f"minor_{age}", texts["minor_unknown"]))
    return "\n\n".join(dict.fromkeys(part for part in parts if part))


def _with_additions(plan: Plan, additions: Mapping[str, Any]) -> Plan:
    if plan.level == Level.NONE:  # a domain alone, without a level, is no reason to decode otherwise
        return plan
    changes = dict(additions)
    changes["banned_phrases"] = (*plan.banned_phrases, *changes.get("banned_phrases", ()))
    return replace(plan, **changes)


@cache
def _table() -> Mapping[str, Any]:
    try:
        text = files("warmline.safety").joinpath("policy.yaml").read_text(encoding="utf-8")
        table = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PolicyError(f"policy.yaml cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(table, Mapping):
        raise PolicyError("policy.yaml is no mapping")
    return table


@cache
def _rows(device: str) -> Mapping[Level, Plan]:
    return {level: _plan_of(level, _table()["levels"][level.label], device) for level in Level}


def _plan_of(level: Level, row: Mapping[str, Any], device: str) -> Plan:
    """A row of policy.yaml as a plan, at the top of its temperature range. Raises PolicyError for an altered row."""
    try:
        fields = dict(row)
        fields["temperature"] = float(row["temperature"][1])
        fields["deadline_s"] = float(row["deadline_s"][device])
        for name in ("banned_phrases", "slots", "ladder"):
            fields[name] = tuple(row[name])
        plan = Plan(level, **fields)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise PolicyError(f"policy.yaml: {level.label}: {type(error).__name__}: {error}") from None
    order = [TIERS.index(tier) for tier in plan.ladder if tier in TIERS]
    if len(order) < len(plan.ladder) or order != sorted(order) or plan.ladder[-1:] != ("notice",):
        raise PolicyError(
            f"policy.yaml: {level.label}: ladder: {plan.ladder} is not an order of tiers that ends in notice"
        )
    return plan
