"""Runs read back: seeds, peers, curves, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpd.agents.ppo_config import PPOConfig
from dpd.errors import BadInput
from dpd.policies import policyfile
from dpd.policies.metadata import PolicyMeta
from dpd.run.sources import (
    peer_means,
    read_records,
    read_run,
    short_names,
    training_seconds,
)

OBS, ACT = 3, 1


def save_policy(path: Path, **provenance: Any) -> Path:
    """Save a small policy that says where it comes from."""
    agent = PPOConfig(hidden=(4,)).build(OBS, ACT, [(0, 0)])
    tensors = agent.export(0) | {"act_low": -torch.ones(ACT), "act_high": torch.ones(ACT)}
    meta = PolicyMeta(
        algo="ppo",
        env_id="Some-v0",
        activation="tanh",
        squashed=False,
        obs_dim=OBS,
        act_dim=ACT,
        hidden=(4,),
        env_kwargs={},
        provenance=provenance,
    )
    policyfile.save(path, tensors, meta)
    return path


def make_run(path: Path, steps: int = 300, total_steps: int = 1000) -> Path:
    """Write a run of seeds 3 and 4 with two peers, recorded every 100 steps."""
    for seed in (3, 4):
        for peer in (0, 1):
            name = f"seed{seed}-peer{peer}"
            for suffix in ("", "-best"):
                file = path / "policies" / f"{name}{suffix}.safetensors"
                save_policy(file, seed=seed, peer=peer, steps=steps, eval_return=None)
    (path / "config.json").write_text(f'{{"total_steps": {total_steps}}}')
    lines = ["step,seed,peer,metric,value", "100,,,time/eval,0.5"]
    for step in (200, 300):
        for seed in (3, 4):
            lines += [
                f"{step},{seed},{peer},eval/return,{step + seed + 10 * peer}" for peer in (0, 1)
            ]
    (path / "metrics.csv").write_text("\n".join(lines) + "\n")
    return path


def test_a_run_is_its_last_policies_by_seed_and_peer(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"), "run")
    assert [(m.seed, m.peer) for m in run.members] == [(3, 0), (3, 1), (4, 0), (4, 1)]
    assert not any(m.file.stem.endswith("-best") for m in run.members)
    assert (run.env, run.seeds, run.steps) == (("Some-v0", {}), [3, 4], {300})


def test_a_member_knows_its_last_evaluation_in_training(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"), "run")
    # 300 + seed + 10 * peer
    assert [m.evaluation for m in run.members] == [303, 313, 304, 314]


def test_a_curve_averages_the_peers_of_each_seed(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"), "run")
    # seed 3 at step 200: peers 203 and 213
    assert run.curve == {200: [208, 209], 300: [308, 309]}


def test_a_step_at_which_a_learner_lacks_is_left_out_of_the_curve() -> None:
    values = {(0, 0): {1: 1.0, 2: 2.0}, (0, 1): {1: 3.0}, (1, 0): {1: 7.0, 2: 8.0}}
    assert peer_means(values) == {1: [2.0, 7.0]}
    assert peer_means({}) == {}


def test_half_a_line_of_a_run_that_still_writes_is_not_read(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "metrics.csv"
    with path.open("a") as file:
        file.write("400,3,0,eval/return,1")  # of 1234.5
    assert max(read_records(path).evaluations[3, 0]) == 300


@pytest.mark.parametrize(("total_steps", "unfinished"), [(300, False), (399, False), (400, True)])
def test_a_run_is_unfinished_where_another_record_would_have_fit(
    total_steps: int, unfinished: bool, tmp_path: Path
) -> None:
    # 300 steps done, a record every 100: a budget of 399 holds no more
    run = read_run(make_run(tmp_path / "run", 300, total_steps), "run")
    assert run.is_unfinished is unfinished


def test_a_policy_file_is_a_single_replicate_without_a_curve(tmp_path: Path) -> None:
    run = read_run(save_policy(tmp_path / "p.safetensors", seed=5, peer=1, eval_return=2.0), "p")
    assert [(m.seed, m.peer, m.evaluation) for m in run.members] == [(5, 1, 2.0)]
    assert (run.curve, run.steps, run.is_unfinished) == ({}, set(), False)
    best = tmp_path / "seed0-peer0-best.safetensors"
    assert len(read_run(save_policy(best, seed=0, peer=0), "best").members) == 1
    assert read_run(save_policy(tmp_path / "imported.safetensors"), "imported").seeds == [0]


def test_what_is_no_run_is_refused_with_a_reason(tmp_path: Path) -> None:
    def refused(path: Path, says: str) -> None:
        with pytest.raises(BadInput, match=says):
            read_run(path, "run")

    refused(tmp_path, "is not a run directory: it contains no policies")
    (tmp_path / "expert.zip").touch()
    refused(tmp_path / "expert.zip", "dpd export .* --format dpd")
    save_policy(tmp_path / "a-best.safetensors", seed=0, peer=0)
    refused(tmp_path, "contains only best policies")
    save_policy(tmp_path / "a.safetensors", seed=0, peer=0)
    save_policy(tmp_path / "b.safetensors", seed=0, peer=0)
    refused(tmp_path, "several policies of one seed and peer")
    save_policy(tmp_path / "b.safetensors")
    refused(tmp_path, "does not contain its seed and peer")


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").touch()
    assert short_names([tmp_path / "x/taught", tmp_path / "x/alone"]) == ["taught", "alone"]
    assert short_names([Path("x/run"), Path("y/run"), Path("z")])[:2] == ["x/run", "y/run"]
    files = [Path("x/policies/seed0.safetensors"), Path("y")]
    assert short_names(files) == ["seed0", "y"]
    with pytest.raises(BadInput, match="given twice"):
        short_names([Path("x/run"), Path("y"), Path("x/../x/run")])


def test_the_seconds_of_a_run_are_its_steps_over_their_speed(tmp_path: Path) -> None:
    # 100 steps of two seeds at 50 a second, then 300 at 100 a second: 4 s + 6 s
    assert training_seconds({100: 50.0, 400: 100.0}, 2) == 10
    rows = ["step,seed,peer,metric,value"]
    for step, rate in ((100, 50), (400, 100)):
        rows += [f"{step},{seed},0,loss/value,1" for seed in (3, 4)]
        rows += [f"{step},,,time/steps_per_s,{rate}"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    assert read_records(tmp_path / "metrics.csv").seconds == 10
    # another worker trained seed 5 at the same time, for 400 / 20 = 20 s
    rows = ["step,seed,peer,metric,value", "400,5,0,loss/value,1", "400,,,time/steps_per_s,20"]
    (tmp_path / "metrics-1.csv").write_text("\n".join(rows) + "\n")
    assert read_records(tmp_path / "metrics.csv").seconds == 20


def test_a_run_without_speeds_has_no_seconds(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"), "run")
    assert run.records is not None and run.records.seconds is None
