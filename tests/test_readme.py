"""README's first screen: its two commands print what it shows (numbers and replies masked), and what it names exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from warmline.cli import app
from warmline.config.reading import recipe_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown(command: str) -> list[str]:
    """The lines of the block that follows `command` in README."""
    block = re.search(rf"    {re.escape(command)}\b.*?```text\n(.*?)```", README, re.DOTALL)
    assert block is not None
    return block.group(1).splitlines()


def masked(lines: list[str]) -> list[str]:
    return [re.sub(r"^companion: .*", "companion: ...", re.sub(r"\d+(\.\d+)?", "N", line)) for line in lines]


def test_make_demo_prints_what_readme_shows(tmp_path: Path) -> None:
    """The command behind `make demo`, with an empty cache: it pre-trains the base, fine-tunes, scores and talks."""
    done = subprocess.run(
        [sys.executable, "-m", "warmline", "demo"],
        cwd=tmp_path,
        env=os.environ | {"WARMLINE_HOME": str(tmp_path / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert masked(done.stdout.splitlines()) == masked(shown("make demo"))
    replies = [line for line in done.stdout.splitlines() if line.startswith("companion: ")]
    assert len(replies) == 3
    assert all(len(reply.split()) > 2 for reply in replies)
    report = (tmp_path / "runs" / "tiny" / "report.md").read_text(encoding="utf-8")
    assert "**This is a demonstration.**" in report
    assert "Stage **sft** has a lower held-out loss than stage base" in report
    assert all(f"The **{head}** head" in report for head in ("emotion", "situation", "strategy", "risk", "affect"))


def test_make_test_prints_what_readme_shows() -> None:
    [line] = shown("make test")
    assert re.fullmatch(r"\d+ passed(, \d+ \w+)* in [\d.]+s \(\d+:\d\d:\d\d\)", line)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(BIN)/warmline demo" in makefile
    assert '$(BIN)/pytest $(PARALLEL) -m "not slow"' in makefile


@pytest.mark.parametrize("arguments", sorted(set(re.findall(r"`?\.?[\w./]*warmline ((?:data )?[a-z-]+)", README))))
def test_commands_that_readme_names_exist(arguments: str) -> None:
    if (command := arguments.split())[0] in {"run", "train", "eval", "report", "chat", "data", "recipes", "demo"}:
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0


def test_recipes_that_readme_names_exist() -> None:
    assert set(re.findall(r"qwen[\w.-]+\w", README)) <= set(recipe_names())
