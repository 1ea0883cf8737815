"""What many conversations at once cost on one model: `python -m benchmarks.serving`.

The tiny recipe's shape with an adapter and four heads, random weights (what a number costs does not hang on what it is),
prompts of GoEmotions' texts or of made-up words of like length, a fixed number of new tokens: nothing ends early, so all
ways write the same number. Ways take turns, round by round; seconds of CPU (over all threads) and of the clock are printed.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.evaluation import engine_for, texts
from benchmarks.meter import resident_mib
from benchmarks.table import machine, spread
from warmline.engine.continuous import Batching, ContinuousEngine, Runner
from warmline.engine.engine import Engine, GenerateRequest, Message, Sampling
from warmline.engine.local import LocalEngine

SYSTEM = Message("system", "You are a warm, honest companion. Listen first, and advise only when you are asked to.")
GOAL = 2.0  # times the throughput of one by one
HEADS_GOAL = 0.02  # of a prefill
FLAT = 1.05  # times the memory that was resident once everything was warm
NUM_URGENT = 20
PREFIX_MIB = 16  # kept of prompts while memory is measured: full long before the measurement begins


class Round(NamedTuple):
    cpu: float  # seconds, over all threads
    wall: float  # seconds
    replies: list[str]
    first: list[float]  # seconds from asking to the first words, of each reply


Write = Callable[[Sequence[GenerateRequest]], list[tuple[str, float]]]


def requests_of(said: Sequence[str], count: int, new_tokens: int, *, most_turns: int = 5) -> list[GenerateRequest]:
    """Conversations of one turn, three or five under one system prompt."""
    requests = []
    for number in range(count):
        num_turns = min(1 + 2 * (number % 3), most_turns)
        own = [said[(number * 5 + step) % len(said)] for step in range(num_turns)]
        turns = [Message("assistant" if step % 2 else "user", text) for step, text in enumerate(own)]
        requests.append(GenerateRequest((SYSTEM, *turns), Sampling(temperature=0, max_new_tokens=new_tokens)))
    return requests


def reply_of(engine: Engine, request: GenerateRequest) -> tuple[str, float]:
    """A reply and the seconds until its first words."""
    asked, first, text = time.perf_counter(), 0.0, ""
    for chunk in engine.generate(request):
        text += chunk.text
        first = first or (time.perf_counter() - asked if chunk.text else 0.0)
    return text, first


def one_by_one(engine: Engine, requests: Sequence[GenerateRequest]) -> list[tuple[str, float]]:
    return [reply_of(engine, request) for request in requests]


def at_once(engine: Engine, requests: Sequence[GenerateRequest]) -> list[tuple[str, float]]:
    """A thread for each request, as a server has."""
    found: list[tuple[str, float]] = [("", 0.0)] * len(requests)

    def ask(number: int) -> None:
        found[number] = reply_of(engine, requests[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def timed(write: Write, requests: Sequence[GenerateRequest]) -> Round:
    cpu, wall = time.process_time(), time.perf_counter()
    found = write(requests)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return Round(*spent, [text for text, _ in found], sorted(first for _, first in found))


def transformers_way(local: LocalEngine, requests: Sequence[GenerateRequest]) -> list[tuple[str, float]]:
    """transformers' own continuous batching, on the same weights and prompts; it streams nothing here."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    prompts = [local.prepare(request).prompt for request in requests]
    new_tokens = requests[0].sampling.max_new_tokens
    model = local._model
    model.use(local._stage)
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # As many blocks as we keep positions, pages of a size that wastes little on such short rows.
    batching = ContinuousBatchingConfig(page_size=32, num_blocks=2048, max_batch_tokens=512)
    found = model.causal.get_base_model().generate_batch(
        inputs=prompts, generation_config=config, continuous_batching_config=batching, progress_bar=False
    )
    outputs = sorted(found.items(), key=lambda pair: int(pair[0].rsplit("_", 1)[-1]))
    return [(local._tokenizer.decode(each.generated_tokens), 0.0) for _, each in outputs]  # type: ignore[misc]


