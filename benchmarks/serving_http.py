"""What the companion costs over HTTP, with and without the controller: `python -m benchmarks.serving_http RUN`.

A process of its own serves the run; this one sends and reads. Two ways take turns, round by round: the companion as
people meet it, and the engine alone, given the very prompts that the companion made of the same conversations and
streamed by the same server. Where cost is measured, every reply goes on to its limit, which is short in one half of the
rounds: from the two halves, seconds of the server's CPU are told apart by turn and by token. A refused sentence is drawn
again, and its tokens count: the cost is one of a token that was decoded.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import httpx
import numpy as np

from benchmarks.evaluation import texts
from benchmarks.table import machine, spread
from warmline.safety.detect import load_detector, observe
from warmline.safety.levels import Level

SHORT, LONG = 16, 64  # tokens of a reply
COST_GOAL, WAIT_GOAL_MS, CARD_GOAL_MS, GAIN_GOAL, FLAT = 1.05, 10.0, 250.0, 2.0, 1.05
NUM_URGENT = 100  # of the card's p99
URGENT = "I can't do this any more, I want to die."
END = (".", "!", "?", "…", "\n")


@dataclass
class Reply:
    """What a client saw of one reply; seconds from asking."""

    first_s: float = 0.0  # until the first words
    sentence_s: float = 0.0  # until the first sentence was whole
    card_s: float = 0.0
    level: str = ""
    text: str = ""


class Spent(NamedTuple):
    """Of the server, between two moments."""

    cpu: float
    tokens: int  # that were decoded
    wall: float


class Client:
    """One load generator."""

    def __init__(self, port: int, model: str) -> None:
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300, limits=limits)
        self._model = model

    async def state(self) -> dict[str, float]:
        """The server's CPU seconds and tokens until now, and its MiB."""
        return (await self._http.get("/bench/state")).json()

    async def endless(self, *, on: bool) -> None:
        """Whether replies go on to their limit."""
        await self._http.post("/bench/endless", json={"endless": on})

    async def ask(
        self, messages: Sequence[dict[str, str]], max_tokens: int, *, bare: bool = False, card_alone: bool = False
    ) -> Reply:
        """One reply: from the companion, or from the engine that is given what the companion gave it.

        `card_alone`: go away once the card has come.
        """
        body = {"model": self._model, "messages": [*messages], "stream": True, "max_tokens": max_tokens}
        body |= {"temperature": 0, "warmline": {"renders_card": True}}
        path = "/bench/bare" if bare else "/v1/chat/completions"
        begun, reply = time.perf_counter(), Reply()
        async with self._http.stream("POST", path, json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _take(reply, json.loads(line[6:]), time.perf_counter() - begun)
                if card_alone and reply.card_s:
                    break
        return reply

    async def all(self, talks: Sequence[list[dict[str, str]]], max_tokens: int, *, bare: bool) -> list[Reply]:
        """All at once."""
        return [*await asyncio.gather(*(self.ask(each, max_tokens, bare=bare) for each in talks))]


def _take(reply: Reply, chunk: dict, now: float) -> None:
    about = chunk.get("warmline") or {}
    reply.level = about.get("level", reply.level)
    if about.get("card") and not reply.card_s:
        reply.card_s = now
    for choice in chunk.get("choices", ()):
        reply.text += (choice.get("delta") or {}).get("content") or ""
    if reply.text.strip() and not reply.first_s:
        reply.first_s = now
    if any(mark in reply.text.strip() for mark in END) and not reply.sentence_s:
        reply.sentence_s = now


def talks_of(said: Sequence[str], count: int) -> list[list[dict[str, str]]]:
    """Conversations of one turn, three or five, at no risk; no two end alike, which tells a prompt by its last words."""
    found: list[list[dict[str, str]]] = []
    number = 0
    while len(found) < count:
        own = [said[(number * 5 + step) % len(said)] for step in range(1 + 2 * (number % 3))]
        turns = [{"role": "assistant" if step % 2 else "user", "content": text} for step, text in enumerate(own)]
        turns[-1]["content"] += f" ({number})"
        number += 1
        if all(is_ordinary(turn["content"]) for turn in turns):
            found.append(turns)
    return found


def is_ordinary(text: str) -> bool:
    """Whether the detector sees no risk in a message: the careful levels write whole replies, which takes seconds."""
    return observe(text, load_detector()).level == Level.NONE


async def spent(client: Client, talks: Sequence[list[dict[str, str]]], tokens: int, *, bare: bool) -> Spent:
    """What the server spends on all of `talks` at once."""
    before, begun = await client.state(), time.perf_counter()
    await client.all(talks, tokens, bare=bare)
    wall, after = time.perf_counter() - begun, await client.state()
    return Spent(after["cpu"] - before["cpu"], int(after["tokens"] - before["tokens"]), wall)


def apart(rounds: Sequence[Spent], turns: int) -> tuple[float, float]:
    """CPU seconds of a turn and of a token, by least squares over rounds of both lengths."""
    counts = np.array([[turns, each.tokens] for each in rounds], dtype=float)
    per_turn, per_token = np.linalg.lstsq(counts, np.array([each.cpu for each in rounds]), rcond=None)[0]
    return float(per_turn), float(per_token)


async def controller(client: Client, talks: Sequence[list[dict[str, str]]], rounds: int) -> bool:
    """Print the table of the two ways; whether the cost of a token is within the goal."""
    found: dict[bool, list[Spent]] = {True: [], False: []}
    for tokens in (LONG, SHORT):
        for bare in (False, True):  # the companion first: it makes the prompts that the bare engine is given
            await client.all(talks, tokens, bare=bare)
    ratios = []
    await client.endless(on=True)
    for _ in range(rounds):
        for bare in (False, True):
            found[bare] += [await spent(client, talks, tokens, bare=bare) for tokens in (SHORT, LONG)]
        own, alone = (apart(found[bare][-2:], len(talks)) for bare in (False, True))
        ratios.append(own[1] / alone[1])
    await client.endless(on=False)
    print("| way | CPU ms a turn | CPU ms a token | tokens a second (the longer replies) |")
    print("|:--|--:|--:|--:|")
    for bare, name in ((True, "engine alone"), (False, "companion")):
        per_turn, per_token = apart(found[bare], len(talks))
        rates = [each.tokens / each.wall for each in found[bare][1::2]]
        print(f"| {name} | {1e3 * per_turn:.1f} | {1e3 * per_token:.3f} | {spread(rates)} |")
    print(f"\na token with the controller against one without: {spread(ratios)} times (goal: at most {COST_GOAL})")
    return statistics.median(ratios) <= COST_GOAL


async def first_words(client: Client, talks: Sequence[list[dict[str, str]]]) -> bool:
    """From the engine's first whole sentence to the companion's first released one, nobody else waiting."""
    added = []
    for each in talks:
        own = await client.ask(each, LONG)
        alone = await client.ask(each, LONG, bare=True)
        if own.first_s and alone.sentence_s:
            added.append(1e3 * (own.first_s - alone.sentence_s))
    middle = statistics.median(added)
    print(f"\nfirst released words, after one sentence of decoding: {middle:.1f} ms (goal: at most {WAIT_GOAL_MS:.0f})")
    return middle <= WAIT_GOAL_MS


async def at_once(client: Client, talks: Sequence[list[dict[str, str]]]) -> bool:
    """Throughput of the companion, all at once against one by one."""
    before, begun = await client.state(), time.perf_counter()
    for each in talks:
        await client.ask(each, LONG)
    alone, middle = time.perf_counter() - begun, await client.state()
    replies, begun = await client.all(talks, LONG, bare=False), time.perf_counter()
    many = await spent(client, talks, LONG, bare=False)
    gain = many.tokens / many.wall / ((middle["tokens"] - before["tokens"]) / alone)
    complete = sum(bool(each.text) for each in replies)
    print(f"\n{len(talks)} at once: {complete} complete, {gain:.1f} times the throughput of one by one")
    return gain >= GAIN_GOAL and complete == len(talks)


async def cards(client: Client, talks: Sequence[list[dict[str, str]]]) -> bool:
    """How long the card of somebody in danger takes while all of `talks` are answered, again and again."""
    stop = asyncio.Event()

    async def load(each: list[dict[str, str]]) -> None:
        while not stop.is_set():
            await client.ask(each, LONG)

    others = [asyncio.ensure_future(load(each)) for each in talks]
    await asyncio.sleep(2)
    waits = []
    for _ in range(NUM_URGENT):
        reply = await client.ask([{"role": "user", "content": URGENT}], SHORT, card_alone=True)
        assert reply.level in ("high", "emergency")
        waits.append(1e3 * reply.card_s)
    stop.set()
    await asyncio.gather(*others)
    p50, p99 = np.quantile(waits, (0.5, 0.99))
    print(f"\ncard beside {len(talks)} streams: p50 {p50:.0f} ms, p99 {p99:.0f} ms (goal: at most {CARD_GOAL_MS:.0f})")
    return bool(p99 <= CARD_GOAL_MS)


async def memory(client: Client, said: Sequence[str], count: int, streams: int) -> bool:
    """MiB of the server after a quarter of so many conversations of two turns, and after all."""
    marks = []
    said = [text for text in said if is_ordinary(text)]
    for start in range(0, count, streams):
        talks = [[{"role": "user", "content": f"{said[n % len(said)]} ({n})"}] for n in range(start, start + streams)]
        replies = await client.all(talks, 4, bare=False)
        for talk, reply in zip(talks, replies, strict=True):
            talk += [{"role": "assistant", "content": reply.text or "I see."}, {"role": "user", "content": "And then?"}]
        await client.all(talks, 4, bare=False)
        if start >= count // 4:
            marks.append((await client.state())["mib"])
    print(f"\nmemory: {marks[0]:.0f} MiB after a quarter of {count} conversations, {marks[-1]:.0f} after all")
    return marks[-1] <= marks[0] * FLAT


@contextmanager
def server(run: str, threads: int) -> Iterator[tuple[int, str]]:
    """The port and the model's name of a server process, which ends with the block."""
    command = [sys.executable, "-m", "benchmarks.served", run, str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if not words:
                raise SystemExit("the server did not start")
            yield int(words[0]), words[1]
        finally:
            process.terminate()


async def measure(client: Client, options: argparse.Namespace) -> list[bool]:
    said = texts(2000)
    talks = talks_of(said, options.streams)
    passed = [await controller(client, talks, options.rounds)] if options.rounds else []
    passed += [await first_words(client, talks[:20]), await at_once(client, talks), await cards(client, talks)]
    if options.conversations:
        passed.append(await memory(client, said, options.conversations, options.streams))
    return passed


def main() -> int:
    """Measure and print; end with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder or name")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="of the two ways; 0: none")
    parser.add_argument("--conversations", type=int, default=2000, help="of the memory measurement; 0: none")
    parser.add_argument("--threads", type=int, default=1, help="torch's, in the server")
    options = parser.parse_args()
    print(f"{machine(options.threads)}\n{options.streams} streams, {options.rounds} round(s)\n", flush=True)
    with server(options.run, options.threads) as (port, model):
        return int(not all(asyncio.run(measure(Client(port, model), options))))


if __name__ == "__main__":
    sys.exit(main())
