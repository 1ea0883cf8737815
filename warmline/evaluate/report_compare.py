"""The report's tables of one stage or run against others: numbers where the base is 100, and variants over seeds."""

from pathlib import Path

from warmline.evaluate.compare import Line, Side, compare, suites
from warmline.evaluate.wording import difference, number, quoted, table
from warmline.run_dir import STAGES, RunDir

BASE = STAGES[0]
ABOUT_100 = (
    "100 is what the base scored: 100 x tuned / base. Only numbers stand here that the base and the tuned stage both have, "
    "taken on the samples that both scored; all others are left out; *none*: the base scored 0. Of losses and "
    "errors, below 100 is better."
)
NO_ABLATION = "No table of `warmline ablate` has this run in it."


def normalised(run: RunDir, *, samples: int, seed: int) -> str:
    """Each tuned stage where the base is 100; what cannot be compared says so."""
    scored = [stage for stage in STAGES if suites(run, stage)]
    tuned = [stage for stage in scored if stage != BASE]
    if BASE not in scored or not tuned:
        return "Nothing stands here: it takes scores of the base and of a tuned stage."
    return "\n\n".join([ABOUT_100, *(_against_base(run, stage, samples, seed) for stage in tuned)])


def ablations(run: RunDir) -> str:
    """The tables of `warmline ablate` that this run is a cell of, or whose recipe it has."""
    parts = []
    for file in sorted(run.path.parent.glob("ablate-*/ablation.md")):
        try:
            text = file.read_text(encoding="utf-8")
            cells = file.with_name("ablation.jsonl").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
            parts.append(f"{quoted(file.parent.name)} cannot be read: {quoted(reason)}.")
            continue
        if f'"{run.path.name}"' in cells or file.parent.name == f"ablate-{run.path.name}":
            parts += [f"### {quoted(file.parent.name)}", text.strip()]
    return "\n\n".join(parts) or NO_ABLATION


def _against_base(run: RunDir, stage: str, samples: int, seed: int) -> str:
    try:
        found = compare(Side(run, stage), Side(run, BASE), allow_unfair=False, samples=samples, seed=seed)
    except ValueError as error:  # a broken file, stages that were not asked alike, no number in common
        return f"Stage {stage} against the base cannot be shown: {quoted(_without_folder(str(error), run.path))}."
    header = ("suite, number", "samples", BASE, stage, f"{stage} where {BASE} = 100")
    rows = [_row(line) for line in found.lines]
    shown = table([*header, f"{stage} minus {BASE} [95 %]", "verdict"], rows)
    return "\n\n".join([shown, *(f"Note. {quoted(note)}." for note in found.notes)])


def _row(line: Line) -> list[object]:
    name = f"{line.suite}, {line.metric.replace('_', ' ')}"
    if line.ours is None or line.theirs is None or line.gap is None:
        return [name, line.n, "none", "none", "no sample in common", "none", line.verdict]
    share = f"{100 * line.ours / line.theirs:.1f}" if line.theirs > 0 else "none"
    return [name, line.n, number(line.theirs), number(line.ours), share, difference(line.gap), line.verdict]


def _without_folder(message: str, folder: Path) -> str:
    return message.replace(f"{folder}/", "")
