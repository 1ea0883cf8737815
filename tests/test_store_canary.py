"""A thousand conversations through a real gateway, and a search of all that it wrote: no word of them is anywhere."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from warmline.serve.store.history import Store

from .gateways import gateway
from .stores import found_in, key_text, new_key, talk
from .test_remote import DONE, event
from .test_remote import serving as engine_serving

CANARY = "wl-heron-lantern"
NEEDLES = [CANARY.encode(), CANARY.encode("utf-16-le"), CANARY.encode().hex().encode()]
NUM = 1_000
LINE = "warmline serve m --engine remote --url URL --store URL --port 0"


def test_a_thousand_conversations_leave_no_word_on_disk(tmp_path: Path) -> None:
    """First without history, then with it: then there is only what their keys open."""
    database = tmp_path / "store" / "history.db"
    keys = [key_text() for _ in range(20)]
    with engine_serving() as engine:
        engine.streams(event(f"That is good to hear, {CANARY}."), event(finish="stop"), DONE)
        with gateway(LINE, engine.url, f"sqlite:///{database}", tmp_path / "one") as one:

            def say(number: int) -> int:
                text = f"The bus was late, {CANARY}-{number}."
                options = {"session": f"{CANARY}-{number}"}
                said = {"model": "m", "messages": [{"role": "user", "content": text}], "warmline": options}
                headers = {"Warmline-Key": keys[number % len(keys)]}
                return one.client.post("/v1/chat/completions", json=said, headers=headers).status_code

            def save(number: int) -> int:
                turns = [{"role": "user", "content": f"{CANARY}-{number} " * 20}]
                headers = {"Warmline-Key": keys[number % len(keys)]}
                return one.client.put(
                    f"/v1/history/{CANARY}-{number}", json={"turns": turns}, headers=headers
                ).status_code

            limits = Path(f"/proc/{one.process.pid}/limits")
            if limits.exists():  # on Linux
                core = next(line for line in limits.read_text().splitlines() if line.startswith("Max core file size"))
                assert core.split()[-3:-1] == ["0", "0"]
            with ThreadPoolExecutor(8) as pool:
                assert {*pool.map(say, range(NUM))} == {200}
                assert [*found_in([tmp_path], [*NEEDLES, *(key.encode() for key in keys)])] == []
                assert Store(str(database)).conversations(new_key()) == []
                empty = database.stat().st_size
                assert {*pool.map(save, range(NUM))} == {200}
            metrics = one.client.get("/metrics").text
            assert "warmline" in metrics
            assert CANARY not in metrics
            copy = shutil.copytree(tmp_path, tmp_path / "while-it-runs")  # its write-ahead log goes when it ends
            assert [file.name for file in copy.rglob("*-wal")] == ["history.db-wal"]
        assert database.stat().st_size > empty + 1024 * NUM  # they are there
        assert [*found_in([tmp_path], [*NEEDLES, *(key.encode() for key in keys)])] == []


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "history.db"))
    store.save(new_key(), CANARY, talk(CANARY))
    assert [*found_in([tmp_path], NEEDLES)] == []
    (tmp_path / "log").write_bytes(b"..." + NEEDLES[1])
    assert [needle for _, needle in found_in([tmp_path], NEEDLES)] == [NEEDLES[1]]
    store.database.close()
