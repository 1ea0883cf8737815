"""`warmline safety ...` as a user calls it: formats, order, bad lines, exit codes."""

import json
import subprocess
import sys

import pytest

from warmline.safety.redteam.cases import part_of, read_cases, read_lines
from warmline.safety.redteam.score import Rate


def safety(*arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "warmline", "safety", *arguments]
    return subprocess.run(command, input=text, capture_output=True, check=False)


def line(case_id: object, *said: str) -> bytes:
    turns = [{"role": "user", "content": text} for text in said]
    return json.dumps({"id": case_id, "turns": turns}).encode() + b"\n"


def test_assess_answers_every_line_in_order_and_goes_on_after_bad_ones() -> None:
    rows = [
        line("a", "I want to kill myself tonight"),
        b"not json\n",
        b"\n",
        line("b", "We had soup for dinner."),
        b'{"id": "c", "turns": []}\n',
        b'{"id": "d", "turns": [{"role": "user", "content": "\xff\xfe hello"}]}\n',
        b"[" * 100_000 + b"\n",
        line("e", "I want to die", "never mind, forget it"),
    ]
    done = safety("assess", text=b"".join(rows))
    assert done.returncode == 0
    found = [json.loads(each) for each in done.stdout.splitlines()]
    assert [each["id"] for each in found] == ["a", None, "b", "c", "d", None, "e"]
    levels = [each["level"] for each in found]
    assert levels[:6] == ["high", "elevated", "none", "elevated", "none", "elevated"]
    assert levels[6] in ("elevated", "high")  # taking it back lowers nothing
    assert [each["degraded"] for each in found] == [[], ["input"], [], ["input"], [], ["input"], []]
    for each in found:
        assert 0 <= each["score"] <= 1
        assert set(each) == {"id", "level", "score", "ms", "reasons", "degraded"}
        assert all(set(reason) == {"rule", "text"} for reason in each["reasons"])
    assert b"soup" not in done.stdout + done.stderr


def test_eval_measures_the_test_part() -> None:
    done = safety("eval", "--shipped-only", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["left_out"] is None
    test = [case for case in read_cases() if part_of(case.family) == "test"]
    risky = sum(case.risk > 0 for case in test)
    assert found["test"]["recall"]["n"] == risky
    assert found["test"]["false_alarms"]["n"] == len(test) - risky
    table = safety("eval", "--shipped-only").stdout.decode()
    assert "Test part, as shipped" in table
    assert "By category" in table


@pytest.mark.parametrize("country", ["IE", "us", "JP"])
def test_card_is_text_or_json(country: str) -> None:
    text = safety("card", "--country", country)
    assert text.returncode == 0
    assert b"warmline has not contacted anyone" in text.stdout
    found = json.loads(safety("card", "--country", country, "--json").stdout)
    assert found["country"] == country.upper()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("card", "--country", "Ireland"), "expected two letters"),
        (("card", "--country", "IE", "--level", "mild"), "expected high or emergency"),
    ],
)
def test_bad_use_is_one_line_and_code_2(arguments: tuple[str, ...], message: str) -> None:
    done = safety(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_assess_loads_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys\n"
        "from warmline.safety.assess import assess\n"
        "assess([{'role': 'user', 'content': 'hello'}])\n"
        "print([name for name in ('torch', 'sklearn', 'scipy', 'requests', 'httpx') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_family_is_in_two_parts_and_no_line_is_from_the_set() -> None:
    cases = read_cases()
    said = {turn["content"].strip().lower() for case in cases for turn in case.turns if turn["role"] == "user"}
    lines = list(read_lines())
    assert len(lines) > 6_000
    assert sum(each.level == 0 for each in lines) > 0.3 * len(lines)
    copied = [each.text for each in lines if each.text.lower() in said and len(each.text.split()) > 3]
    assert not copied


def test_wilson_intervals() -> None:
    assert Rate(0, 0).interval == (0.0, 1.0)
    low, high = Rate(90, 100).interval
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)  # Wilson (1927), by hand
