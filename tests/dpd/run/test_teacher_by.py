"""Teachers chosen by a group of the observation, from the command line to the table at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dpd
from dpd.cli import main, parse_run
from dpd.distill.teacher import Route
from dpd.envs.make import check
from dpd.run.teachers import read_run_teacher
from tests.toy.runs import logged, run
from tests.toy.terrain_env import ENV, STEPS, saved_teachers

SMALL = ["--hidden", "8", "--n-envs", "4", "--n-steps", "20", "--minibatch-size", "20"]
SMALL += ["--lr", "1e-2", "--threads", "1", "--evals", "1"]
SMALL += ["--eval-episodes", "2", "--final-episodes", "4"]
BY = ["--teacher-by", "terrain"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return saved_teachers(tmp_path_factory.mktemp("teachers"))


def distil_terrain(out: Path, teachers: list[str], *flags: str, steps: int) -> Path:
    argv = [ENV, "--teacher", *teachers, *SMALL, "--total-steps", str(steps)]
    run(*argv, "--out", str(out), *flags)
    return out


def test_a_student_learns_each_terrain_from_its_teacher(
    tmp_path: Path, teachers: list[str]
) -> None:
    out = tmp_path / "run"
    argv = [ENV, "--teacher", *teachers, *SMALL, *BY, "--total-steps", "800"]
    assert main(["distill", *argv, "--out", str(out)]) == 0
    policy = dpd.load(out / "policies/seed0-peer0.safetensors")
    act = policy.mode(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    # by chance, the teachers' answers would have the mean 0 on both
    assert act[0] > 0.4 and act[1] < -0.4
    # each teacher is right where it answers: 10 steps of 0.8
    said = json.loads((out / "teachers/returns.json").read_text())["teachers"]
    assert said == [[pytest.approx(0.8 * STEPS, rel=1e-5)] * 4] * 2
    # on the states of the other teacher, the student agrees with neither: half of all states
    (found,) = json.loads((out / "fidelity.json").read_text())["sizes"]
    assert found["agree"] > 0.9 and found["own_error"] < 0.1


def test_workers_learn_what_one_process_does(tmp_path: Path, teachers: list[str]) -> None:
    flags = [*BY, "--seeds", "2"]
    whole = distil_terrain(tmp_path / "whole", teachers, *flags, steps=160)
    parts = distil_terrain(tmp_path / "parts", teachers, *flags, "--workers", "2", steps=160)
    for seed in (0, 1):
        name = f"policies/seed{seed}-peer0.safetensors"
        one, other = dpd.load(whole / name).tensors, dpd.load(parts / name).tensors
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_resumed_run_keeps_the_route(tmp_path: Path, teachers: list[str]) -> None:
    out = distil_terrain(tmp_path / "run", teachers, *BY, steps=160)
    config = parse_run(["--resume", str(out)], "distill")
    resumed = read_run_teacher(config, check(ENV))
    assert resumed is not None and resumed.route == Route(1, "terrain", 0)
    # the settings say it all
    assert {file.name for file in (out / "teachers").iterdir()} == {
        "teacher00000.safetensors",
        "teacher00001.safetensors",
        "returns.json",
    }
    run("--resume", str(out), "--total-steps", "240")
    assert logged(out, "distill/loss")[-1] < logged(out, "distill/loss")[0]


@pytest.mark.parametrize("first", [3, -1])
def test_terrains_may_be_numbered_from_any_number(
    first: int, tmp_path: Path, teachers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = ["--env-kwargs", json.dumps({"first": first})]
    out = distil_terrain(tmp_path / "run", teachers, *BY, *kwargs, steps=80)
    # each teacher is right where it answers: 10 steps of 0.8
    said = json.loads((out / "teachers/returns.json").read_text())["teachers"]
    assert said == [[pytest.approx(0.8 * STEPS, rel=1e-5)] * 4] * 2
    three = [ENV, "--teacher", *teachers, *SMALL, "--teacher-by", "0", *kwargs]
    assert main(["distill", *three, "--total-steps", "80", "--out", str(tmp_path / "bad")]) == 2
    assert "--teacher-by 0: 0 is not 0 to 1 in every" in capsys.readouterr().err
    for backend in ("auto", "async"):
        assert check(ENV, backend, {"first": first}).first_values == {1: first}
    assert check(ENV).first_values == {}


BAD = {
    "one teacher": (1, BY, "--teacher-by chooses among several teachers; give --teacher more"),
    "an unknown group": (2, ["--teacher-by", "terain"], "no group is called 'terain', did you"),
    "two columns": (2, ["--teacher-by", "all"], "--teacher-by all has 2 columns"),
    "no number of a teacher": (2, ["--teacher-by", "noise"], "noise is not 0 to 1 in every state"),
}


@pytest.mark.parametrize(("n", "flags", "says"), BAD.values(), ids=BAD)
def test_bad_routes_get_one_line(
    n: int,
    flags: list[str],
    says: str,
    tmp_path: Path,
    teachers: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [ENV, "--teacher", *teachers[:n], *SMALL, "--total-steps", "160"]
    capsys.readouterr()
    assert main(["distill", *argv, *flags, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("dpd: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
