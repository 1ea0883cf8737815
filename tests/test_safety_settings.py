"""The section `safety` of a recipe: what an operator may choose, what is refused, and that the commands go by it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from warmline.cli import app
from warmline.config.fields import ConfigError
from warmline.config.operator import SafetySettings
from warmline.config.reading import load_operator, load_recipe
from warmline.run_dir import RunDir
from warmline.safety.detect import by_wording, shipped_calibration
from warmline.safety.operator_settings import chosen

from .conftest import ToyRecipe
from .runs import train_here

GUARD = {"url": "http://127.0.0.1:9", "model": "llama-guard"}
PLAIN = "We had soup for dinner."


def settings_of(**section: Any) -> SafetySettings:
    return SafetySettings.model_validate(section)


def file_of(folder: Path, **section: Any) -> str:
    file = folder / "operator.yaml"
    file.write_text(yaml.safe_dump({"safety": section}), encoding="utf-8")
    return str(file)


# ---- reading ----


def test_recipes_need_no_such_section_and_take_one(toy_recipe: ToyRecipe) -> None:
    assert load_recipe("tiny").safety == SafetySettings()
    section = {
        "country": "ie",
        "question_policy": "safety_check",
        "question_owner": "Dr. N. N.",
        "guards": [GUARD | {"categories": {"S2": {"level": "elevated", "domain": "financial_harm"}}}],
        "thresholds": {"elevated": 0.5},
    }
    safety = load_recipe(str(toy_recipe(safety=section))).safety
    assert (safety.country, safety.thresholds.elevated, safety.thresholds.high) == ("IE", 0.5, None)
    assert (safety.guards[0].deadline_s, safety.guards[0].categories["S2"].domain) == (0.2, "financial_harm")
    assert load_recipe("tiny", ["safety.country=GB", "safety.thresholds.high=0.6"]).safety.thresholds.high == 0.6


def test_a_file_may_hold_the_section_alone(tmp_path: Path) -> None:
    assert load_operator(file_of(tmp_path, country="IE")).safety == settings_of(country="IE")
    (tmp_path / "norway.yaml").write_text("safety: {country: NO}")  # which YAML reads as false
    assert load_operator(str(tmp_path / "norway.yaml")).safety == settings_of(country="NO")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"contry": "IE"}, "safety.contry: unknown key (did you mean 'country'?)"),
        ({"country": "Ireland"}, "safety.country: expected two letters, as IE (found 'Ireland')"),
        ({"country": "1E"}, "safety.country: expected two letters, as IE (found '1E')"),
        ({"question_policy": "always"}, "safety.question_policy: Input should be 'none' or 'safety_check' (found 'always')"),
        ({"guards": [{"model": "g"}]}, "safety.guards.0.url: missing, and it has no default"),
        ({"guards": [GUARD, GUARD | {"mdoel": "g"}]}, "safety.guards.1.mdoel: unknown key (did you mean 'model'?)"),
        ({"guards": [GUARD | {"deadline_s": 0}]}, "safety.guards.0.deadline_s: Input should be greater than 0 (found 0)"),
        ({"guards": [GUARD | {"deadline_s": 60}]}, "safety.guards.0.deadline_s: Input should be less than or equal to 10 (found 60)"),
        ({"guards": [GUARD | {"categories": {"S1": {"levle": "high"}}}]}, "safety.guards.0.categories.S1.levle: unknown key (did you mean 'level'?)"),
        ({"guards": [GUARD | {"categories": {"S1": {"level": "severe"}}}]}, "safety.guards.0.categories.S1.level: Input should be 'none', 'elevated', 'high' or 'emergency' (found 'severe')"),
        ({"thresholds": {"high": 0}}, "safety.thresholds.high: Input should be greater than 0 (found 0)"),
        ({"thresholds": {"high": float("nan")}}, "safety.thresholds.high: Input should be a finite number (found nan)"),
        ({"thresholds": {"hihg": 0.5}}, "safety.thresholds.hihg: unknown key (did you mean 'high'?)"),
        ([], "safety: Input should be a valid dictionary or instance of SafetySettings (found [])"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_the_setting(tmp_path: Path, section: Any, message: str) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text(yaml.safe_dump({"safety": section}), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_operator(str(file))
    lines = str(refused.value).splitlines()
    assert message in lines
    assert all(line.startswith("safety.") or line == message for line in lines)


@pytest.mark.parametrize(
    "guard",
    [
        {"url": "sk-a-secret"},
        {"url": "ftp://host/sk-a-secret"},
        {"url": "http://user:sk-a-secret@host/v1"},
        {"url": "http://[sk-a-secret"},
        {"url": "http://host:sk-a-secret/v1"},
        {"api_key_env": "sk-a-secret"},
    ],
)
def test_a_key_pasted_into_the_wrong_place_is_refused_and_not_shown(tmp_path: Path, guard: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_operator(file_of(tmp_path, guards=[GUARD | guard]))
    assert str(refused.value).startswith(f"safety.guards.0.{next(iter(guard))}: ")
    assert "secret" not in str(refused.value)


def test_a_file_without_any_of_the_sections_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("seed: 7")
    for name in (str(tmp_path / "other.yaml"), "tiny"):
        with pytest.raises(ConfigError, match="it has none of the sections safety, companion, serve"):
            load_operator(name)


# ---- what may be chosen ----


def test_thresholds_may_be_lowered() -> None:
    shipped = shipped_calibration()
    found = chosen(settings_of(thresholds={"elevated": 0.4, "emergency": shipped.emergency}), {})
    assert (found.calibration.elevated, found.calibration.high) == (0.4, shipped.high)
    assert found.notices == ()
    assert chosen(SafetySettings(), {}).calibration == shipped


@pytest.mark.parametrize("name", ["elevated", "high", "emergency"])
def test_a_threshold_above_the_shipped_one_is_refused_unless_someone_accepts_it_and_then_it_is_said(name: str) -> None:
    section = {"thresholds": {name: 0.999}}
    with pytest.raises(ConfigError) as refused:
        chosen(settings_of(**section), {})
    assert str(refused.value).startswith(f"safety.thresholds.{name}: 0.999 is above the shipped ")
    assert str(refused.value).endswith("or state safety.accept_missed_crises: true")
    found = chosen(settings_of(**section, accept_missed_crises=True), {})
    assert getattr(found.calibration, name) == 0.999
    [notice] = found.notices
    assert notice.startswith(f"WARNING: safety.thresholds.{name} is 0.999")


def test_a_safety_check_without_an_owner_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^safety\.question_owner: question_policy: safety_check needs a named owner"
    ):
        chosen(settings_of(question_policy="safety_check"), {})
    assert chosen(settings_of(question_policy="safety_check", question_owner="Dr. N. N."), {}).notices == ()


def test_a_domain_that_does_not_exist_names_the_nearest() -> None:
    guard = GUARD | {"categories": {"S1": {"level": "high", "domain": "suicid"}}}
    with pytest.raises(
        ConfigError, match=r"^safety\.guards\.0\.categories\.S1\.domain: 'suicid' is no domain \(did you mean 'suicide'"
    ):
        chosen(settings_of(guards=[guard]), {})  # fmt: skip


def test_who_else_reads_along_and_what_key_is_missing_is_said() -> None:
    settings = settings_of(guards=[GUARD, GUARD | {"api_key_env": "GUARD_KEY"}])
    without, with_key = chosen(settings, {}), chosen(settings, {"GUARD_KEY": "k"})
    sent = "each message is also sent to the guard llama-guard at 127.0.0.1"
    assert without.notices == (
        sent,
        "safety.guards.1.api_key_env: GUARD_KEY is not set, so llama-guard is never asked",
    )
    assert with_key.notices == (sent, sent)


# ---- in runs and commands ----


def test_the_section_may_change_on_a_finished_run_and_nothing_else(tmp_path: Path, toy_recipe: ToyRecipe) -> None:
    file = str(toy_recipe())
    run = RunDir(tmp_path / "run")
    run.claim(load_recipe(file))
    run.add_to_manifest(seed=7)
    changed = load_recipe(file, ["safety.country=IE"])
    run.claim(changed)
    assert run.recipe() == changed
    with pytest.raises(ValueError, match="seed: 7 -> 8") as refused:
        run.claim(load_recipe(file, ["seed=8", "safety.country=GB"]))
    assert "safety" not in str(refused.value)
    assert run.recipe() == changed


def warmline(*words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(words), input=stdin)


@pytest.fixture
def guard_url() -> Iterator[str]:
    """A guard that finds everything unsafe."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"choices": [{"message": {"content": "unsafe\nS11"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    http.shutdown()
    http.server_close()
    thread.join()


