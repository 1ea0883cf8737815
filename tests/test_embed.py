"""The companion inside another program: replies, streams, threads, and the two examples as they stand."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import warmline
from warmline.config.fields import StyleSettings
from warmline.embed import Companion, ConversationError, Piece, Reply
from warmline.engine.engine import EngineError, GenerateRequest, Reading
from warmline.engine.scripted import ScriptedEngine
from warmline.safety.detect import load_detector

from .test_companion import GOOD, RISK, Says

SAD = Reading("emotion", ("sadness", "joy"), (0.8, 0.2))
EXAMPLES = Path(__file__).parent.parent / "examples"


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def opened(engine: Any, **options: Any) -> Companion:
    return warmline.open_companion(engine, country="IE", **options)  # type: ignore[operator]


def test_importing_warmline_loads_nothing_and_the_library_no_torch() -> None:
    code = (
        "import sys, warmline\n"
        "print([name for name in sys.modules if name.startswith('warmline.')])\n"
        "warmline.open_companion\n"
        "from warmline.engine.scripted import ScriptedEngine\n"
        "print(warmline.open_companion(ScriptedEngine(['That sounds hard.'])).reply([('user', 'hi')]).text)\n"
        "print('torch' in sys.modules, hasattr(warmline, 'open_companoin'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "That sounds hard.", "False False"]


def test_a_reply_with_what_belongs_to_it() -> None:
    companion = opened(ScriptedEngine(["That sounds hard. I am here."], readings=(SAD,)))
    first = companion.reply(said("I lost my job"))
    assert (first.text, first.level, first.card, first.reply_source) == (
        "That sounds hard. I am here.",
        "none",
        None,
        "model",
    )
    assert first.readings == (SAD,)
    assert "an AI" in " ".join(first.disclosure)
    again = companion.reply(said("I lost my job", first.text, "thanks"))
    assert again.disclosure == ()  # said with the first reply


def test_in_danger_the_card_comes_first_and_the_history_counts() -> None:
    companion = opened(Says(lambda request: [GOOD] * request.n))
    pieces = list(companion.stream(said(RISK)))
    assert [piece.kind for piece in pieces[:-1] if isinstance(piece, Piece)] == ["card", "reply"]
    assert "116 123" in pieces[0].text
    last = pieces[-1]
    assert isinstance(last, Reply)
    assert last.level == "high"
    assert last.card is not None
    later = companion.reply(said(RISK, GOOD, "never mind, what is for dinner"))
    assert later.level == "high"


def test_an_engine_that_fails_gives_a_notice() -> None:
    def fails(request: GenerateRequest) -> list[str]:
        raise EngineError("out of memory")

    reply = opened(Says(fails)).reply(said("hello there"))
    assert reply.text == ""
    assert reply.notice is not None
    assert reply.reply_source == "notice"


def test_style_and_system_text_reach_the_model_behind_the_operators() -> None:
    engine = Says(lambda request: ["I see."])
    companion = opened(engine, system_prompt="You are a friend.", tone="calm", reflection=False)
    companion.reply([{"role": "system", "content": "The app is about gardens."}, *said("I made soup")])
    companion.reply(said("I made soup"), style=StyleSettings(persona="mentor"))
    systems = [request.messages[0].content for request in engine.requests]
    assert systems == [
        "You are a friend.\n\nThe app is about gardens.\n<tone:calm>",
        "You are a friend.\n<persona:mentor>",
    ]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "the last one must be the user's"),
        (said("a", "b"), "the last one must be the user's"),
        ([{"role": "robot", "content": "secret"}], r"messages\[0\]: expected a role"),
        ([{"role": "user", "content": ["secret"]}], r"messages\[0\]: expected a role"),
    ],
)
def test_a_conversation_that_is_none_is_refused_without_its_words(messages: list[Any], error: str) -> None:
    with pytest.raises(ConversationError, match=error) as caught:
        opened(ScriptedEngine(["a"])).reply(messages)
    assert "secret" not in str(caught.value)


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="tone: expected one of"):
        opened(ScriptedEngine(["a"]), tone="sarcastic")
    with pytest.raises(ValueError, match="needs `model`"):
        warmline.open_companion("http://127.0.0.1:9")  # type: ignore[operator]
    with pytest.raises(ValueError, match="neither a run under"):
        warmline.open_companion("no-such-run")  # type: ignore[operator]


def test_threads_and_streams_without_blocking_the_loop() -> None:
    load_detector()

    async def main() -> tuple[list[Reply], list[str]]:
        async with asyncio.timeout(60):
            companion = opened(ScriptedEngine(["That sounds hard. I am here."]))
            replies = await asyncio.gather(*(companion.areply(said(f"turn {number}")) for number in range(8)))
            kinds = [getattr(piece, "kind", "last") async for piece in companion.astream(said("I lost my job"))]
            return replies, kinds

    replies, kinds = asyncio.run(main())
    assert [reply.text for reply in replies] == ["That sounds hard. I am here."] * 8
    assert kinds == ["reply", "reply", "last"]


def test_a_closed_companion_answers_no_more() -> None:
    with opened(ScriptedEngine(["a"])) as companion:
        assert companion.reply(said("hi")).text == "a"
    with pytest.raises(ConversationError, match="closed"):
        companion.reply(said("hi"))
    assert "116 123" in companion.help_now().text()


# -- the examples ------------------------------------------------------------------------------------------------------


def test_the_fastapi_example_answers() -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    from examples.fastapi_app import app

    app.state.companion = opened(Says(lambda request: [GOOD if request.n > 1 else "I see."] * request.n))
    with testclient.TestClient(app) as client:
        plain = client.post("/talk", json={"messages": said("I made soup")})
        assert plain.json()["reply"] == "I see."
        assert plain.json()["card"] is None
        risk = client.post("/talk", json={"messages": said(RISK)}).json()
        assert "116 123" in risk["card"]
        assert risk["reply"] == GOOD
        assert client.post("/talk", json={"messages": said("a", "b")}).status_code == 400
        assert client.post("/talk", json={"messages": []}).status_code == 422
        assert "116 123" in client.get("/help", params={"country": "IE"}).json()["card"]
    app.state.companion = None


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    companion = opened(ScriptedEngine(["That sounds hard.", "I hear you."], readings=(SAD,)))
    asked: dict[str, Any] = {}

    def instead(run: str, **options: Any) -> Companion:
        asked.update(options, run=run)
        return companion

    monkeypatch.setitem(vars(warmline), "open_companion", instead)
    notebook = json.loads((EXAMPLES / "companion.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, "companion.ipynb", "exec"), names)
    out = capsys.readouterr().out
    assert asked == {"run": "tiny", "tone": "warm", "persona": "best friend"}
    for words in ("an AI", "That sounds hard.", "emotion [('sadness', 0.8)", "reply | I hear you.", "116 123"):
        assert words in out
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    assert os.environ.get("RUN") is None
