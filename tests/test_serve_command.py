"""`warmline serve` as a command: what it refuses, what it serves, and how it ends."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from warmline.cli import app
from warmline.commands.serve import is_loopback, options_of, serve_of, served_models
from warmline.config.operator import OperatorSettings, ServeSettings
from warmline.config.reading import load_operator, load_recipe
from warmline.run_dir import RunDir
from warmline.serve.app import create_app
from warmline.serve.keys import read_keys
from warmline.serve.models import Options

from .conftest import ToyRecipe
from .runs import train_here
from .servers import RISK, body, serving, until


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["serve", *words])
    return done.exit_code, done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_address_that_others_reach_needs_keys(host: str) -> None:
    code, said = run("--engine", "scripted", "--host", host)
    assert code == 2
    assert "--api-keys" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "is_one"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False)]
)
def test_which_addresses_are_this_machines_own(host: str, is_one: bool) -> None:
    assert is_loopback(host) is is_one


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a run or a model"),
        (("nothing-like-this",), "neither a run"),
        (("m", "--engine", "remote"), "--url"),
        (("--engine", "scripted", "--country", "Ireland"), "two letters"),
        (("--engine", "scripted", "--api-keys", "nothing.txt"), "nothing.txt"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, shown = run(*words)
    assert code in (1, 2)
    assert said in shown
    assert "Traceback" not in shown


def test_a_key_is_made_and_read_again(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve-key", "alice"])
    assert done.exit_code == 0
    key = done.stderr.rsplit(" ", 1)[1].strip()
    assert key.startswith("wl-")
    assert key not in done.stdout
    (tmp_path / "keys").write_text(done.stdout)
    assert read_keys(tmp_path / "keys").name_of(key) == "alice"
    assert CliRunner().invoke(app, ["serve-key", "two words"]).exit_code == 2


@contextmanager
def started(tmp_path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real server process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "warmline", "serve", *words, "--port", str(port)]
    environment = {**os.environ, "WARMLINE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=-1, stderr=-1) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            assert until(lambda: _answers(url) or process.poll() is not None, 120)
            assert process.poll() is None
            yield process, url
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_server_process_from_start_to_end(tmp_path: Path) -> None:
    with started(tmp_path, "--engine", "scripted", "--country", "IE") as (process, url):
        assert [each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]] == ["scripted"]
        assert httpx.get(f"{url}/health", headers={"Host": "evil.example"}).status_code == 421
        # A crash writes nothing of what was said: neither a core file, nor for whoever collects crashes.
        limits = Path(f"/proc/{process.pid}/limits")
        if limits.exists():
            assert re.search(r"Max core file size\s+0\s+0", limits.read_text())
        # A reply that runs when the server is told to stop is finished.
        secret = "xyzzy-my-own-words"
        request = {**body(f"{secret}. {RISK}", stream=True), "model": "scripted"}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=request, timeout=60) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines)[6:])["warmline"]["level"] == "high"
            process.send_signal(signal.SIGTERM)
            assert [*lines][-2:] == ["data: [DONE]", ""]
        out, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGTERM, 143)
    assert secret not in out + err
    assert "Traceback" not in err
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert kept  # the audit's counts
    assert not [file for file in kept if secret.encode() in file.read_bytes()]


def test_a_file_says_how_to_serve_and_options_win(tmp_path: Path) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text(
        "serve: {show_readings: false, cors_origin: https://my.app, max_running: 2}\n"
        "companion: {style: {tone: calm}}\nsafety: {country: IE}\n"
    )
    own = load_operator(str(file))
    assert own.serve is not None
    options = options_of(own.serve)
    assert (options.show_readings, options.cors_origins, options.max_running) == (False, ("https://my.app",), 2)
    setting = served_models(None, "scripted", None, own, None, None)["scripted"].setting
    assert (setting.style.tone, setting.country) == ("calm", "IE")
    with started(tmp_path, "--engine", "scripted", "--settings", str(file), "--max-running", "3") as (_, url):
        answer = httpx.post(f"{url}/v1/chat/completions", json={**body("hello"), "model": "scripted"}, timeout=60)
        assert answer.json()["warmline"]["readings"] == {"emotion": [], "strategy": [], "risk": [], "affect": {}}
        preflight = {"Origin": "https://my.app", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{url}/v1/chat/completions", headers=preflight).headers
        assert allowed["access-control-allow-origin"] == "https://my.app"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{prot: 80}", "serve.prot: unknown key (did you mean 'port'?)"),
        ("{port: 70000}", "serve.port: Input should be less than or equal to 65535 (found 70000)"),
        ("{max_running: 0}", "serve.max_running: Input should be greater than or equal to 1 (found 0)"),
        ("{host: 0.0.0.0}", "--host 0.0.0.0 can be reached from other machines"),
        ("{store: 'postgres://u:sk-a-secret@h:x/d'}", "store"),
    ],
)
def test_a_wrong_section_is_refused_in_one_line(tmp_path: Path, section: str, message: str) -> None:
    (tmp_path / "operator.yaml").write_text(f"serve: {section}")
    code, said = run("--engine", "scripted", "--settings", str(tmp_path / "operator.yaml"))
    assert (code in (1, 2), message in said, said.count("\n")) == (True, True, 1), said
    assert "secret" not in said


def test_a_run_is_served_as_its_recipe_says(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "toy")
    run_dir.claim(load_recipe(str(toy_recipe(serve={"port": 8123, "show_reasons": True}))))
    assert (serve_of(str(run_dir.path)).port, serve_of(str(run_dir.path)).show_reasons) == (8123, True)
    assert serve_of(None) == serve_of("no-run") == ServeSettings()


def test_core_dumps_are_off_in_a_process_that_asks_for_it() -> None:
    code = (
        "import ctypes, resource, sys; from warmline.serve.listen import no_core_dumps; no_core_dumps()\n"
        "dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) if sys.platform == 'linux' else 0\n"
        "print(*resource.getrlimit(resource.RLIMIT_CORE), dumpable)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0", "0"]
    assert resource.getrlimit(resource.RLIMIT_CORE) is not None


def test_every_finished_stage_of_a_run_is_a_model_and_they_answer(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    run = train_here(toy_recipe(), tmp_path / "toy")
    models = served_models(str(run.path), "local", None, OperatorSettings(), "IE", None)
    assert [*models] == ["toy", "toy:base", "toy:sft"]
    assert models["toy"].setting is not models["toy:base"].setting
    assert [model.about["stage"] for model in models.values()] == ["sft", "base", "sft"]
    with serving(create_app(models, Options())) as url:

        def ask(name: str) -> dict[str, Any]:
            request = {**body("I lost my job", max_tokens=8, temperature=0), "model": name}
            return httpx.post(f"{url}/v1/chat/completions", json=request, timeout=60).json()

        with ThreadPoolExecutor(4) as pool:  # threads that share one model must not get into each other's way
            answers = [*pool.map(ask, ["toy", "toy:base", "toy:sft", "toy:base"])]
    contents = [each["choices"][0]["message"]["content"] for each in answers]
    assert contents[0] == contents[2]
    assert contents[1] == contents[3]
    assert answers[0]["warmline"]["readings"]["emotion"]
    assert answers[1]["warmline"]["readings"]["emotion"] == []  # the base has no heads
    assert answers[0]["usage"]["prompt_tokens"] > 0
    assert "usage is an estimate" not in answers[0]["warmline"]["notes"]
