"""Kills a training run with SIGKILL again and again, restarts it, and compares it with the run that nobody touched.

    python -m benchmarks.endurance --kills 20 --seed 0

Each kill has an aim: any time, inside a step (that is, inside its accumulation window), or a moment of a save that is
waited for at the files. What it hit is then read from the files. Exit code 1 if anything of the two runs differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from warmline.config.reading import load_recipe
from warmline.progress import progress
from warmline.run_dir import sha256

# The `tiny` recipe, small: the base is trained (and killed) too; eight conversations make about eight micro-batches.
SMALL = (
    "base.steps=30",
    "base.vocab_size=800",
    "base.hidden_size=64",
    "base.intermediate_size=128",
    "base.num_layers=2",
    "base.num_heads=4",
    "sft.epochs=null",
    "sft.steps=60",
    "sft.save_every=4",
    "sft.validate_every=6",
    "sft.optim.batch_size=8",
    "sft.optim.micro_batch_tokens=512",
)
PATIENCE = 300.0  # seconds that one start may take


@dataclass(frozen=True)
class Place:
    """Where one run lives: its own working folder and its own cache, so that its base is its own too."""

    folder: Path
    recipe: str
    overrides: tuple[str, ...]

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "endurance"

    @property
    def sft(self) -> Path:
        return self.run / "stages" / "sft"

    def start(self) -> "subprocess.Popen[bytes]":
        settings = [word for override in self.overrides for word in ("--set", override)]
        command = [sys.executable, "-m", "warmline", "train", self.recipe, "--name", "endurance", *settings]
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {"WARMLINE_HOME": str(self.folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stage(self) -> tuple[str, Path, Path]:
        """The stage at work, the folder of its states, and that of its rows."""
        if not (self.run / "timing.jsonl").exists():
            for work in (self.folder / "home" / "bases").glob("*.training"):
                return "base", work / "trainer", work
        return "sft", self.sft / "trainer", self.run


class Seen(NamedTuple):
    """What the files say at one moment."""

    stage: str
    started: int  # the inode of timing.jsonl: another one once this start has cut it back to its newest state
    steps: int  # rows in timing.jsonl
    rows: int  # training rows in metrics.jsonl
    states: tuple[int, ...]
    drafts: tuple[str, ...]
    written: tuple[str, ...]  # of the finished stage


def look(place: Place) -> Seen:
    stage, trainer, rows = place.stage()
    timing = rows / "timing.jsonl"
    names = _names(trainer)
    folders = (rows, trainer, place.sft, place.folder / "home" / "bases")
    drafts = {name for folder in folders for name in _names(folder) if name.startswith(".") and name != ".lock"}
    return Seen(
        stage,
        timing.stat().st_ino if timing.exists() else 0,
        _content(timing).count(b"\n"),
        _content(rows / "metrics.jsonl").count(b'"split": "train"'),
        tuple(sorted(int(name[5:]) for name in names if name.startswith("step-"))),
        tuple(sorted(drafts)),
        tuple(sorted({"adapter", "heads.safetensors", "stage.json"} & {*_names(place.sft)})),
    )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (called thousands of times a second)
    except OSError:  # not there yet, or just replaced
        return []


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


class Pace(NamedTuple):
    """Of the undisturbed run, in seconds."""

    to_first_step: float
    step: float


@dataclass(frozen=True)
class Life:
    """One start of the run, and the means to wait for its moment."""

    place: Place
    process: "subprocess.Popen[bytes]"
    before: Seen
    chance: random.Random
    pace: Pace
    gap: int  # steps that it may make first

    def until(self, condition: Callable[[Seen], bool], pause: float = 0.0005) -> bool:
        """Whether the moment came before the run ended. `pause`: seconds between looks, which take 0.0003."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if condition(look(self.place)):
                return True
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing to aim at in {PATIENCE:.0f} s; see {self.place.folder / 'log'}")
            time.sleep(pause)
        return False

    def until_trains(self) -> bool:
        """Whether it took up its state and made the steps of its gap."""
        if not self.until(lambda seen: seen.started not in {0, self.before.started}, pause=0.01):
            return False
        first = look(self.place)
        return self.until(lambda seen: seen.stage != first.stage or seen.steps >= first.steps + self.gap, pause=0.01)

    def rest(self, longest: float) -> bool:
        try:
            self.process.wait(self.chance.uniform(0, longest))
        except subprocess.TimeoutExpired:
            return True
        return False


def _any_time(life: Life) -> bool:
    return life.rest(life.pace.to_first_step + life.gap * life.pace.step)


