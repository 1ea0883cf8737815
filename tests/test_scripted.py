"""The engine without a model: replay, seeded decoding, and scores that agree with it."""

import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.engine.engine import Chunk, Engine, EngineError, GenerateRequest, Message, Reading, Sampling
from warmline.engine.scripted import END_TOKEN, VOCABULARY, ScriptedEngine
from warmline.engine.stop_texts import until_stop

HELLO = (Message("user", "I lost my job today."),)
RISK = Reading("risk", ("none", "elevated"), (0.9, 0.1))


def texts(chunks: Iterable[Chunk]) -> list[str]:
    replies: dict[int, str] = defaultdict(str)
    for chunk in chunks:
        replies[chunk.index] += chunk.text
    return [replies[index] for index in sorted(replies)]


def decode(seed: int = 0, messages: tuple[Message, ...] = HELLO, n: int = 1, **sampling: object) -> list[str]:
    request = GenerateRequest(messages, Sampling(**{"max_new_tokens": 24, **sampling}), n=n)  # type: ignore[arg-type]
    return texts(ScriptedEngine(seed=seed).generate(request))


def test_replies_are_streamed_in_turn_and_cycle() -> None:
    engine: Engine = ScriptedEngine(["I am here.", "Tell me\nmore…"])
    request = GenerateRequest(HELLO)
    assert [texts(engine.generate(request))[0] for _ in range(3)] == ["I am here.", "Tell me\nmore…", "I am here."]
    assert texts(engine.generate(GenerateRequest(HELLO, n=2))) == ["Tell me\nmore…", "I am here."]
    assert len(list(engine.generate(request))) > 1


def test_pieces_of_several_replies_alternate() -> None:
    chunks = ScriptedEngine(["a b", "c"]).generate(GenerateRequest(HELLO, n=2))
    assert [(chunk.index, chunk.text) for chunk in chunks] == [(0, "a"), (1, "c"), (0, " b")]


def test_readings_stand_on_the_first_chunk_only_even_without_text() -> None:
    chunks = list(ScriptedEngine(["one two"], readings=[RISK]).generate(GenerateRequest(HELLO, n=2)))
    assert [chunk.readings for chunk in chunks] == [(RISK,), (), (), ()]
    assert list(ScriptedEngine([""], readings=[RISK]).generate(GenerateRequest(HELLO))) == [Chunk("", 0, (RISK,))]


def test_readings_may_depend_on_the_messages() -> None:
    def read(messages: object) -> tuple[Reading, ...]:
        return (RISK,) if "job" in str(messages) else ()

    engine = ScriptedEngine(readings=read)
    assert engine.score(HELLO, "").readings == (RISK,)
    assert engine.score([Message("user", "hi")], "").readings == ()


def test_capabilities_say_what_it_was_given() -> None:
    assert ScriptedEngine().capabilities() == {"logits", "n", "grammar"}
    assert ScriptedEngine(["a"], readings=[RISK]).capabilities() == {"n", "grammar", "heads"}


def test_a_prefill_is_not_repeated() -> None:
    request = GenerateRequest(HELLO, prefill="I am ")
    assert texts(ScriptedEngine(["I am here."]).generate(request)) == ["here."]


def test_decoding_hangs_on_seed_messages_and_prefill() -> None:
    greedy = decode(temperature=0)
    assert greedy == decode(temperature=0)
    assert greedy != decode(seed=1, temperature=0)
    assert greedy != decode(messages=(Message("user", "Hello."),), temperature=0)
    assert len(decode(temperature=0, max_new_tokens=3)[0]) <= 3
    first = greedy[0][:5]
    request = GenerateRequest(HELLO, Sampling(temperature=0, max_new_tokens=19), prefill=first)
    assert texts(ScriptedEngine().generate(request)) == [greedy[0][5:]]


def test_decoding_is_the_same_in_another_process() -> None:
    code = "import tests.test_scripted as t; print(t.decode(temperature=0)[0])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == decode(temperature=0)[0] + "\n"


def test_a_seed_repeats_a_draw_and_the_replies_of_one_request_differ() -> None:
    engine = ScriptedEngine()
    seeded = GenerateRequest(HELLO, Sampling(temperature=1, seed=-7, max_new_tokens=24), n=3)
    replies = texts(engine.generate(seeded))
    assert texts(engine.generate(seeded)) == replies
    assert len(set(replies)) == 3


def test_without_a_seed_draws_differ_but_the_sequence_repeats() -> None:
    request = GenerateRequest(HELLO, Sampling(temperature=1, max_new_tokens=24))

    def two() -> list[str]:
        engine = ScriptedEngine()
        return [texts(engine.generate(request))[0] for _ in range(2)]

    assert two() == two()
    assert len(set(two())) == 2


