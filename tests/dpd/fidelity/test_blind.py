"""Aliasing in the audit: a teacher that sees a velocity, and students that may not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpd.agents.config import View
from dpd.cli import main, saved_run
from dpd.fidelity.aliasing import AliasingScores, aliasing_verdict, score_aliasing
from dpd.fidelity.policies import ComparedPolicy, look_up_run
from dpd.fidelity.states import AuditSettings, visit
from dpd.policies.playing import Playing
from dpd.policies.policyfile import Policy, load
from dpd.run.directory import RunDir
from dpd.run.training import Training
from tests.toy.blind_env import DAMPING, DT, ENV, STIFFNESS, teacher
from tests.toy.policies import write
from tests.toy.runs import STUDENT, distil, train_teacher
from tests.toy.students import linear


def positions_only(*weights: float) -> Policy:
    """Return the student with these weights on its last positions, oldest first."""
    policy = linear(torch.tensor(weights).unsqueeze(1), torch.zeros(1), log_std=-3.0, env_id=ENV)
    norm = {"obs_mean": torch.zeros(1, 1), "obs_scale": torch.ones(1, 1)}
    view = View(obs_dim=2, act_dim=1, columns=(0,), groups=("0",), history=len(weights))
    return Policy(policy.tensors | norm, replace(policy.meta, obs_dim=2, view=view))


# v = (x - x of the step before) / DT, 0 at the start, where the first frame stands for it
BLIND = positions_only(-STIFFNESS)
SEEING = positions_only(DAMPING / DT, -STIFFNESS - DAMPING / DT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the teacher, both students, and one that sees all and does nothing."""
    folder = tmp_path_factory.mktemp("policies")
    still = linear(torch.zeros(2, 1), torch.zeros(1), log_std=-3.0, env_id=ENV)
    policies = {"teacher": teacher(), "blind": BLIND, "seeing": SEEING, "still": still}
    for name, policy in policies.items():
        write(folder / f"{name}.safetensors", policy)
    return folder


def test_positions_alone_leave_open_what_a_regression_cannot_explain() -> None:
    setting = AuditSettings(env_id=ENV, episodes=50, n_states=2000, threads=1, frames=2)
    visited = visit(setting, Playing(BLIND), 2000)
    compared = [ComparedPolicy(name="some", policy=p) for p in (teacher(), BLIND, SEEING)]
    blind = score_aliasing(compared[0], compared[1], visited.obs, visited.episodes)
    seeing = score_aliasing(compared[0], compared[2], visited.obs, visited.episodes)
    assert blind is not None and seeing is not None
    # no estimate from x can be worse than the best linear one, which leaves 0.54 here; half of
    # that at least is hidden, since the swinging student passes each x with either velocity
    x, v = visited.obs[:, 0].numpy(), visited.obs[:, 1].numpy()
    act = np.clip(-STIFFNESS * x - DAMPING * v, -1, 1)
    linear_error = 1 - np.corrcoef(x, act)[0, 1] ** 2
    assert linear_error / 2 < blind.aliasing < linear_error
    assert blind.teacher_aliasing < 0.01 and blind.own_aliasing < 0.01
    # the same states, seen with the position before, are known: v follows from two positions
    assert seeing.aliasing < 0.01 and seeing.missed < 1e-8
    assert seeing.teacher_aliasing == blind.teacher_aliasing


def test_one_episode_has_no_neighbours_and_no_aliasing() -> None:
    policy = ComparedPolicy(name="teacher", policy=teacher())
    obs = torch.randn(100, 2)
    assert score_aliasing(policy, policy, obs, torch.zeros(100)) is None
    assert score_aliasing(policy, policy, obs, torch.arange(100)) is not None
    still = linear(torch.zeros(2, 1), torch.zeros(1), env_id=ENV)
    idle = ComparedPolicy(name="still", policy=still)
    assert score_aliasing(idle, policy, obs, torch.arange(100)) is None


def test_the_verdict_compares_the_error_with_what_the_view_leaves_open() -> None:
    def verdict(missed: float, open_: float, error: float, sees_all: bool = False) -> str:
        answers = {
            aliasing_verdict(AliasingScores(missed, open_, *pair), sees_all)
            for pair in ((error, 0.0), (0.0, error))
        }
        assert len(answers) == 1  # the larger of both errors counts
        return answers.pop()

    assert "nothing left to gain" in verdict(0.005, 0.4, 0.0)
    # 0.5 of which 0.4 is hidden
    assert "more data does not help; a longer history" in verdict(0.5, 0.42, 0.02)
    # 0.5, where at most 0.1 is hidden
    assert "more data, more training" in verdict(0.5, 0.1, 0.02)
    # of 0.3, 0.25 may be hidden, but the estimate errs by 0.2 where nothing is
    assert "too coarse" in verdict(0.3, 0.25, 0.2)
    # a student of everything is short of training, however coarse the estimate
    assert "sees all of it: more data" in verdict(0.3, 0.25, 0.25, sees_all=True)
    assert verdict(0.5, 0.42, 0.02).startswith(
        "misses 50.0% of the variance of the teacher's action; its view leaves 42.0% open "
        "(by an estimate that finds 2.0% for 0): more data does not help"
    )


