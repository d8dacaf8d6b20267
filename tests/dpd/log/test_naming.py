"""Learners are named by what tells them apart, and every name can be read again."""

from pathlib import Path

import pytest

from dpd.cli import parse_run
from dpd.log.naming import display_names, learner_name, parse_policy_name, peer_names, policy_name
from dpd.run.sources import history_of, is_best

PPO_SAC = ["train", "--method", "none", "--algo", "ppo,sac"]
TWO_PPO = ["train", "--algo", "ppo,ppo", "--peer1.hidden", "32"]
THREE = ["train", "--method", "none", "--algo", "ppo,ppo,sac", "--peer1.hidden", "32"]
SIZES = ["distill", "--teacher", "t", "--student-sizes"]


@pytest.mark.parametrize(
    ("argv", "names", "words"),
    [
        (["train"], ["peer0", "peer1"], ["peer 0", "peer 1"]),  # nothing tells them apart
        (PPO_SAC, ["peer0-ppo", "peer1-sac"], ["peer 0 ppo", "peer 1 sac"]),
        (TWO_PPO, ["peer0-64x64", "peer1-32"], ["peer 0 64x64", "peer 1 32"]),
        # sac's 256x256 is its default: peers of the same algorithm must differ for the size to tell
        (THREE, ["peer0-ppo-64x64", "peer1-ppo-32", "peer2-sac-256x256"], None),
        (["distill", "--teacher", "t", "--peers", "2"], ["peer0", "peer1"], None),
        ([*SIZES, "8,64x64"], ["8x8", "64x64"], ["8x8", "64x64"]),
        ([*SIZES, "4x4x4,8"], ["4x4x4", "8x8"], None),  # of unlike depth
        ([*SIZES, "8,8,64"], ["8x8-peer0", "8x8-peer1", "64x64"], None),
    ],
)
def test_peers_are_named_by_what_tells_them_apart(
    argv: list[str], names: list[str], words: list[str] | None
) -> None:
    command, *flags = argv
    found = peer_names(parse_run(flags, command))
    assert found == names
    assert words is None or display_names(found) == words


@pytest.mark.parametrize("peer", ["peer0", "peer12", "64x64", "8x8-peer1", "peer1-sac", "linear"])
def test_every_name_is_read_back(peer: str) -> None:
    learner = learner_name(3, peer)
    assert parse_policy_name(policy_name(learner)) == (learner, False, None)
    assert parse_policy_name(policy_name(learner, is_best=True)) == (learner, True, None)
    assert parse_policy_name(policy_name(learner, steps=256)) == (learner, False, 256)


def test_names_of_earlier_versions_and_of_other_programs_are_read() -> None:
    assert parse_policy_name("seed0-peer2-best") == ("seed0-peer2", True, None)
    assert parse_policy_name("seed0-peer1-000000000256") == ("seed0-peer1", False, 256)
    assert parse_policy_name("my-teacher") == ("my-teacher", False, None)
    assert is_best(Path("mine-best.safetensors"))


def test_the_history_of_a_student_is_not_that_of_one_whose_name_begins_alike(
    tmp_path: Path,
) -> None:
    (tmp_path / "history").mkdir()
    for peer in ("8x8", "8x8-peer1", "8x8x8"):
        name = policy_name(learner_name(0, peer), steps=64)
        (tmp_path / "history" / f"{name}.safetensors").touch()
    for file in ("seed0-8x8", "seed0-8x8-best"):
        found = history_of(tmp_path / f"{file}.safetensors")
        assert [f.name for f in found] == ["seed0-8x8-000000000064.safetensors"]
