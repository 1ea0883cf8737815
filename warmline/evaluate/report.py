"""`report.md` and `report.html` of a run: what came out, against which floors, from which data, and what it does not show."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from warmline.config.fields import ConfigError
from warmline.config.reading import load_recipe
from warmline.config.recipe import Recipe
from warmline.evaluate import report_judged, report_tasks
from warmline.evaluate.plots import Curves, Plots, draw_plots, read_curves
from warmline.evaluate.report_compare import ablations, normalised
from warmline.evaluate.report_heads import HEAD_DEFINITIONS, all_labels, every_label, heads_of, strategy_history, trust
from warmline.evaluate.report_html import DEFINITIONS, page
from warmline.evaluate.report_replies import side_by_side
from warmline.evaluate.results import Summary, SummaryError, read_summary
from warmline.evaluate.stats import MIN_CLUSTERS
from warmline.evaluate.task_rows import COMPANION, TaskRows, read_tasks
from warmline.evaluate.wording import difference, estimate, headline, number, plainly, quoted, table
from warmline.run_dir import RunDir, write_text

NOT_REVIEWED = "No clinician has reviewed this model or this report."
WHAT_IT_IS_NOT = (
    "The model is not therapy, not a medical device and no replacement for a person. The numbers on this page say how well "
    "it predicts recorded conversations and their labels, and what rules over words find in its replies; they do not say "
    "that talking to it is safe or helps anyone."
)
DEMONSTRATION = (
    "**This is a demonstration.** Its base model `tiny` has a few million parameters and was pre-trained here, from "
    "scratch, on the small corpora listed below. It shows that every step works and is measured; it is not a companion to "
    "talk to, and its numbers cannot be compared with those of larger models or with published ones."
)
ABOUT_LEAKS = (
    "A model that was trained on the text it is tested on looks better than it is. Conversations that stand in an "
    "evaluation split as well, word for word or nearly, are left out of training. Labels and other notes on a conversation "
    "never stand in what the model reads. `warmline data audit RECIPE` looks for repeats again and shows where they are."
)
NOTHING_SCORED = "Nothing has been scored yet: `warmline eval` does it."


def write_report(run: RunDir) -> Path:
    """Draw the plots, write `report.md` and the same as one page, `report.html`; returns the first.

    Parts whose data is missing or broken say so. Raises RunError if the folder is not a run.
    """
    recipe = run.recipe()
    manifest = _manifest(run)
    plots = draw_plots(run)
    tasks = read_tasks(run)
    try:
        summary, problem = read_summary(run), NOTHING_SCORED
    except SummaryError as error:
        summary, problem = None, f"The scores cannot be shown: {error}."
    sections = [
        *_results(run, recipe, summary, problem, tasks),
        "## Plots",
        _plots(run, plots),
        "### Losses in numbers",
        _losses(read_curves(run.metrics)),
        *(every_label(summary) if summary else ()),
        "## Ablations",
        ablations(run),
        "## Data and leaks",
        _data(manifest),
        "## Settings that matter",
        _settings(recipe),
        "## How it was made",
        _provenance(run, recipe, manifest, tasks),
        f"## {DEFINITIONS}",
        _definitions(summary, tasks),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    file = run.path / "report.md"
    write_text(file, text)
    pictures = {picture.relative_to(run.path).as_posix(): picture for _, picture in plots.drawn}
    settings = {"recipe.yaml": "#every-setting"}
    write_text(run.path / "report.html", page(f"{text}\n{_every_setting(recipe)}", pictures, settings))
    return file


def _results(run: RunDir, recipe: Recipe, summary: Summary | None, problem: str, tasks: TaskRows) -> list[str]:
    draws = {"samples": recipe.eval.bootstrap_samples, "seed": recipe.seed}
    found = report_tasks.headline(tasks, **draws)
    lead = [plainly(summary)] if summary and summary.stages else []
    said = [_in_short(summary, problem), *(f"- {sentence}" for sentence in found)]
    return [
        _opening(run, recipe),
        "## In short",
        *lead,
        "\n".join(said) if summary and summary.stages else "\n\n".join(said),
        "## What this is",
        _about(recipe),
        "## Where the base is 100",
        normalised(run, **draws),
        *(_scores(summary) if summary else ()),
        "## Replies to prompts",
        *report_tasks.replies(run, tasks, **draws),
        "## Safety sheet",
        *report_tasks.safety_sheet(tasks),
        "## Talks and judges",
        *report_judged.judged(run, tasks, **draws),
        "## Side by side",
        side_by_side(run),
        *(f"Left out. {quoted(each)}." for each in tasks.problems),
    ]


def _manifest(run: RunDir) -> Mapping[str, Any]:
    try:
        manifest = run.manifest()
    except ValueError:  # cut off or not JSON: the sections that need it say what is missing
        return {}
    return manifest if isinstance(manifest, Mapping) else {}


def _opening(run: RunDir, recipe: Recipe) -> str:
    parts = [f"# {run.path.name}: report of a warmline run"]
    if recipe.model.base == "tiny":
        parts.append(DEMONSTRATION)
    return "\n\n".join([*parts, NOT_REVIEWED])


def _about(recipe: Recipe) -> str:
    return (
        f"The model `{recipe.model.base}` was fine-tuned with recipe `{recipe.name}` to answer with empathy and to read "
        "emotion, situation, support strategy, risk and affect from a conversation. The stages: `base` is the model before "
        "fine-tuning, `sft` after supervised fine-tuning, `dpo` after preference tuning on top. A *floor* is what somebody "
        "gets who reads nothing, and a number that does not beat its floor shows nothing. Numbers in brackets are 95 % "
        f"intervals.\n\n{WHAT_IT_IS_NOT}"
    )


def _in_short(summary: Summary | None, problem: str) -> str:
    if summary is None or not summary.stages:
        return problem
    return "\n".join(f"- {sentence}" for sentence in headline(summary))


def _scores(summary: Summary) -> list[str]:
    sections = ["## Held-out replies", _responses(summary)]
    if summary.comparisons:
        sections.append(_comparisons(summary))
    sections += ["## Heads and their floors"]
    with_heads = {name: stage for name, stage in summary.stages.items() if stage.heads}
    for name, stage in with_heads.items():
        sections += [f"### Stage {name}", heads_of(stage)]
    if not with_heads:
        sections.append("No stage has readings of a labelled turn.")
    return [*sections, *all_labels(summary), *strategy_history(summary), *trust(summary)]


def _responses(summary: Summary) -> str:
    named = {name: stage.responses for name, stage in summary.stages.items()}
    if summary.word_floor:
        named["floor: words as often as in train"] = summary.word_floor
    rows = [
        [
            f"{name}, {source}",
            part.num_conversations,
            part.num_turns,
            estimate(part.loss_per_token),
            estimate(part.perplexity),
            estimate(part.bits_per_char),
            part.unscored,
        ]
        for name, responses in named.items()
        for source, part in ({"all": responses.overall} | responses.by_source).items()
    ]
    header = ["stage, source", "conversations", "replies", "loss per token", "perplexity", "bits per character"]
    intro = (
        f"How likely the recorded replies of the {summary.split} split are to the model. Lower is better. "
        "The floor reads nothing and knows how often each word stands in the training replies."
    )
    reasons = [
        f"- stage {name}: {count} x {reason}"
        for name, stage in summary.stages.items()
        for reason, count in stage.unscored_reasons.items()
    ]
    shown = [intro, table([*header, "unscored"], rows)]
    if reasons:
        shown += ["Why samples are unscored:", "\n".join(reasons)]
    return "\n\n".join(shown)


def _comparisons(summary: Summary) -> str:
    rows = []
    for pair in summary.comparisons:
        names = f"{pair.stage} minus {pair.reference}"
        rows.append([f"{names}, all", difference(pair.loss_per_token), pair.num_turns, pair.left_out])
        rows += [[f"{names}, {source}", difference(gap), "", ""] for source, gap in pair.by_source.items()]
    intro = "Differences on the replies that both stages scored (negative: the first stage is better):"
    return f"{intro}\n\n{table(['stages, source', 'loss per token', 'replies', 'scored by one only'], rows)}"


def _plots(run: RunDir, plots: Plots) -> str:
    shown = [f"![{caption}]({file.relative_to(run.path).as_posix()})" for caption, file in plots.drawn]
    return "\n\n".join([*shown, *(f"Left out. {reason}" for reason in plots.left_out)])


def _losses(stages: Mapping[str, Curves]) -> str:
    rows = [
        [f"{stage}, {term}, {split}", len(curve), number(curve[0][1]), number(curve[-1][1]), number(lowest), step]
        for stage, terms in stages.items()
        for term, splits in terms.items()
        for split, curve in splits.items()
        for lowest, step in [min((value, step) for step, value in curve)]
    ]
    if not rows:
        return "No loss was written down."
    return table(["stage, term, split", "measured", "first", "last", "lowest", "at step"], rows)


def _data(manifest: Mapping[str, Any]) -> str:
    data = manifest.get("data")
    if not isinstance(data, Mapping) or not data:
        return "The manifest does not say which data was used."
    rows, rejected, leaks = [], [], []
    for name, source in data.items():
        entry = source if isinstance(source, Mapping) else {}
        counts = _mapping(entry.get("counts"))
        dropped = _mapping(entry.get("rejected"))
        per_split = ", ".join(f"{split} {count}" for split, count in counts.items())
        rows.append(
            [
                name,
                entry.get("location") or "unknown",
                per_split or "unknown",
                sum(count for count in dropped.values() if isinstance(count, int)),
                _short(entry.get("sha256")),
            ]
        )
        rejected += [f"- {name}: {count} x {reason}" for reason, count in dropped.items()]
        overlaps = entry.get("overlaps")
        leaks.append([name, counts.get("train", "unknown"), "unknown" if overlaps is None else overlaps])
    shown = [table(["source", "location", "conversations", "rejected rows", "sha256"], rows)]
    if rejected:
        shown += ["Why rows were rejected:", "\n".join(rejected)]
    if examples := _lines(manifest.get("examples")):
        shown += ["What became of them in training:", examples]
    header = ["source", "train conversations", "left out of training: they stand in an evaluation split too"]
    shown += ["### Leaks", ABOUT_LEAKS, table(header, leaks)]
    return "\n\n".join(shown)


def _settings(recipe: Recipe) -> str:
    model, sft, optim = recipe.model, recipe.sft, recipe.sft.optim
    budget = f"{sft.epochs:g} epochs" if sft.epochs is not None else f"{sft.steps} optimizer steps"
    heads = ", ".join(f"{name} {head.weight:g} ({head.kind})" for name, head in recipe.heads.active())
    lora = (
        f"r {model.lora.r}, alpha {model.lora.alpha}, dropout {model.lora.dropout:g}, {', '.join(model.lora.targets)}"
    )
    kl = f"{sft.safety_kl.weight:g}, temperature {sft.safety_kl.tau:g}"
    rows = [
        ["base model", f"{model.base}{f' at {model.revision}' if model.revision else ''}"],
        ["weights", f"{model.dtype}, quantisation {model.quantization}"],
        ["adapter (LoRA)", lora],
        ["longest example", f"{model.max_seq_len} tokens"],
        ["system prompt", quoted(" ".join((model.system_prompt or "none").split()))],
        ["loss weights", f"language model {sft.lm_weight:g}, {heads or 'no heads'}"],
        ["safety KL", kl if sft.safety_kl.weight else "off"],
        ["training", f"{budget}, {optim.batch_size} conversations per step"],
        ["learning rate", f"{optim.learning_rate:g}, heads {optim.head_learning_rate:g}"],
        ["mixture", f"alpha {recipe.data.alpha:g} over {', '.join(recipe.data.sources)}"],
        [
            "held out",
            f"{recipe.eval.split} split, {recipe.eval.max_conversations or 'all'} conversations of each source",
        ],
        ["seed", recipe.seed],
    ]
    return f"{_listed(rows)}\n\nEvery setting stands in [recipe.yaml](recipe.yaml)."


def _every_setting(recipe: Recipe) -> str:
    """The resolved recipe; what whoever runs the companion chose of its safety is no part of how it was made."""
    text = yaml.safe_dump(recipe.model_dump(mode="json", exclude={"safety"}), sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"## Every setting\n\n{fence}\n{text}{fence}\n"


def _provenance(run: RunDir, recipe: Recipe, manifest: Mapping[str, Any], tasks: TaskRows) -> str:
    versions = _mapping(manifest.get("versions"))
    device = manifest.get("device")
    rows = [
        ["warmline at git commit", manifest.get("git") or "unknown"],
        ["device", _inline(device) if device else "unknown"],
        ["seed", manifest.get("seed", recipe.seed)],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "unknown"],
    ]
    path = run.path
    asked = dict.fromkeys(suite.removesuffix(COMPANION) for suite in tasks.suites)
    asked |= {"simulated": None} if tasks.talks else {}
    through = [suite for suite in tasks.suites if suite.endswith(COMPANION)]
    suites = [f"warmline eval {path} --suite {','.join(asked)}   # replies to prompts"] if asked else []
    if through:
        names = ",".join(suite.removesuffix(COMPANION) for suite in through)
        suites.append(f"warmline eval {path} --suite {names} --companion   # the same through the companion")
    commands = "\n".join(
        [
            f"warmline run {_recipe_argument(run, recipe)}   # data, training, evaluation of every stage, this report",
            f"warmline eval {path}   # the scores again",
            *suites,
            f"warmline report {path}   # this page again",
        ]
    )
    return f"{_listed(rows)}\n\n```\n{commands}\n```"


def _recipe_argument(run: RunDir, recipe: Recipe) -> str:
    """What to hand to `warmline run`: the recipe's name if that still means these settings, else this run's file."""
    try:
        shipped = load_recipe(recipe.name) == recipe
    except ConfigError:
        shipped = False
    argument = recipe.name if shipped else str(run.path / "recipe.yaml")
    return argument if run.path.name == recipe.name else f"{argument} --name {run.path.name}"


def _definitions(summary: Summary | None, tasks: TaskRows) -> str:
    samples = f"{summary.bootstrap_samples} resamples, seed {summary.seed}" if summary else "seeded resamples"
    lines = [
        "*Reply*: every assistant turn after the first user turn; the model reads the recorded turns before it, not its own.",
        "*Loss per token*: minus the natural logarithm of the reply's probability, stop token included, divided by tokens; "
        "sums over all replies. It compares only models with one tokenizer.",
        "*Perplexity*: e to the loss per token.",
        "*Bits per character*: the same sum in bits, divided by the replies' characters; it compares across tokenizers.",
        "*Head*: a classifier that reads the last prompt token before the reply, so it cannot see the reply. Its prediction "
        "is the label with the largest value.",
        "*Accuracy*: the share of labelled turns whose prediction is the recorded label.",
        "*Macro-F1*: F1 = 2 hits / (support + predicted) of each label, averaged with equal weight over the labels that "
        "occur in the recorded labels or the predictions.",
        "*Emotion* is scored on turns with exactly one emotion label only.",
        "*Valence error* and *arousal error*: mean absolute error on a scale from -1 to 1; lower is better.",
        "*Floors* read no text and are fitted on the train split: *majority* says its most frequent label; *chance* "
        "draws a label with its frequencies (no independent guess expects a higher macro-F1); *previous "
        "strategy* says what most often followed the recorded strategy of the supporter turn before; *mean* and *median* "
        "say train's.",
        "*Best floor*: the one that does best on these same turns.",
        f"*[low, high]*: 95 % percentile interval of a bootstrap over whole conversations ({samples}); differences are "
        f"paired, on the same resamples. Below {MIN_CLUSTERS} conversations there is none. It covers the choice of "
        "conversations, not of the training seed.",
        "*Verdict*: *beats* if the interval of the difference lies wholly on the better side of 0, *below* if wholly on the "
        "worse side, else *not distinguishable*. Many verdicts stand here; about one in twenty may err by chance.",
        *HEAD_DEFINITIONS,
        *(report_tasks.TASK_DEFINITIONS if tasks.suites else ()),
        *(report_judged.DEFINITIONS if tasks.talks else ()),
        "*Unscored*: the engine refused the sample or gave a number that is not finite; it is in no average.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _listed(rows: Sequence[Sequence[object]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and value else "unknown"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_inline, value))
    return str(value)


def _lines(value: Any) -> str:
    """A list of what a manifest entry of any form holds."""
    if isinstance(value, Mapping):
        return "\n".join(f"- {key}: {_inline(part)}" for key, part in value.items())
    return f"- {_inline(value)}" if value else ""
