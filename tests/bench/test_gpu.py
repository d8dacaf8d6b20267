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

def measures(device, quick, seconds):
    yield "good", lambda: {"value": 1, "process": os.getpid()}
    yield "error", lambda: torch.zeros(2) @ torch.zeros(3)
    yield "crash", os.abort
    yield "after", lambda: {"value": 2, "process": os.getpid()}

def goals(found):
    return [{"goal": "a value", "least": 1, "measured": found["good"]["value"]}]
"""


def test_a_measurement_that_fails_or_crashes_leaves_the_others_alone(tmp_path: Path) -> None:
    for name in ("gpu.py", "timing.py"):
        shutil.copy(ROOT / "bench" / name, tmp_path)
    (tmp_path / "gpu_parity.py").write_text(MEASURES)
    out = tmp_path / "found.json"
    argv = [sys.executable, str(tmp_path / "gpu.py"), "parity", "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*argv, "--json", str(out)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
    assert record["host"]["device"] == "cpu" and record["goals"][0]["measured"] == 1


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