def test_the_report_answers_for_each_student(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        str(folder / f"{name}.safetensors") for name in ("teacher", "blind", "seeing", "still")
    ]
    small = ["--episodes", "250", "--states", "5000", "--threads", "1", "--out", str(tmp_path)]
    assert main(["fidelity", *files, *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    blind, seeing, still = (student["aliasing"] for student in found["students"])
    assert blind.keys() == {"teacher", "heldout", "student", "mixed"}
    assert blind["student"]["aliasing"] > 0.25 > 0.05 > seeing["student"]["aliasing"]
    assert still["heldout"]["aliasing"] == still["heldout"]["teacher_aliasing"] < 0.02
    # it does nothing, and the teacher's action is 0 on average: it misses all of its variance
    assert still["heldout"]["missed"] == pytest.approx(1, abs=0.05)
    notes = "\n".join(found["notes"])
    assert "seeing misses 0.0% of the variance" in notes and "nothing left to gain" in notes
    assert "blind misses" in notes
    assert "still misses" in notes and "sees all of it: more data, more training" in notes
    for page in ("fidelity.html", "fidelity.md"):
        text = (tmp_path / page).read_text()
        assert "missed" in text and "seeing misses" in text
        assert "look alike to the student" in text


def test_states_of_a_file_are_single_observations(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "states.npy"
    np.save(given, np.random.default_rng(0).uniform(-0.4, 0.4, (50, 2)))
    teacher_file, *students = (
        str(folder / f"{name}.safetensors") for name in ("teacher", "blind", "seeing")
    )
    small = ["--episodes", "3", "--states", "40", "--threads", "1", "--out", str(tmp_path)]
    argv = [*small, "--train-states", str(given), "--json"]
    assert main(["fidelity", teacher_file, *students, *argv]) == 2
    assert "seeing sees more than one observation" in capsys.readouterr().err
    assert main(["fidelity", teacher_file, students[0], *argv]) == 0
    (blind,) = json.loads(capsys.readouterr().out)["students"]
    # it lacks -1.2 v, of mean |v| = 0.2
    assert blind["sets"]["train"]["action_error"] == pytest.approx(1.2 * 0.2, rel=0.2)


def test_a_run_knows_what_its_students_with_a_view_were_trained_on(tmp_path: Path) -> None:
    teacher_run, out = train_teacher(tmp_path / "teacher"), tmp_path / "run"
    view = ["--student-obs", "0:3,prev_action", "--history", "1,3", "--student-delay", "1"]
    distil(out, teacher_run, *STUDENT, *view)
    training = Training(saved_run(out))
    RunDir(out, training.config, training)._load_newest()
    rows = training.stacks[0].agent.replay.rows  # type: ignore[union-attr]
    for n, history in enumerate((1, 3)):
        file = out / f"policies/seed0-h{history}.safetensors"
        policy = load(file)
        states = look_up_run(file, policy, saved_run).states
        assert states is not None and len(states) == 256
        seen = ComparedPolicy(name="student", policy=policy).sees(states).flatten(1)
        assert seen.shape[1] == history * 5  # three columns and two actions
        # 128 steps of 2 environments: the observation, and what was seen of it behind
        held = rows[n, :128, :, : 8 + seen.shape[1]].flatten(0, 1)
        found = torch.cat([states[:, :8], seen], 1)
        assert torch.equal(found.unique(dim=0), held.unique(dim=0))
    argv = ["fidelity", str(teacher_run), str(file), "--episodes", "1", "--states", "50"]
    assert main([*argv, "--threads", "1", "--out", str(tmp_path / "fidelity")]) == 0
    (student,) = json.loads((tmp_path / "fidelity/fidelity.json").read_text())["students"]
    assert student["gap"]["seen"] == "train" and student["sets"]["train"]["n"] == 50


def test_a_value_function_of_a_policy_with_a_view_reads_what_learners_store() -> None:
    known: list[torch.Tensor] = []

    def value(obs: torch.Tensor) -> torch.Tensor:
        known.append(obs)
        return obs[:, 0]

    setting = AuditSettings(env_id=ENV, episodes=2, n_states=20, threads=1, frames=2)
    obs = visit(setting, Playing(SEEING), 20).obs
    subject = ComparedPolicy(name="seeing", policy=SEEING, value=value)
    found = subject.outputs(obs).value
    assert found is not None and torch.equal(found, obs[:, 0])
    # the raw observation, and behind it both positions that the policy sees, the present one last
    assert known[0].shape == (len(obs), 4) and torch.equal(known[0][:, :2], obs[:, :2])
    assert torch.equal(known[0][:, 3], obs[:, 0])
