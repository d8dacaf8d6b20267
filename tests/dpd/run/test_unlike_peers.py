"""Peers of unlike algorithm or size, as their users start them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dpd
from dpd.cli import main, parse_train
from dpd.run.train import iterate, make_training
from dpd.run.training import Training

PEERS = ["--algo", "ppo,sac", "--preset", "modern", "--seeds", "2"]
PEERS += [
    "--peer0.lr-schedule",
    "constant",
    "--peer0.n-envs",
    "2",
    "--peer0.n-steps",
    "64",
    "--peer0.hidden",
    "16",
    "16",
]
PEERS += ["--peer1.learning-starts", "100", "--peer1.capacity", "500", "--peer1.hidden", "8"]
PEERS += ["--peer1.minibatch-size", "16", "--distill.steps", "4", "--distill.batch-size", "16"]
# An iteration is 128 steps of PPO and 3 x 50 (128 / 50 is 2.56) of SAC.
RUN = ["Swimmer-v5", *PEERS, "--evals", "2", "--eval-episodes", "1", "--final-episodes", "1"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unlike") / "run"
    assert main(["train", *RUN, "--total-steps", "1112", "--out", str(out)]) == 0
    return out


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_peers_take_about_as_many_steps_as_each_other() -> None:
    config = parse_train([*RUN, "--total-steps", "1112"])
    assert [(s.name, s.peers, s.rounds, s.steps) for s in config.stacks] == [
        ("ppo", (0,), 1, 128),
        ("sac", (1,), 3, 150),
    ]
    assert (config.steps_per_iteration, config.iterations) == (278, 4)
    assert [config.steps_of(stack) for stack in config.stacks] == [512, 600]


def test_peers_of_unlike_width_share_experience_and_resume_exactly(tmp_path: Path) -> None:
    sizes = ["--peer-hidden", "8x8", "16x4", "--share-experience", "--lr-schedule", "constant"]
    few = ["Swimmer-v5", "--n-envs", "2", "--n-steps", "64", "--preset", "modern", *sizes]
    ends = ["--evals", "1", "--eval-episodes", "1", "--final-episodes", "1"]
    for out, steps in (("whole", "1024"), ("parts", "512")):
        run = ["--total-steps", steps, "--out", str(tmp_path / out)]
        assert main(["train", *few, *ends, *run]) == 0
    assert main(["train", "--resume", str(tmp_path / "parts"), "--total-steps", "1024"]) == 0
    for name, hidden in (("seed0-peer0-8x8", (8, 8)), ("seed0-peer1-16x4", (16, 4))):
        one, other = (
            dpd.load(tmp_path / out / "policies" / f"{name}.safetensors")
            for out in ("whole", "parts")
        )
        assert one.meta.hidden == hidden
        assert all(torch.equal(x, other.tensors[k]) for k, x in one.tensors.items())


def test_peers_of_the_same_settings_share_a_stack() -> None:
    config = parse_train(["--algo", "sac,ppo,sac", "--method", "none"])
    assert [(s.name, s.peers) for s in config.stacks] == [("sac", (0, 2)), ("ppo", (1,))]
    assert len(parse_train(["--algo", "sac,sac"]).stacks) == 1


def test_each_peer_logs_what_it_has_and_nothing_else(run_dir: Path) -> None:
    found = {(row["metric"], row["peer"]) for row in rows(run_dir)}
    assert {("loss/critic", "1"), ("train/alpha", "1"), ("distill/peer_ahead", "0")} <= found
    assert {("eval/return", "0"), ("eval/return", "1"), ("loss/policy", "0")} <= found
    assert not {("train/alpha", "0"), ("loss/policy", "1")} & found
    assert {row["seed"] for row in rows(run_dir)} == {"0", "1", ""}


def test_each_policy_file_is_of_its_own_kind(run_dir: Path) -> None:
    for seed in (0, 1):
        for peer, (algo, hidden) in enumerate((("ppo", (16, 16)), ("sac", (8,)))):
            policy = dpd.load(run_dir / "policies" / f"seed{seed}-peer{peer}-{algo}.safetensors")
            assert (policy.meta.algo, policy.meta.hidden) == (algo, hidden)
            assert policy.act(np.zeros(8, np.float32)).shape == (2,)


TWO_PPO = ["--algo", "ppo,ppo", "--peer0.hidden", "8", "8", "--peer1.hidden", "16", "16"]
for each in ("--peer0", "--peer1"):
    TWO_PPO += [f"{each}.n-envs", "2", f"{each}.n-steps", "64", f"{each}.lr-schedule", "constant"]


FEW = ["--distill.steps", "4"]


@pytest.mark.parametrize(
    "flags", [PEERS, [*TWO_PPO, *FEW], [*TWO_PPO, *FEW, "--distill.memory", "300"]]
)
def test_what_is_resumed_ends_where_the_whole_ends(flags: list[str]) -> None:
    def training() -> Training:
        return make_training(parse_train(["Swimmer-v5", *flags, "--total-steps", "1112"]))

    whole, resumed = training(), training()
    iterate(whole), iterate(whole)
    for old, new in zip(whole.journals, resumed.journals, strict=True):
        if old is not None and new is not None:
            new.extend(old.since(0))
    resumed.load_state({name: x.clone() for name, x in whole.state().items()})
    for each in (whole, resumed):
        iterate(each), iterate(each)
    found, expected = resumed.state(), whole.state()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_the_settings_are_read_back_from_the_file(run_dir: Path) -> None:
    saved = json.loads((run_dir / "config.json").read_text())
    assert saved["algo"] == "ppo,sac" and saved["peer1"]["hidden"] == [8]
    config = parse_train(["--config", str(run_dir / "config.json")])
    assert config.stacks == parse_train([*RUN, "--total-steps", "1112"]).stacks


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--algo", "ppo,sac"], "ruler value compares value functions of unlike algorithms"),
        (["--algo", "ppo,sac,td3", "--peers", "2"], "names 3 peers and --peers 2"),
        (["--algo", "ppo,dqn"], "unknown algorithm 'dqn'"),
        (["--algo", "sac,td3", "--peer0.peer-lr", "1e-3", "1e-3"], "give --peer0.lr"),
        (["--algo", "sac,td3", "--peer0.share-replay"], "--share-replay needs peers of one"),
        (["--algo", "ppo,sac", "--preset", "paper"], "preset paper is not for ppo,sac; give"),
        (["--algo", "ppo,sac", "--preset", "modern", "--peer1.lr", "0"], "dpd: peer1: lr must be"),
        (["--algo", "sac", "--lr", "0"], "dpd: lr must be positive"),
        (["--algo", "sac", "--peers", "1", "--share-replay"], "nothing with one peer"),
        (["--algo", "sac,ppo", "--lr", "1e-3"], "--lr"),
        (
            ["--algo", "ppo,sac", "--peer0.share-experience", "--method", "none"],
            "has no weights between PPO and learners with a replay: PPO weights",
        ),
        (["--algo", "sac,td3", "--peer0.share-experience"], "needs peers that collect at once"),
        (["--algo", "sac", "--peers", "1", "--share-experience"], "nothing with one peer"),
        (
            ["--algo", "sac", "--share-experience", "--peer-gamma", "0.9", "0.99"],
            "values mean different things under unlike --peer-gamma",
        ),
        (
            ["--algo", "sac", "--share-experience", "--target-critics", "5"],
            "--target-critics 5 is more than the 4 critics of 2 peers",
        ),
        (
            ["--algo", "td3", "--share-experience", "--learning-starts", "1000000"],
            "must be less than all peers' share of --total-steps, 1,000,000",
        ),
        (
            ["--algo", "ppo,ppo", "--peer0.hidden", "8", "8", "--peer0.share-experience"],
            "--share-experience needs peers that collect at once",
        ),
        (["--algo", "ppo", "--peers", "1", "--share-experience"], "nothing with one peer"),
        (
            ["--algo", "ppo", "--peer-hidden", "8x8", "--share-experience"],
            "--peer-hidden has 1 values for 2 peers",
        ),
        (["--algo", "ppo", "--share-min-ess", "0.1"], "nothing without --share-experience"),
        (
            ["--algo", "ppo", "--share-experience", "--reuse-iterations", "2"],
            "reuse_iterations is a control in the place of share_experience",
        ),
    ],
)
def test_what_does_not_fit_gets_one_line(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    free = [] if argv[1] == "ppo,sac" or "--lr" in argv else ["--method", "none"]
    assert main(["train", "Swimmer-v5", *argv, *free]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1
