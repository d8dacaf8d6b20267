"""The guide's script for MLflow, run with a stand-in of MLflow's functions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tests.dpd.log.test_log import RETURNS, open_log

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "log.md"


class Tracker(ModuleType):
    """The functions of MLflow that the script calls, by the same names and parameters."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, dict[str, list[tuple[int, float]]]] = {}
        self.files: dict[str, list[str]] = {}
        self.experiment = self.now = ""

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    @contextmanager
    def start_run(self, *, run_name: str) -> Iterator[None]:
        self.now, self.runs[run_name], self.files[run_name] = run_name, {}, []
        yield

    def log_metric(self, key: str, value: float, step: int) -> None:
        self.runs[self.now].setdefault(key, []).append((step, value))

    def log_artifact(self, local_path: str) -> None:
        assert Path(local_path).is_file()
        self.files[self.now].append(Path(local_path).name)


def test_the_script_gives_mlflow_every_learners_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "walker"
    with open_log(run_dir) as log:
        log.record(100, {"eval/return": RETURNS, "time/eval": 1.0})
        log.record(200, {"eval/return": RETURNS + 5})
    (run_dir / "config.json").write_text("{}")
    (run_dir / "policies").mkdir()
    for name in ("seed8-peer1", "seed8-peer1-best", "seed3-peer1"):
        (run_dir / "policies" / f"{name}.safetensors").write_bytes(b"")
    (script,) = re.findall(r"^```py\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    monkeypatch.setattr(sys, "argv", ["to_mlflow.py", str(run_dir)])
    exec(compile(script, "to_mlflow.py", "exec"), {})
    names = [f"walker seed{seed}-peer{peer}" for seed in (3, 8) for peer in (0, 1)]
    assert list(tracker.runs) == names and tracker.experiment == "dpd"
    assert tracker.runs["walker seed8-peer1"] == {"eval/return": [(100, 21.0), (200, 26.0)]}
    assert sorted(tracker.files["walker seed8-peer1"]) == [
        "config.json",
        "seed8-peer1-best.safetensors",
        "seed8-peer1.safetensors",
    ]
