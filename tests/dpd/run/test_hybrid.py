"""Hybrids of a run: played beside their peers on the same episodes, and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dpd
from dpd.cli import main, parse_train, saved_run
from dpd.errors import BadInput
from dpd.policies.hybrid import HybridPolicy, Judged
from dpd.policies.hybrid_file import load_hybrid
from dpd.policies.policyfile import load
from dpd.run.episodes import EvalResult, evaluate_together
from dpd.run.hybrid import ChoosingActor, GroupResult, differences, random_chooser
from dpd.run.hybrid_groups import PeerGroup, read_groups, refuse_no_choice
from dpd.run.sources import Place
from tests.toy.hybrids import line_hybrid
from tests.toy.policies import write
from tests.toy.runs import ENDS, logged, unreported

SMALL = ["--hidden", "16", "16", "--minibatch-size", "32", "--learning-starts", "100"]
SHORT = '{"max_episode_steps": 100}'


def train(out: Path, *flags: str) -> Path:
    """Train on short episodes of Swimmer-v5; return the run's directory."""
    with unreported():
        argv = ["train", "Swimmer-v5", "--env-kwargs", SHORT, *ENDS, "--out", str(out)]
        assert main([*argv, *flags]) == 0
    return out


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two seeds with two TD3 peers each."""
    flags = ["--algo", "td3", "--seeds", "2", "--seed", "4", "--total-steps", "400", *SMALL]
    return train(tmp_path_factory.mktemp("runs") / "td3", *flags)


def evaluated(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> dict[str, Any]:
    """Run `dpd evaluate --hybrid --json`."""
    capsys.readouterr()
    argv = ["evaluate", str(path), "--hybrid", "--json", "--episodes", "3", *flags]
    assert main(argv) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that refuses its input; return its one line."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_hybrids_are_played_beside_their_peers_on_the_same_episodes(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluated(capsys, run_dir, "--seed", "9")
    rows = {row["policy"]: row for row in result["policies"]}
    assert list(rows) == [
        f"seed{seed}-{name}"
        for seed in (4, 5)
        for name in ("peer0", "peer1", "hybrid", "hybrid-random")
    ]
    names = [name for name in rows if "hybrid" not in name]
    policies = [load(run_dir / "policies" / f"{name}.safetensors") for name in names]
    plain = evaluate_together(policies, "Swimmer-v5", 3, 9)
    for name, outcome in zip(names, plain, strict=True):
        assert rows[name]["returns"] == outcome.returns[0].tolist()
    for seed in (4, 5):
        shares = [rows[f"seed{seed}-peer{k}"]["share"] for k in (0, 1)]
        assert sum(shares) == pytest.approx(1) and shares == rows[f"seed{seed}-hybrid"]["shares"]
        # 3 episodes of 100 steps: half of them within four standard deviations, 4 / (2 sqrt 300)
        assert rows[f"seed{seed}-hybrid-random"]["shares"][0] == pytest.approx(0.5, abs=0.12)
    assert set(result["differences"]) == {
        "the mean of its peers",
        "the choice at random",
        "its better peer in training",
    }
    assert all(d["seeds"] == 2 and d["paired"] for d in result["differences"].values())
    assert {"Python", "TorchScript"} <= set(result["latency_us"]["seed4-hybrid"])
    assert "C" not in result["latency_us"]["seed4-hybrid"]


def test_the_table_says_who_acted(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir), "--hybrid", "--episodes", "1"]) == 0
    said = capsys.readouterr().out
    assert "acts in the hybrid" in said and "%" in said and "one action of seed4-hybrid" in said
    assert "Return of the hybrid minus that of others, over 2 groups" in said


def test_an_exported_group_plays_as_the_group_of_the_run(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "five.safetensors"
    argv = ["export", str(run_dir), "--hybrid", "--hybrid-seed", "5", "--format"]
    assert main([*argv, "dpd", "--out", str(file)]) == 0
    assert "differ from the policy's by at most 0 of" in capsys.readouterr().out
    policy = dpd.load(file)
    assert isinstance(policy, HybridPolicy)
    origin = policy.meta.provenance
    assert (origin["seed"], origin["steps"], origin["method"]) == (5, 400, "dpd")
    ours, theirs = evaluated(capsys, run_dir), evaluated(capsys, file)
    returns = [row["returns"] for row in ours["policies"][4:]]
    assert returns == [row["returns"] for row in theirs["policies"]]
    assert main(["evaluate", str(file), "--episodes", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["returns"] == returns[2]
    for name, ending in (("onnx", ".onnx"), ("torchscript", ".pt")):
        assert main(["export", str(file), "--format", name]) == 0
        assert file.with_suffix(ending).is_file()


def test_the_default_file_lies_beside_the_policies_of_single_learners(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    argv = ["export", str(copy), "--hybrid", "--hybrid-seed", "4", "--format", "dpd"]
    assert main(argv) == 0
    assert load_hybrid(copy / "seed4-hybrid.safetensors").meta.env_id == "Swimmer-v5"
    assert main(["evaluate", str(copy), "--episodes", "1", "--json"]) == 0
    capsys.readouterr()
    assert "exists; remove it" in refused(capsys, *argv)


def test_critics_of_workers_and_of_unlike_peers_are_found(tmp_path: Path) -> None:
    flags = ["--algo", "ppo,sac", "--seeds", "2", "--workers", "2", "--total-steps", "512"]
    flags += ["--peer0.n-envs", "2", "--peer0.n-steps", "64", "--peer0.minibatch-size", "32"]
    flags += ["--peer1.hidden", "16", "16", "--peer1.learning-starts", "50", "--method", "none"]
    groups = read_groups(train(tmp_path / "mixed", *flags), saved_run)
    assert [group.seed for group in groups] == [0, 1]
    assert [group.hybrid.hybrid.critics for group in groups] == [(0, 2), (0, 2)]
    first, second = (group.hybrid.parts[1]["critic0.0.weight"] for group in groups)
    assert not torch.equal(first, second)
    assert groups[1].names == ["seed1-peer0-ppo", "seed1-peer1-sac"]


def test_what_has_no_hybrid_is_refused_in_one_line(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout = ["--n-envs", "2", "--n-steps", "64", "--minibatch-size", "32"]
    ppo = train(tmp_path / "ppo", "--hidden", "8", "8", *rollout, "--total-steps", "256")
    said = refused(capsys, "evaluate", str(ppo), "--hybrid")
    assert "no critics of actions: ppo" in said and "--algo td3, ddpg or sac" in said
    flags = ["--algo", "td3", "--peers", "1", "--method", "none", "--total-steps", "200"]
    one = train(tmp_path / "one", *flags, *SMALL)
    assert "has one peer" in refused(capsys, "evaluate", str(one), "--hybrid")
    file = str(run_dir / "policies" / "seed4-peer0.safetensors")
    assert "not a hybrid policy; --hybrid takes" in refused(capsys, "evaluate", file, "--hybrid")
    assert "does not exist" in refused(capsys, "evaluate", str(tmp_path / "no"), "--hybrid")
    zip_flags = ("evaluate", str(run_dir), "--hybrid", "--activation", "relu")
    assert "--activation is for Stable-Baselines3 zips" in refused(capsys, *zip_flags)
    export = ("export", str(run_dir), "--format", "onnx")
    assert "dpd export takes one policy" in refused(capsys, *export)
    assert "seeds 4, 5; choose" in refused(capsys, *export, "--hybrid")
    assert "has no seed 6" in refused(capsys, *export, "--hybrid", "--hybrid-seed", "6")
    assert "nothing without --hybrid" in refused(capsys, *export, "--hybrid-seed", "4")
    said = refused(capsys, "export", file, "--format", "onnx", "--hybrid")
    assert "--hybrid is for run directories" in said


@pytest.mark.parametrize(("name", "target"), [("c", "a C file"), ("sb3", "Stable-Baselines3")])
def test_formats_of_one_network_refuse_a_group(
    name: str, target: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export", str(run_dir), "--hybrid", "--hybrid-seed", "4", "--format", name]
    out = tmp_path / ("x.c" if name == "c" else "x")
    said = refused(capsys, *argv, "--out", str(out))
    assert f"2 peers and their critics, which {target} cannot hold; give --format onnx" in said
    assert not any(tmp_path.iterdir())


def test_critics_of_another_policy_or_step_are_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    file = copy / "policies" / "seed5-peer1.safetensors"
    policy = load(file)
    policy.tensors["actor.0.bias"] += 0.1
    write(file, policy)
    said = refused(capsys, "evaluate", str(copy), "--hybrid")
    assert "seed5-peer1.safetensors is not the policy in the checkpoint of step 400" in said
    for checkpoint in (copy / "checkpoints").glob("step-*400.safetensors"):
        checkpoint.unlink()
    assert "has no checkpoint of step 400" in refused(capsys, "evaluate", str(copy), "--hybrid")


@pytest.mark.parametrize(
    ("flags", "seen"),
    [(["--actor-obs", "qpos", "--critic-obs", "all"], "qpos"), (["--history", "2"], "all")],
)
def test_peers_that_see_a_view_have_no_hybrid(flags: list[str], seen: str) -> None:
    # dpd evaluate --hybrid and dpd export --hybrid read their groups here
    config = parse_train(["Swimmer-v5", "--algo", "td3", *flags])
    with pytest.raises(
        BadInput, match=f"see {seen} by a view; --hybrid needs peers that see whole"
    ):
        refuse_no_choice(Path("run"), config)


def test_training_acts_as_the_hybrid_and_logs_how_often_peers_acted(tmp_path: Path) -> None:
    flags = ["--algo", "td3", "--act", "hybrid", "--total-steps", "1000", "--records", "9"]
    out = train(tmp_path / "turns", *flags, *SMALL)
    for peer in (0, 1):
        shares = logged(out, "act/foreign", peer)
        # Turns of 10 steps: foreign with probability 0.095 or 0.705 (see test_turns.py), over 400
        # steps after the 100 at random, so that 40 draws lie well within these bounds.
        assert shares and all(0 <= x <= 1 for x in shares)
        assert 0.02 < np.mean(shares) < 0.9


def test_shares_count_the_steps_of_running_episodes_only() -> None:
    actor = ChoosingActor(line_hybrid(), lambda judged: judged.best)
    for x in ([[0.5], [-0.5]], [[-0.5], [-0.5]], [[0.5], [0.5]]):
        actor(torch.tensor(x))
    # The first episode ends after 1 step, the second after 3: peers 0 | 1, 1, 0 acted.
    assert actor.shares(np.array([1, 3])) == [0.5, 0.5]
    assert actor.shares(np.array([1, 2])) == pytest.approx([1 / 3, 2 / 3])


def test_the_control_gives_every_peer_equal_turns() -> None:
    choose = random_chooser(torch.Generator().manual_seed(0))
    judged = Judged(torch.zeros(3, 6000, 1), torch.arange(3.0).view(3, 1).expand(3, 6000))
    # sqrt(2/9 / 6000) = 0.006
    assert torch.bincount(choose(judged)).div(6000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_differences_are_taken_seed_by_seed_and_the_better_peer_by_training() -> None:
    def played(*returns: float) -> EvalResult:
        return EvalResult(np.array([returns]), np.ones((1, len(returns)), int))

    def result(evaluations: list[float | None], hybrid: float) -> GroupResult:
        group = PeerGroup(0, "h", ["a", "b"], line_hybrid(), evaluations)
        peers = [played(1.0, 3.0), played(10.0)]
        return GroupResult(
            group, Place("Line-v0", {}), peers, played(hybrid), played(0.0), [1, 0], [0.5, 0.5]
        )

    results = [result([5.0, 4.0], 7.0), result([4.0, 5.0], 9.0)]
    found = {name: d.mean for name, d in differences(results).items()}
    # hybrids: 7, 9; means of peers: (2 + 10) / 2 = 6; better by training: 2, then 10
    assert found == {
        "the mean of its peers": 2.0,
        "the choice at random": 8.0,
        "its better peer in training": 2.0,
    }
    unknown = [result([None, 4.0], 7.0), result([4.0, 5.0], 9.0)]
    assert "its better peer in training" not in differences(unknown)
