"""How fast warmline trains on a CPU, beside one example per turn and the trainers of transformers and TRL.

    WARMLINE_DATA=... python -m benchmarks.training             # everything, see docs/performance.md
    python -m benchmarks.training --quick --source bundled      # a minute, no data needed, no figures to quote
    WARMLINE_DATA=... python -m benchmarks.training --encode    # tokenising and anchoring only

Every contender trains in a fresh process, so that its peak memory is its own; rounds go through all contenders in
turn, so that a busy machine disturbs them alike. What a step costs is CPU seconds, over all threads.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import workload
from benchmarks.contenders import CONTENDERS
from benchmarks.encoding import encoding_report
from benchmarks.meter import Measure, measure
from benchmarks.table import Rounds, check, machine, report
from warmline.config.fields import Dtype
from warmline.progress import progress

QUICK = ("base.hidden_size=64", "base.num_layers=2", "base.num_heads=2", "base.num_key_value_heads=1")
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
STEPS = {"8k": 2, "152k": 1}  # timed steps: 8 to 400 CPU seconds a contender on the machine of docs/performance.md
KILLED = (-9, 137)  # how a process ends that the kernel stopped for memory


class Job(NamedTuple):
    """One contender in one round."""

    round: int
    contender: str
    vocab: str
    num_steps: int


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = native_dtype() if options.dtype == "auto" else options.dtype
    if options.contender:
        work = workload.load(options.workload)
        done = measure(options.contender, work, vocab=options.vocab[0], dtype=dtype, num_steps=options.steps)
        print(json.dumps(done._asdict()))
        return 0
    if options.encode:
        print(encoding_report())
        return 0
    names = options.contenders or available()
    rounds = run_all(options, names, dtype)
    if options.json:
        about = {"machine": machine(options.threads), "source": options.source, "dtype": dtype, "set": options.set}
        rows = [[done._asdict() for done in of_round] for of_round in rounds]
        options.json.write_text(json.dumps(about | {"rounds": rows}, indent=1) + "\n", encoding="utf-8")
    check(rounds)
    print(report(rounds, names, dtype=dtype, was_asked=options.dtype != "auto", threads=options.threads))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--source", choices=("esconv", "bundled"), default="esconv", help="conversations; esconv needs WARMLINE_DATA")
    add("--vocab", choices=tuple(workload.VOCABS), nargs="+", default=list(workload.VOCABS), help="embedding rows")
    add("--contenders", nargs="+", choices=tuple(CONTENDERS), metavar="NAME", help=f"of: {'; '.join(CONTENDERS)}")
    add(
        "--steps",
        type=int,
        help=f"timed steps of 8 conversations (default: {STEPS['8k']} at 8k, {STEPS['152k']} at 152k)",
    )
    add("--rounds", type=int, default=3)
    add("--long", type=float, default=60, help="CPU seconds; who takes longer is measured in the first round only")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of all; auto: bfloat16 where native")
    add("--threads", type=int, default=1, help="of every contender")
    add(
        "--set", action="append", default=[], metavar="a.b=c", help="override warmline's recipe, as `warmline run` does"
    )
    add("--json", type=Path, metavar="FILE", help="keep every round's measurements")
    add("--quick", action="store_true", help="a toy model, one step, one round: only to see that all of it works")
    add("--encode", action="store_true", help="measure tokenising and anchoring of EmpatheticDialogues instead")
    add("--contender", choices=tuple(CONTENDERS), help=argparse.SUPPRESS)  # this process is one contender
    add("--workload", type=Path, help=argparse.SUPPRESS)
    return parser


def run_all(options: argparse.Namespace, names: Sequence[str], dtype: Dtype) -> Rounds:
    """Every contender of every round in a process of its own."""
    if options.quick:
        options.vocab, options.steps, options.rounds = ["8k"], 1, 1
    steps = {vocab: options.steps or STEPS[vocab] for vocab in options.vocab}
    num_conversations = workload.BATCH_SIZE * max(*STEPS.values(), *steps.values())  # the same ones for every choice
    settings = [*(QUICK if options.quick else ()), *options.set]
    jobs = list(_jobs(names, steps, options.rounds))
    rounds: Rounds = [[] for _ in range(options.rounds)]
    done_with: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory() as folder, progress("benchmark", len(jobs)) as advance:
        file = Path(folder) / "workload.pickle"
        workload.save(workload.build(options.source, num_conversations, settings), file)
        for job in jobs:
            if (job.contender, job.vocab) in done_with:
                advance(1, "")
                continue
            done = spawn(job, file, dtype=dtype, threads=options.threads)
            if done is not None:
                rounds[job.round].append(done)
            if done is None or sum(done.seconds) > options.long:
                done_with.add((job.contender, job.vocab))
            advance(1, f"{job.vocab} {job.contender}: " + (f"{done.rate():.2f}/s" if done else "out of memory"))
    return rounds


def available() -> list[str]:
    """The contenders whose packages are installed."""
    return [name for name, each in CONTENDERS.items() if not each.package or find_spec(each.package)]


def _jobs(names: Sequence[str], steps: dict[str, int], num_rounds: int) -> Iterator[Job]:
    for number in range(num_rounds):
        for vocab, num_steps in steps.items():
            for name in names:
                yield Job(number, name, vocab, 1 if CONTENDERS[name].one_step else num_steps)


def spawn(job: Job, file: Path, *, dtype: Dtype, threads: int) -> Measure | None:
    """Run one contender in its own process; None if the machine has too little memory for it.

    Raises RuntimeError with the end of its standard error if it fails otherwise.
    """
    command = [sys.executable, "-m", "benchmarks.training", "--contender", job.contender, "--vocab", job.vocab]
    command += ["--steps", str(job.num_steps), "--workload", str(file), "--dtype", dtype, "--threads", str(threads)]
    environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "TMPDIR": str(file.parent)}
    here = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    if done.returncode in KILLED:
        return None
    if done.returncode:
        raise RuntimeError(f"{job.contender} failed:\n{done.stderr[-3000:]}")
    return Measure(**json.loads(done.stdout.splitlines()[-1]))


def native_dtype() -> Dtype:
    """bfloat16 if this CPU multiplies it no slower than float32; many emulate it, 25 times slower."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(256, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        torch.mm(left, right)  # the first product sets things up
        started = time.process_time()
        for _ in range(5):
            torch.mm(left, right)
        seconds[dtype] = time.process_time() - started
    return "bfloat16" if seconds[torch.bfloat16] < seconds[torch.float32] else "float32"


if __name__ == "__main__":
    sys.exit(main())
