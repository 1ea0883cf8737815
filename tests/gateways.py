"""Real gateway processes, as somebody starts them."""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

import warmline


class Gateway(NamedTuple):
    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path


@contextmanager
def gateway(line: str, engine: str, store: str, folder: Path, *, startup: str = "") -> Iterator[Gateway]:
    """The process of one line of docs/deploy.md, with a test's addresses in place of those of the page.

    Its folder holds its log and whatever else it writes. `startup`: code that the interpreter runs before any other.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = shlex.split(line)[1:]
    for option, value in (("--url", engine), ("--store", store), ("--port", port)):
        if option in words:
            words[words.index(option) + 1] = value
    code = folder / "startup"
    code.mkdir(parents=True)
    (code / "sitecustomize.py").write_text(startup, encoding="utf-8")
    log = folder / "log"
    environment = {**os.environ, "WARMLINE_HOME": str(folder / "home"), "TMPDIR": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(warmline.__file__).parents[1]), str(code)])
    with log.open("wb") as out:
        command = [sys.executable, "-m", "warmline", *words]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=folder)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
    try:
        ends = time.monotonic() + 120
        while time.monotonic() < ends and process.poll() is None:
            try:
                client.get("/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        yield Gateway(process, client, log)
    finally:
        client.close()
        process.kill()
        process.wait(30)
