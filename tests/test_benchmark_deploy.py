"""The deployment benchmark: every way reads the same tokens, and gains are over the float32 of the same round."""

from pathlib import Path

import pytest

from benchmarks.deploy import REFERENCE, Measure, available, build, measure, table


def made(way: str, decode: float, resident: float = 100.0) -> Measure:
    return Measure(way, 2 * decode, decode, resident, resident + 10, 0.0, 1.0)


def test_ways_that_are_installed_are_measured_against_float32(tmp_path: Path) -> None:
    build("quick", tmp_path)
    assert {REFERENCE, "int8, bitsandbytes"} <= {*available()}
    exact, rounded = (measure(way, tmp_path, 16, 3) for way in (REFERENCE, "int8, bitsandbytes"))
    assert (exact.kl, exact.top1) == (0.0, 1.0)
    assert 0 < rounded.kl < 0.05
    assert rounded.top1 > 0.8
    assert min(exact.decode, exact.prefill, rounded.decode, rounded.prefill) > 0


@pytest.mark.parametrize("way", ["slow", "fast"])
def test_gains_are_of_the_same_round(way: str) -> None:
    other = {"slow": (1.0, 1.0), "fast": (20.0, 80.0)}[way]
    rounds = [
        [made(REFERENCE, 10.0), made(way, other[0], 50.0)],
        [made(REFERENCE, 40.0), made(way, other[1], 50.0)],
    ]
    [row] = [line for line in table(rounds).splitlines() if line.startswith(f"| {way} ")]
    gain = {"slow": "0.06 [0.03, 0.10]x", "fast": "2.00 [2.00, 2.00]x"}[way]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3] == gain
    assert cells[7] == "0.50"
