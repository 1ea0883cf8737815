"""README.md of a package: what it is, how to use it, its data, licences, figures and limits."""

import yaml

from warmline.evaluate.results import Metric, Stage, Summary, SummaryError, read_summary
from warmline.package.drift import Drift
from warmline.package.licences import Terms
from warmline.package.subject import Subject

LIMITS = """\
* **Not therapy.** It is an AI companion. It diagnoses nothing, treats nothing and replaces nobody.
* **No clinician has reviewed** the data, the replies or the safety rules.
* The weights alone are not the companion: danger is read, helplines are shown and replies are checked by `warmline`, not
  by the model. Behind any other program none of that happens.
* It misses some people in danger. If you may be in danger, call your local emergency number or find a helpline at
  <https://findahelpline.com>.
* English only, as its data is."""
BUNDLED = (
    "The bundled corpus was written by a language model, which also labelled it in the same pass, and no clinician has "
    "reviewed it."
)


def card(subject: Subject, target: str, usage: str, terms: Terms, drift: Drift | None, *, for_hub: bool) -> str:
    """Markdown; `for_hub` puts the hub's metadata before it."""
    recipe = subject.recipe
    title = f"# {recipe.name}, stage {subject.stage}, as {target}"
    what = [
        f"{recipe.description} Made with warmline from the base `{subject.base_name}`"
        f" ({'pre-trained by this run' if terms.base_is_own else 'LoRA'}, trained on {subject.recipe.model.quantization} "
        f"weights in {recipe.model.dtype})."
    ]
    if recipe.model.base == "tiny":
        what.append("**This is a demonstration**: a model of a few million parameters that talks nonsense.")
    sections = [
        title,
        *what,
        f"## Use\n\n{usage}",
        f"## Data and licences\n\n{_data(subject, terms)}",
        f"## Figures\n\n{_figures(subject)}",
        *([f"## Drift\n\n{_drift(drift)}"] if drift else []),
        f"## Limits\n\n{LIMITS}",
        f"## What travels with it\n\n{_companion(subject)}",
    ]
    return (_metadata(subject, terms) if for_hub else "") + "\n\n".join(sections) + "\n"


def _metadata(subject: Subject, terms: Terms) -> str:
    """The licence is left to whoever publishes: that of the parts stands in the card."""
    fields: dict[str, object] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": "en",
        "license": "other",
        "license_name": "non-commercial" if terms.non_commercial() else "see-the-card",
        "license_link": "README.md",
        "tags": ["warmline", "lora", "empathetic-dialogue", *(["non-commercial"] if terms.non_commercial() else [])],
    }
    if not subject.is_local:
        fields |= {"base_model": subject.base_name, "base_model_relation": "adapter"}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n\n"


def _data(subject: Subject, terms: Terms) -> str:
    lines = []
    if found := terms.non_commercial():
        lines.append(f"**Non-commercial.** Made from {', '.join(found)}: this package may not be used commercially.\n")
    known = subject.run.manifest().get("data", {})
    for name, licence in terms.data.items():
        count = known.get(name, {}).get("counts", {}).get("train")
        size = "" if count is None else f", {count:,} train conversations"
        lines.append(f"* `{name}`: {licence.name if licence else 'licence unknown to warmline'}{size}")
    if terms.base_is_own:
        lines.append("* the base model: pre-trained from these sources alone")
    else:
        lines.append(f"* the base model: {terms.base.name if terms.base else 'licence unknown to warmline'}")
    if any((settings.reader or name) == "bundled" for name, settings in subject.recipe.data.sources.items()):
        lines.append(f"\n{BUNDLED}")
    return "\n".join(lines)


def _figures(subject: Subject) -> str:
    """The run's own, with its intervals; nothing is measured here."""
    try:
        summary = read_summary(subject.run)
    except SummaryError as error:
        return f"The run's figures cannot be read: {error.__class__.__name__}."
    stage = None if summary is None else summary.stages.get(subject.stage)
    if summary is None or stage is None:
        return "This stage was not evaluated. `warmline eval` does it."
    lines = [
        f"Held-out {summary.split} split, 95 % intervals from a bootstrap over conversations (`warmline eval`); measured on "
        "the adapter, before it was packaged.",
        "",
        "| | this stage | base |",
        "|:--|:--|:--|",
        *_responses(summary, stage),
        "",
        "| head | metric | value | best floor |",
        "|:--|:--|:--|:--|",
        *(_metric(head, name, metric) for head, found in stage.heads.items() for name, metric in found.metrics.items()),
    ]
    return "\n".join(lines if stage.heads else lines[:-3])


def _responses(summary: Summary, stage: Stage) -> list[str]:
    base = summary.stages.get("base")
    rows = []
    for name, label in (("loss_per_token", "loss, nats per token"), ("bits_per_char", "bits per character")):
        found = [getattr(each.responses.overall, name) if each else None for each in (stage, base)]
        rows.append(f"| {label} | {' | '.join(_estimate(each) for each in found)} |")
    return rows


def _metric(head: str, name: str, metric: Metric) -> str:
    floor = (
        "none" if metric.best_floor is None else f"{_estimate(metric.floors[metric.best_floor])} ({metric.best_floor})"
    )
    return f"| {head} | {name} | {_estimate(metric.value)} | {floor} |"


def _estimate(found: object) -> str:
    """An interval as `1.234 [1.2, 1.3]`."""
    if found is None:
        return "not scored"
    value, *bounds = (None if part is None else float(part) for part in tuple(found))  # type: ignore[arg-type]
    shown = "not scored" if value is None else f"{value:.3f}"
    return shown if None in bounds or not bounds else f"{shown} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _drift(drift: Drift) -> str:
    heads = ", ".join(f"{name} {share:.1%}" for name, share in drift.heads.items()) or "no heads"
    return (
        f"Against the adapter on its base, over {drift.num_positions:,} reply tokens and {drift.num_readings} decision "
        f"points of {drift.num_conversations} conversations ({drift.on}):\n\n"
        f"| KL, nats per token | largest KL | same likeliest token | heads that read alike | largest head difference |\n"
        f"|--:|--:|--:|:--|--:|\n"
        f"| {drift.kl:.2e} | {drift.kl_max:.2e} | {drift.top1:.2%} | {heads} | {drift.heads_max:.2e} |"
    )


def _companion(subject: Subject) -> str:
    heads = ", ".join(subject.about["heads"]) or "none"
    return (
        f"`companion/` holds the heads ({heads}) with their labels, the settings of safety, companion and server, and what "
        "this package is. `SHA256SUMS` has the checksum of every file."
    )
