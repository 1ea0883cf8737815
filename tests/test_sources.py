"""Sources: what each layout becomes, what is rejected and why, and that metadata never becomes text."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.config import SourceSettings
from warmline.data.conversation import SPLITS, Affect, Conversation, Split, Turn
from warmline.data.labels import LABEL_SETS
from warmline.data.sources import chat_jsonl, empathetic_dialogues, esconv, goemotions, hub
from warmline.data.sources.reading import Rejection, Rejections, SourceError
from warmline.data.sources.registry import SOURCES, load

ESCONV = {
    "experience_type": "CANARY-1",
    "emotion_type": "CANARY-2",
    "problem_type": "CANARY-3",
    "situation": "CANARY-4",
    "survey_score": {"seeker": {"initial_emotion_intensity": "CANARY-5"}},
    "seeker_question1": "CANARY-6",
    "supporter_question2": "CANARY-7",
    "dialog": [
        {"text": "Hello\u00a0 there.", "speaker": "sys", "strategy": "Others"},
        {"text": "My allotment flooded", "speaker": "usr", "feedback": "CANARY-8"},
        {"text": "and the beans are gone.\n", "speaker": "usr"},
        {"text": " ", "speaker": "sys", "strategy": "Information"},
        {"text": "All of them?", "speaker": "sys", "strategy": "CANARY-9"},
        {"text": "It was May.", "speaker": "sys", "strategy": "Reflection of feelings"},
    ],
}
ESCONV_TURNS = (
    Turn("assistant", "Hello there.", strategy=("Others",)),
    Turn("user", "My allotment flooded and the beans are gone."),
    Turn("assistant", "All of them? It was May.", strategy=("CANARY-9", "Reflection of feelings")),
)
V2 = (
    "id,chat_history,sys_response,situation,emotion,question or not,behavior\n"
    'hit:1_conv:2_0,"[\'My kite, the red one, flew\']","How high, roughly?",CANARY-1,CANARY-2,CANARY-3,CANARY-4\n'
    'hit:1_conv:2_1,"[\'My kite, the red one, flew\', \'How high, roughly?\', ""It\'s over the barn""]",Lovely!,CANARY-1,CANARY-2,[None],[None]\n'
    "hit:1_conv:3_0,['No bus again'],How long now?,CANARY-5,annoyed,[None],[None]\n"
)
ORIGINAL = (
    "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"
    "hit:1_conv:2,1,CANARY-2,CANARY-1,7,My kite_comma_ the red one_comma_ flew,CANARY-5|5|5,\n"
    "hit:1_conv:2,2,CANARY-2,CANARY-1,3,How high_comma_ roughly?,5|5|5,CANARY-6\n"
    "hit:1_conv:2,3,CANARY-2,CANARY-1,7,It's over the barn,5|5|5,\n"
    "hit:1_conv:2,4,CANARY-2,CANARY-1,3,Lovely!,5|5|5,,CANARY-7\n"
    "hit:1_conv:3,1,annoyed,CANARY-8,1,No bus again,5|5|5,\n"
    "hit:1_conv:3,2,annoyed,CANARY-8,0,How long now?,5|5|5,\n"
)
KITE = (
    Turn("user", "My kite, the red one, flew", situation="CANARY-2"),
    Turn("assistant", "How high, roughly?"),
    Turn("user", "It's over the barn"),
    Turn("assistant", "Lovely!"),
)
BUS = (Turn("user", "No bus again", situation="annoyed"), Turn("assistant", "How long now?"))
GOEMOTIONS = 'He said "go\t27\tCANARY-1\nWe won, we won!\t13,17\tCANARY-2\n'
USER_LABELS = {
    "emotions": ["CANARY-4", "sadness"],
    "situation": "CANARY-5",
    "risk": "elevated",
    "affect": {"valence": -0.7, "arousal": -1},
}
CHAT = {
    "id": "CANARY-1",
    "topic": "CANARY-2",
    "messages": [
        {"role": "system", "content": "CANARY-3"},
        {"role": "user", "content": "Nothing will  ever change.", **USER_LABELS},
        {"role": "assistant", "content": "That sounds heavy.", "strategy": "CANARY-6"},
    ],
}
CHAT_TURNS = (
    Turn("user", "Nothing will ever change.", ("CANARY-4", "sadness"), "CANARY-5", (), "elevated", Affect(-0.7, -1)),
    Turn("assistant", "That sounds heavy.", strategy=("CANARY-6",)),
)
COMMENTS = [
    ("CANARY-1", (Turn("user", 'He said "go', emotions=("neutral",)),)),
    ("CANARY-2", (Turn("user", "We won, we won!", emotions=("excitement", "joy")),)),
]
CASES = {  # source, file of the train split, content, what it becomes
    "esconv": ("esconv", "train.txt", json.dumps(ESCONV) + "\n\n", [("train:1", ESCONV_TURNS)]),
    "v2": ("empathetic_dialogues", "train.csv", V2, [("hit:1_conv:2", KITE), ("hit:1_conv:3", BUS)]),
    "original": ("empathetic_dialogues", "train.csv", ORIGINAL, [("hit:1_conv:2", KITE), ("hit:1_conv:3", BUS)]),
    "goemotions": ("goemotions", "train.tsv", GOEMOTIONS, COMMENTS),
    "chat": ("chat_jsonl", "train.jsonl", json.dumps(CHAT), [("CANARY-1", CHAT_TURNS)]),
}


def read(source: str, folder: Path, name: str, content: str, split: Split = "train"):
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    rejections = Rejections()
    return list(SOURCES[source].read(str(folder), split, rejections)), rejections


def load_all(name: str, root: Path, location: str | None = None) -> list[list[Conversation]]:
    """The splits of a source, read as a run reads them, with nothing rejected."""
    settings, rejections = SourceSettings(location=location), Rejections()
    to = {"data_root": root, "rejections": rejections, "allowed_labels": LABEL_SETS, "seed": 7}
    loaded = [load(name, settings, split, **to) for split in SPLITS]
    assert rejections.rows == []
    return loaded


def refusal(call: Callable[[], Iterable[object]]) -> str:
    with pytest.raises(SourceError) as caught:
        list(call())
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_reader(case: str, tmp_path: Path) -> None:
    source, name, content, expected = CASES[case]
    found, rejections = read(source, tmp_path, name, content)
    assert found == [Conversation(row_id, source, turns) for row_id, turns in expected]
    assert rejections.rows == []
    assert rejections.num_rows[source] == len(expected)


@pytest.mark.parametrize("case", CASES)
def test_no_metadata_in_text(case: str, tmp_path: Path) -> None:
    source, name, content, _ = CASES[case]
    assert "CANARY" in content
    found, _ = read(source, tmp_path, name, content)
    assert found
    assert all("CANARY" not in turn.text for conversation in found for turn in conversation.turns)


def test_what_is_left_out_of_a_kept_conversation_is_counted(tmp_path: Path) -> None:
    _, rejections = read("esconv", tmp_path, "train.txt", json.dumps(ESCONV))
    assert rejections.pieces == [Rejection("esconv", "train", "train:1", "empty turn", None)]
    _, rejections = read("chat_jsonl", tmp_path, "train.jsonl", json.dumps(CHAT))
    assert rejections.counts("chat_jsonl") == {"system message": 1}


def said(**fields: object) -> str:
    return json.dumps({"dialog": [{"text": "Hm.", "speaker": "usr", **fields}]}) + "\n"


def sent(*more: object, **fields: object) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "Hm.", **fields}, *more]}) + "\n"


REJECTED = {  # one bad row stands before good ones, which must survive
    "malformed JSON: Expecting value": ("esconv", '{"dialog": \n'),
    "malformed JSON: nested too deep": ("esconv", "[" * 100_000 + "\n"),
    "JSON list, expected an object": ("esconv", "[]\n"),
    "invalid UTF-8": ("esconv", '{"dialog": [{"text": "caf\udce9", "speaker": "usr"}]}\n'),
    "no 'dialog'": ("esconv", "{}\n"),
    "'text' is NoneType, expected str": ("esconv", said(text=None)),
    "speaker 'cat' is not one of usr, sys": ("esconv", said(speaker="cat")),
    "no turns": ("esconv", said(text=" ")),
    "strategy labels assistant turns, not user turns": ("esconv", said(strategy="Others")),
    "2 columns, expected 3": ("goemotions", "Rain, then.\t27\n"),
    "label id '28' is not one of 0 to 27": ("goemotions", "Rain, then.\t28\tx0\n"),
    "duplicate id": ("goemotions", "Rain, then.\t27\tCANARY-1\n"),
    "'chat_history' is not a Python list of strings": ("v2", "hit:1_conv:1_0,['Oh,No,s,sad,,\n"),
    "6 columns, expected 7": ("v2", "hit:1_conv:1_0,['Oh'],No,s,sad,\n"),
    "an utterance is missing or stands twice": ("original", "hit:1_conv:1,2,sad,p,0,Oh,5,\n"),
    "more than two speakers": ("original", "".join(f"hit:1_conv:1,{n},sad,p,{n},Oh,5,\n" for n in (1, 2, 3))),
    "'utterance_idx' is not a number": ("original", "hit:1_conv:1,one,sad,p,0,Oh,5,\n"),
    "role 'robot' is not one of user, assistant": ("chat", sent(role="robot")),
    "'content' is NoneType, expected str": ("chat", sent(content=None)),
    "str where an object with 'role' was expected": ("chat", sent("Hi.")),
    "a system message that is not the first message": ("chat", sent({"role": "system", "content": "Be brief."})),
    "unknown key 'emotion' in a message (did you mean 'emotions'?)": ("chat", sent(emotion="joy")),
    "'emotions' is neither a label nor a list of labels": ("chat", sent(emotions=[3])),
    "'affect' is not {valence: number, arousal: number}": ("chat", sent(affect={"valence": True, "arousal": 0})),
    "affect (2.0, 0.0) lies outside [-1, 1]": ("chat", sent(affect={"valence": 2, "arousal": 0})),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_malformed_row_is_rejected_with_its_reason(reason: str, tmp_path: Path) -> None:
    case, bad = REJECTED[reason]
    source, name, content, expected = CASES[case]
    if case in ("v2", "original"):
        header, content = content.split("\n", 1)
        bad = f"{header}\n{bad}"
    elif reason == "duplicate id":
        bad, content = content, bad
    found, rejections = read(source, tmp_path, name, bad + content)
    assert len(found) == len(expected)
    assert [entry.reason for entry in rejections.rows] == [reason]
    assert rejections.num_rows[source] == len(expected) + 1


@given(st.text() | st.recursive(st.none() | st.booleans() | st.text(), st.lists).map(lambda value: json.dumps([value])))
def test_no_chat_line_crashes(line: str) -> None:
    for text in (line, f'{{"messages": {line}}}'):
        with suppress(ValueError):
            assert all(isinstance(turn, Turn) for turn in chat_jsonl.turns_of(text))


def test_v2_replies_that_do_not_continue_each_other_stay_apart(tmp_path: Path) -> None:
    other = "hit:1_conv:3_1,\"['Snow', 'Much?', 'Knee deep']\",Goodness.,s,surprised,[None],[None]\n"
    found, _ = read("empathetic_dialogues", tmp_path, "train.csv", V2 + other)
    assert [(conversation.id, len(conversation.turns)) for conversation in found] == [
        ("hit:1_conv:2", 4),
        ("hit:1_conv:3", 2),
        ("hit:1_conv:3#2", 4),
    ]


def test_one_chat_file_is_split_by_id_and_each_bad_line_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"id": n, "messages": [{"role": "user", "content": f"Day {n}."}]}) for n in range(200)]
    path.write_text("\n".join([*lines, "{", '{"messages": [{"role": "user", "content": "No id."}]}']))
    rejections = Rejections()
    parts = {split: list(chat_jsonl.chat_jsonl(str(path), split, rejections)) for split in SPLITS}
    ids = [conversation.id for part in parts.values() for conversation in part]
    assert len(ids) == len(set(ids)) == 201
    assert [entry.id for entry in rejections.rows] == ["mine.jsonl:201"]
    assert 0.7 < len(parts["train"]) / 200 < 0.9
    assert len(parts["validation"]) > 5 < len(parts["test"])


def test_rejections_write_one_line_each_and_refuse(tmp_path: Path) -> None:
    _, rejections = read("esconv", tmp_path, "train.txt", '{"a": "\udce9"}\n' + json.dumps(ESCONV))
    rejections.write(tmp_path / "rejected.jsonl")
    first, second = map(json.loads, (tmp_path / "rejected.jsonl").read_text().splitlines())
    assert list(first) == ["source", "split", "id", "reason", "row"]
    assert list(first.values()) == ["esconv", "train", "train:1", "invalid UTF-8", '{"a": "\udce9"}']
    assert second["reason"] == "empty turn"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    rejections.refuse_above(0.5)
    with pytest.raises(SourceError) as caught:
        rejections.refuse_above(0.02, "runs/a/rejected.jsonl")
    assert str(caught.value) == (
        "esconv: 50.0% of 2 rows rejected, at most 2.0% allowed (data.max_rejected_share): "
        "invalid UTF-8 (1); they are kept in runs/a/rejected.jsonl"
    )
    Rejections().refuse_above(0.0)


def test_file_errors_name_the_file_and_what_was_expected(tmp_path: Path) -> None:
    def message(source: str, location: Path, split: Split = "train") -> str:
        return refusal(lambda: SOURCES[source].read(str(location), split, Rejections()))

    (tmp_path / "train.txt").touch()
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    (tmp_path / "test.csv").write_text(V2.split("\n", maxsplit=1)[0] + '\nx_0,"[1],r,s,e,,\n')
    for found, expected in (
        (message("esconv", tmp_path, "test"), " has no test.txt (found: test.csv, train.csv, train.txt)"),
        (message("esconv", tmp_path, "validation"), " has no validation.txt or valid.txt or dev.txt (found: test.csv"),
        (message("esconv", tmp_path / "train.txt"), "/train.txt is a file, expected a folder with train.txt"),
        (message("empathetic_dialogues", tmp_path), " has columns a, b; expected id, chat_history, sys_response, emo"),
        (
            message("empathetic_dialogues", tmp_path, "test"),
            "/test.csv line 2: broken quoting (unexpected end of data)",
        ),
        (message("bundled", tmp_path), "/conversations.jsonl does not exist, expected the bundled corpus"),
        (message("chat_jsonl", tmp_path / "no.jsonl"), "/no.jsonl does not exist, expected a JSONL file or a folder"),
    ):
        assert found.startswith(f"{tmp_path}{expected}")


@pytest.fixture
def hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of the hub give `datasets` a local folder, which it reads as it reads a repository."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("case", "module", "name"),
    [
        ("esconv", esconv, "dev.txt"),
        ("v2", empathetic_dialogues, "valid.csv"),
        ("original", empathetic_dialogues, "validation.csv"),
        ("goemotions", goemotions, "validation.jsonl"),
    ],
)
def test_hub_rows_become_the_same(
    case: str, module: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, content, expected = CASES[case]
    if case == "goemotions":
        rows = [line.split("\t") for line in content.splitlines()]
        content = "\n".join(json.dumps({"text": t, "labels": json.loads(f"[{n}]"), "id": i}) for t, n, i in rows)
    content = content.replace(",,CANARY-7", ",")
    monkeypatch.setattr(module, "is_local", lambda location: False)
    found, rejections = read(source, tmp_path, name, content, "validation")
    assert [conversation.turns for conversation in found] == [turns for _, turns in expected]
    assert rejections.rows == []


@pytest.mark.usefixtures("hub_cache")
def test_hub_errors_are_one_line_and_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(hub_id: str) -> str:
        return refusal(lambda: hub.hub_rows("esconv", hub_id, "train", ("text",)))

    script = tmp_path / "empathetic_dialogues"
    script.mkdir()
    (script / "empathetic_dialogues.py").touch()
    assert message(str(script)) == (
        f"hub dataset {script} is only a loading script, which `datasets` no longer runs: "
        "use its mirror Adapting/empathetic_dialogues_v2"
    )
    table = tmp_path / "table"
    table.mkdir()
    (table / "test.csv").write_text("a,b\n1,2\n")
    assert message(str(table)) == f"hub dataset {table} has no split train (found: test)"
    (table / "train.csv").write_text("a,b\n1,2\n")
    assert message(str(table)) == f"hub dataset {table} has columns a, b; expected text"
    assert len(hub.hub_fingerprint(str(table))) == 64
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = message("warmline-tests/no-such-dataset")
    assert offline.startswith("hub dataset warmline-tests/no-such-dataset cannot be read: ")
    assert offline.endswith("; give a local folder in data.sources.esconv.location or set WARMLINE_DATA")
