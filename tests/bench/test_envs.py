"""bench/envs.py: rollouts of dpd and of Stable-Baselines3, and their table."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

RATES = {
    "HalfCheetah-v5": {
        "dpd native@8": [9.0, 9.0, 9.0],
        "dpd gymnasium@8": [3.0, 6.0, 9.0],
        "sb3 DummyVecEnv@8": [2.0, 2.0, 3.0],
    },
    "Pendulum-v1": {
        "dpd gymnasium@8": [1.0, 1.0, 1.0],
        "sb3 DummyVecEnv@8": [2.0, 2.0, 2.0],
    },
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a script of bench/."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")

    def script(name: str) -> Any:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return script


def test_rollouts_have_a_table_with_the_ratio_to_sb3(bench: Any) -> None:
    # ratios of HalfCheetah's rounds: 3/2, 6/2, 9/3, whose median is 3
    assert bench("envs").rollout_lines({"rollouts": RATES})[2:] == [
        "| dpd native, 8 | 9 |  |",
        "| dpd gymnasium, 8 | 6 | 1 |",
        "| dpd gymnasium / sb3 DummyVecEnv, 8 | 3.00 | 0.50 |",
        "| sb3 DummyVecEnv, 8 | 2 | 2 |",
    ]


def test_collecting_slower_than_sb3_misses_the_goal(bench: Any) -> None:
    goals = bench("envs").rollout_goals(RATES)
    assert [(goal["goal"], goal["met"]) for goal in goals] == [
        ("HalfCheetah-v5, dpd gymnasium@8 / sb3 DummyVecEnv@8 >= 1.0", True),
        ("Pendulum-v1, dpd gymnasium@8 / sb3 DummyVecEnv@8 >= 1.0", False),
    ]


@pytest.mark.parametrize("name", ["dpd native", "dpd gymnasium", "sb3 DummyVecEnv"])
def test_all_collect_the_same_number_of_steps(
    name: str, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = bench("envs")
    monkeypatch.setattr(envs, "SAMPLES", 24)
    work = envs.ROLLOUTS[name]("InvertedPendulum-v5", 2)
    assert [work(), work()] == [24, 24]  # 2 environments of 12 steps


def test_a_page_keeps_the_text_of_what_was_not_measured(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = bench("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    page = (tables.DOCS / "benchmarks.md").read_text()
    monkeypatch.setattr(tables.gpu, "section", lambda results: [])
    monkeypatch.setattr(tables.gpu, "read", lambda results: None)
    written = tables.written("benchmarks.md")
    before, mark, _ = page.partition("<!-- bench/gpu.py: begin -->")
    assert written.startswith(before + mark)
