"""What the audit is told of a turn: gathered while it is answered, counted once, however it ends."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from warmline.dialogue.ladder import Attempt
from warmline.safety.audit import PARTS, REFERRALS, VALIDATORS, Event, record
from warmline.safety.detect import Observation
from warmline.safety.levels import Level
from warmline.safety.policy import POLICY_VERSION

Audit = (
    Path | Callable[[Event], object]
)  # a folder of daily counts, or what takes the event and gives False if it failed


@dataclass
class Tally:
    """Numbers and words of fixed lists. No text."""

    audit: Audit | None
    country: str | None
    directory: str  # version
    level: Level | None = None  # None: the turn was not read, and nothing is counted
    seen: Observation = field(default_factory=lambda: Observation(Level.ELEVATED, 0.5))
    floor: Level = Level.NONE
    domains: frozenset[str] = frozenset()
    language: str = "other"
    card: str = "none"  # of audit.CARDS
    spoke: bool = False  # whether a word of the companion's was released
    attempt: Attempt = field(default_factory=lambda: Attempt(None, "model"))
    degraded: frozenset[str] = frozenset()
    ms: dict[str, float] = field(default_factory=dict)
    is_kept: bool | None = None  # None: not tried yet

    def reads(self, seen: Observation, level: Level, floor: Level, domains: frozenset[str]) -> None:
        """What the turn shows and how it is answered; again once the risk head has been heard."""
        self.seen, self.level, self.floor, self.domains = seen, level, floor, domains
        self.degraded |= seen.degraded

    def shows(self, card: str) -> None:
        """The turn's card, of audit.CARDS. One that was newly shown in this turn stays counted."""
        if card in REFERRALS or self.card not in REFERRALS:
            self.card = card

    def keep(self) -> bool:
        """Count the turn, at the first call. Whether that worked, or nothing was to be kept; raises nothing."""
        if self.is_kept is None and self.level is not None:
            self.is_kept = self.audit is None or self._keep(self.audit, self.level)
        return self.is_kept is not False

    def _keep(self, audit: Audit, level: Level) -> bool:
        try:
            event = self._event(level)
            return record(audit, event) if isinstance(audit, Path) else audit(event) is not False
        except Exception:  # noqa: BLE001 - whatever breaks in counting, the person has their reply
            return False

    def _event(self, level: Level) -> Event:
        known = self.degraded.intersection(PARTS)
        broken = Counter(rule for rule in self.attempt.broken if rule in VALIDATORS)
        country = (self.country or "").strip().upper()
        return Event(
            level=level,
            observed=self.seen.level,
            floor=self.floor,
            domains=self.domains,
            rules=tuple(reason.rule for reason in self.seen.reasons),
            language=self.language,
            card=self.card,
            country=country if len(country) == 2 and country.isascii() and country.isalpha() else None,
            source=self.attempt.source if self.spoke else "notice",
            num_candidates=self.attempt.num_candidates,
            violations=tuple(broken.items()),
            degraded=known | {"other"} if known != self.degraded else known,
            ms=tuple(self.ms.items()),
            policy=POLICY_VERSION,
            directory=self.directory,
        )
