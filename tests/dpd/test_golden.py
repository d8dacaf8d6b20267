"""Short runs give the numbers that they gave before: a ruler for changes that must change nothing.

The golden file holds the logged metrics of three runs and the figures of one study. After a change
that is meant to change numbers, write it anew and say why in the commit:

    python -m tests.dpd.test_golden
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dpd.cli import main

GOLDEN = Path(__file__).with_name("golden.json")
KERNELS = ["--kernels", "torch"]  # compiled ones may round otherwise
ENDS = [*KERNELS, "--evals", "1", "--eval-episodes", "1", "--final-episodes", "1", "--threads", "1"]
PPO = ["--n-envs", "2", "--n-steps", "64", "--hidden", "8", "8"]
PEERS = ["train", "Hopper-v5", "--preset", "paper", *PPO, "--total-steps", "768", *ENDS]
SAC = ["train", "Swimmer-v5", "--algo", "sac", "--learning-starts", "50", "--hidden", "8", "8"]
SAC += ["--minibatch-size", "16", "--distill.batch-size", "16", "--total-steps", "300", *ENDS]
TEACHER = ["train", "Swimmer-v5", "--method", "none", "--peers", "1", *PPO]
TEACHER += ["--total-steps", "256", *ENDS]
STUDENTS = ["distill", "Swimmer-v5", "--student-sizes", "4,8x8", *PPO[:4], "--minibatch-size", "32"]
STUDENTS += ["--distill.steps", "4", "--total-steps", "512", *ENDS]
STUDY = ["study", "Hopper-v5", "--arms", "independent", "one", "--seeds", "2", "--episodes", "2"]
STUDY += ["--own", "dpd=--preset paper", "--total-steps", "512", "--threads", "1"]


def logged(run_dir: Path) -> dict[str, list[float]]:
    """Return every metric of a run but times: its values in the order of the log."""
    metrics: dict[str, list[float]] = {}
    with (run_dir / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["metric"].startswith("time/"):
                metrics.setdefault(row["metric"], []).append(float(row["value"]))
    return metrics


def figures(data: Any) -> Any:
    """Return the numbers of a JSON document under their names, without texts."""
    if isinstance(data, dict):
        kept = {k: figures(v) for k, v in data.items()}
        return {k: v for k, v in kept.items() if v not in (None, {}, [])}
    if isinstance(data, list):
        return [x for x in map(figures, data) if x not in (None, {}, [])]
    return data if isinstance(data, int | float) else None


def measure(folder: Path) -> dict[str, Any]:
    """Run all commands in a folder; return their numbers."""
    teacher, study = folder / "teacher", folder / "study"
    runs = {"peers": PEERS, "sac": SAC, "teacher": TEACHER}
    runs["students"] = [*STUDENTS, "--teacher", str(teacher)]
    for name, argv in runs.items():
        assert main([*argv, "--out", str(folder / name)]) == 0
    assert main([*STUDY, "--out", str(study), "--", *PPO, *ENDS[:-2]]) == 0
    found: dict[str, Any] = {name: logged(folder / name) for name in runs}
    return found | {"study": figures(json.loads((study / "study.json").read_text()))}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Numbers of the code as it is."""
    return json.loads(json.dumps(measure(tmp_path_factory.mktemp("golden"))))


@pytest.mark.parametrize("name", ["peers", "sac", "teacher", "students"])
def test_a_short_run_logs_the_same_numbers(measured: dict[str, Any], name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    assert measured[name].keys() == golden.keys()
    for metric, values in golden.items():
        # processors round sums differently, and training multiplies that
        assert measured[name][metric] == pytest.approx(values, rel=2e-3, abs=2e-4, nan_ok=True)


def test_a_study_reports_the_same_figures(measured: dict[str, Any]) -> None:
    def compare(new: Any, old: Any, path: str) -> None:
        if isinstance(old, dict):
            assert new.keys() >= old.keys(), path  # a study may report more
            for key in old:
                compare(new[key], old[key], f"{path}.{key}")
        elif isinstance(old, list):
            assert len(new) == len(old), path
            for i, pair in enumerate(zip(new, old, strict=True)):
                compare(*pair, f"{path}[{i}]")
        else:
            assert new == pytest.approx(old, rel=2e-3, abs=2e-4), path

    compare(measured["study"], json.loads(GOLDEN.read_text())["study"], "study")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(measure(Path(folder)), indent=1) + "\n")
