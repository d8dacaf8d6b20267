"""Values and training states of a policy, looked up in a checkpoint of its run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpd.agents.base import part
from dpd.cli import main, saved_run
from dpd.fidelity.policies import RunLookup, look_up_run
from dpd.log.naming import learner_name, peer_names
from dpd.policies import policyfile
from dpd.policies.policyfile import load
from dpd.run.checkpoint import read
from dpd.run.directory import RunDir
from dpd.run.training import Training
from tests.toy.gpu_runs import as_on_a_gpu
from tests.toy.runs import ENDS, ROLLOUT, STUDENT, distil, train_teacher

SAC = ["--learning-starts", "0", "--minibatch-size", "16", "--updates-per-step", "0.1"]
LEARNERS = {
    "ppo": ["--algo", "ppo", "--peers", "2", *ROLLOUT],
    "ppo and sac": ["--algo", "ppo,sac", "--peer1.capacity", "512"]
    + [f"--peer1.{w[2:]}" if w.startswith("--") else w for w in SAC]
    + [f"--peer0.{w[2:]}" if w.startswith("--") else w for w in ROLLOUT],
}
OBS = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("flags", LEARNERS.values(), ids=LEARNERS)
def test_a_value_is_what_the_learner_itself_says(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = ["train", "Swimmer-v5", "--method", "none", "--seeds", "2", *flags, *ENDS]
    assert main([*argv, "--total-steps", "512", "--out", str(out)]) == 0
    training = Training(saved_run(out))
    (checkpoint,) = (out / "checkpoints").glob("step-*[1-9]*.safetensors")
    state, _ = read(checkpoint)
    training.load_state(part(state, "training"))
    for who, (stack, n) in training.places.items():
        name = learner_name(who[0], peer_names(training.config)[who[1]])
        file = out / f"policies/{name}.safetensors"
        value, states = look_up_run(file, load(file), saved_run)
        asked = stack.agent.ask(OBS.expand(stack.agent.n_learners, 20, 8)).value
        assert value is not None and asked is not None and states is None
        assert torch.equal(value(OBS), asked[n]) and value(OBS).std() > 0


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_a_value_is_known_wherever_the_run_learnt(algo: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ROLLOUT if algo == "ppo" else [*SAC, "--capacity", "512", "--hidden", "8", "8"]
    argv = ["train", "Swimmer-v5", "--method", "none", "--peers", "1", "--seeds", "3", "--algo"]
    argv += [algo, *flags, *ENDS, "--total-steps", "128", "--seed", "5", "--out", str(out)]
    assert main(argv) == 0
    files = sorted((out / "policies").glob("seed?-peer0.safetensors"))
    expected = values(files)
    as_on_a_gpu(out)
    assert_same_values(files, expected)
    shutil.rmtree(out)
    assert main([*argv, "--workers", "2"]) == 0  # the same learners, whoever trains them
    # two seeds in the first part, one in the second
    assert [file.name[4] for file in files] == ["5", "6", "7"]
    assert_same_values(files, expected)
    as_on_a_gpu(out)
    assert_same_values(files, expected)


def values(files: list[Path]) -> list[torch.Tensor]:
    """Return what the value function of each policy's learner says of OBS."""
    found = []
    for file in files:
        value = look_up_run(file, load(file), saved_run).value
        assert value is not None
        found.append(value(OBS))
    return found


def assert_same_values(files: list[Path], expected: list[torch.Tensor]) -> None:
    for x, y in zip(values(files), expected, strict=True):
        torch.testing.assert_close(x, y)


