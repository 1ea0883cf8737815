"""What `scores/summary.json` holds: every number with its interval, its floor and a verdict."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer, ValidationError

from warmline.evaluate.stats import Better, Interval, LabelScore, Verdict
from warmline.run_dir import RunDir

# Named tuples would be written as bare lists; a reader of the file needs the names.
Estimate = Annotated[Interval, PlainSerializer(lambda interval: interval._asdict())]
LabelRow = Annotated[LabelScore, PlainSerializer(lambda score: score._asdict())]

SUMMARY = "scores/summary.json"


class SummaryError(ValueError):
    """A summary file cannot be read."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Responses(_Strict):
    """How likely the held-out replies are. The three numbers are one quantity in three units; lower is better."""

    num_turns: int  # replies that were scored
    num_conversations: int
    num_tokens: int
    unscored: int  # replies that could not be scored; they are in no number
    loss_per_token: Estimate | None  # nats
    bits_per_char: Estimate | None  # the stop token's cost is in it, its characters are not
    perplexity: Estimate | None  # exp(loss_per_token)


class AllResponses(_Strict):
    overall: Responses
    by_source: dict[str, Responses]


class Metric(_Strict):
    """One number of a head beside its floors. `difference` is the head minus the best floor, paired."""

    value: Estimate
    better: Better
    floors: dict[str, Estimate]
    best_floor: str | None  # of the floors, the best on these same items
    difference: Estimate | None
    verdict: Verdict | None  # None: there is no floor


class ReliabilityBin(_Strict):
    n: int
    confidence: float  # mean
    accuracy: Estimate  # with Wilson's interval


class AbstainAt(_Strict):
    """If only turns of at least this confidence are answered."""

    threshold: float
    coverage: float  # the share answered
    accuracy: float  # of those


class Calibration(_Strict):
    """Whether a head's probabilities can be trusted (evaluate/calibration.py defines each)."""

    metrics: dict[str, Metric]  # ece_equal_width, ece_equal_mass, brier, nll, aurc, accuracy_at_COVERAGE
    reliability: tuple[ReliabilityBin, ...]  # equal-mass bins, least confident first
    abstain: tuple[AbstainAt, ...]  # most confident first


class AllLabels(_Strict):
    """The emotion head on turns with any number of labels: each label is predicted from its own threshold on."""

    n: int
    num_conversations: int
    unscored: int  # labelled decision points without a reading
    tuned_on: int  # decision points of the validation split that the thresholds were tuned on
    left_out_of_tuning: int  # rows of the tuning file that stand in the scored split
    probabilities: Literal["softmax", "sigmoid"]  # softmax: those of a head that was trained to name one label
    thresholds: dict[str, float | None]  # predicted where p >= threshold; None: never, no validation turn has it
    metrics: dict[str, Metric]  # macro_f1 and micro_f1
    labels: tuple[LabelRow, ...]


class StrategyHistory(_Strict):
    """The strategy head beside floors that know the recorded strategies before, or only those the head predicted."""

    n: int
    agreement: Estimate  # how often the head's own previous strategy is the recorded one, START included
    gold: dict[str, Metric]  # accuracy, macro_f1, preference_bias
    predicted: dict[str, Metric]
    preference: dict[str, float]  # of the head by strategy; 1 is neutral, they add up to the number of strategies


class Head(_Strict):
    n: int  # decision points that are in the numbers
    num_conversations: int
    unscored: int  # labelled decision points without a reading
    excluded_multi_label: int  # of emotion: rows with several labels, another task
    metrics: dict[str, Metric]  # accuracy and macro_f1; of affect valence_mae and arousal_mae
    labels: tuple[LabelRow, ...]  # empty for affect
    calibration: Calibration | None = None  # none for affect
    confusion: dict[str, dict[str, int]] = {}  # gold -> predicted -> decision points; empty for affect


class Stage(_Strict):
    responses: AllResponses
    heads: dict[str, Head]  # none for a stage that has no heads
    emotion_all_labels: AllLabels | None = None
    strategy_history: StrategyHistory | None = None
    not_scored: tuple[str, ...] = ()  # tasks of the heads that could not be scored, and why
    unscored: int  # rows, those that only read heads included
    unscored_reasons: dict[str, int]  # the most frequent ones


class Comparison(_Strict):
    """The difference of two stages in loss per token (`stage` minus `reference`) on the replies both scored."""

    stage: str
    reference: str
    num_turns: int
    left_out: int  # replies that only one of the two scored
    loss_per_token: Estimate | None
    verdict: Verdict | None
    by_source: dict[str, Estimate]


class Summary(_Strict):
    split: str
    bootstrap_samples: int
    seed: int
    stages: dict[str, Stage]
    word_floor: AllResponses | None = None  # of the replies that the first stage scored, in its tokens
    comparisons: tuple[Comparison, ...]


def read_summary(run: RunDir) -> Summary | None:
    """The run's summary, or None if it has none. Raises SummaryError if the file is broken."""
    file = run.path / SUMMARY
    if not file.is_file():
        return None
    try:
        return Summary.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise SummaryError(f"{file}: not a summary ({first}); `warmline eval` makes a new one") from None
