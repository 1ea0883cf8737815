"""Held-out scoring through an engine that takes many at once: the same rows, order and resumption as one by one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.evaluation import main, texts
from warmline.config.training import ModelSettings
from warmline.data.conversation import Conversation, Turn
from warmline.engine.engine import EngineError, Message, Reading, Scores, ScoresMany
from warmline.engine.local import LocalEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.held_out import read_emotions, read_rows, score_held_out
from warmline.model.load import load_base, load_tokenizer
from warmline.model.support_model import SupportModel
from warmline.progress import Advance

HEADS = (Reading("emotion", ("joy", "sadness"), (0.25, 0.75)),)


def talk(number: int, num_pairs: int) -> Conversation:
    turns = [
        Turn(role, f"{role} says {number} {pair}.", emotions=("joy",) if role == "user" and pair else ())
        for pair in range(num_pairs)
        for role in ("user", "assistant")
    ]
    return Conversation(f"c{number}", "esconv", tuple(turns))


TALKS = [talk(number, 1 + number % 3) for number in range(9)]  # 18 samples


class Many(ScriptedEngine):
    """Offers `score_batch`, remembers how many it was given each time, and refuses what says `refuse`."""

    def __init__(self, refuse: str = "") -> None:
        super().__init__(readings=HEADS)
        self.sizes: list[int] = []
        self.refuse = refuse

    def score_batch(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[Scores]:
        self.sizes.append(len(items))
        if self.refuse and any(self.refuse in reply for _, reply in items):
            raise EngineError("it is too long")
        return [self.score(messages, reply) for messages, reply in items]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmline.evaluate.held_out.CHUNK", 4)


def test_many_at_once_write_the_rows_of_one_by_one(tmp_path: Path) -> None:
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    engine = Many()
    assert isinstance(engine, ScoresMany)
    assert not isinstance(ScriptedEngine(), ScoresMany)
    assert score_held_out(ScriptedEngine(readings=HEADS), TALKS, one) == (18, 0)
    assert score_held_out(engine, TALKS, many) == (18, 0)
    assert many.read_text() == one.read_text()
    assert engine.sizes == [6, 6, 6]  # conversations of 1, 2 and 3 replies stay whole


def test_one_that_is_refused_costs_nobody_else_a_score(tmp_path: Path) -> None:
    engine = Many(refuse="says 5 1")
    file = tmp_path / "held.jsonl"
    assert score_held_out(engine, TALKS, file) == (17, 1)
    [refused] = [row for row in read_rows(file) if row.status == "unscored"]
    assert (refused.id, refused.reason) == ("c5#3", "it is too long")
    assert len(engine.sizes) < 12  # found by halves


def test_rows_are_written_as_each_batch_answers_and_never_scored_twice(tmp_path: Path) -> None:
    file, whole = tmp_path / "held.jsonl", tmp_path / "whole.jsonl"
    score_held_out(Many(), TALKS, whole)

    class Killed(Many):
        def score_batch(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[Scores]:
            if self.sizes:
                raise KeyboardInterrupt
            return super().score_batch(items)

    with pytest.raises(KeyboardInterrupt):
        score_held_out(Killed(), TALKS, file)
    assert len(read_rows(file)) == 6
    with file.open("a", encoding="utf-8") as handle:
        handle.write('{"id": "c3#1", "conv')  # killed inside a line
    seen: list[tuple[int, int]] = []

    @contextmanager
    def progress(total: int, done: int) -> Iterator[Advance]:
        seen.append((total, done))
        yield lambda count, note: None

    engine = Many()
    assert score_held_out(engine, TALKS, file, progress=progress) == (18, 0)
    assert sum(engine.sizes) == 12
    assert seen == [(18, 6)]
    assert file.read_text() == whole.read_text()


def test_emotions_are_read_where_they_are_labelled_and_no_reply_is_scored(tmp_path: Path) -> None:
    file = tmp_path / "tuning.jsonl"
    assert read_emotions(Many(), TALKS, file) == (9, 0)
    rows = read_rows(file)
    assert {row.num_tokens for row in rows} == {0}
    assert all(row.gold.emotion == ("joy",) and row.readings["emotion"] for row in rows)
    nothing = tmp_path / "none.jsonl"
    assert read_emotions(ScriptedEngine(), TALKS, nothing) == (0, 0)
    assert not nothing.exists()


def test_a_real_model_gives_the_same_rows_either_way(tmp_path: Path, toy_base: Path) -> None:
    loaded = SupportModel(load_base(toy_base, ModelSettings(base="toy"), torch.device("cpu")), "float32")
    engine = LocalEngine(loaded, load_tokenizer(toy_base))

    class OneByOne:
        generate, score, capabilities = engine.generate, engine.score, engine.capabilities

    assert not isinstance(OneByOne(), ScoresMany)
    score_held_out(engine, TALKS, tmp_path / "many.jsonl", system_prompt="Listen.")
    score_held_out(OneByOne(), TALKS, tmp_path / "one.jsonl", system_prompt="Listen.")
    many, one = (read_rows(tmp_path / f"{name}.jsonl") for name in ("many", "one"))
    assert [row.key for row in many] == [row.key for row in one]
    for found, expected in zip(many, one, strict=True):
        assert found.num_tokens == expected.num_tokens
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)


def test_the_benchmark_scores_the_same_either_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WARMLINE_DATA", raising=False)
    assert texts(40) == texts(40)
    monkeypatch.setattr("sys.argv", ["evaluation", "--rows", "40", "--single", "10"])
    main()
    shown = capsys.readouterr().out
    assert "| batched by length | 40 |" in shown
    assert "| one by one | 10 |" in shown
    assert float(shown.rsplit("reading: ", 1)[1]) < 1e-4
