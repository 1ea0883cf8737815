"""Small real things that many tests build on: a toy base of each architecture, a toy corpus, a recipe over both."""

import json
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may reach for a hub
os.environ["OMP_NUM_THREADS"] = "1"  # also in subprocesses: two threads on a busy machine are far slower than one

import pytest
import torch
import yaml

from warmline.config.training import BaseSettings
from warmline.model.tiny import build_model, train_tokenizer
from warmline.serve.store.history import Store

from . import browser, postgres
from .stores import Clock

torch.set_num_threads(1)

WORDS = "I lost my job today . It hurts , and I feel so alone here What happened then ? Thank you for listening to me".split()
EMOTIONS = ("sadness", "joy", "anger", "fear")
SITUATIONS = ("sad", "joyful", "angry")
STRATEGIES = ("Question", "Reflection of feelings", "Others")
RISKS = ("none", "none", "elevated", "high")


def toy_row(name: str, seed: int, num_pairs: int) -> dict[str, Any]:
    """A labelled conversation of made-up words; different seeds differ in every label."""

    def words(start: int, count: int) -> str:
        said = (WORDS[(start * 5 + step * 3 + seed) % len(WORDS)] for step in range(count))
        return f"{' '.join(said)} {seed}"  # the number keeps conversations apart that say the same

    messages: list[dict[str, Any]] = []
    for pair in range(num_pairs):
        at = seed + pair
        messages += [
            {
                "role": "user",
                "content": words(pair, 4 + at % 7),
                "emotions": [EMOTIONS[at % 4]] if at % 5 else [EMOTIONS[at % 4], EMOTIONS[(at + 1) % 4]],
                "situation": SITUATIONS[seed % 3],
                "risk": RISKS[at % 4],
                "affect": {"valence": (at % 5 - 2) / 2, "arousal": (at % 3 - 1) / 2},
            },
            {"role": "assistant", "content": words(pair + 3, 3 + at % 5), "strategy": STRATEGIES[at % 3]},
        ]
    return {"id": name, "messages": messages}


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation and test.jsonl: 16, 4 and 4 conversations of 2 to 5 pairs of turns.

    Words are few and go round in circles: evaluation seeds are such that no train row is near one of theirs.
    """
    folder = tmp_path_factory.mktemp("corpus")
    for split, count, first in (("train", 16, 0), ("validation", 4, 23), ("test", 4, 27)):
        rows = [toy_row(f"{split}-{seed}", seed, 2 + seed % 4) for seed in range(first, first + count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 folder with random weights, its own tokenizer and a ChatML template: 2 layers of 64."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 400)
    settings = BaseSettings(
        sources=(), vocab_size=400, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4
    )
    torch.manual_seed(0)
    build_model(settings, tokenizer, 256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and runs of a test stay in its own folder."""
    monkeypatch.setenv("WARMLINE_HOME", str(tmp_path / "home"))


ToyRecipe = Callable[..., Path]


@pytest.fixture
def toy_recipe(tmp_path: Path, toy_base: Path, toy_corpus: Path) -> ToyRecipe:
    """Writes a recipe file over the toy base and corpus: every head, the safety KL, no dropout, 6 steps of 8."""

    def write(**changes: Any) -> Path:
        tree: dict[str, Any] = {
            "name": "toy",
            "description": "A recipe for tests.",
            "model": {
                "base": str(toy_base),
                "max_seq_len": 256,
                "system_prompt": "Listen.",
                "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
            },
            "data": {"sources": {"talks": {"reader": "chat_jsonl", "location": str(toy_corpus)}}},
            "heads": {
                "emotion": {"kind": "softmax", "weight": 0.3},
                "situation": {"kind": "softmax", "weight": 0.2},
                "strategy": {"kind": "softmax", "weight": 0.3},
                "risk": {"kind": "ordinal", "weight": 0.2},
                "affect": {"kind": "regression", "weight": 0.2},
            },
            "sft": {
                "safety_kl": {"weight": 0.1},
                "optim": {"learning_rate": 0.01, "batch_size": 8, "micro_batch_tokens": 512},
                "steps": 6,
                "validate_every": 3,
                "save_every": 2,
            },
            "eval": {"bootstrap_samples": 100},
        }
        for path, value in changes.items():
            section = tree
            *parents, last = path.split("__")
            for key in parents:
                section = section.setdefault(key, {})
            section[last] = value
        file = tmp_path / "toy.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return file

    return write


@pytest.fixture(scope="session")
def database_server() -> Iterator[postgres.Server]:
    """A PostgreSQL server for all tests that use one."""
    with postgres.running() as server:
        if server is None:
            pytest.skip("PostgreSQL is not installed")
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    """Debian's Chromium. Closed after each module: while it is open no other event loop can run in this thread."""
    with browser.running() as opened:
        if opened is None:
            pytest.skip("Chromium is not installed")
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database: each test that asks for it runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store' / 'history.db'}"
    return request.getfixturevalue("database_server").new_database()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is set up (WARMLINE_NO_SKIPS), a skipped test is a failure."""
    report = yield
    if report.skipped and os.environ.get("WARMLINE_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped: {report.longrepr}"
    return report


@pytest.fixture
def clock() -> Clock:
    """The clock of `store`."""
    return Clock()


@pytest.fixture
def store(address: str, clock: Clock) -> Iterator[Store]:
    """An empty store, of each kind of database."""
    opened = Store(address, now=clock)
    yield opened
    opened.database.close()