def _in_a_step(life: Life) -> bool:
    return life.until_trains() and life.rest(life.pace.step)


def _cut_back(life: Life) -> bool:
    """While the rows after the newest state are dropped, or right after."""
    own = {".metrics.jsonl.draft", ".timing.jsonl.draft"} - {*life.before.drafts}
    return life.until(lambda seen: not own.isdisjoint(seen.drafts) or seen.started not in {0, life.before.started})


def _row_before_save(life: Life) -> bool:
    """The row of a step that is saved has just been written."""
    if not life.until_trains():
        return False
    every = load_recipe(life.place.recipe, life.place.overrides).sft.save_every
    return life.until(lambda seen: seen.rows > seen.steps and seen.rows % every == 0)


def _draft(life: Life) -> bool:
    return life.until_trains() and life.until(_step_draft)


def _late_in_draft(life: Life) -> bool:
    return _draft(life) and life.rest(0.03)


def _step_draft(seen: Seen) -> bool:
    return any(name.startswith(".step-") for name in seen.drafts)


def _state_in_place(life: Life) -> bool:
    """A new state has its name; the older ones are about to go."""
    if not life.until_trains():
        return False
    known = look(life.place).states
    return life.until(lambda seen: bool({*seen.states} - {*known}))


def _stage_written(life: Life) -> bool:
    """The last step is made, and adapter, heads and stage.json are being written."""
    trains = life.until(lambda seen: seen.started not in {0, life.before.started} and seen.stage == "sft", pause=0.01)

    def begun(seen: Seen) -> bool:
        return ".adapter.draft" in seen.drafts or seen.written != life.before.written

    return trains and life.until(begun) and life.rest(0.012)


AIMS: dict[str, Callable[[Life], bool]] = {
    "any time": _any_time,
    "in a step": _in_a_step,
    "row before save": _row_before_save,
    "draft": _draft,
    "late in draft": _late_in_draft,
    "state in place": _state_in_place,
    "cut back": _cut_back,
    "stage written": _stage_written,  # takes the run to its end
}


class Kill(NamedTuple):
    aim: str
    seconds: float  # after its start
    seen: Seen
    phase: str


def phase(before: Seen, seen: Seen, save_every: int) -> str:
    """What a kill hit, from the files that it left.

    >>> seen = Seen("sft", 2, steps=7, rows=8, states=(4,), drafts=(), written=())
    >>> phase(seen._replace(started=1), seen, save_every=4)
    'row of step 8 written, its time not'
    >>> phase(seen, seen, save_every=4)
    'start-up'
    """
    newest = max(seen.states, default=0)
    of_saved_step = seen.stage == "sft" and seen.steps % save_every == 0
    found = (
        (seen.started == before.started and seen.drafts == before.drafts, "start-up"),
        ("stage.json" in seen.written, "stage whole, process not ended"),
        (bool(seen.drafts), f"writing {', '.join(seen.drafts)}"),
        (bool(seen.written), f"{', '.join(seen.written)} written, stage.json not"),
        (seen.rows > seen.steps, f"row of step {seen.rows} written, its time not"),
        (newest == seen.steps, f"step {newest} saved, nothing after it yet"),
        (of_saved_step, f"rows of step {seen.steps} written, not saved"),
    )
    return next((hit for holds, hit in found if holds), f"after step {seen.steps}, inside the next")


