"""What the documentation says of measurements is what the measurements say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu_tables.py"
RESULTS = ROOT / "bench" / "results"
JUDGED = sorted([*RESULTS.glob("study-*.json"), *RESULTS.glob("cooperate-*.json")])


def bench(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script of the benchmarks as it is when it runs."""
    patch.syspath_prepend(ROOT / "bench")
    for other in (name, "cooperate", "marked", "timing"):
        patch.delitem(sys.modules, other, raising=False)
    return importlib.import_module(name)


def judged(data: Any) -> list[dict[str, Any]]:
    """Return everything in a file that has a verdict, floats to six digits."""
    if isinstance(data, list):
        return [found for each in data for found in judged(each)]
    if not isinstance(data, dict):
        return []
    own = [rounded(data)] if "verdict" in data else []
    return own + [found for each in data.values() for found in judged(each)]


def rounded(data: Any) -> Any:
    """Round floats to six digits, as another processor may sum in another order."""
    if isinstance(data, dict):
        return {k: rounded(v) for k, v in data.items()}
    if isinstance(data, list):
        return [rounded(each) for each in data]
    return float(f"{data:.6g}") if isinstance(data, float) else data


@pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.stem)
def test_committed_verdicts_are_those_of_todays_code(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads(path.read_text())
    again = bench("rejudge", monkeypatch).rejudged(data)
    assert judged(again) == judged(data) and len(judged(data)) >= 8


@pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.stem)
def test_the_tables_of_results_are_those_of_the_files(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, page = json.loads(path.read_text()), (ROOT / "docs" / "results.md").read_text()
    if "subject" in data:
        lines = bench("study_table", monkeypatch).lines(data)
    else:
        lines = bench("cooperate", monkeypatch).lines_of(data)
    assert "\n".join(lines) in page


def test_the_section_on_gpus_is_what_its_script_makes() -> None:
    run = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_section_shows_what_was_measured(tmp_path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_tables", SCRIPT)
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    host = {"device": "Some GPU", "torch": "2.13", "commit": "abcdef0123456"}
    updates = {"updates_per_s_each": 1500.0, "updates_per_s_all": 30_000.0}
    speed = {"updates/td3/20/recorded": updates, "envs/Ant-v5": {"1024": 5e5, "seconds_taken": 9}}
    goal = {"goal": "updates", "least": 2000, "measured": 1500.0}
    part = {"quick": False, "host": host, "found": speed, "goals": [goal]}
    (tmp_path / "gpu-speed.json").write_text(json.dumps(part))
    smoke = json.dumps(part | {"quick": True})
    (tmp_path / "gpu-runs.json").write_text(smoke)  # a smoke run is no measurement
    made = tables.section(tables.read(tmp_path))
    assert "on Some GPU, torch 2.13, commit abcdef0123" in made
    assert "| td3/20/recorded | 1,500 | 30,000 |" in made
    assert "* updates: 2,000; measured 1,500, not met" in made
    assert "| Ant-v5 | 500,000 |" in made and "Runs" not in made
