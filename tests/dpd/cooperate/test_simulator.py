"""The simulator of MuJoCo tasks: exact, and counted to the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.simulator import (
    Budget,
    BudgetExceeded,
    Simulator,
    feasible_positions,
    probe_times,
)
from dpd.envs.native import NativeEnv
from dpd.envs.task import load_model
from dpd.envs.tasks import TASKS
from dpd.run.episodes import ActFunction

CONFIG = CooperateConfig(
    paths=(Path("a"), Path("b")),
    probes=10,
    probe_envs=4,
    probe_steps=40,
    horizon=12,
    episodes=2,
    trial_episodes=3,
    threads=1,
)
PLENTY = 10**9


def acting(env_id: str, seed: int) -> ActFunction:
    """Return a fixed random linear policy."""
    env = NativeEnv(env_id, 1, [0])
    shape = env.spec.obs_dim, env.spec.act_dim
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3
    return lambda obs: (obs @ weight).clamp(-1, 1)


def simulator(env_id: str, total: int = PLENTY, **changes: Any) -> Simulator:
    return Simulator(TASKS[env_id], Budget(total), replace(CONFIG, **changes))


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the steps that environments actually take."""
    made: list[int] = []
    step = NativeEnv.step

    def counting(self: NativeEnv, act: Tensor) -> Any:
        made.append(self.n_envs)
        return step(self, act)

    monkeypatch.setattr(NativeEnv, "step", counting)
    yield made


@pytest.mark.parametrize("env_id", ["Swimmer-v5", "Hopper-v5", "Ant-v5"])
def test_a_score_is_bitwise_what_going_on_would_have_given(env_id: str) -> None:
    world, act = simulator(env_id), acting(env_id, 0)
    env = NativeEnv(env_id, 4, [1, 2, 3, 4], 1)
    obs = env.reset()
    for _ in range(5):
        obs = env.step(act(obs)).obs
    states = world.states(env.snapshot())
    assert torch.equal(states.obs, obs)
    total, running = np.zeros(4), np.ones(4, dtype=bool)
    for t in range(CONFIG.horizon):
        step = env.step(act(obs))
        total += CONFIG.gamma**t * step.reward.double().numpy() * running
        running &= ~(step.terminated | step.truncated).numpy()
        obs = step.obs
    other = acting(env_id, 1)
    found = world.score(states, [act, other], "competence")
    np.testing.assert_array_equal(found[0], total)
    np.testing.assert_array_equal(world.score(states, [other], "competence")[0], found[1])


def test_every_policy_gets_the_whole_horizon_also_near_the_time_limit() -> None:
    world, act = simulator("Swimmer-v5"), acting("Swimmer-v5", 0)
    states = world.visit(act, 4, 0)
    wanted = world.score(states, [act], "competence")
    states.inner["elapsed"][:] = 998
    np.testing.assert_array_equal(world.score(states, [act], "competence"), wanted)
    assert (states.inner["elapsed"] == 998).all()


@pytest.mark.parametrize("env_id", ["Swimmer-v5", "Hopper-v5"])
def test_every_step_is_counted_by_its_purpose(env_id: str, stepped: list[int]) -> None:
    world, acts = simulator(env_id), [acting(env_id, k) for k in (0, 1)]
    used = world.budget.used
    states = world.visit(acts[0], 10, 0)
    assert len(states) == 10 and used["probe"] == sum(stepped) <= 4 * CONFIG.probe_steps
    for purpose in ("competence", "counterfactual"):
        stepped.clear()
        world.score(states, acts, purpose)
        assert used[purpose] == sum(stepped) <= 2 * 10 * CONFIG.horizon
    stepped.clear()
    world.moved(states, states.coords + 0.01)
    assert not stepped  # a state is put there, and no step is made
    found = world.evaluate(acts)
    assert found.shape == (2, 2) and used["evaluation"] == sum(stepped)
    stepped.clear()
    tried = world.evaluate(acts, "trial")  # in other episodes
    assert tried.shape == (2, 3) and used["trial"] == sum(stepped)
    assert not np.isin(tried, found).any()
    assert world.budget.spent == sum(used.values())
    world.close()


