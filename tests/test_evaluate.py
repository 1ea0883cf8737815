"""Held-out scoring, floors and the summary, over small conversations and the scripted engine."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from warmline.config.training import EvalSettings
from warmline.data.conversation import Affect, Conversation, Turn
from warmline.data.labels import AFFECTS, STRATEGIES
from warmline.engine.engine import Chunk, EngineError, GenerateRequest, Message, Reading, Scores
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.floors import BIGRAM, CHANCE, MAJORITY, MEAN, MEDIAN, Floors, fit_floors
from warmline.evaluate.held_out import START, Gold, Row, read_rows, samples, score_held_out
from warmline.evaluate.results import SummaryError, read_summary
from warmline.evaluate.summary import held_out_file, summarise
from warmline.progress import Advance
from warmline.run_dir import RunDir, append_row

SETTINGS = EvalSettings(bootstrap_samples=200)


def user(text: str, *emotions: str, situation: str | None = None, risk: str | None = None) -> Turn:
    return Turn("user", text, emotions=emotions, situation=situation, risk=risk)


def supporter(text: str, *strategy: str) -> Turn:
    return Turn("assistant", text, strategy=strategy)


def talk(name: str, *turns: Turn, source: str = "esconv") -> Conversation:
    return Conversation(name, source, turns)


LONG = talk(
    "c1",
    supporter("Welcome.", "Others"),
    user("My dog died.", "grief", situation="sad", risk="none"),
    supporter("I am sorry. How old was he?", "Reflection of feelings", "Question"),
    user("Twelve."),
    supporter("A long life."),
    user("Yes.", "sadness"),
    supporter("Tell me of him.", "Question"),
    user("No."),
)
ROW = talk("g1", user("What a day!", "joy", "surprise"), source="goemotions")


ONE_HEAD = (Reading("emotion", ("joy", "sadness"), (0.25, 0.75)),)


class Watched(ScriptedEngine):
    """Remembers what it was asked to score, and refuses or miscounts where told."""

    def __init__(
        self, *, refuse: str = "", infinite: str = "", readings: Sequence[Reading] = ONE_HEAD, seed: int = 0
    ) -> None:
        super().__init__(seed=seed, readings=readings)
        self.asked: list[tuple[list[Message], str]] = []
        self.refuse, self.infinite = refuse, infinite

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        self.asked.append((list(messages), reply))
        if self.refuse and self.refuse in reply:
            raise EngineError("the server is gone")
        scores = super().score(messages, reply)
        return scores._replace(logprob=-math.inf) if self.infinite and self.infinite in reply else scores

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        raise AssertionError("scoring generates nothing")


def test_samples_are_the_decisions_after_the_first_user_turn():
    found = list(samples(LONG))
    assert [(sample.id, sample.reply) for sample in found] == [
        ("c1#2", "I am sorry. How old was he?"),
        ("c1#4", "A long life."),
        ("c1#6", "Tell me of him."),
    ]  # the opening teaches nothing, and the last user turn has no label
    first, second, third = (sample.gold for sample in found)
    assert first == Gold(
        emotion=("grief",), situation="sad", strategy="Reflection of feelings", previous_strategy="Others", risk="none"
    )
    assert second == Gold()  # labels of earlier user turns do not linger, and no strategy means no previous one
    assert third == Gold(emotion=("sadness",), strategy="Question", previous_strategy="Reflection of feelings")


def test_a_conversation_that_ends_on_a_labelled_user_turn_is_read_only():
    (sample,) = samples(ROW)
    assert (sample.id, sample.reply, sample.gold) == ("g1#1", "", Gold(emotion=("joy", "surprise")))
    (start,) = samples(talk("c", user("Hi."), supporter("Hello.", "Question")))
    assert start.gold.previous_strategy == START


def test_rows_hold_scores_labels_and_readings_in_order(tmp_path: Path):
    engine = Watched(readings=[Reading("risk", ("none", "high"), (2 / 3, 1 / 3))])
    file = tmp_path / "scores" / "held-out.sft.jsonl"
    assert score_held_out(engine, [LONG, ROW], file, system_prompt="Be kind.") == (4, 0)
    rows = read_rows(file)
    assert [row.id for row in rows] == ["c1#2", "c1#4", "c1#6", "g1#1"]
    assert rows[0].readings == {"risk": {"none": 0.666667, "high": 0.333333}}
    messages, reply = engine.asked[0]
    assert messages == [("system", "Be kind."), ("assistant", "Welcome."), ("user", "My dog died.")]
    assert rows[0].logprob == pytest.approx(ScriptedEngine().score(messages, reply).logprob, abs=1e-6)
    assert rows[0].num_tokens == len(reply) + 1
    assert (rows[3].num_chars, rows[3].num_tokens, rows[3].logprob) == (0, 0, 0.0)
    written = json.loads(file.read_text().splitlines()[0])
    assert written["gold"]["strategy"] == "Reflection of feelings"
    assert "My dog died." not in file.read_text()  # scores hold numbers and labels, not what was said


@pytest.mark.parametrize("cut", [1, 30])
def test_a_pass_goes_on_where_it_stopped(tmp_path: Path, cut: int):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    score_held_out(Watched(), [LONG, ROW], whole)
    lines = whole.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:-cut])  # without its line end, or without its end
    engine, advanced = Watched(), []

    @contextmanager
    def progress(total: int, done: int) -> Iterator[Advance]:
        advanced.append((total, done))
        yield lambda count, note: advanced.append((count, note))

    score_held_out(engine, [LONG, ROW], file, progress=progress)
    num_left = 1 if cut == 1 else 2
    assert len(engine.asked) == num_left
    assert advanced == [(4, 4 - num_left), *[(1, "")] * num_left]
    assert file.read_text() == whole.read_text()


def test_without_heads_there_is_nothing_to_score_where_no_reply_follows(tmp_path: Path):
    engine = Watched(readings=())
    assert score_held_out(engine, [LONG, ROW], tmp_path / "held.jsonl") == (3, 0)
    assert all(reply for _, reply in engine.asked)


def test_a_lost_row_is_scored_again_into_its_place_and_strange_rows_go(tmp_path: Path):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "held.jsonl"
    score_held_out(Watched(), [LONG, ROW], whole)
    lines = whole.read_text().splitlines(keepends=True)
    file.write_text(lines[0].replace("c1", "c9") + lines[0] + '{"id": "c1#4"}\n[1]\n' + lines[2] + lines[3])
    engine = Watched()
    score_held_out(engine, [LONG, ROW], file)
    assert [reply for _, reply in engine.asked] == ["A long life."]
    assert file.read_text() == whole.read_text()


def test_what_cannot_be_scored_is_counted_and_never_a_zero(tmp_path: Path):
    file = tmp_path / "held.jsonl"
    engine = Watched(refuse="sorry", infinite="long")
    assert score_held_out(engine, [LONG], file) == (1, 2)
    refused, infinite, scored = read_rows(file)
    assert (refused.status, refused.reason) == ("unscored", "the server is gone")
    assert (infinite.status, infinite.reason) == ("unscored", "the log-probability is -inf")
    assert scored.status == "scored"
    assert refused.logprob is None
    assert refused.num_tokens is None
    engine = Watched()
    assert score_held_out(engine, [LONG], file) == (1, 2)  # they stand in the file: not tried again
    assert not engine.asked


def test_a_reading_that_is_not_finite_makes_the_sample_unscored(tmp_path: Path):
    engine = Watched(readings=[Reading("affect", AFFECTS, (math.nan, 0.0))])
    assert score_held_out(engine, [ROW], tmp_path / "held.jsonl") == (0, 1)
    (row,) = read_rows(tmp_path / "held.jsonl")
    assert row.reason == "the affect head read a number that is not finite"
    assert row.readings == {}


def test_equal_ids_are_refused_within_a_source_only(tmp_path: Path):
    with pytest.raises(ValueError, match=r"goemotions: two samples have the id 'g1#1'"):
        score_held_out(Watched(), [ROW, ROW], tmp_path / "a.jsonl")
    other = Conversation("g1", "other", ROW.turns)
    assert score_held_out(Watched(), [ROW, other], tmp_path / "b.jsonl") == (2, 0)


def test_a_broken_row_in_the_middle_names_file_and_line(tmp_path: Path):
    file = tmp_path / "held.jsonl"
    file.write_text('{"id": 1}\n{}\n')
    with pytest.raises(ValueError, match=r"held\.jsonl, line 1: not a held-out row"):
        read_rows(file)


def test_floors_by_hand():
    train = [
        talk("1", user("a", "joy"), supporter("b", "Question"), user("c", "joy"), supporter("d", "Information")),
        talk("2", user("a", "fear"), supporter("b", "Question"), user("c"), supporter("d", "Information")),
        talk("3", user("a", "fear", "anger"), supporter("b", "Others"), user("c"), supporter("d", "Question")),
        talk("4", Turn("user", "a", risk="high", affect=Affect(-0.5, 0.0))),
        talk("5", Turn("user", "a", risk="none", affect=Affect(0.0, 0.2))),
        talk("6", Turn("user", "a", risk="none", affect=Affect(0.8, 0.1))),
    ]
    floors = fit_floors(train)
    assert floors.counts["emotion"] == {"joy": 2, "fear": 1}  # the row with two emotions is another task
    assert floors.next_strategy == {START: "Question", "Question": "Information", "Others": "Question"}
    assert floors.affect[MEAN] == pytest.approx((0.1, 0.1))
    assert floors.affect[MEDIAN] == (0.0, 0.1)
    golds = [Gold(strategy="Others", previous_strategy=previous) for previous in (START, "Question", "Self-disclosure")]
    predictions = floors.predictions("strategy", golds)
    assert predictions[MAJORITY] == ["Question"] * 3  # 3 times; Information 2, Others 1
    assert predictions[BIGRAM] == ["Question", "Information", "Question"]  # never seen before it: the majority
    assert set(floors.predictions("risk", golds)) == {MAJORITY, CHANCE}
    assert floors.predictions("situation", golds) == {}  # train has no such label: no floor
    assert fit_floors([]) == Floors()


def test_chance_draws_with_the_frequencies_of_train():
    floors = Floors(counts={"risk": {"none": 3, "high": 1}})
    drawn = floors.predictions("risk", [Gold(risk="none")] * 4000)[CHANCE]
    assert drawn.count("high") / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn == floors.predictions("risk", [Gold(risk="none")] * 4000)[CHANCE]


def put(run: RunDir, stage: str, rows: Sequence[Row]) -> None:
    for row in rows:
        append_row(held_out_file(run, stage), row.model_dump(mode="json"))


def reply_row(number: int, loss: float, *, source: str = "esconv", num_tokens: int = 4, num_chars: int = 10) -> Row:
    return Row(
        id=f"c{number}#1",
        conversation=f"c{number}",
        source=source,
        status="scored",
        num_chars=num_chars,
        logprob=-loss,
        num_tokens=num_tokens,
        gold=Gold(),
    )


def read_row(number: int, gold: Gold, readings: dict[str, dict[str, float]]) -> Row:
    return Row(
        id=f"r{number}#1",
        conversation=f"r{number}",
        source="bundled",
        status="scored",
        num_chars=0,
        logprob=0.0,
        num_tokens=0,
        gold=gold,
        readings=readings,
    )


def test_responses_by_hand(tmp_path: Path):
    run = RunDir(tmp_path)
    rows = [reply_row(number, 8.0) for number in range(6)]
    rows += [reply_row(number, 4.0, source="other", num_tokens=8) for number in range(6)]
    rows.append(reply_row(99, 1.0).model_copy(update={"status": "unscored", "logprob": None, "num_tokens": None}))
    put(run, "base", rows)
    summary = summarise(run, Floors(), SETTINGS, seed=7)
    responses = summary.stages["base"].responses
    assert responses.overall.num_turns == 12
    assert (responses.overall.num_tokens, responses.overall.unscored) == (72, 1)
    assert responses.overall.loss_per_token is not None
    assert responses.overall.loss_per_token.value == pytest.approx(72 / 72)
    assert responses.by_source["esconv"].loss_per_token == (2.0, 2.0, 2.0)
    assert responses.by_source["other"].loss_per_token == (0.5, 0.5, 0.5)
    assert responses.by_source["esconv"].bits_per_char == pytest.approx([0.8 / math.log(2)] * 3)
    assert responses.by_source["esconv"].perplexity == pytest.approx([math.exp(2)] * 3)
    assert summary.stages["base"].heads == {}
    assert summary.stages["base"].unscored_reasons == {"no reason given": 1}


@pytest.mark.parametrize(("gain", "said"), [(0.4, "beats"), (-0.4, "below"), (0.0, "not distinguishable")])
def test_stages_are_compared_on_the_replies_that_both_scored(tmp_path: Path, gain: float, said: str):
    run = RunDir(tmp_path)
    put(run, "base", [reply_row(number, 8.0 + number) for number in range(11)])
    put(run, "sft", [reply_row(number, 8.0 + number - gain - 0.01 * (-1) ** number) for number in range(10)])
    (comparison,) = summarise(run, Floors(), SETTINGS, seed=7).comparisons
    assert (comparison.stage, comparison.reference) == ("sft", "base")
    assert (comparison.num_turns, comparison.left_out) == (10, 1)
    assert comparison.loss_per_token is not None
    assert comparison.loss_per_token.value == pytest.approx(-gain / 4)
    assert comparison.by_source["esconv"] == comparison.loss_per_token
    assert comparison.verdict == said


def strategy_rows(num_right: int) -> list[Row]:
    """Twenty decision points, half of them Question; the head is right on the first `num_right`."""
    rows = []
    for number in range(20):
        gold = STRATEGIES[0] if number % 2 else STRATEGIES[1]
        wrong = STRATEGIES[2]
        readings = {"strategy": {gold: 0.7, wrong: 0.3} if number < num_right else {gold: 0.3, wrong: 0.7}}
        rows.append(read_row(number, Gold(strategy=gold, previous_strategy=START), readings))
    return rows


@pytest.mark.parametrize(("num_right", "said"), [(20, "beats"), (10, "not distinguishable"), (0, "below")])
def test_a_head_is_held_against_its_best_floor(tmp_path: Path, num_right: int, said: str):
    run = RunDir(tmp_path)
    put(run, "sft", strategy_rows(num_right))
    train = [talk(str(number), user("a"), supporter("b", STRATEGIES[0])) for number in range(3)]
    head = summarise(run, fit_floors(train), SETTINGS, seed=7).stages["sft"].heads["strategy"]
    metric = head.metrics["accuracy"]
    assert (head.n, head.num_conversations, head.unscored) == (20, 20, 0)
    assert metric.value.value == num_right / 20
    assert set(metric.floors) == {MAJORITY, CHANCE, BIGRAM}
    assert metric.floors[MAJORITY].value == 0.5
    assert metric.difference is not None
    assert metric.difference.value == pytest.approx(num_right / 20 - 0.5)
    assert metric.verdict == said
    assert head.metrics["macro_f1"].floors[MAJORITY].value == pytest.approx(2 / 3 / 2)
    assert [score.support for score in head.labels] == ([10, 10] if num_right == 20 else [10, 10, 0])


def test_emotion_is_scored_on_single_label_rows_and_missing_readings_are_counted(tmp_path: Path):
    run = RunDir(tmp_path)
    right = {"emotion": {"joy": 0.9, "fear": 0.1}}
    rows = [read_row(number, Gold(emotion=("joy",)), right) for number in range(7)]
    rows.append(read_row(7, Gold(emotion=("joy", "love")), right))
    rows.append(read_row(8, Gold(emotion=("fear",)), {}))
    rows.append(read_row(9, Gold(), right))
    put(run, "sft", rows)
    head = summarise(run, Floors(), SETTINGS, seed=7).stages["sft"].heads["emotion"]
    assert (head.n, head.unscored, head.excluded_multi_label) == (7, 1, 1)
    accuracy = head.metrics["accuracy"]
    assert accuracy.value == (1, 1, 1)
    assert (accuracy.floors, accuracy.best_floor, accuracy.verdict) == ({}, None, None)


def test_affect_errors_are_lower_is_better(tmp_path: Path):
    run = RunDir(tmp_path)
    rows = [
        read_row(
            number,
            Gold(affect=(0.5 * (-1) ** number, 0.5)),
            {"affect": {"valence": 0.4 * (-1) ** number, "arousal": -0.5}},
        )
        for number in range(10)
    ]
    put(run, "sft", rows)
    floors = Floors(affect={MEAN: Affect(0.0, 0.25), MEDIAN: Affect(0.0, 0.5)})
    metrics = summarise(run, floors, SETTINGS, seed=7).stages["sft"].heads["affect"].metrics
    assert metrics["valence_mae"].value.value == pytest.approx(0.1)
    assert metrics["valence_mae"].floors[MEAN].value == pytest.approx(0.5)
    assert metrics["valence_mae"].verdict == "beats"
    assert metrics["arousal_mae"].best_floor == MEDIAN
    assert metrics["arousal_mae"].difference == pytest.approx((1.0, 1.0, 1.0))
    assert metrics["arousal_mae"].verdict == "below"


def test_the_summary_file_reads_back_and_repeats_byte_for_byte(tmp_path: Path):
    run = RunDir(tmp_path)
    put(run, "base", [reply_row(number, 8.0) for number in range(3)])  # too few for an interval: null in the file
    put(run, "sft", [*strategy_rows(12), *(reply_row(number, 7.0 + number) for number in range(9))])
    floors = fit_floors([talk("t", user("a"), supporter("b", STRATEGIES[0]))])
    summary = summarise(run, floors, SETTINGS, seed=7)
    text = (tmp_path / "scores" / "summary.json").read_text()
    assert read_summary(run) == summary
    assert json.loads(text)["stages"]["base"]["responses"]["overall"]["loss_per_token"] == {
        "value": 2.0,
        "low": None,
        "high": None,
    }
    summarise(run, floors, SETTINGS, seed=7)
    assert (tmp_path / "scores" / "summary.json").read_text() == text


def test_no_rows_give_an_empty_summary_and_a_broken_one_says_so(tmp_path: Path):
    run = RunDir(tmp_path)
    assert read_summary(run) is None
    assert summarise(run, Floors(), SETTINGS, seed=7).stages == {}
    (tmp_path / "scores" / "summary.json").write_text('{"stages": ')
    with pytest.raises(SummaryError, match=r"summary\.json: not a summary"):
        read_summary(run)


def test_an_astronomic_loss_stays_a_number(tmp_path: Path):
    run = RunDir(tmp_path)
    put(run, "base", [reply_row(number, 1e6) for number in range(6)])
    summarise(run, Floors(), SETTINGS, seed=7)
    assert read_summary(run) is not None
