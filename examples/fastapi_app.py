"""A small app with a companion inside: `RUN=tiny uvicorn examples.fastapi_app:app`.

It answers POST /talk with what a page needs: the card first where there is one, then the reply, and what must be told.
The browser keeps the conversation and sends the whole of it each time: nothing is kept here, and nothing is logged.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

import warmline


class Said(BaseModel):
    role: Literal["user", "assistant"]
    content: str = Field(max_length=8_000)


class Talk(BaseModel):
    messages: list[Said] = Field(min_length=1, max_length=200)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One companion for all conversations, opened at the start unless the app was given one."""
    if getattr(app.state, "companion", None) is None:
        app.state.companion = warmline.open_companion(os.environ.get("RUN", "tiny"), tone="warm", persona="best friend")
    with app.state.companion:
        yield


app = FastAPI(title="A companion inside", lifespan=lifespan)


@app.post("/talk")
async def talk(asked: Talk, request: Request) -> dict[str, Any]:
    """The answer to the last turn."""
    try:
        reply = await request.app.state.companion.areply([said.model_dump() for said in asked.messages])
    except ValueError as error:  # a conversation that does not end with the user's turn
        raise HTTPException(400, str(error)) from None
    return {
        "disclosure": reply.disclosure,  # show these: that it is an AI, and about rest
        "card": None if reply.card is None else reply.card.text(),  # show this before the reply
        "reply": reply.text or reply.notice,
    }


@app.get("/help")
async def help_now(request: Request, country: str | None = None) -> dict[str, str]:
    """People who can help, at any time: give this a button that is always there."""
    return {"card": request.app.state.companion.help_now(country).text()}
