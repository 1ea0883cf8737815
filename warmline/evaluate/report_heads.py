"""The heads' part of the report: numbers beside floors, every label, how far probabilities can be trusted."""

from collections.abc import Iterator, Mapping, Sequence

from warmline.evaluate.results import AllLabels, Head, Metric, Stage, StrategyHistory, Summary
from warmline.evaluate.stats import LabelScore
from warmline.evaluate.wording import METRIC_NAMES, difference, estimate, number, table

COLUMNS = ("turns", "head", "floors", "head minus best floor", "verdict")
HISTORIES = {"gold": "recorded", "predicted": "the head's own"}
HEAD_DEFINITIONS = (
    "*Emotion, all labels*: turns with one emotion label or several. A label is predicted where its probability reaches "
    "its threshold, the one with the highest F1 for that label on the validation split; no turn that is scored here takes "
    "part in tuning. A label that no validation turn has is never predicted. *Softmax* says that the probabilities are "
    "those of a head trained to name a single label, *sigmoid* that each label has its own. *Every label* is the floor "
    "that names all of them.",
    "*Micro-F1*: 2 hits / (support + predicted) summed over labels before dividing.",
    "*Strategy by history*: the floor *previous strategy* goes by the strategy recorded for the supporter turn before, or "
    "by the one that the head itself predicted there, which is all that a conversation in use would have. The head reads "
    "words and no labels: its own numbers are the same.",
    "*Preference bias*: the standard deviation over strategies of how strongly each is preferred where it is wrong "
    "(Bradley-Terry strengths of the confusions, scaled to a mean of 1; Kang et al. 2024). 0: no preference; lower is "
    "better. 0.01 of an error is added between any two strategies, so that it always exists.",
    "*Confidence*: the probability of the predicted label.",
    "*Calibration error*: how far accuracy and mean confidence lie apart, averaged over 15 bins by their share of turns: "
    "of *equal width* in confidence (Guo et al. 2017), or of *equal mass* in turns (Nguyen and O'Connor 2015). Few turns "
    "overstate it, and the interval's resamples more so: it may lie above the value.",
    "*Brier score*: squared distance of the probabilities from the label, summed over labels (0 to 2). *Log loss*: minus "
    "the logarithm of the recorded label's probability, in nats. *Base rates*: the floor that always says train's "
    "frequencies.",
    "*Abstaining*: only turns of the highest confidence are answered. *Area under the risk-coverage curve*: the mean error "
    "rate over all shares answered (Geifman and El-Yaniv 2017). *Unranked*: what it would be if confidence said nothing.",
)


def heads_of(stage: Stage) -> str:
    """Each head of a stage beside its floors."""
    rows = [row for name, head in stage.heads.items() for row in _metric_rows(head.metrics, head.n, prefix=f"{name}, ")]
    notes = [_left_out(name, head) for name, head in stage.heads.items() if head.unscored or head.excluded_multi_label]
    shown = table(["head, metric", *COLUMNS], rows)
    return "\n\n".join([shown, *notes])


def _left_out(name: str, head: Head) -> str:
    parts = []
    if head.excluded_multi_label:
        parts.append(f"{head.excluded_multi_label} turns with several labels, which are another task")
    if head.unscored:
        parts.append(f"{head.unscored} labelled turns without a reading")
    return f"Not in the numbers of the {name} head: {' and '.join(parts)}."


def _metric_rows(metrics: Mapping[str, Metric], n: int, prefix: str = "") -> Iterator[list[object]]:
    for name, metric in metrics.items():
        floors = "; ".join(f"{floor} {estimate(value)}" for floor, value in metric.floors.items())
        yield [
            f"{prefix}{METRIC_NAMES.get(name, name)}",
            n,
            estimate(metric.value),
            floors or "none",
            difference(metric.difference) if metric.difference else "none",
            metric.verdict or ("not held against them" if floors else "no floor"),
        ]


def all_labels(summary: Summary) -> list[str]:
    """The emotion head where a turn has any number of labels."""
    sections = []
    for name, stage in summary.stages.items():
        if task := stage.emotion_all_labels:
            sections += [f"### Emotion, all labels, stage {name}", _all_labels(task)]
        sections += [f"Not scored in stage {name}: {reason}." for reason in stage.not_scored]
    return sections


def _all_labels(task: AllLabels) -> str:
    shown = table(["metric", *COLUMNS], list(_metric_rows(task.metrics, task.n)))
    notes = [
        f"Thresholds on {task.probabilities} probabilities, tuned on {task.tuned_on} turns of the validation split."
    ]
    if task.left_out_of_tuning:
        notes.append(f"{task.left_out_of_tuning} rows were kept out of tuning: they stand in the scored split.")
    if task.unscored:
        notes.append(f"Not in the numbers: {task.unscored} labelled turns without a reading.")
    rows = [
        [*row[:-2], _threshold(task.thresholds.get(score.label)), *row[-2:]]
        for score in task.labels
        for row in [_label_row(score, task.n)]
    ]
    floor = "floor: F1 if always said"
    every = table(["label", "precision", "recall", "F1", floor, "threshold", "support", "predicted"], rows)
    return "\n\n".join([shown, " ".join(notes), every])


def _threshold(threshold: float | None) -> str:
    return "never" if threshold is None else number(threshold)


def strategy_history(summary: Summary) -> list[str]:
    """The strategy head with recorded and with predicted strategies before."""
    sections = []
    for name, stage in summary.stages.items():
        if found := stage.strategy_history:
            sections += [f"### Strategy by history, stage {name}", _history(found)]
    return sections


def _history(found: StrategyHistory) -> str:
    rows = [
        row
        for side, metrics in {"gold": found.gold, "predicted": found.predicted}.items()
        for row in _metric_rows(metrics, found.n, prefix=f"{HISTORIES[side]} strategies before, ")
    ]
    shares = table(
        ["strategy", "preference"],
        [[strategy, f"{value:.2f}"] for strategy, value in sorted(found.preference.items(), key=lambda each: -each[1])],
    )
    same = f"The head's own previous strategy is the recorded one at {estimate(found.agreement)} of these turns."
    return "\n\n".join([table(["history, metric", *COLUMNS], rows), same, shares])


def trust(summary: Summary) -> list[str]:
    """How far each head's probabilities can be trusted."""
    sections = []
    for name, stage in summary.stages.items():
        rows = [
            row
            for head_name, head in stage.heads.items()
            if head.calibration
            for row in _metric_rows(head.calibration.metrics, head.n, prefix=f"{head_name}, ")
        ]
        if rows:
            sections += [
                f"### How far probabilities can be trusted, stage {name}",
                table(["head, metric", *COLUMNS], rows),
            ]
    return sections


def every_label(summary: Summary) -> list[str]:
    """Precision, recall and F1 of each label, of every stage and head."""
    sections = []
    for stage_name, stage in summary.stages.items():
        for name, head in stage.heads.items():
            if head.labels:
                sections += [f"### {name}, stage {stage_name}", _labels(head.labels)]
    return ["## Every label", *sections] if sections else []


def _labels(scores: Sequence[LabelScore]) -> str:
    header = ["label", "precision", "recall", "F1", "floor: F1 if always said", "support", "predicted"]
    num = sum(score.support for score in scores)
    return table(header, [_label_row(score, num) for score in scores])


def _label_row(score: LabelScore, num: int) -> list[object]:
    always = 2 * score.support / (score.support + num) if num else 0.0
    measured = map(number, (score.precision, score.recall, score.f1, always))
    return [score.label, *measured, score.support, score.predicted]
