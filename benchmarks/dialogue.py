"""What the hidden line, a second draw and a persona change: `python -m benchmarks.dialogue RUN --prompts 20`.

Everyday prompts of the evaluation, answered through the companion by the same run in several ways, with the same seeds.
Counted at the engine's door: tokens of every request, hidden ones too, and the CPU seconds of the whole turn; read from
the reply by rules: whether it acknowledges, names a feeling, asks, reframes, advises. Small numbers: a difference
between two rows that is within both intervals is none. `--json FILE` keeps the counts, and no text.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from warmline.commands.shared import companion
from warmline.config.fields import StyleSettings
from warmline.dialogue.companion import Answer, Setting, respond, resume
from warmline.dialogue.manner import acknowledges, advises, names_feeling, num_questions, reframes
from warmline.engine.engine import Capability, Chunk, Engine, GenerateRequest, Message, Sampling, Scores
from warmline.evaluate.prompt_sets import qualitative
from warmline.evaluate.stats import wilson
from warmline.pipeline import open_engine
from warmline.run_dir import RunDir
from warmline.safety.release import text_of
from warmline.safety.validate.context import Turn

FRIEND, COUNSELOR = StyleSettings(tone="warm", persona="best friend"), StyleSettings(tone="warm", persona="counselor")
WAYS = {
    "plain": {},
    "reflection": {"reflection": True},
    "up to 3 candidates": {"candidates": 3},
    "both": {"reflection": True, "candidates": 3},
    "best friend": {"style": FRIEND},
    "counselor": {"style": COUNSELOR},
}
READ = {
    "acknowledges": acknowledges,
    "names a feeling": names_feeling,
    "asks": lambda reply: num_questions(reply) > 0,
    "reframes": reframes,
    "advises": advises,
}


@dataclass
class Counts:
    """Of one way, over all prompts."""

    num: int = 0
    no_reply: int = 0
    requests: int = 0
    tokens: float = 0
    seconds: float = 0  # of CPU
    first_s: float = 0  # of CPU, to the first released words
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(READ, 0))


class Counting:
    """An engine that counts what it is asked and what it says, in words and marks: near enough to tokens for a ratio."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.requests = 0
        self.tokens = 0.0

    def capabilities(self) -> frozenset[Capability]:
        """The engine's own."""
        return self._engine.capabilities()

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        """The engine's own."""
        return self._engine.score(messages, reply)

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """The engine's own."""
        self.requests += 1
        for chunk in self._engine.generate(request):
            self.tokens += len(re.findall(r"\w+|[^\w\s]", chunk.text))
            yield chunk


def measure(
    setting: Setting, conversations: Sequence[Sequence[Turn]], names: Sequence[str], ends: float
) -> dict[str, Counts]:
    """The ways interleaved, prompt by prompt, so that a busy minute falls on all of them. No prompt begins after `ends`."""
    counts = {name: Counts() for name in names}
    _ = [*respond(setting, resume(setting, ()), "Hello there.")]  # what is loaded at the first turn is not counted
    for turns in conversations:
        if time.monotonic() >= ends:
            break
        for name, of in counts.items():
            engine = Counting(setting.engine)
            one = replace(setting, engine=engine, **WAYS[name])
            session = resume(one, turns[:-1])
            started, first, reply = time.process_time(), None, ""
            for each in respond(one, session, turns[-1].content):
                if isinstance(each, Answer):
                    reply = each.reply
                elif first is None and text_of(each):
                    first = time.process_time() - started
            of.seconds += time.process_time() - started
            of.first_s += first or 0.0
            of.requests += engine.requests
            of.tokens += engine.tokens
            of.num += 1
            of.no_reply += not reply
            for what, reads in READ.items():
                of.found[what] += bool(reply) and reads(reply)
    return counts


def table(counts: dict[str, Counts]) -> str:
    """In Markdown, shares with Wilson's 95 % intervals."""
    lines = [
        f"| way | requests a reply | words and marks a reply | CPU s a reply | CPU s to the first words | {' | '.join(READ)} | no reply |",
        "|:--|--:|--:|--:|--:|" + ":--|" * len(READ) + "--:|",
    ]
    for name, of in counts.items():
        shares = [_share(of.found[what], of.num) for what in READ]
        costs = [f"{each / of.num:.2f}" for each in (of.requests, of.tokens, of.seconds, of.first_s)]
        lines.append(f"| {name} | {' | '.join([*costs, *shares])} | {of.no_reply} |")
    return "\n".join(lines)


def _share(found: int, num: int) -> str:
    share = wilson(found, num)
    return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder, a model folder or a hub id")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--stage")
    parser.add_argument("--max-new-tokens", type=int, default=60)
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--seconds", type=float, default=300.0, help="after which no further prompt is begun")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    opened = open_engine(options.run, RunDir(Path(options.run)), options.stage)
    sampling = Sampling(seed=7, max_new_tokens=options.max_new_tokens)
    setting = companion(opened.engine, opened.system_prompt, sampling, None, opened.safety, opened.risk_head)
    prompts = qualitative()
    chosen = prompts[:: max(1, len(prompts) // options.prompts)][: options.prompts]
    talks = [[Turn(each.role, each.content) for each in prompt.turns] for prompt in chosen]
    counts = measure(setting, talks, options.ways, time.monotonic() + options.seconds)
    num = max(of.num for of in counts.values())
    print(f"{opened.title}, {num} prompts, at most {options.max_new_tokens} tokens a reply\n")
    print(table(counts))
    if options.json is not None:
        options.json.write_text(json.dumps({name: asdict(of) for name, of in counts.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
