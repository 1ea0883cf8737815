"""OpenAI's own client against the server: what it asks is answered in the shapes that it knows."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from warmline.engine.engine import Reading
from warmline.engine.scripted import ScriptedEngine
from warmline.serve.keys import Key, Keys, digest_of, new_key
from warmline.serve.wire import FENCE

from .servers import GOOD, RISK, app_of, body, serving, setting_of

KEY = new_key()
READINGS = (
    Reading("emotion", ("joy", "sadness", "fear"), (0.1, 0.7, 0.2)),
    Reading("affect", ("valence", "arousal"), (-0.6, 0.2)),
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = app_of(ScriptedEngine([GOOD], readings=READINGS), keys=Keys((Key("a", digest_of(KEY)),)))
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["m"]


def test_an_answer_in_one_piece(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**body("I lost my job", max_tokens=500))
    [choice] = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (GOOD, "assistant", "stop")
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(GOOD)  # the scripted engine's tokens are bytes
    assert answer.usage.prompt_tokens == len("You are a friend.") + len("I lost my job")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    extra = answer.warmline  # type: ignore[attr-defined]
    assert (extra["level"], extra["domains"], extra["reply_source"], extra["card"]) == ("none", [], "model", None)
    assert extra["readings"]["emotion"][0] == {"label": "sadness", "p": 0.7}
    assert extra["readings"]["affect"] == {"valence": -0.6, "arousal": 0.2}
    assert extra["disclosure"]["ai_notice_due"] is True
    assert "AI" in extra["disclosure"]["texts"][0]
    assert extra["degraded"] == []
    assert "reasons" not in extra


def test_a_streamed_answer_is_the_same(client: openai.OpenAI) -> None:
    chunks = [*client.chat.completions.create(**body("I lost my job"), stream=True)]
    assert chunks[0].choices == []
    assert chunks[0].warmline == {"level": "none", "card": None}  # type: ignore[attr-defined]
    words = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert words[0].delta.role == "assistant"
    assert "".join(each.delta.content or "" for each in words) == GOOD
    assert [each.finish_reason for each in words if each.finish_reason] == ["stop"]
    assert chunks[-1].warmline["reply_source"] == "model"  # type: ignore[attr-defined]
    assert chunks[-1].usage is None
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    counted = [*client.chat.completions.create(**body(), stream=True, stream_options={"include_usage": True})]
    assert counted[-1].usage is not None
    assert counted[-1].usage.completion_tokens == len(GOOD)


def test_the_wire_is_server_sent_events_and_ends_in_done(url: str) -> None:
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=body(stream=True), headers={"Authorization": f"Bearer {KEY}"}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    assert all(json.loads(event[6:])["object"] == "chat.completion.chunk" for event in events[:-2])


def test_the_async_client(url: str) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            whole = await client.chat.completions.create(**body())
            stream = await client.chat.completions.create(**body(), stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            return whole.choices[0].message.content, "".join(parts)

    assert asyncio.run(ask()) == (GOOD, GOOD)


def test_what_is_ignored_is_said(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    answer = client.chat.completions.create(
        **body(),
        tools=[tool],
        logprobs=True,
        logit_bias={"5": 100},
        response_format={"type": "json_object"},  # type: ignore[arg-type]
    )
    assert answer.choices[0].message.content == GOOD
    assert answer.choices[0].logprobs is None
    notes = answer.warmline["notes"]  # type: ignore[attr-defined]
    assert {"tools are ignored", "logprobs are withheld", "logit_bias is ignored", "response_format is ignored"} == {
        *notes
    }


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**body(), "model": "gpt-4"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(**body(), temperature=2.5)
    assert hot.value.param == "temperature"
    for key in ("", "wl-wrong", KEY[:-1]):
        stranger = openai.OpenAI(base_url=f"{url}/v1", api_key=key or "x", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(**body())
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()


def test_the_card_stands_first_in_the_words_for_clients_that_draw_none(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**body(RISK))
    content = answer.choices[0].message.content or ""
    card, _, reply = content.partition(f"\n{FENCE}\n\n")
    assert "116 123" in card
    assert card.startswith("Support from people, shown by the warmline app")
    assert reply == GOOD
    assert answer.warmline["level"] == "high"  # type: ignore[attr-defined]
    assert answer.warmline["card"]["country"] == "IE"  # type: ignore[attr-defined]
    # The reply goes back without the card, which the model must not learn to copy.
    earlier = [{"role": "user", "content": RISK}, {"role": "assistant", "content": content}]
    again = client.chat.completions.create(model="m", messages=[*earlier, {"role": "user", "content": "thanks"}])  # type: ignore[list-item]
    assert again.usage is not None
    assert again.usage.prompt_tokens == len("You are a friend." + RISK + GOOD + "thanks")


def test_the_card_rides_on_the_first_chunk_for_clients_that_draw_it(client: openai.OpenAI) -> None:
    chunks = [
        *client.chat.completions.create(**body(RISK), stream=True, extra_body={"warmline": {"renders_card": True}})
    ]
    first = chunks[0].warmline  # type: ignore[attr-defined]
    assert (first["level"], first["card"]["country"]) == ("high", "IE")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == GOOD


def test_sampling_is_what_the_request_says() -> None:
    with serving(app_of(ScriptedEngine(seed=3))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)

        def say(**more: object) -> str:
            return client.chat.completions.create(**body("hi", max_tokens=12, **more)).choices[0].message.content or ""

        assert say(seed=5) == say(seed=5) != say(seed=6)
        assert say(temperature=0) == say(temperature=0) == say(temperature=0, top_p=0.1)
        assert say(top_p=0, seed=5) == say(temperature=0)
        answer = client.chat.completions.create(**body("hi", max_completion_tokens=5, seed=5))
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 5


def test_stop_ends_an_ordinary_reply_and_n_gives_several() -> None:
    with serving(app_of(ScriptedEngine(["That hurts. I see it.", "I am with you. Tell me."]))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        cut = client.chat.completions.create(**body("hi", stop=["I see"]))
        assert cut.choices[0].message.content == "That hurts."
        two = client.chat.completions.create(**body("hi", n=2))
        assert [choice.index for choice in two.choices] == [0, 1]
        assert {choice.message.content for choice in two.choices} == {
            "That hurts. I see it.",
            "I am with you. Tell me.",
        }
        chunks = [*client.chat.completions.create(**body("hi", n=2), stream=True)]
        assert {chunk.choices[0].index for chunk in chunks if chunk.choices} == {0, 1}


def test_operators_may_hide_readings_and_show_reasons() -> None:
    engine = ScriptedEngine([GOOD], readings=READINGS)
    with serving(app_of(setting=setting_of(engine), show_readings=False, show_reasons=True)) as url:
        extra = httpx.post(f"{url}/v1/chat/completions", json=body(RISK)).json()["warmline"]
    assert extra["readings"] == {"emotion": [], "strategy": [], "risk": [], "affect": {}}
    assert extra["reasons"]
    assert RISK not in json.dumps(extra)