def test_the_states_of_a_students_run_in_parts_on_gpus_are_known(tmp_path: Path) -> None:
    teacher, out = train_teacher(tmp_path / "teacher"), tmp_path / "run"
    distil(out, teacher, *STUDENT, "--seeds", "2", "--workers", "2")
    as_on_a_gpu(out)
    as_on_a_gpu(teacher)
    found = []
    for seed in (0, 1):
        file = out / f"policies/seed{seed}-peer0.safetensors"
        states = look_up_run(file, load(file), saved_run).states
        assert states is not None and states.shape == (512, 8)
        found.append(states)
    assert not torch.equal(*found)  # each seed's own
    audit = ["fidelity", teacher, out, "--episodes", "1", "--states", "50"]
    assert main([*map(str, audit), "--out", str(tmp_path / "fidelity")]) == 0
    student, *_ = json.loads((tmp_path / "fidelity/fidelity.json").read_text())["students"]
    assert student["gap"]["seen"] == "train"


def test_without_its_own_checkpoint_a_policy_has_no_value(tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = ["train", "Swimmer-v5", "--method", "none", "--peers", "1", *ROLLOUT, *ENDS]
    assert main([*argv, "--total-steps", "128", "--out", str(out)]) == 0
    file = out / "policies/seed0-peer0.safetensors"
    policy = load(file)
    assert look_up_run(file, policy, saved_run).value is not None
    for said in ({"steps": 77}, {"steps": "many"}, {"peer": 5}, {"seed": None}):
        other = replace(policy.meta, provenance={**policy.meta.provenance, **said})
        assert look_up_run(file, policyfile.Policy(policy.tensors, other), saved_run) == RunLookup()
    moved = {k: v + 1 if k == "actor.0.bias" else v for k, v in policy.tensors.items()}
    assert look_up_run(file, policyfile.Policy(moved, policy.meta), saved_run) == RunLookup()
    elsewhere = Path(shutil.copy(file, tmp_path / "policy.safetensors"))
    assert look_up_run(elsewhere, load(elsewhere), saved_run) == RunLookup()
    audit = ["fidelity", out, out / "policies/seed0-peer0-best.safetensors", "--episodes", "1"]
    audit += ["--states", "50", "--out", tmp_path / "fidelity"]
    assert main(list(map(str, audit))) == 0
    (student,) = json.loads((tmp_path / "fidelity/fidelity.json").read_text())["students"]
    assert student["sets"]["heldout"]["value_gap"] == 0  # of the same policy, its best


def test_a_students_run_knows_what_it_was_trained_on(tmp_path: Path) -> None:
    teacher, out = train_teacher(tmp_path / "teacher"), tmp_path / "run"
    flags = ["--student-sizes", "4,8", "--seeds", "2", "--evals", "2", "--capacity", "256"]
    distil(out, teacher, *STUDENT, *flags, steps=1024)
    training = Training(saved_run(out))
    run = RunDir(out, training.config, training)
    before = sorted((out / "checkpoints").iterdir())
    for seed, peer in [(0, 0), (1, 1)]:
        file = out / f"policies/seed{seed}-{('4x4', '8x8')[peer]}.safetensors"
        value, states = look_up_run(file, load(file), saved_run)
        assert value is None and states is not None
        # two learners' 2 x 64 steps an iteration, the last two of four remembered
        assert states.shape == (256, 8)
        run._load_newest()
        (stack,) = training.stacks
        n = stack.ids.index((seed, peer))
        held = stack.agent.replay.rows[n, ..., :8].flatten(0, 1)  # type: ignore[union-attr]
        assert torch.equal(states.unique(dim=0), held.unique(dim=0))
    assert sorted((out / "checkpoints").iterdir()) == before
    argv = ["fidelity", teacher, out / "policies/seed1-8x8.safetensors", "--episodes", "1"]
    assert main([*map(str, argv), "--states", "50", "--out", str(tmp_path / "fidelity")]) == 0
    found = json.loads((tmp_path / "fidelity/fidelity.json").read_text())
    (student,) = found["students"]
    assert student["gap"]["seen"] == "train" and student["sets"]["train"]["n"] == 50
    assert found["notes"][0].startswith("seed1-8x8 is off by more than 0.05 on ")
