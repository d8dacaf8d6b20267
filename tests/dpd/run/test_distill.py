"""`dpd distill` from end to end, with budgets of a moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dpd
from dpd.agents.ppo_config import PPOConfig
from dpd.cli import main, parse_run
from dpd.run.train import iterate, make_training
from tests.toy.runs import ENDS, ROLLOUT, STUDENT, distil, logged, run, train_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(tmp_path_factory.mktemp("taught") / "teacher")


OBS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
PPO = [*ROLLOUT, "--minibatch-size", "64", "--epochs", "2"]
SAC = ["--algo", "sac", "--n-steps", "64", "--hidden", "8", "--learning-starts", "0"]
SAC += ["--minibatch-size", "16", "--capacity", "512", "--updates-per-step", "0.1"]
METHODS = {
    "bc": ["--method", "bc", *STUDENT],
    "dagger": STUDENT,
    "on-policy": ["--method", "on-policy", *STUDENT],
    "progressive": ["--method", "progressive", "--distill.spacing", "steps", *STUDENT],
    "kickstart": ["--method", "kickstart", *PPO],
    "kickstart of sac": ["--method", "kickstart", *SAC, "--distill.divergence", "nll"],
    "ppd": ["--method", "ppd", *PPO],
    "n-distill": ["--method", "n-distill", *PPO],
    "reverse-kl": ["--method", "reverse-kl", *PPO],
}


@pytest.mark.parametrize("flags", METHODS.values(), ids=METHODS)
def test_every_method_leaves_policies_metrics_and_its_teachers(
    flags: list[str], teacher: Path, tmp_path: Path
) -> None:
    last = teacher / "policies/seed0-peer0.safetensors"  # the best may have no history before it
    out = distil(tmp_path / "run", last, *flags, steps=256)
    student = dpd.load(out / "policies/seed0-peer0.safetensors")
    assert student.act(OBS).shape == (50, 2) and np.isfinite(student.act(OBS)).all()
    assert (out / "policies/seed0-peer0-best.safetensors").exists()
    queries = logged(out, "distill/queries")
    assert queries == sorted(queries) and queries[-1] > 0
    assert min(logged(out, "distill/action_error")) > 0
    assert all(0 <= share <= 1 for share in logged(out, "distill/agree_0.1"))
    kept = dpd.load(out / "teachers/teacher00000.safetensors")
    assert np.array_equal(kept.act(OBS), dpd.load(last).act(OBS))
    history = list((out / "teachers").glob("history*"))
    assert len(history) == (3 if "progressive" in flags else 0)


def test_a_run_stands_for_its_best_policy(teacher: Path, tmp_path: Path) -> None:
    out = distil(tmp_path / "run", teacher, *STUDENT, steps=256)
    best = load_file(teacher / "policies/seed0-peer0-best.safetensors")
    kept = load_file(out / "teachers/teacher00000.safetensors")
    assert all(torch.equal(kept[name], x) for name, x in best.items())


def test_of_the_history_only_what_came_before_the_teacher_is_kept(
    teacher: Path, tmp_path: Path
) -> None:
    early = shutil.copytree(teacher, tmp_path / "early") / "policies"
    shutil.copy(
        early / "history/seed0-peer0-000000000256.safetensors",
        early / "seed0-peer0-best.safetensors",
    )
    flags = ["--method", "progressive", "--distill.spacing", "steps", *STUDENT]
    best = early / "seed0-peer0-best.safetensors"
    out = distil(tmp_path / "run", best, *flags, steps=256)
    steps = [
        dpd.load(file).meta.provenance["steps"]
        for file in sorted((out / "teachers").glob("history*"))
    ]
    assert steps == [128, 256]


@pytest.mark.parametrize("method", ["dagger", "progressive"])
def test_a_run_goes_on_when_its_teachers_files_are_gone(
    method: str, teacher: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(teacher, tmp_path / "teacher")
    last = moved / "policies/seed0-peer0.safetensors"
    out = distil(tmp_path / "run", last, *METHODS[method], steps=256)
    before = logged(out, "distill/queries")
    shutil.rmtree(moved)
    run("--resume", str(out), "--total-steps", "512")
    after = logged(out, "distill/queries")
    assert after[: len(before)] == before and after[-1] > before[-1]
    assert json.loads((out / "config.json").read_text())["teacher"] == [str(last)]


def test_students_of_one_depth_share_a_stack_and_keep_their_sizes(
    teacher: Path, tmp_path: Path
) -> None:
    flags = ["--student-sizes", "4,8x8,8", *STUDENT]
    argv = ["Swimmer-v5", "--teacher", str(teacher), *flags, *ENDS, "--total-steps", "768"]
    config = parse_run(argv, "distill")
    assert [(s.name, s.peers) for s in config.stacks] == [("student", (0, 1, 2))]
    out = distil(tmp_path / "run", teacher, *flags, steps=768)
    names = ("4x4", "8x8-peer1", "8x8-peer2")  # the last two by number too: they are alike
    policies = [dpd.load(out / f"policies/seed0-{k}.safetensors") for k in names]
    assert [p.meta.hidden for p in policies] == [(4, 4), (8, 8), (8, 8)]
    assert policies[0].tensors["actor.1.weight"].shape == (4, 4)
    training = make_training(config)
    iterate(training), iterate(training)
    acts = training.mode(torch.from_numpy(OBS).expand(3, 50, 8))
    for k, policy in enumerate(policies):
        # the same run, of 768 / 3 / 128 = 2 iterations; Swimmer's bounds are -1 and 1
        np.testing.assert_allclose(policy.act(OBS), acts[k].numpy(), rtol=0, atol=1e-5)


def test_students_are_called_by_size_in_files_tables_and_tensorboard(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    out = tmp_path / "run"
    argv = ["distill", "Swimmer-v5", "--teacher", str(teacher), *ENDS, "--total-steps", "512"]
    assert main([*argv, "--student-sizes", "4,8x4", *STUDENT, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    names = ("seed0-4x4", "seed0-8x4")
    files = [f"{name}{which}.safetensors" for name in names for which in ("", "-best")]
    assert sorted(f.name for f in (out / "policies").glob("*.safetensors")) == sorted(files)
    assert {run.name for run in (out / "tb").iterdir()} == {"run", *names}
    first_words = [line.strip("│ ").split(" ")[0] for line in said.splitlines()]
    assert {*names, "4x4", "8x4"} <= {*first_words}
    assert "peer0" not in said and "peer 1" not in said
    found = json.loads((out / "fidelity.json").read_text())["sizes"]
    assert [size["students"][0]["policy"] for size in found] == list(names)


NAMES = ("4x4x4", "8x8")


def test_students_of_unlike_depth_are_in_stacks_of_their_own(teacher: Path, tmp_path: Path) -> None:
    out = distil(tmp_path / "run", teacher, "--student-sizes", "4x4x4,8", *STUDENT)
    found = [dpd.load(out / f"policies/seed0-{k}.safetensors").meta.hidden for k in NAMES]
    assert found == [(4, 4, 4), (8, 8)]
    # each counts what its own student asked: 128 acting and 4 x 32 to learn from, then the latter
    for peer in (0, 1):
        assert logged(out, "distill/queries", peer) == [256, 384]
    other = parse_run(["--config", str(out / "config.json")], "distill")
    assert [s.hidden_of(s.peers[0]) for s in other.stacks] == [(4, 4, 4), (8, 8)]


def test_students_that_reinforcement_moves_have_a_stack_for_each_size(teacher: Path) -> None:
    argv = ["--teacher", str(teacher), "--method", "n-distill", "--student-sizes", "4,8x4"]
    config = parse_run([*argv, "--lr", "1e-4"], "distill")
    assert [(s.name, s.algo.hidden) for s in config.stacks] == [("ppo", (4, 4)), ("ppo", (8, 4))]
    assert all(isinstance(s.algo, PPOConfig) and not s.algo.norm_adv for s in config.stacks)
    assert [s.algo.lr for s in config.stacks] == [1e-4] * 2  # what is given is for all sizes
    assert (config.run.peers, config.run.total_steps) == (2, 400_000)


def test_help_shows_a_methods_own_defaults_of_its_learners(capsys) -> None:
    with pytest.raises(SystemExit):
        parse_run(["--method", "n-distill", "--help"], "distill")
    said = capsys.readouterr().out.replace("│", "").split()
    gamma = said.index("--gamma")  # n-distill: 0.9; PPO alone: 0.99
    words = ["Discount", "factor.", "(default:", "0.9)"]
    assert said[gamma : gamma + 6] == ["--gamma", "FLOAT", *words]


def test_the_settings_are_read_back_from_the_file(teacher: Path, tmp_path: Path) -> None:
    argv = ["Swimmer-v5", "--teacher", str(teacher), "--student-sizes", "4,8", *STUDENT, *ENDS]
    config = parse_run([*argv, "--method", "progressive", "--distill.stages", "2"], "distill")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.as_json()))
    assert parse_run(["--config", str(file)], "distill") == config
