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
    assert found["blind"]["recall"]["n"] + found["blind"]["false_alarms"]["n"] == 640
    table = safety("eval", "--shipped-only").stdout.decode()
    assert "As shipped" in table
    assert "blind.subtle" in table
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


def test_validate_names_the_broken_rules_and_where() -> None:
    turns = [{"role": "user", "content": "I want to die"}]
    candidate = "That sounds heavy. I promise it stays our secret."
    rows = [
        {"id": 1, "risk": "high", "turns": turns, "candidate": candidate},
        {"id": 2, "risk": "none", "turns": turns, "candidate": "Good morning."},
        {"id": 3, "risk": "mild", "turns": turns, "candidate": "Hello."},
        {"id": 4, "risk": "none", "turns": turns},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "nonsense\n"
    done = safety("validate", text=text.encode())
    assert done.returncode == 0
    found = [json.loads(each) for each in done.stdout.splitlines()]
    assert [each["id"] for each in found] == [1, 2, 3, 4, None]
    assert "promise_of_secrecy" in found[0]["violations"]
    assert found[0]["violations"] == sorted(found[0]["violations"])
    assert found[1]["violations"] == []
    assert [each["violations"] for each in found[2:]] == [["input"]] * 3
    for span in found[0]["spans"]:
        assert 0 <= span["start"] <= span["end"] <= len(candidate)
    [secret] = [span for span in found[0]["spans"] if span["rule"] == "promise_of_secrecy"][:1]
    assert "secret" in candidate[secret["start"] : secret["end"]] or "promise" in candidate[secret["start"] :]


def test_reply_climbs_to_a_safe_answer_without_a_model() -> None:
    rows = [
        line("a", "I want to kill myself tonight"),
        b'{"id": "b"}\n',
        line("c", "We had soup for dinner."),
        json.dumps(
            {
                "id": "d",
                "turns": [
                    {"role": "user", "content": "I want to kill myself", "t": 0},
                    {"role": "assistant", "content": "That sounds heavy."},
                    {"role": "user", "content": "what is for lunch", "t": 60},
                ],
            }
        ).encode(),
    ]
    done = safety("reply", "--engine", "scripted", "--country", "IE", "--seed", "1", text=b"".join(rows))
    assert done.returncode == 0
    found = [json.loads(each) for each in done.stdout.splitlines()]
    assert [each["id"] for each in found] == ["a", "b", "c", "d"]
    assert [each["level"] for each in found] == ["high", "elevated", "none", "high"]
    assert [each["reply_source"] for each in found] == ["guided", "notice", "model", "guided"]
    assert [each["card"] is not None for each in found] == [True, False, False, True]
    for each in (found[0], found[3]):
        checked = {"id": "x", "risk": "high", "turns": [], "candidate": each["reply"]}
        verdict = json.loads(safety("validate", text=json.dumps(checked).encode()).stdout)
        assert verdict["violations"] == []
