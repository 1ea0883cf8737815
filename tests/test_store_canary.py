"""Conversations through real gateways, and a search of all that they wrote: no word of them is anywhere."""

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from warmline.serve.store.database import CONVERSATIONS
from warmline.serve.store.history import Store

from . import postgres
from .gateways import Gateway, gateway
from .servers import GOOD, RISK
from .stores import found_in, key_text, new_key, talk
from .test_remote import DONE, Server, event
from .test_remote import serving as engine_serving

CANARY = "wl-heron-lantern"
PADDED = [CANARY.encode()[at:] for at in range(3)]  # as base64 cuts it, wherever it stands
NEEDLES = [
    CANARY.encode(),
    CANARY.encode("utf-16-le"),
    CANARY.encode().hex().encode(),
    *(base64.b64encode(each[: len(each) // 3 * 3]) for each in PADDED),
]
OFF = "warmline serve m --engine remote --url URL --port 0"
ON = f"{OFF} --store URL"
NUM_KEYS = 20
# Every logger of the gateway speaks at every level, also those that set one of their own.
LOUD = """
import logging
logging.basicConfig(level=1)
logging.Logger.isEnabledFor = lambda self, level: True
"""


@dataclass
class People:
    """`num` conversations of a few people, each with a word that must not be found."""

    gateway: Gateway
    num: int
    keys: list[str] = field(default_factory=lambda: [key_text() for _ in range(NUM_KEYS)])

    def headers(self, number: int) -> dict[str, str]:
        return {"Warmline-Key": self.keys[number % NUM_KEYS]}

    def each(self, what: Callable[[int], httpx.Response]) -> list[httpx.Response]:
        """The answers, eight requests at a time. None may be a refusal."""
        with ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(what, range(self.num))]
        assert {answer.status_code for answer in answers} == {200}
        return answers

    def say(self, number: int) -> httpx.Response:
        """One in eight is in danger; half want a stream."""
        text = f"{RISK if number % 8 == 0 else 'The bus was late'}, {CANARY}-{number}."
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}], "user": CANARY}
        body |= {"stream": number % 2 == 1, "warmline": {"session": f"{CANARY}-{number}"}}
        return self.gateway.client.post("/v1/chat/completions", json=body, headers=self.headers(number))

    def turns(self, number: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{CANARY}-{number} " * 20}]

    def save(self, number: int) -> httpx.Response:
        body = {"turns": self.turns(number)}
        return self.gateway.client.put(f"/v1/history/{CANARY}-{number}", json=body, headers=self.headers(number))

    def load(self, number: int) -> httpx.Response:
        return self.gateway.client.get(f"/v1/history/{CANARY}-{number}", headers=self.headers(number))

    def forget(self, number: int) -> httpx.Response:
        return self.gateway.client.delete(f"/v1/history/{CANARY}-{number}", headers=self.headers(number))

    def refused(self) -> None:
        """What goes wrong is told to nobody else either."""
        client = self.gateway.client
        wrong = client.post("/v1/chat/completions", json={"model": CANARY, "messages": CANARY})
        assert wrong.status_code == 400
        assert client.get(f"/{CANARY}?said={CANARY}", headers=self.headers(0)).status_code == 404

    def search(self, *folders: Path) -> None:
        """None of their words and keys is in a file of the folders, or in what a monitor reads."""
        metrics = self.gateway.client.get("/metrics").text
        assert "warmline_replies" in metrics
        assert CANARY not in metrics
        assert [*found_in(folders, [*NEEDLES, *(key.encode() for key in self.keys)])] == []
        log = self.gateway.log.read_text()
        assert "DEBUG:httpcore" in log, "the log was not at every level"


def answers(engine: Server) -> None:
    """The engine repeats what it was told: also once in an error, which must not reach a log either."""
    engine.fails(500, f'{{"error": {{"message": "cannot read: {CANARY}"}}}}'.encode())
    engine.streams(event(f"{GOOD} {CANARY}."), event(finish="stop"), DONE)


def leaves_no_word_without_a_history(num: int, folder: Path) -> None:
    with engine_serving() as engine:
        answers(engine)
        with gateway(OFF, engine.url, "", folder / "off", startup=LOUD) as one:
            limits = Path(f"/proc/{one.process.pid}/limits")
            if limits.exists():  # on Linux
                core = next(line for line in limits.read_text().splitlines() if line.startswith("Max core file size"))
                assert core.split()[-3:-1] == ["0", "0"]
            people = People(one, num)
            people.each(people.say)
            people.refused()
            assert people.save(0).status_code == 404
            people.search(folder)
        assert [*found_in([folder], NEEDLES)] == []  # it has ended
        assert [*folder.rglob("*.db")] == []


def leaves_only_ciphertext_with_one(num: int, address: str, folder: Path, *database: Path) -> None:
    """`database`: where its files lie. Before anybody opts in there is nothing; after `forget` no key to open it with."""
    store = Store(address)
    with engine_serving() as engine:
        answers(engine)
        with gateway(ON, engine.url, address, folder / "on", startup=LOUD) as one:
            people = People(one, num)
            people.each(people.say)
            assert store.database.rows(select(CONVERSATIONS.c.id)) == []
            people.each(people.save)
            people.each(people.say)
            people.refused()
            assert "sqlalchemy" in one.log.read_text()
            kept = store.database.rows(select(CONVERSATIONS))
            assert len(kept) == num
            assert all(row.turns and row.risk for row in kept)
            if address.startswith("sqlite"):
                assert [log.stat().st_size > 0 for log in folder.rglob("*.db-wal")] == [True]  # it is searched too
            people.search(folder, *database)
            loaded = [answer.json()["turns"] for answer in people.each(people.load)]
            assert loaded == [people.turns(number) for number in range(num)]
            assert {answer.json()["forgotten"] for answer in people.each(people.forget)} == {1}
            assert {people.load(number).status_code for number in range(num)} == {404}
            assert {*map(len, _exported(people))} == {0}
            assert store.database.rows(select(CONVERSATIONS.c.id)) == []
            people.search(folder, *database)
            if address.startswith("sqlite"):  # PostgreSQL leaves what was deleted, sealed, to its vacuum
                wrapped = [row.wrapped_key for row in kept]
                assert [*found_in([folder], wrapped)] == []
    store.database.close()


def _exported(people: People) -> list[list[Any]]:
    found = [people.gateway.client.get("/v1/export", headers=people.headers(number)) for number in range(NUM_KEYS)]
    return [answer.json()["conversations"] for answer in found]


def test_without_a_history_no_word_of_a_conversation_is_left(tmp_path: Path) -> None:
    leaves_no_word_without_a_history(60, tmp_path)


def test_with_a_history_only_ciphertext_is_left_and_after_forgetting_no_key(tmp_path: Path) -> None:
    leaves_only_ciphertext_with_one(60, f"sqlite:///{tmp_path / 'store' / 'history.db'}", tmp_path)


def test_so_it_is_in_postgresql_and_its_log(database_server: postgres.Server, tmp_path: Path) -> None:
    leaves_only_ciphertext_with_one(8, database_server.new_database(), tmp_path, database_server.folder)


@pytest.mark.slow
def test_a_thousand_conversations_leave_no_word(tmp_path: Path) -> None:
    leaves_no_word_without_a_history(1_000, tmp_path)
    leaves_only_ciphertext_with_one(1_000, f"sqlite:///{tmp_path / 'store' / 'history.db'}", tmp_path)


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "history.db"))
    store.save(new_key(), CANARY, talk(CANARY))
    assert [*found_in([tmp_path], NEEDLES)] == []
    for number, before in enumerate(("", "a", "ab")):
        (tmp_path / f"log-{number}").write_bytes(base64.b64encode(f"{before}{CANARY}".encode()))
    (tmp_path / "log").write_bytes(b"..." + NEEDLES[1])
    found = {file.name: needle for file, needle in found_in([tmp_path], NEEDLES)}
    assert found["log"] == NEEDLES[1]
    assert {*found} == {"log", "log-0", "log-1", "log-2"}
    store.database.close()
