"""What the documentation says of measurements is what the measurements say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu_tables.py"


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