def endure(
    recipe: str, overrides: Sequence[str], folder: Path, aims: Sequence[str], seed: int
) -> Iterator[tuple[int, Kill]]:
    """Every kill with the number of its round; in the end `folder` holds `reference`, `killed-1`, `killed-2`, ...

    A round is a run from its first start to its end; if it ends before all kills are made, another begins.
    """
    chance = random.Random(seed)
    reference = Place(folder / "reference", recipe, tuple(overrides))
    pace, num_steps = _undisturbed(reference)
    todo, number = list(aims), 0
    while todo:
        number += 1
        place = Place(folder / f"killed-{number}", recipe, tuple(overrides))
        while not (place.sft / "stage.json").is_file():
            gap = chance.randint(0, max(1, 2 * num_steps // len(aims)))
            kill = one_life(place, todo[0] if todo else None, chance, pace, gap)
            if kill is not None:
                todo.pop(0)
                yield number, kill


def one_life(place: Place, aim: str | None, chance: random.Random, pace: Pace, gap: int) -> Kill | None:
    """Start the run and kill it; None if it came to its end first, or was let live."""
    before, started = look(place), time.monotonic()
    life = Life(place, place.start(), before, chance, pace, gap)
    if aim is not None and AIMS[aim](life):
        life.process.kill()
    code = life.process.wait()
    if aim is not None and code == -signal.SIGKILL:
        seen, save_every = look(place), load_recipe(place.recipe, place.overrides).sft.save_every
        return Kill(aim, time.monotonic() - started, seen, phase(before, seen, save_every))
    if code:
        raise RuntimeError(f"a start ended with exit code {code}: see {place.folder / 'log'}")
    return None


def _undisturbed(place: Place) -> tuple[Pace, int]:
    """Run the reference to its end: how fast it goes, and its number of steps."""
    started = time.monotonic()
    process = place.start()
    while look(place).steps == 0 and process.poll() is None:
        time.sleep(0.01)
    to_first_step = time.monotonic() - started
    if process.wait():
        raise RuntimeError(f"the undisturbed run failed: see {place.folder / 'log'}")
    seconds = [row["seconds"] for file in place.folder.rglob("timing.jsonl") for row in rows_of(file)]
    return Pace(to_first_step, sum(seconds) / len(seconds)), len(seconds)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Raises ValueError if the file is not whole lines of JSON."""
    *lines, rest = file.read_text(encoding="utf-8").split("\n")
    if rest:
        raise ValueError(f"{file} ends on a torn line")
    return [json.loads(line) for line in lines]


def differences(reference: Path, killed: Path) -> list[str]:
    """What two places do not have in common, by file: base, stage, states, metrics, rejected rows, byte for byte."""
    one, other = (_files(folder) for folder in (reference, killed))
    found = [f"{name} is only in {reference.name}" for name in sorted(one.keys() - other.keys())]
    found += [f"{name} is only in {killed.name}" for name in sorted(other.keys() - one.keys())]
    for name in sorted(one.keys() & other.keys()):
        read = TIMELESS.get(Path(name).name, sha256)
        if read(reference / name) != read(killed / name):
            found.append(f"{name} differs")
    return found


def _timed_steps(file: Path) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in rows_of(file)]


def _without_times(file: Path) -> dict[str, Any]:
    manifest = json.loads(file.read_text(encoding="utf-8"))
    del manifest["sft"]["seconds_of_last_start"], manifest["base"]["folder"]
    return manifest


# Times and places are never equal in two runs; these read what is beside them.
TIMELESS: dict[str, Callable[[Path], Any]] = {"timing.jsonl": _timed_steps, "manifest.json": _without_times}


def _files(folder: Path) -> dict[str, str]:
    """Checksums by path, of all but locks and the log of this script."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.endswith((".lock", "log")))
    return {str(file.relative_to(folder)): sha256(file) for file in files}


def aims_for(kills: int, seed: int) -> list[str]:
    """A shuffled plan in which every aim comes about equally often, except the two that end the run."""
    order = [aim for aim in AIMS if aim != "stage written"]
    last = ["stage written"] * min(2, max(0, kills - len(order)))
    plan = [order[at % len(order)] for at in range(kills - len(last))]
    random.Random(f"{seed}/plan").shuffle(plan)
    return plan + last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of aims, gaps and moments")
    parser.add_argument("--recipe", default="tiny", help="a recipe's name or file")
    parser.add_argument("--set", dest="overrides", metavar="A.B=C", action="append", default=[])
    parser.add_argument("--folder", type=Path, help="where the runs are kept; default: a folder that is removed")
    options = parser.parse_args()
    overrides = [*(SMALL if options.recipe == "tiny" else ()), *options.overrides]
    aims = aims_for(options.kills, options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        print("kill  round  aim              seconds  stage  steps  goes on from  what it hit", flush=True)
        rounds = 1
        with progress("kills", len(aims)) as advance:
            for number, (rounds, kill) in enumerate(endure(options.recipe, overrides, folder, aims, options.seed), 1):
                seen, from_step = kill.seen, max(kill.seen.states, default=0)
                row = f"{number:4}  {rounds:5}  {kill.aim:15}  {kill.seconds:7.1f}  {seen.stage:5}  {seen.steps:5}"
                print(f"{row}  {from_step:12}  {kill.phase}", flush=True)
                advance(1, "")
        names = [f"killed-{each}" for each in range(1, rounds + 1)]
        found = [line for name in names for line in differences(folder / "reference", folder / name)]
        print(*(found or [f"equal: {len(_files(folder / 'reference'))} files of {len(names)} killed runs"]), sep="\n")
        return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
