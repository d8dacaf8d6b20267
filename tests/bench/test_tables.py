"""Tables of the pages, from made-up results."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

ARM: dict[str, Any] = {"iqm": 3000.0, "iqm_interval": [2000.0, 4000.0], "mean": 3000.0}
ARM |= {"area": 1500.0, "area_interval": [1000.0, 2000.0], "seconds": 120.4, "seeds": [0, 1]}
GAP = {"mean": 500.0, "interval": [100.0, 900.0], "p": 0.01, "p_adjusted": 0.02}


def lines(arms: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines that bench/tables.py makes of a study with one task."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    monkeypatch.delitem(sys.modules, "tables", raising=False)
    task = {"env": "Hopper-v5", "random": 18.0, "arms": arms}
    data = {"subject": "dpd", "algo": "ppo", "total_steps": 500_000, "seeds": 2, "whole": {}}
    found: list[str] = importlib.import_module("tables").study_lines(data | {"tasks": [task]})
    return found


def test_a_study_with_evaluations_has_a_table_of_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = GAP | {"verdict": "higher"}
    never = {"steps": None, "interval": [450_000.0, None], "seeds": 1}
    arms = {
        "dpd": ARM | {"reach": {"steps": 4e5, "interval": [3e5, 5e5], "seeds": 2}},
        "slow": ARM | {"reach": never, "gap": verdict, "area_gap": verdict},
    }
    found = lines(arms, monkeypatch)
    start = found.index("Learning:")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[start + 2 :]]
    assert cells[0] == ["arm", "area", "dpd minus it", "verdict", "to 90 %", "seeds", "seconds"]
    area = "1,500 (1,000 to 2,000)"
    assert cells[2] == ["dpd", area, "", "", "400k (300k to 500k)", "2 of 2", "120"]
    reached = "never (450k to never)"
    assert cells[3] == ["slow", area, "500 (100 to 900)", "higher", reached, "1 of 2", "120"]


def test_a_study_without_evaluations_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: value for name, value in ARM.items() if not name.startswith("area")}
    assert "Learning:" not in lines({"dpd": old | {"area": None}, "one": old}, monkeypatch)
