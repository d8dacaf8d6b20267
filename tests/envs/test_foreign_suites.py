"""Environments of other packages train, evaluate and save policies; skipped where they are missing.

Tested with MuJoCo 3.17, dm-control 1.0.50, Shimmy 2.0.1 and Gymnasium-Robotics 1.4.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation

import dpd
from dpd.cli import main

QUICK = ["--n-envs", "2", "--n-steps", "32", "--total-steps", "256", "--hidden", "8"]
QUICK += ["--evals", "1", "--eval-episodes", "1", "--final-episodes", "1", "--threads", "1"]


def train_and_act(env_id: str, out: Path) -> None:
    """Train two peers for two iterations, and act with the saved policy."""
    assert main(["train", env_id, *QUICK, "--out", str(out)]) == 0
    policy = dpd.load(out / "policies" / "seed0-peer0.safetensors")
    env = gymnasium.make(env_id)
    obs, _ = env.reset(seed=0)
    assert env.action_space.contains(policy.act(np.asarray(obs)).astype(env.action_space.dtype))


def test_a_task_of_dm_control_trains(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    pytest.importorskip("shimmy")

    def flat_cartpole() -> gymnasium.Env:
        return FlattenObservation(gymnasium.make("dm_control/cartpole-balance-v0"))

    try:
        flat_cartpole().close()
    except AttributeError as error:
        pytest.skip(f"dm_control does not know this MuJoCo: {error}")
    if "FlatCartpole-v0" not in gymnasium.registry:
        gymnasium.register("FlatCartpole-v0", cast(Any, flat_cartpole), max_episode_steps=50)
    # every task hands its seed to NumPy's legacy generator, which takes 32 bits
    train_and_act("FlatCartpole-v0", tmp_path / "run")


def test_a_task_of_gymnasium_robotics_trains(tmp_path: Path) -> None:
    robotics = pytest.importorskip("gymnasium_robotics")
    gymnasium.register_envs(robotics)
    train_and_act("AdroitHandDoor-v1", tmp_path / "run")