def throughput(local: LocalEngine, requests: Sequence[GenerateRequest], rounds: int, *, theirs: bool) -> bool:
    """Print the table of all ways; whether the goal is met."""
    ways: dict[str, Write] = {"one by one": partial(one_by_one, local)}
    runners = {"at once": Runner(Batching(prefix_bytes=0)), "at once, prompts kept": Runner()}
    for name, engine in {name: runner.engine(local) for name, runner in runners.items()}.items():
        ways[name] = partial(at_once, engine)
    if theirs:
        ways["transformers' own"] = partial(transformers_way, local)
    found: dict[str, list[Round]] = {name: [] for name in ways}
    for write in ways.values():
        write(requests[:2])  # what the first request sets up is not counted
    for _ in range(rounds):
        for name, write in ways.items():
            found[name].append(timed(write, requests))
    for runner in runners.values():
        runner.close()
    num_tokens = len(requests) * requests[0].sampling.max_new_tokens
    print("| way | tokens per CPU second | tokens per second | first words, p50 s | p99 s | equal replies |")
    print("|:--|--:|--:|--:|--:|--:|")
    alone = found["one by one"]
    for name, each in found.items():
        cpu, wall = (spread([num_tokens / getattr(one, unit) for one in each]) for unit in ("cpu", "wall"))
        first = sorted(seconds for one in each for seconds in one.first)
        p50, p99 = (f"{first[int(len(first) * q)]:.2f}" if any(first) else "-" for q in (0.5, 0.99))
        equal = sum(a == b for a, b in zip(each[-1].replies, alone[-1].replies, strict=True))
        print(f"| {name} | {cpu} | {wall} | {p50} | {p99} | {equal} of {len(requests)} |")
    reached = True
    for unit, what in (("cpu", "CPU time"), ("wall", "throughput")):
        pairs = zip(alone, found["at once"], strict=True)
        gains = [getattr(one, unit) / getattr(many, unit) for one, many in pairs]
        reached = reached and statistics.median(gains) >= GOAL
        print(f"\nat once against one by one, {what}: {spread(gains)} times")
    return reached


def heads_share(local: LocalEngine, requests: Sequence[GenerateRequest], repeats: int) -> float:
    """Seconds of reading the heads by those of the prompt's pass: the median over prompts and repeats."""
    shares = []
    with torch.inference_mode():
        for request in requests:
            ids_1T = torch.tensor([local.prepare(request).prompt])
            for _ in range(repeats):
                begun = time.perf_counter()
                state_1D = local.forward(ids_1T).last_hidden_state[:, -1]
                read = time.perf_counter()
                local.read(state_1D)
                shares.append((time.perf_counter() - read) / (read - begun))
    return statistics.median(shares)


def urgent_waits(engine: ContinuousEngine, requests: Sequence[GenerateRequest]) -> list[float]:
    """Seconds until the first words of an urgent reply while all of `requests` are written, sorted."""
    streams = [engine.generate(replace(each, sampling=replace(each.sampling, max_new_tokens=400))) for each in requests]
    for stream in streams:
        next(stream)
    urgent = replace(requests[0], urgent=True, sampling=replace(requests[0].sampling, max_new_tokens=2))
    waits = []
    for number in range(NUM_URGENT):
        own = (*urgent.messages[:-1], Message("user", f"{number} {urgent.messages[-1].content}"))
        waits.append(reply_of(engine, replace(urgent, messages=own))[1])
    for stream in streams:
        stream.close()
    return sorted(waits)


def memory(local: LocalEngine, said: Sequence[str], conversations: int, streams: int) -> tuple[float, float]:
    """MiB resident after a quarter of the conversations and after all; each has two turns."""
    marks: list[float] = []
    with Runner(Batching(prefix_bytes=PREFIX_MIB * 2**20)) as runner:
        engine = runner.engine(local)
        requests = requests_of(said, conversations, 4, most_turns=1)
        for start in range(0, conversations, streams):
            wave = requests[start : start + streams]
            replies = at_once(engine, wave)
            more = [
                replace(each, messages=(*each.messages, Message("assistant", text), Message("user", "And then?")))
                for each, (text, _) in zip(wave, replies, strict=True)
            ]
            at_once(engine, more)
            if start >= conversations // 4:
                marks.append(resident_mib())
    return marks[0], marks[-1]


def main() -> int:
    """Measure and print; end with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3, help="of the ways to write; 0: none")
    parser.add_argument("--conversations", type=int, default=2000, help="of the memory measurement; 0: none")
    parser.add_argument("--threads", type=int, default=2, help="torch's")
    parser.add_argument("--theirs", action="store_true", help="transformers' own continuous batching, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    said = texts(2000)
    local = engine_for(said)
    local._stop_ids = frozenset()
    requests = requests_of(said, options.streams, options.new_tokens)
    lengths = [len(local.prepare(request).prompt) for request in requests]
    print(machine(options.threads))
    print(f"{options.streams} streams, prompts of {min(lengths)} to {max(lengths)} tokens, {options.rounds} round(s)\n")
    passed = [throughput(local, requests, options.rounds, theirs=options.theirs)] if options.rounds else []
    share = heads_share(local, requests[:16], 5)
    passed.append(share <= HEADS_GOAL)
    print(f"\nhead reading: {share:.2%} of a prefill (goal: at most {HEADS_GOAL:.0%})")
    with Runner() as runner:
        waits = urgent_waits(runner.engine(local), requests)
    print(
        f"first words of an urgent reply beside {options.streams}: p50 {statistics.median(waits):.2f} s, most {waits[-1]:.2f} s"
    )
    if options.conversations:
        before, after = memory(local, said, options.conversations, options.streams)
        passed.append(after <= before * FLAT)
        print(
            f"memory: {before:.0f} MiB after a quarter of {options.conversations} conversations, {after:.0f} after all"
        )
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
