"""Measurements on a GPU: one that takes its process along leaves the others alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURES = """
import os
import torch

def parity(device, quick, seconds):
    yield "good", lambda: {"value": 1, "process": os.getpid()}
    yield "error", lambda: torch.zeros(2) @ torch.zeros(3)
    yield "crash", os.abort
    yield "after", lambda: {"value": 2, "process": os.getpid()}
"""


def test_a_measurement_that_fails_or_crashes_leaves_the_others_alone(tmp_path: Path) -> None:
    shutil.copy(ROOT / "bench/gpu.py", tmp_path)
    (tmp_path / "gpu_parity.py").write_text(MEASURES)
    out = tmp_path / "found.json"
    argv = [sys.executable, str(tmp_path / "gpu.py"), "parity", "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*argv, "--json", str(out)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    found = record["found"]
    assert list(found) == ["good", "error", "crash", "after"]
    assert (found["good"]["value"], found["after"]["value"]) == (1, 2)
    assert found["good"]["process"] != found["after"]["process"]
    assert "inconsistent" in found["error"]["error"] and "Traceback" in found["error"]["where"]
    assert found["crash"]["error"] == "its process ended with -6"  # SIGABRT
    assert record["host"]["device"] == "cpu" and record["goals"] == []


def test_goals_and_tables_come_from_the_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    gpu = import_module("gpu")
    found = {
        "ppo/HalfCheetah-v5/no distillation": {"steps_per_s": 2e6, "in_use_gb": 3.0},
        "updates/td3/20/recorded": {"updates_per_s_each": 1500.0, "updates_per_s_all": 30_000.0},
        "envs/Ant-v5": {"warp": {"1024": 5e5, "4096": 1e6}, "seconds_taken": 9},
        "few/Ant-v5": {"error": "RuntimeError: none"},
    }
    host = {"device": "H200", "torch": "2", "commit": "0123456789ab"}
    part = {"quick": False, "host": host, "found": found, "goals": gpu.goals("speed", found)}
    (tmp_path / "gpu-speed.json").write_text(json.dumps(part))
    smoke = json.dumps(part | {"quick": True})
    (tmp_path / "gpu-runs.json").write_text(smoke)  # a smoke run is no measurement
    lines = gpu.section(gpu.read(tmp_path))
    assert "`bench/gpu.sh speed` on H200, torch 2, commit 0123456789." in lines
    assert any(line.endswith(": 1,000,000; measured 2,000,000, met") for line in lines)
    assert any(line.endswith(": 2,000; measured 1,500, not met") for line in lines)
    assert "| ppo/HalfCheetah-v5/no distillation | 2,000,000 | 3.0 |" in lines
    assert "| td3/20/recorded | 1,500 | 30,000 |" in lines
    assert "| Ant-v5, warp | 500,000 | 1,000,000 |" in lines and "### Runs" not in lines
    stopped = {"HalfCheetah-v5/paper": {"status": 1, "seconds": 300.0}}
    assert gpu.goals("runs", stopped)[0]["measured"] is None  # it did not finish


def test_a_measurement_without_an_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    gpu = import_module("gpu")
    begin = time.monotonic()
    with (tmp_path / "said").open("wb") as said:
        argv = [sys.executable, "-c", "import time; time.sleep(600)"]
        assert gpu.ended(argv, said, 0.2) is None
        assert gpu.ended([sys.executable, "-c", "raise SystemExit(3)"], said, 60) == 3
    assert time.monotonic() - begin < 60
