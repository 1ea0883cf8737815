"""Sources: what is rejected and why, files and hub datasets that cannot be read, and what the hub's rows become."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.config.training import SourceSettings
from warmline.data.conversation import SPLITS, Conversation, Split, Turn
from warmline.data.labels import LABEL_SETS
from warmline.data.sources import chat_jsonl, empathetic_dialogues, esconv, goemotions, hub
from warmline.data.sources.reading import Rejections, SourceError
from warmline.data.sources.registry import SOURCES, load

from .test_sources_layouts import HELM, LAYOUTS, MIRROR, Layout, read_layout

CASES = {  # a layout of local files, and the file of its train split
    "esconv": (LAYOUTS["esconv, folder"], "train.txt"),
    "v2": (LAYOUTS["ed, v2"], "train.csv"),
    "original": (LAYOUTS["ed, original"], "train.csv"),
    "goemotions": (LAYOUTS["goemotions"], "train.tsv"),
    "chat": (LAYOUTS["chat, folder"], "train.jsonl"),
}


def content_of(case: str) -> str:
    layout, name = CASES[case]
    assert isinstance(layout.content, dict)
    return layout.content[name]


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
    "speaker 'cat' is not one of usr, sys, seeker, supporter, speaker, listener": ("esconv", said(speaker="cat")),
    "no turns": ("esconv", said(text=" ")),
    "strategy labels assistant turns, not user turns": ("esconv", said(strategy="Others")),
    "'strategy' is list, expected str": ("esconv", said(speaker="sys", strategy=["Others"])),
    "'dialog' is int, expected list": ("esconv", json.dumps({"dialog": 7}) + "\n"),
    "str where an object with 'speaker' was expected": ("esconv", json.dumps({"dialog": ["Hm."]}) + "\n"),
    "the columns of 'dialog' differ in length": (
        "esconv",
        json.dumps({"dialog": {"text": ["Hm."], "speaker": []}}) + "\n",
    ),
    "2 columns, expected 3": ("goemotions", "Rain, then.\t27\n"),
    "label id '28' is not one of 0 to 27": ("goemotions", "Rain, then.\t28\tx0\n"),
    "duplicate id": ("goemotions", "Rain, then.\t27\tCANARY-id-1\n"),
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
    (source, _, _, expected, *_), name = CASES[case]
    content = content_of(case)
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


BAD_MIRRORS = {  # what a mirror's second row may look like, by the reason
    "'dialog' is NoneType, expected list": ("esconv, Original", {"dialog": None}),
    "malformed JSON: Expecting value": ("esconv, JSON", {"dialog": "["}),
    "role 'system' is not one of user, assistant": (
        "ed, Estwld",
        {"conversations": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hm."}]},
    ),
    "a line of 'references' does not begin with Bob: or Jen:": (
        "ed, lighteval",
        {"references": ["Once it rained.\nBob: Hm."]},
    ),
    "'references' is not a list of strings": ("ed, lighteval", {"references": [None]}),
    "no turns": ("ed, for_lm", {"conv": []}),
}


@pytest.mark.parametrize("reason", BAD_MIRRORS)
def test_a_malformed_row_of_a_mirror_is_rejected_with_its_reason(reason: str) -> None:
    name, changed = BAD_MIRRORS[reason]
    layout = LAYOUTS[name]
    assert isinstance(layout.content, list)
    found, rejections = read_layout(layout._replace(content=[layout.content[0], layout.content[1] | changed]))
    assert [conversation.turns for conversation in found] == [layout.expected[0][1]]
    assert [entry.reason for entry in rejections.rows] == [reason]


def test_several_conversations_about_one_situation_each_get_an_id() -> None:
    both = HELM[1] | {"references": [*HELM[1]["references"], "Bob: Late\nJen: Again?\nBob:  \n"]}
    found, rejections = read_layout(Layout("empathetic_dialogues", "lighteval/empathetic_dialogues", [both], []))
    assert [(conversation.id, conversation.turns[0].situation) for conversation in found] == [
        ("train:1", "annoyed"),
        ("train:1#2", "annoyed"),
    ]
    assert rejections.counts("empathetic_dialogues") == {"empty turn": 1}


def test_other_spellings_of_a_strategy_are_esconv_strategies() -> None:
    spellings = {
        "Questions": "Question",
        "Restatement": "Restatement or Paraphrasing",
        "Reflection of Feelings": "Reflection of feelings",
        "Approval and Reassurance": "Affirmation and Reassurance",
        "Direct Guidance": "Providing Suggestions",
        "Other": "Others",
        "Questoin": "Questoin",  # the check of labels names it
    }
    dialog = [{"text": "Hm.", "speaker": "sys", "strategy": name} for name in spellings]
    found, _ = read_layout(Layout("esconv", "some/mirror", [MIRROR[0] | {"dialog": dialog}], []))
    assert found[0].turns[0].strategy == tuple(spellings.values())


def test_bad_entries_of_a_release_are_rejected_and_each_counted_once(tmp_path: Path) -> None:
    good = json.loads(str(LAYOUTS["esconv, release"].content["ESConv.json"]))  # type: ignore[index]
    days = [{"dialog": [{"speaker": "seeker", "content": f"Day {day}."}]} for day in range(60)]
    (tmp_path / "ESConv.json").write_text(json.dumps([*good, 7, {}, good[0], *days]))
    (tmp_path / "README.txt").touch()
    rejections = Rejections()
    found = [each.id for split in SPLITS for each in esconv.esconv(str(tmp_path), split, rejections)]
    assert len(found) == len(set(found)) == 62
    reasons = ["duplicate id", "int where an object with 'dialog' was expected", "no 'dialog'"]
    assert sorted(entry.reason for entry in rejections.rows) == reasons


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["text", "speaker", "role", "content"]), inner),
)


@given(JSON_VALUES)
def test_no_row_of_a_mirror_crashes(value: object) -> None:
    row: dict[str, object] = dict.fromkeys(("dialog", "conversations", "references", "conv", "emotion"), value)
    for parse in (
        lambda: list(esconv.turns_of(row)),
        lambda: list(empathetic_dialogues.turns_of(empathetic_dialogues.parse_llm(row))),
        lambda: empathetic_dialogues.parse_helm(row),
        lambda: empathetic_dialogues.parse_conv(row),
    ):
        with suppress(ValueError):
            parse()


def test_v2_replies_that_do_not_continue_each_other_stay_apart(tmp_path: Path) -> None:
    other = "CANARY-id:2_1,\"['Snow', 'Much?', 'Knee deep']\",Goodness.,s,surprised,[None],[None]\n"
    found, _ = read("empathetic_dialogues", tmp_path, "train.csv", content_of("v2") + other)
    assert [(conversation.id, len(conversation.turns)) for conversation in found] == [
        ("CANARY-id:1", 4),
        ("CANARY-id:2", 2),
        ("CANARY-id:2#2", 4),
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
    _, rejections = read("esconv", tmp_path, "train.txt", '{"a": "\udce9"}\n' + content_of("esconv").splitlines()[0])
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
    for name, content in (("broken", '[{"dialog":\n'), ("object", "{}"), ("deep", "[" * 100_000)):
        (tmp_path / f"{name}.json").write_text(content)
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    (tmp_path / "test.csv").write_text(content_of("v2").split("\n", maxsplit=1)[0] + '\nx_0,"[1],r,s,e,,\n')
    for found, expected in (
        (
            message("esconv", tmp_path, "test"),
            " has no test.txt (found: broken.json, deep.json, object.json, test.csv, train.",
        ),
        (message("esconv", tmp_path, "validation"), " has no validation.txt or valid.txt or dev.txt (found: broken"),
        (message("esconv", tmp_path / "train.txt"), "/train.txt is a file, expected a folder with train.txt"),
        (message("empathetic_dialogues", tmp_path), " has columns a, b; expected id, chat_history, sys_response, emo"),
        (
            message("empathetic_dialogues", tmp_path, "test"),
            "/test.csv line 2: broken quoting (unexpected end of data)",
        ),
        (message("esconv", tmp_path / "broken.json"), "/broken.json line 2: malformed JSON (Expecting value)"),
        (message("esconv", tmp_path / "object.json"), "/object.json holds a JSON dict, expected a list of conversat"),
        (message("esconv", tmp_path / "deep.json"), "/deep.json: malformed JSON (nested too deep)"),
        (message("failed_esconv", tmp_path), "/FailedESConv.json does not exist, expected FailedESConv.json of the"),
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
    (source, _, _, expected, *_), _ = CASES[case]
    content = content_of(case)
    if case == "goemotions":
        rows = [line.split("\t") for line in content.splitlines()]
        content = "\n".join(json.dumps({"text": t, "labels": json.loads(f"[{n}]"), "id": i}) for t, n, i in rows)
    content = content.replace(",,CANARY-candidates", ",")
    monkeypatch.setattr(module, "is_local", lambda location: False)
    found, rejections = read(source, tmp_path, name, content, "validation")
    assert [conversation.turns for conversation in found] == [turns for _, turns in expected]
    assert rejections.rows == []


@pytest.mark.usefixtures("hub_cache")
def test_hub_errors_are_one_line_and_name_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(hub_id: str) -> str:
        return refusal(lambda: hub.hub_rows(hub_id, "train", ("text",)))

    script = tmp_path / "empathetic_dialogues"
    script.mkdir()
    (script / "empathetic_dialogues.py").touch()
    only = f"hub dataset {script} is only a loading script, which `datasets` no longer runs"
    assert message(str(script)) == only
    table = tmp_path / "table"
    table.mkdir()
    (table / "test.csv").write_text("a,b\n1,2\n")
    assert message(str(table)) == f"hub dataset {table} has no split train (found: test)"
    (table / "train.csv").write_text("a,b\n1,2\n")
    assert message(str(table)) == f"hub dataset {table} has columns a, b; expected text"
    assert len(hub.hub_fingerprint(str(table))) == 64
    (table / "train.csv").write_text("a,c\n1,2\n")
    assert message(str(table)).startswith(f"hub dataset {table} is malformed: ")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert message("warmline-tests/no-such-dataset").startswith(
        "hub dataset warmline-tests/no-such-dataset cannot be read: "
    )