def test_a_small_top_p_is_greedy_and_a_high_temperature_is_not() -> None:
    assert decode(temperature=1, top_p=1e-9) == decode(temperature=0)
    assert decode(temperature=1e-9, top_p=1.0) == decode(temperature=0)
    assert decode(temperature=5, top_p=1.0) != decode(temperature=0)


def test_scores_agree_with_generation() -> None:
    engine = ScriptedEngine()
    tokens = [*VOCABULARY]
    first = decode(temperature=0, max_new_tokens=1)[0]
    assert engine.next_logits(HELLO, []).argmax() == tokens.index(ord(first))
    reply = decode(temperature=0, max_new_tokens=6)[0]
    expected = 0.0
    ids = [*(tokens.index(byte) for byte in reply.encode()), END_TOKEN]
    for position, token in enumerate(ids):
        logits = [float(value) for value in engine.next_logits(HELLO, ids[:position])]
        expected += logits[token] - math.log(sum(math.exp(value) for value in logits))
    scores = engine.score(HELLO, reply)
    assert scores.num_tokens == len(ids)
    assert scores.logprob == pytest.approx(expected)


def test_first_tokens_are_drawn_as_often_as_their_score_says() -> None:
    engine = ScriptedEngine()
    logits = engine.next_logits(HELLO, [])
    likeliest = math.exp(float(logits.max())) / sum(math.exp(float(value)) for value in logits)
    replies = texts(engine.generate(GenerateRequest(HELLO, Sampling(1.0, 1.0, 1, seed=3), n=400)))
    share = replies.count(decode(temperature=0, max_new_tokens=1)[0]) / 400
    assert share == pytest.approx(likeliest, abs=4 * math.sqrt(likeliest * (1 - likeliest) / 400))


def test_text_outside_the_vocabulary_still_has_a_finite_score() -> None:
    scores = ScriptedEngine().score([Message("user", "\udc80")], "é\n")
    assert math.isfinite(scores.logprob)
    assert scores.num_tokens == 4


def test_an_empty_reply_has_no_tokens() -> None:
    assert ScriptedEngine(["a"]).score(HELLO, "") == (0.0, 0, ())


def test_what_it_cannot_do_is_an_error() -> None:
    with pytest.raises(EngineError, match="no log-probabilities"):
        ScriptedEngine(["a"]).score(HELLO, "a")
    with pytest.raises(EngineError, match="grammar cannot be followed"):
        list(ScriptedEngine().generate(GenerateRequest(HELLO, constraint="start: NOWHERE")))
    with pytest.raises(EngineError, match="n is 0"):
        ScriptedEngine().generate(GenerateRequest(HELLO, n=0))
    with pytest.raises(EngineError, match="a list"):
        ScriptedEngine("a reply")


def test_stop_texts_end_a_reply() -> None:
    request = GenerateRequest(HELLO, Sampling(stop=("\nuser:", "###")))
    assert texts(ScriptedEngine(["I see.\nuser: no"]).generate(request)) == ["I see."]
    greedy = decode(temperature=0)[0]
    assert decode(temperature=0, stop=(greedy[6:9],)) == [greedy[: greedy.index(greedy[6:9])]]


@given(st.lists(st.text(alphabet="ab", max_size=4)), st.lists(st.text(alphabet="ab", max_size=3), max_size=3))
def test_stopping_does_not_hang_on_where_the_pieces_are_cut(pieces: list[str], stop: list[str]) -> None:
    whole = "".join(pieces)
    prefixes = (whole[:length] for length in range(len(whole) + 1))
    ends = ([prefix.find(text) for text in stop if text and text in prefix] for prefix in prefixes)
    first = next((min(starts) for starts in ends if starts), len(whole))
    assert "".join(until_stop(pieces, stop)) == whole[:first]


def test_a_grammar_is_followed_whatever_the_logits_and_with_given_replies_too() -> None:
    lark = 'start: "That " ("sounds hard" | "must hurt") ("." | ", and I am here.")'
    for engine in (ScriptedEngine(), ScriptedEngine(["I will not follow it."])):
        seen = set()
        for seed in range(30):
            request = GenerateRequest(HELLO, Sampling(temperature=1.0, top_p=1.0, seed=seed), constraint=lark)
            seen.add("".join(chunk.text for chunk in engine.generate(request)))
        assert seen == {
            f"That {what}{end}" for what in ("sounds hard", "must hurt") for end in (".", ", and I am here.")
        }
