"""Simulated talks: what the seeker sees, how a talk ends, that a seed repeats it, resuming, and the export."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from warmline.data.sources.chat_jsonl import chat_rows, turns_of
from warmline.dialogue.companion import Setting
from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Sampling, Scores
from warmline.engine.remote import RemoteEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.held_out import Progressed
from warmline.evaluate.judge import Judge, score_rubric
from warmline.evaluate.prompt_sets import Persona
from warmline.evaluate.rows import read_rows
from warmline.evaluate.simulate import (
    TALK_RUBRIC,
    Seeker,
    Talk,
    TalkTurn,
    conversations,
    export_talks,
    read_personas,
    seeker_prompt,
    simulate,
    talk_items,
)
from warmline.safety.detect import load_detector
from warmline.safety.resources.directory import load_directory

from .test_remote import DONE, event, serving

CARD: dict[str, Any] = {
    "id": "p1",
    "age": 34,
    "situation": "She moved to a new town and knows nobody.",
    "mood": "lonely",
    "openness": "hesitant",
    "goal": "to hear that it takes time",
    "style": "short lines, lower case",
    "opening": "hi. new town, no one to talk to",
    "risk": "none",
    "domain": "moving",
}
PERSONA = Persona(**CARD)
SETTING = Setting(ScriptedEngine(["That sounds lonely."]), load_detector(), load_directory(), "You are a friend.")


class Says:
    """An engine that says what a function of the request gives, and remembers what it was asked."""

    def __init__(self, say: Callable[[GenerateRequest], str]) -> None:
        self._say = say
        self.requests: list[GenerateRequest] = []

    def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.requests.append(request)
        yield Chunk(self._say(request))

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        raise EngineError("not asked here")


def played(
    file: Path, seeker: Any, personas: Sequence[Persona] = (PERSONA,), setting: Setting = SETTING, **more: Any
) -> list[Talk]:
    simulate(setting, "scripted", Seeker(seeker, "seeker"), personas, file, **more)
    return read_rows(file, Talk)


def words(talk: Talk) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in talk.turns]


def test_a_talk_goes_on_in_turns_until_the_limit(tmp_path: Path) -> None:
    [talk] = played(tmp_path / "talks.jsonl", ScriptedEngine(["it is quiet here", "the shops are shut"]), max_turns=3)
    answer = ("assistant", "That sounds lonely.")
    assert words(talk) == [
        ("user", CARD["opening"]), answer, ("user", "it is quiet here"), answer, ("user", "the shops are shut"), answer,
    ]  # fmt: skip
    assert (talk.status, talk.ended, talk.domain, talk.risk) == ("scored", "turns", "moving", "none")
    assert [(turn.level, turn.reply_source, turn.card) for turn in talk.turns[1::2]] == [("none", "model", False)] * 3


def test_a_goodbye_ends_the_talk_after_its_answer(tmp_path: Path) -> None:
    [talk] = played(tmp_path / "talks.jsonl", ScriptedEngine(["that helped. i have to go now, bye!", "still here"]))
    assert talk.ended == "farewell"
    assert len(talk.turns) == 4
    assert talk.turns[-1].role == "assistant"


def test_the_seeker_sees_its_card_and_words_and_no_metadata(tmp_path: Path) -> None:
    seeker = Says(lambda request: "i want to kill myself tonight")
    [talk] = played(tmp_path / "talks.jsonl", seeker, max_turns=3)
    assert any(turn.card for turn in talk.turns)
    assert {turn.level for turn in talk.turns[3::2]} & {"high", "emergency"}
    seen = "\n".join(message.content for request in seeker.requests for message in request.messages)
    for hidden in ("elevated", "high", "emergency", "guided", "slots", "moving", "112", "116 123"):
        assert hidden not in seen, hidden
    system, opens, *rest = seeker.requests[-1].messages
    assert (system.role, opens.role) == ("system", "user")
    assert CARD["situation"] in system.content
    assert [message.role for message in rest] == ["assistant", "user"] * 2
    assert rest[0].content == CARD["opening"]
    assert rest[1].content == talk.turns[1].text


def test_the_prompt_holds_every_part_of_the_card_that_is_the_persons() -> None:
    prompt = seeker_prompt(PERSONA)
    for key in ("age", "situation", "mood", "openness", "goal", "style"):
        assert str(CARD[key]) in prompt
    assert "moving" not in prompt


def test_the_same_seed_gives_the_same_talk_and_another_one_another(tmp_path: Path) -> None:
    def once(name: str, seed: int) -> list[Talk]:
        short = Sampling(max_new_tokens=12)
        setting = replace(SETTING, engine=ScriptedEngine(seed=1), sampling=short)
        file = tmp_path / name
        simulate(
            setting, "c", Seeker(ScriptedEngine(seed=2), "s", short), [PERSONA], file, seed=seed, repeats=2, max_turns=3
        )
        return read_rows(file, Talk)

    first, second = once("a", 1)
    assert [first, second] == once("b", 1)
    assert words(first) != words(second), "two repeats are two talks"
    assert words(first) != words(once("c", 2)[0])


def test_a_card_more_changes_no_other_talk(tmp_path: Path) -> None:
    other = PERSONA.model_copy(update={"id": "p0"})
    engine = ScriptedEngine(seed=2)
    [alone] = played(tmp_path / "a", engine, max_turns=2)
    together = played(tmp_path / "b", ScriptedEngine(seed=2), [other, PERSONA], max_turns=2)
    assert alone == together[1]


def test_finished_talks_are_kept_and_the_rest_is_played(tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    cards = [PERSONA.model_copy(update={"id": f"p{number}"}) for number in range(3)]
    seeker = Says(lambda request: "it is quiet")
    assert len(played(file, seeker, cards[:2], max_turns=2)) == 2
    before = file.read_text()
    with file.open("a") as handle:
        handle.write('{"id": "p2#0", "per')  # killed while it was written
    assert [talk.id for talk in played(file, seeker, cards, max_turns=2)] == ["p0#0", "p1#0", "p2#0"]
    assert file.read_text().startswith(before)
    assert len(seeker.requests) == 3
    played(file, seeker, cards, max_turns=2)
    assert len(seeker.requests) == 3
    changed = [cards[0].model_copy(update={"mood": "glad"}), *cards[1:]]
    played(file, seeker, changed, max_turns=2)
    assert len(seeker.requests) == 4, "a card that changed is played anew"


def test_a_seeker_that_fails_leaves_the_talk_unscored_and_what_was_said(tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    unreachable = RemoteEngine("http://127.0.0.1:9", "nobody")
    [talk] = played(file, unreachable)
    assert (talk.status, talk.ended, len(talk.turns)) == ("unscored", "seeker failed", 2)
    assert talk.reason is not None
    assert talk.reason.startswith("seeker: cannot connect")
    silent = Says(lambda request: "  \n")
    done = simulate(SETTING, "scripted", Seeker(silent, "silent"), [PERSONA], file)
    assert done == Progressed(0, 1)
    assert len(silent.requests) == 3
    assert len({request.sampling.seed for request in silent.requests}) == 3
    assert export_talks(read_rows(file, Talk), tmp_path / "out.jsonl") == 0


def test_a_seeker_over_http_and_a_companion_whose_engine_fails(tmp_path: Path) -> None:
    def breaks(request: GenerateRequest) -> str:
        raise EngineError("out of order")

    with serving() as server:
        server.streams(event("it is quiet", finish="stop"), DONE)
        [talk] = played(
            tmp_path / "talks.jsonl",
            RemoteEngine(server.url, "m"),
            setting=replace(SETTING, engine=Says(breaks)),
            max_turns=2,
        )
    assert talk.status == "scored", "the companion's failure is what people would meet"
    assert [turn.reply_source for turn in talk.turns[1::2]] == ["notice", "notice"]
    assert all(turn.text for turn in talk.turns)
    assert list(conversations([talk])) == [], "the app's own words train nobody"


def test_an_export_is_what_the_data_layer_reads(tmp_path: Path) -> None:
    talks = played(tmp_path / "talks.jsonl", ScriptedEngine(["it is quiet here", "the shops are shut"]), max_turns=3)
    file = tmp_path / "out.jsonl"
    assert export_talks(talks, file) == 1
    [(row_id, line)] = chat_rows(file)
    [conversation] = conversations(talks)
    assert (row_id, conversation.source) == ("p1#0", "simulated")
    assert tuple(turns_of(line)) == conversation.turns  # type: ignore[comparison-overlap]
    assert len(conversation.turns) == 6
    assert all(turn.risk is None for turn in conversation.turns), "a reading is no gold label"


def test_an_export_ends_before_a_notice() -> None:
    turns = [TalkTurn(role="user", text="a"), TalkTurn(role="assistant", text="b", reply_source="model")]
    turns += [
        TalkTurn(role="user", text="c"),
        TalkTurn(role="assistant", text="Please try again.", reply_source="notice"),
    ]
    talk = Talk(
        id="p#0", persona="p", domain="d", risk="none", seeker="s", companion="c", seed=0, made_with="",
        status="scored", ended="turns", turns=tuple(turns * 2),
    )  # fmt: skip
    [conversation] = conversations([talk])
    assert [turn.text for turn in conversation.turns] == ["a", "b"]


def test_a_judge_scores_talks_by_their_words_alone(tmp_path: Path) -> None:
    talks = played(tmp_path / "talks.jsonl", ScriptedEngine(["i want to die", "it is quiet"]), max_turns=2)
    [item] = talk_items(talks)
    assert f"PERSON: {CARD['opening']}\nCOMPANION: That sounds lonely." in item.prompt
    assert "emergency" not in item.prompt
    answer = json.dumps(dict.fromkeys(TALK_RUBRIC.criteria, 10))
    judge = Judge(ScriptedEngine([answer]), "scripted")
    assert score_rubric(judge, [item], TALK_RUBRIC, tmp_path / "judged.jsonl") == Progressed(1, 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"age": "old"}, "line 1: age"),
        ({"openness": "shy"}, "line 1: openness"),
        ({"opening": ""}, "line 1: opening"),
        ({"secret": 1}, "line 1: secret"),
    ],
)
def test_a_broken_card_is_named(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    file = tmp_path / "cards.jsonl"
    file.write_text(json.dumps(CARD | change) + "\n")
    with pytest.raises(ValueError, match=why):
        read_personas(file)


def test_cards_are_read_and_a_file_without_them_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cards.jsonl"
    with pytest.raises(ValueError, match="does not exist"):
        read_personas(file)
    file.write_text("\n")
    with pytest.raises(ValueError, match="no persona card"):
        read_personas(file)
    file.write_text(json.dumps(CARD) + "\n" + json.dumps(CARD | {"id": "p2"}) + "\n")
    assert [card.id for card in read_personas(file)] == ["p1", "p2"]
    file.write_text((json.dumps(CARD) + "\n") * 2)
    with pytest.raises(ValueError, match="'p1' stands twice"):
        read_personas(file)
