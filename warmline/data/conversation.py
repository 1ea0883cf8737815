"""The one form that every corpus takes: conversations of labelled turns."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from warmline.data.labels import RISKS

Role = Literal["user", "assistant"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Affect(NamedTuple):
    valence: float  # -1 bad .. 1 good
    arousal: float  # -1 calm .. 1 agitated


@dataclass(frozen=True)
class Turn:
    """What one speaker said, with the labels that are known of it (empty or None: unlabelled).

    Labels are targets only. Nothing but `role` and `text` may ever reach a model's input.
    """

    role: Role
    text: str
    emotions: tuple[str, ...] = ()  # of this user turn
    situation: str | None = None  # the emotion of the situation that this user turn tells
    strategy: tuple[str, ...] = ()  # of this assistant turn; the first is the label, more only after merging
    risk: str | None = None  # of this user turn
    affect: Affect | None = None  # of this user turn

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"role {self.role!r} is not one of {', '.join(get_args(Role))}")
        if not self.text.strip():
            raise ValueError("empty turn")
        if self.role == "assistant" and (self.emotions or self.situation or self.risk or self.affect):
            raise ValueError("emotions, situation, risk and affect label user turns, not assistant turns")
        if self.role == "user" and self.strategy:
            raise ValueError("strategy labels assistant turns, not user turns")
        if self.affect and not all(-1 <= value <= 1 for value in self.affect):
            raise ValueError(f"affect {tuple(self.affect)} lies outside [-1, 1]")


@dataclass(frozen=True)
class Conversation:
    """Turns of one conversation, alternating in role (see `merge_turns`)."""

    id: str
    source: str
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("no turns")
        for before, after in zip(self.turns, self.turns[1:], strict=False):
            if before.role == after.role:
                raise ValueError(f"two {after.role} turns in a row: merge them first")


def merge_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join consecutive turns of one speaker; labels are united, the first situation and affect stay.

    >>> merge_turns([Turn("user", "Hi."), Turn("user", "I lost my job.", emotions=("sadness",))])
    (Turn(role='user', text='Hi. I lost my job.', emotions=('sadness',), situation=None, strategy=(), risk=None, affect=None),)
    """
    merged: list[Turn] = []
    for turn in turns:
        if not merged or merged[-1].role != turn.role:
            merged.append(turn)
            continue
        last = merged[-1]
        risks = [risk for risk in (last.risk, turn.risk) if risk is not None]
        merged[-1] = replace(
            last,
            text=f"{last.text} {turn.text}",
            emotions=tuple(dict.fromkeys(last.emotions + turn.emotions)),
            situation=last.situation or turn.situation,
            strategy=last.strategy + turn.strategy,
            risk=max(risks, key=_rank) if risks else None,
            affect=last.affect or turn.affect,
        )
    return tuple(merged)


def _rank(risk: str) -> int:
    """Its place in RISKS; an unknown label comes last, so that it stays to be named by the check of labels."""
    return RISKS.index(risk) if risk in RISKS else len(RISKS)