def test_no_step_is_made_that_the_budget_does_not_hold(stepped: list[int]) -> None:
    world, act = simulator("Swimmer-v5", total=170), acting("Swimmer-v5", 0)
    states = world.visit(act, 4, 0)
    stepped.clear()
    spent = world.budget.spent
    with pytest.raises(
        BudgetExceeded, match=f"competence needs up to 192 more steps, and {170 - spent}"
    ):
        world.score(states, [act] * 4, "competence")
    with pytest.raises(BudgetExceeded, match="evaluation needs up to 2,000"):
        world.evaluate([act])
    world.budget.reserved = 170
    with pytest.raises(BudgetExceeded, match=r"probe needs up to .* and 0 are left"):
        world.visit(act, 4, 0)
    assert not stepped and world.budget.spent == spent


def test_large_sets_are_played_in_batches_with_the_same_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = simulator("Swimmer-v5")
    acts: list[ActFunction] = [
        lambda obs: obs[:, :2].clamp(-1, 1),
        lambda obs: -obs[:, 2:4].clamp(-1, 1),
    ]
    states = world.visit(acts[0], 10, 0)
    whole = world.score(states, acts, "competence")
    moved = world.moved(states, states.coords + 0.1)
    monkeypatch.setattr(
        "dpd.cooperate.simulator.BATCH_ENVS", 6
    )  # three states of two policies each
    np.testing.assert_array_equal(world.score(states, acts, "competence"), whole)
    assert torch.equal(world.moved(states, states.coords + 0.1).obs, moved.obs)


@pytest.mark.parametrize("env_id", TASKS)
def test_a_state_moved_to_where_it_is_shows_what_it_showed(env_id: str) -> None:
    world = simulator(env_id, probe_steps=5)
    states = world.visit(acting(env_id, 0), 4, 0)
    same = world.moved(states, states.coords)
    # contact forces are newly derived, quaternions unit
    if env_id in ("Ant-v5", "Ant-v4", "Humanoid-v5", "Humanoid-v4"):
        d = states.coords.shape[1]
        torch.testing.assert_close(same.obs[:, :d], states.obs[:, :d], atol=1e-6, rtol=1e-6)
        assert same.obs.isfinite().all()
    elif env_id.startswith(("HumanoidStandup", "Pusher", "Reacher")):
        # A step leaves positions of bodies and contact forces from before it; a move derives them.
        again = world.moved(same, same.coords)
        torch.testing.assert_close(same.coords, states.coords, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(again.obs, same.obs, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(same.obs, states.obs)
        np.testing.assert_array_equal(same.inner["physics"], states.inner["physics"])


def test_a_moved_state_is_possible_and_keeps_its_place_along_the_track() -> None:
    world = simulator("Ant-v5", probe_steps=5)
    states = world.visit(acting("Ant-v5", 0), 4, 0)
    moved = world.moved(states, states.coords + 0.3)
    turn = moved.coords[:, 1:5]  # behind the height
    torch.testing.assert_close(turn.norm(dim=1), torch.ones(4).double())
    np.testing.assert_array_equal(moved.obs[:, 1:5], turn.float())  # of the simulator itself
    before, after = (s.inner["physics"][:, 1:3] for s in (states, moved))  # time, then x and y
    np.testing.assert_array_equal(after, before)


def test_joints_stop_at_their_limits_unless_they_were_beyond() -> None:
    model = load_model(TASKS["Walker2d-v5"])
    at = model.jnt_qposadr[model.jnt_limited.astype(bool)][0]
    low, high = model.jnt_range[model.jnt_limited.astype(bool)][0]
    before = np.zeros((3, model.nq))
    before[:, at] = [(low + high) / 2, high + 0.2, high + 0.2]
    wanted = before.copy()
    wanted[:, at] = [high + 1, high + 0.5, high + 0.1]
    np.testing.assert_allclose(
        feasible_positions(model, wanted, before)[:, at], [high, high + 0.2, high + 0.1]
    )
    free = wanted[:, 0] = [5.0, 6.0, 7.0]  # where the body is has no limit
    np.testing.assert_array_equal(feasible_positions(model, wanted, before)[:, 0], free)


def test_moments_are_distinct_steps_spread_over_the_episode() -> None:
    for n, steps in ((5, 5), (7, 10), (32, 1000)):
        for seed in range(20):
            found = probe_times(n, steps, seed)
            assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < steps
            assert (found * n // steps).tolist() == list(range(n)) or steps % n