def test_reply_goes_by_the_file_and_by_options_first(tmp_path: Path, guard_url: str) -> None:
    file = file_of(tmp_path, country="IE", guards=[GUARD | {"url": guard_url, "deadline_s": 5}])
    case = json.dumps({"id": 1, "turns": [{"role": "user", "content": PLAIN}]})
    words = ["safety", "reply", "--engine", "scripted", "--seed", "1"]
    plain = json.loads(warmline(*words, stdin=case).stdout)
    assert (plain["level"], plain["card"]) == ("none", None)
    result = warmline(*words, "--settings", file, stdin=case)
    found = json.loads(result.stdout)
    assert (found["level"], found["reply_source"], found["card"]["country"]) == ("high", "guided", "IE")
    assert "each message is also sent to the guard llama-guard at 127.0.0.1" in result.stderr
    assert PLAIN not in result.stderr
    found = json.loads(warmline(*words, "--settings", file, "--country", "gb", stdin=case).stdout)
    assert found["card"]["country"] == "GB"


def test_chat_and_reply_read_the_runs_own_section_and_warn_at_every_start(
    tmp_path: Path, toy_recipe: ToyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"country": "IE", "thresholds": {"elevated": 0.999}, "accept_missed_crises": True}
    run = train_here(toy_recipe(sft__steps=1, safety=section), tmp_path / "run")
    monkeypatch.setenv("LANG", "de_AT.UTF-8")
    for _ in range(2):
        result = warmline("chat", str(run.path), stdin="/help-now\n/quit\n")
        assert result.exit_code == 0, result.output
        assert "WARNING: safety.thresholds.elevated is 0.999" in result.stderr
        assert "Samaritans" in result.stdout
    own = file_of(tmp_path, country="US")
    result = warmline("chat", str(run.path), "--settings", own, stdin="/help-now\n")
    assert "WARNING" not in result.stderr
    assert "988" in result.stdout
    case = json.dumps({"id": 1, "turns": [{"role": "user", "content": "I want to kill myself tonight"}]})
    result = warmline("safety", "reply", str(run.path), "--engine", "local", stdin=case)
    assert json.loads(result.stdout)["card"]["country"] == "IE"
    assert "WARNING" in result.stderr


@pytest.mark.parametrize("command", [["run"], ["train"]])
def test_less_safety_than_shipped_is_refused_before_anything_is_made(
    tmp_path: Path, toy_recipe: ToyRecipe, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = warmline(*command, str(toy_recipe(safety={"thresholds": {"high": 0.99}})))
    assert result.exit_code == 2
    assert result.stderr.startswith("warmline: safety.thresholds.high: 0.99 is above the shipped ")
    assert not (tmp_path / "runs").exists()


def test_a_lower_threshold_of_high_notices_more_as_high() -> None:
    shipped = chosen(settings_of(), {}).calibration
    lower = chosen(settings_of(thresholds={"high": shipped.high / 2}), {}).calibration
    turn = np.array([shipped.elevated, shipped.high, 0.0])
    assert (by_wording(turn, shipped), by_wording(turn, lower)) == (1, 2)
