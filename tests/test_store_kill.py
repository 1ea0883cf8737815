"""One PostgreSQL, two real gateway processes, one engine, started by the lines of docs/deploy.md: one gateway is killed."""

import json
import signal
import time
from pathlib import Path

from . import postgres
from .gateways import gateway
from .stores import found_in, key_text
from .test_remote import DONE, Server, event
from .test_remote import serving as engine_serving

DOCS = Path(__file__).parents[1] / "docs" / "deploy.md"
CANARY = "heron-lantern-4471"
SAD = f"I want to kill myself tonight, {CANARY}."
REPLY = (
    "I hear how much pain you are carrying, and it sounds exhausting and lonely. You deserve to have someone with you in "
    "this, a person you trust and someone trained to listen."
)


def recipe() -> list[str]:
    """The lines of the recipe that start the gateways."""
    block = DOCS.read_text(encoding="utf-8").split("<!-- the test of the killed gateway")[1].split("```")[1]
    return [line for line in block.splitlines() if line.startswith("warmline serve ")]


def body(text: str, *earlier: str) -> dict[str, object]:
    said = [{"role": ("user", "assistant")[at % 2], "content": each} for at, each in enumerate([*earlier, text])]
    options = {"session": "s-1", "renders_card": True}
    return {"model": "Qwen/Qwen2.5-7B-Instruct", "messages": said, "stream": True, "warmline": options}


def test_killing_a_gateway_in_the_middle_of_a_reply_loses_neither_risk_nor_history(
    database_server: postgres.Server, tmp_path: Path
) -> None:
    address, headers = database_server.new_database(), {"Warmline-Key": key_text()}
    first, second = recipe()
    with engine_serving() as engine:
        engine.answers.append(lambda _: _hang(engine))  # the reply never comes
        with (
            gateway(first, engine.url, address, tmp_path / "one") as one,
            gateway(second, engine.url, address, tmp_path / "two") as two,
        ):
            turns = [{"role": "user", "content": SAD, "t": 1.0}]
            saved = one.client.put("/v1/history/s-1", json={"turns": turns}, headers=headers)
            assert saved.status_code == 200, saved.text
            with one.client.stream("POST", "/v1/chat/completions", json=body(SAD), headers=headers) as answer:
                began = next(line for line in answer.iter_lines() if line.startswith("data: "))
                told = json.loads(began.removeprefix("data: "))["warmline"]
                assert told["level"] == "high"
                assert told["card"] is not None
                _wait_for(lambda: bool(engine.paths))  # the engine was asked: the gateway waits for its words
                one.process.send_signal(signal.SIGKILL)
                one.process.wait(30)
            assert two.client.get("/v1/history/s-1", headers=headers).json()["turns"] == turns
            engine.streams(event(REPLY), event(finish="stop"), DONE)
            engine.answers.pop(0)
            engine.released.set()
            # The client was restarted too, and sends nothing of what was said before.
            asked = body("What time is it in Lima?")
            told = two.client.post("/v1/chat/completions", json={**asked, "stream": False}, headers=headers).json()
            assert told["warmline"]["level"] == "high"
            assert told["warmline"]["card"] is not None
            assert told["warmline"]["degraded"] == []
            more = [*turns, {"role": "assistant", "content": "…", "t": 2.0}]
            assert two.client.put("/v1/history/s-1", json={"turns": more}, headers=headers).json()["version"] == 2
            assert two.client.get("/v1/history/s-1", headers=headers).json()["turns"] == more
            canary = [CANARY.encode(), headers["Warmline-Key"].encode()]
            assert [*found_in([tmp_path, database_server.folder], canary)] == []


def _hang(engine: Server) -> None:
    engine.released.wait(300)


def _wait_for(holds: object, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < ends
        time.sleep(0.02)
