"""The server keeps to its own OpenAPI schema: Schemathesis makes requests of it, good and bad, and reads the answers."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from warmline.serve.keys import Key, Keys, digest_of, new_key
from warmline.serve.turns import warm_up

from .servers import app_of, body, serving, setting_of

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "missing_required_header",
    "ignored_auth",
)


def schemathesis(url: str, key: str, seconds: int, folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("schemathesis")
    command = [str(program), "run", f"{url}/openapi.json", f"--max-time={seconds}", f"--checks={','.join(CHECKS)}"]
    command += [
        "--seed=1",
        "--no-color",
        "--generation-database=none",
        "--request-timeout=60",
        "-H",
        f"Authorization: Bearer {key}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=seconds + 120)


@pytest.mark.parametrize("seconds", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_no_answer_breaks_the_schema_and_none_is_a_server_error(seconds: int, tmp_path: Path) -> None:
    key = new_key()
    warm_up(setting_of())
    app = app_of(keys=Keys((Key("a", digest_of(key)),)))
    with serving(app) as url:
        done = schemathesis(url, key, seconds, tmp_path)
        counted = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
    assert done.returncode == 0, done.stdout[-6000:]
    answered = [line for line in counted.splitlines() if line.startswith("warmline_requests_total{")]
    routes = {line.split('"')[1] for line in answered}
    assert {"/v1/chat/completions", "/v1/models", "/resources", "/v1/sessions/{session}/actions"} <= routes
    assert any('route="/v1/chat/completions",status="200"' in line for line in answered)
    assert not any('status="5' in line for line in answered)


def test_the_schema_names_bodies_and_errors() -> None:
    with serving(app_of()) as url:
        schema = httpx.get(f"{url}/openapi.json").json()
    chat = schema["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatRequest")
    assert {"200", "400", "401", "404", "413", "429"} <= chat["responses"].keys()
    parts = schema["components"]["schemas"]
    assert parts["ChatRequest"]["properties"]["model"]["enum"] == ["m"]
    refs = {part.split('"')[0] for part in json.dumps(schema).split("#/components/schemas/")[1:]}
    assert refs <= parts.keys()
    assert body()["model"] == "m"
