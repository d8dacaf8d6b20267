"""A saved policy that sees a part of the observations keeps the history of its episodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import dpd
from dpd.agents.config import View
from dpd.policies import policyfile
from dpd.policies.metadata import NotAPolicy, PolicyMeta
from dpd.policies.playing import Playing, play
from dpd.policies.policyfile import Policy
from dpd.policies.views import without_view
from dpd.run.episodes import episode_seeds, evaluate_together
from tests.toy.blind_env import ENV, teacher
from tests.toy.policies import saved

BASE = View(obs_dim=3, act_dim=1, columns=(0, 2), groups=("0", "2"), history=2)


def looking(weight: list[float], view: View = BASE, **changes: Any) -> Policy:
    """Return the policy whose action is the product of weights and what it sees."""
    f, g = view.dim, view.frame_dim
    assert len(weight) == f
    tensors = {
        "actor.0.weight": torch.tensor(weight).view(f, 1),
        "actor.0.bias": torch.zeros(1, 1),
        "log_std": torch.zeros(1, 1),
        "obs_mean": torch.zeros(1, g),
        "obs_scale": torch.ones(1, g),
        "obs_count": torch.ones(1, 1),
        "act_low": torch.full((1,), -2.0),
        "act_high": torch.full((1,), 2.0),
    }
    meta = PolicyMeta(
        **{
            **{"algo": "student", "env_id": "some", "activation": "tanh", "squashed": False},
            **{"hidden": (), "env_kwargs": {}, "provenance": {}, "norm_obs": False},
            **{"obs_dim": view.obs_dim, "act_dim": 1, "view": view},
            **changes,
        }
    )
    return Policy(tensors, meta)


def obs(x: float) -> np.ndarray:
    """Return an observation whose middle number nobody sees."""
    return np.array([x, 99, 10 * x], np.float32)


# weights of 0.1 on the first number of the older frame, and of 0.2 on that of the present one;
# actions are scaled by 2
SUM = [0.1, 0.0, 0.2, 0.0]


def test_a_history_begins_with_the_first_observation_and_moves_on() -> None:
    policy = looking(SUM)
    # 2 (0.1 * 1 + 0.2 * 1), then 2 (0.1 * 1 + 0.2 * 2), then 2 (0.1 * 2 + 0.2 * -1)
    acts = [float(policy.act(obs(x))[0]) for x in (1, 2, -1)]
    assert acts == pytest.approx([0.6, 1.0, 0.0], abs=1e-6)
    policy.reset()
    assert policy.act(obs(2))[0] == pytest.approx(1.2)  # 2 (0.1 * 2 + 0.2 * 2)


def test_rows_of_a_batch_have_histories_of_their_own_and_begin_anew_by_themselves() -> None:
    policy = looking(SUM)
    policy.act(np.stack([obs(1), obs(2), obs(0)]))
    policy.reset(np.array([False, True, False]))
    acts = policy.act(np.stack([obs(2), obs(-1), obs(3)]))
    # 2 (0.1 * 1 + 0.2 * 2); begins anew: 2 (0.1 * -1 + 0.2 * -1); 2 (0.1 * 0 + 0.2 * 3)
    assert acts[:, 0].tolist() == pytest.approx([1.0, -0.6, 1.2])


def test_another_batch_needs_a_reset() -> None:
    policy = looking(SUM)
    policy.act(obs(1))
    with pytest.raises(ValueError, match=r"2 observations after 1: .* call reset\(\)"):
        policy.act(np.stack([obs(1), obs(1)]))
    with pytest.raises(ValueError, match="a mask of 2 rows; the policy acts on 1"):
        policy.reset(np.array([True, False]))
    policy.reset()
    assert policy.act(np.stack([obs(1), obs(1)])).shape == (2, 1)


def test_a_previous_action_is_0_at_first_and_then_the_one_before() -> None:
    view = replace(BASE, columns=(0,), groups=("0", "prev_action"), history=1, prev_action=True)
    policy = looking([0.1, 0.5], view)
    # 0.1; 0.1 + 0.5 * 0.1 = 0.15; 0.1 + 0.5 * 0.15 = 0.175, scaled by 2
    acts = [float(policy.act(obs(1))[0]) for _ in range(3)]
    assert acts == pytest.approx([0.2, 0.3, 0.35], abs=1e-6)
    policy.reset(np.array([True]))
    assert policy.act(obs(1))[0] == pytest.approx(0.2)


@pytest.mark.parametrize("prev_action", [False, True])
def test_one_observation_at_a_time_is_acted_on_as_in_a_batch(prev_action: bool) -> None:
    view = replace(BASE, history=3, prev_action=prev_action)
    rng = np.random.default_rng(0)
    policy = looking(rng.normal(size=view.dim).tolist(), view, norm_obs=True)
    policy.tensors["obs_mean"] += 0.3
    seen = rng.normal(size=(10, 3)).astype(np.float32)
    alone = np.stack([policy.act(x) for x in seen])
    policy.reset()
    batch = np.stack([policy.act(np.stack([x, x]))[1] for x in seen])
    np.testing.assert_allclose(alone, batch, atol=1e-5)


def test_the_simulated_sensors_are_not_those_of_the_robot() -> None:
    policy = looking(SUM, replace(BASE, delay=1, noise=(0.5, 0.5)))
    assert policy.act(obs(1))[0] == pytest.approx(0.6)
    playing = Playing(policy)
    assert playing(torch.tensor(obs(1))[None])[0, 0] != pytest.approx(0.3)


def test_an_episode_that_is_played_is_late_by_the_delay_of_the_view() -> None:
    playing = Playing(looking(SUM, replace(BASE, delay=1)))
    # a frame late: 0.3 * 1, 0.3 * 1, 0.1 * 1 + 0.2 * 2
    acts = [float(playing(torch.tensor(obs(x))[None])) for x in (1, 2, -1)]
    assert acts == pytest.approx([0.3, 0.3, 0.5])
    playing.begin()
    assert float(playing(torch.tensor(obs(2))[None])) == pytest.approx(0.6)


def test_a_single_observation_says_too_little_to_a_policy_with_a_history() -> None:
    with pytest.raises(ValueError, match="the policy sees 2 frames of an episode"):
        looking(SUM).mode(torch.zeros(4, 3))


def test_without_history_a_policy_answers_about_any_observation() -> None:
    policy = looking([0.1, 0.01], replace(BASE, history=1))
    # 0.1 * 1 + 0.01 * 10
    assert float(policy.mode(torch.tensor(obs(1))[None])) == pytest.approx(0.2)
    whole = without_view(policy, "a test")
    assert whole.meta.view is None and whole.tensors["actor.0.weight"].shape == (3, 1)
    assert float(whole.mode(torch.tensor(obs(1))[None])) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "changes", [{"history": 2}, {"delay": 1}, {"noise": (0.1, 0.0)}, {"prev_action": True}]
)
def test_what_needs_more_than_one_observation_has_no_other_form(changes: dict[str, Any]) -> None:
    view = replace(BASE, **{"history": 1} | changes)
    with pytest.raises(ValueError, match="give --format onnx, torchscript or dpd"):
        without_view(looking([0.0] * view.dim, view), "--format c")


def test_policies_with_and_without_a_view_play_side_by_side() -> None:
    view = View(obs_dim=2, act_dim=1, columns=(0,), history=2)
    # the force of the toy's teacher, -0.8 x - 1.2 (x - x before) / 0.5 = -3.2 x + 2.4 x before
    one = looking([2.4, -3.2], view, env_id=ENV)
    one.tensors["act_low"] /= 2
    one.tensors["act_high"] /= 2
    returns = [x.returns for x in evaluate_together([one, teacher()], ENV, 4, 0)]
    np.testing.assert_allclose(returns[0], returns[1], rtol=1e-3)


# --- Files ---


def test_a_file_keeps_the_view(tmp_path: Path) -> None:
    policy = looking(SUM, replace(BASE, delay=3, noise=(0.5, 0.0)))
    policyfile.save(tmp_path / "p.safetensors", policy.tensors, policy.meta)
    assert policyfile.load(tmp_path / "p.safetensors").meta == policy.meta


BAD: dict[str, dict[str, Any]] = {
    "view.obs_dim is 4, not 3": {"obs_dim": 4},
    "no columns of an observation in rising order": {"columns": (2, 0)},
    "view.columns are no columns": {"columns": (0, 3)},
    "view.noise has another length": {"noise": (0.1,)},
    "view.noise is": {"noise": (-1.0, 0.0)},
    "view.history is 0": {"history": 0},
    "which is too many inputs": {"history": 2**23},
    "view.delay is": {"delay": -1},
    "view.groups is": {"groups": (3,)},
}


@pytest.mark.parametrize(("message", "changes"), BAD.items(), ids=BAD)
def test_a_view_that_makes_no_sense_is_refused(
    message: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    policy = looking(SUM)
    meta = replace(policy.meta, view=replace(BASE, **changes))
    policyfile.save(tmp_path / "p.safetensors", policy.tensors, meta)
    with pytest.raises(NotAPolicy, match=message):
        policyfile.load(tmp_path / "p.safetensors")


def test_an_environment_of_gymnasium_is_played_in_three_lines(tmp_path: Path) -> None:
    file = tmp_path / "policies" / "seed0-peer0.safetensors"
    policy = saved(tmp_path, "ppo", "Swimmer-v5")
    assert file.exists()
    (seed,) = episode_seeds(0, 1)
    (expected,) = evaluate_together([policy], "Swimmer-v5", 1, 0)[0].returns
    env = gymnasium.make(policy.meta.env_id, **policy.meta.env_kwargs)
    # dpd evaluate computes actions in float64, `act` in float32
    assert dpd.play(policy, env, seed=seed) == pytest.approx(expected, rel=1e-3)
    several = dpd.play(policy, env, episodes=2, seed=5)
    assert several.shape == (2,) and several[1] == dpd.play(policy, env, seed=6)[0]


class Counting(gymnasium.Env[np.ndarray, np.ndarray]):
    """Show 0.1, then 0.2, and end after two steps; the reward is the action."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        self.x = 0.1
        return obs(self.x), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x += 0.1
        return obs(self.x), float(action[0]), self.x > 0.25, False, {}


def test_an_episode_that_is_played_begins_without_the_frames_of_the_last_one() -> None:
    # 2 (0.1 · 0.1 + 0.2 · 0.1) + 2 (0.1 · 0.1 + 0.2 · 0.2) = 0.06 + 0.1
    assert play(looking(SUM), Counting(), episodes=2) == pytest.approx([0.16, 0.16])
