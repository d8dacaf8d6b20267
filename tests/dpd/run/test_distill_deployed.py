"""What a run evaluates and saves is what its method deploys: a student with its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dpd
from dpd.cli import main, parse_run
from dpd.distill.teacher import Returns
from dpd.fidelity.policies import ComparedPolicy
from dpd.fidelity.sizes import SizeComparison, SizeGroup, compare_student, size_notes
from dpd.policies import policyfile
from dpd.run.train import iterate, make_training
from tests.toy import policies as made
from tests.toy.runs import STUDENT, distil, logged

RETRIEVAL = ["--method", "retrieval", "--distill.entries", "150", "--distill.embed-steps", "10"]
RETRIEVAL += ["--distill.check-every", "2", *STUDENT]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a policy of random weights for Swimmer."""
    folder = tmp_path_factory.mktemp("teacher")
    made.saved(folder, "ppo", "Swimmer-v5")
    return folder / "policies/seed0-peer0.safetensors"


def test_a_run_evaluates_what_it_saves(teacher: Path, tmp_path: Path) -> None:
    flags = [*RETRIEVAL, "--distill.student-weight", "0.5", "--student-sizes", "8,6"]
    out = distil(tmp_path / "run", teacher, *flags, "--evals", "1", steps=1024)
    argv = ["Swimmer-v5", "--teacher", str(teacher), *flags, "--total-steps", "1024"]
    training = make_training(parse_run([*argv, "--threads", "1"], "distill"))
    for _ in range(4):
        iterate(training)
    obs = torch.randn(2, 30, 8)
    acted = training.mode(obs)
    for n, name in enumerate(("8x8", "6x6")):
        saved = dpd.load(out / f"policies/seed0-{name}.safetensors")
        assert saved.meta.memory is not None and saved.meta.memory.entries == 150
        torch.testing.assert_close(saved.mode(obs[n]), acted[n], rtol=0, atol=1e-5)
    # 150 entries of 32 numbers and 2 actions, beside what the student is: the report counts them
    subject = ComparedPolicy(name="s", policy=saved)
    student = compare_student(subject, [], [], {"return": 1.0, "retained": 1.0})
    assert student.memory and student.cost.parameters > 150 * 34
    plain = replace(student, memory=False, cost=student.cost._replace(parameters=100))
    of_size = SizeGroup("6", [student, plain], 400)
    assert of_size.parameters == round((student.cost.parameters + 100) / 2)
    returns, costs = Returns([[1.0]], [0.0]), [student.cost]
    found = SizeComparison(env_id="", n_states=1, returns=returns, costs=costs, sizes=[of_size])
    assert size_notes(found) == [
        "1 of 2 students query a memory of their teacher, which counts in their params and µs"
    ]


def test_a_student_that_declines_is_a_plain_policy(teacher: Path, tmp_path: Path) -> None:
    flags = [*RETRIEVAL, "--distill.student-weight", "1"]
    out = distil(tmp_path / "run", teacher, *flags)
    assert dpd.load(out / "policies/seed0-peer0.safetensors").meta.memory is None


def test_scaffolding_logs_what_its_guide_does(teacher: Path, tmp_path: Path) -> None:
    out = distil(tmp_path / "run", teacher, "--method", "scaffold", *STUDENT, steps=1024)
    values = logged(out, "distill/g_mean")
    assert values[0] == 0 < values[-1] <= 0.5  # the first iteration warms up; the cap
    assert logged(out, "distill/lambda") and logged(out, "distill/loss_guide")


def test_learning_does_not_start_from_a_policy_with_a_memory(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*RETRIEVAL, "--distill.student-weight", "0.5", "--hidden", "16", "8"]
    out = distil(tmp_path / "run", teacher, *flags)
    file = out / "policies/seed0-peer0.safetensors"
    argv = ["train", "Swimmer-v5", "--hidden", "16", "8", "--init-from", str(file)]
    assert main([*argv, "--out", str(tmp_path / "x")]) == 2
    assert "has memory" in capsys.readouterr().err


REFUSED = {
    "must be nll": ["--method", "scaffold", "--distill.divergence", "mse"],
    "coverage must lie in": ["--method", "scaffold", "--distill.coverage", "1"],
    "k 8 is more than": ["--method", "retrieval", "--distill.entries", "4"],
    "student_weight must lie in": ["--method", "retrieval", "--distill.student-weight", "2"],
    "teaches --algo student": ["--method", "scaffold", "--algo", "ppo"],
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(
    says: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--teacher", str(teacher), "--out", str(tmp_path / "x")]
    assert main(["distill", "Swimmer-v5", *out, *REFUSED[says]]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (tmp_path / "x").exists()


def test_one_teacher_only_has_an_embedding(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    policy = dpd.load(teacher)
    policyfile.save(other, policy.tensors, policy.meta)
    argv = ["distill", "Swimmer-v5", "--method", "retrieval", "--teacher", str(teacher), str(other)]
    assert main([*argv, "--out", str(tmp_path / "x")]) == 2
    assert "embedding of one teacher" in capsys.readouterr().err
