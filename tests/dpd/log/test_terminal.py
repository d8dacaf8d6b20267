"""Tables in a pipe or a file are not cut to 80 columns; a bar of steps needs a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from dpd.log.terminal import make_console, steps_progress

ROOT = Path(__file__).parents[3]
TABLE = """
from dpd.report.report import Report, Section, Table, print_report
columns = ["student", *(f"a column of some width {k}" for k in range(6)), "own error"]
row = ["seed0-64x64", *(["1,234,567.891"] * 6), "0.123"]
sections = [Section(tables=[Table("students by size", columns, [row])])]
print_report(Report(sections=sections, data={}))
"""
EVALUATION = """
from dpd.report.report import print_report
from dpd.run.summary import evaluation_report
row = {"policy": "a-run-with-a-long-name/" * 5 + "seed0-64x64", "env": "Hopper-v5"}
row |= {"env_kwargs": {}, "episodes": 10}
row |= {**dict.fromkeys(("mean", "std", "min", "max", "length"), 1000)}
print_report(evaluation_report([row]))
"""


def printed(program: str, **environment: str) -> list[str]:
    """Run a program with its output in a pipe, and return its lines."""
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | environment
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_to_be() -> None:
    lines = printed(TABLE)
    heading = next(line for line in lines if "student " in line)
    # 8 columns: 6 of 24 characters, and two more; 80 would hold three of them
    assert heading.split()[-2:] == ["own", "error"] and len(heading) > 6 * 24
    assert all(f"a column of some width {k}" in heading for k in range(6))
    assert any("1,234,567.891" in line and "0.123" in line for line in lines)


def test_columns_in_the_environment_are_respected() -> None:
    assert max(map(len, printed(TABLE, COLUMNS="60"))) <= 60


def test_a_policys_name_stays_on_one_line() -> None:
    (row,) = [line for line in printed(EVALUATION) if "1,000" in line]
    assert "a-run-with-a-long-name/" * 5 + "seed0-64x64" in row


@pytest.mark.parametrize("folder", ["dpd", "bench"])
def test_consoles_are_made_in_one_place(folder: str) -> None:
    makes = re.compile(r"(?<![\w.])Console\(")
    files = [file for file in (ROOT / folder).rglob("*.py") if makes.search(file.read_text())]
    assert files == ([ROOT / "dpd/log/terminal.py"] if folder == "dpd" else [])


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_of_steps_is_drawn_in_a_terminal_only(is_terminal: bool) -> None:
    file = StringIO()
    console = make_console(file=file, force_terminal=is_terminal, width=120)
    with steps_progress(console, total=1_000, done=200) as tell:
        tell("probe", 300)
    assert ("probe" in file.getvalue()) is is_terminal
    assert ("500/1,000 steps" in file.getvalue()) is is_terminal
