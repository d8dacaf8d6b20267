import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from dpd.agents.base import Rollout, take
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.sharing import gae


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1)  # [N=1, T, E=1]


def ends(*flags: int) -> Tensor:
    return torch.tensor(flags, dtype=torch.bool).view(1, -1, 1)


NONE = (0, 0, 0)


@pytest.mark.parametrize(
    ("next_value", "terminated", "truncated", "expected"),
    [
        # delta = (1 + 2/2 - 1, 2 + 3/2 - 2, 3 + 4/2 - 3) = (1, 1.5, 2); gamma lambda = 1/4:
        # A2 = 2, A1 = 1.5 + 2/4 = 2, A0 = 1 + 2/4 = 1.5
        pytest.param((2, 3, 4), NONE, NONE, (1.5, 2, 2), id="none"),
        # step 1 bootstraps nothing: delta1 = 2 - 2 = 0; A1 = 0, A0 = 1 + 0; A2 as before
        pytest.param((2, 3, 4), (0, 1, 0), NONE, (1, 0, 2), id="terminated"),
        # step 1 bootstraps its own successor, worth 10: delta1 = 2 + 10/2 - 2 = 5; A1 = 5 alone,
        # A0 = 1 + 5/4 = 2.25
        pytest.param((2, 10, 4), NONE, (0, 1, 0), (2.25, 5, 2), id="truncated"),
        # both at once is an end without bootstrap
        pytest.param((2, 10, 4), (0, 1, 0), (0, 1, 0), (1, 0, 2), id="both"),
        # the last step's end cuts its bootstrap: delta2 = 0; A1 = 1.5, A0 = 1 + 1.5/4 = 1.375
        pytest.param((2, 3, 4), (0, 0, 1), NONE, (1.375, 1.5, 0), id="last"),
    ],
)
def test_advantages_worked_by_hand(
    next_value: tuple[float, ...],
    terminated: tuple[int, ...],
    truncated: tuple[int, ...],
    expected: tuple[float, ...],
) -> None:
    half = torch.tensor(0.5, dtype=torch.float64)
    over = ends(*terminated)
    adv = gae(
        column(1, 2, 3),
        column(1, 2, 3),
        column(*next_value),
        over,
        over | ends(*truncated),
        half,
        half,
    )
    assert adv.flatten().tolist() == pytest.approx(expected)


@given(
    steps=st.lists(
        st.tuples(
            st.floats(-10, 10), st.floats(-10, 10), st.floats(-10, 10), st.sampled_from("-xt")
        ),
        min_size=1,
        max_size=12,
    ),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
)
def test_advantage_is_the_discounted_sum_of_errors_up_to_the_episodes_end(
    steps: list[tuple[float, float, float, str]], gamma: float, lam: float
) -> None:
    # Schulman et al. 2016, eq. 16, written as the sum it is, not as a recursion.
    errors = [r + (0 if end == "x" else gamma * v2) - v for r, v, v2, end in steps]
    expected = []
    for t in range(len(steps)):
        total, factor = 0.0, 1.0
        for k in range(t, len(steps)):
            total += factor * errors[k]
            if steps[k][3] != "-":
                break
            factor *= gamma * lam
        expected.append(total)
    reward, value, next_value = (
        column(*numbers) for numbers in list(zip(*(s[:3] for s in steps), strict=True))
    )
    terminated, truncated = (ends(*(s[3] == kind for s in steps)) for kind in "xt")
    adv = gae(
        reward,
        value,
        next_value,
        terminated,
        terminated | truncated,
        torch.tensor(gamma, dtype=torch.float64),
        torch.tensor(lam, dtype=torch.float64),
    )
    assert adv.flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_learners_have_discounts_of_their_own() -> None:
    # gamma 0: A = r - V = (0, 0); gamma 1, lambda 1: A1 = 2 + 3 - 2 = 3, A0 = 1 + 2 - 1 + A1 = 5
    reward, value, next_value = (
        x.expand(2, 2, 1) for x in (column(1, 2), column(1, 2), column(2, 3))
    )
    gamma = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    no = torch.zeros(2, 2, 1, dtype=torch.bool)
    adv = gae(reward, value, next_value, no, no, gamma, torch.ones(2, 1, 1, dtype=torch.float64))
    assert adv.squeeze(-1).tolist() == [[0, 0], [5, 3]]


def episode_data(rollout: Rollout, seed: int) -> None:
    """Fill a rollout with random episodes that end either way."""
    g = torch.Generator().manual_seed(seed)
    rollout.obs.normal_(generator=g)
    rollout.act.normal_(generator=g)
    rollout.reward.normal_(generator=g).mul_(3)
    rollout.terminated[:] = torch.rand(rollout.reward.shape, generator=g) < 0.15
    rollout.truncated[:] = (torch.rand(rollout.reward.shape, generator=g) < 0.15) & (
        ~rollout.terminated
    )
    rollout.next_obs.normal_(generator=g)  # where an episode ended: its true last observation
    goes_on = ~rollout.done[:, :-1].unsqueeze(-1)
    rollout.next_obs[:, :-1] = torch.where(goes_on, rollout.obs[:, 1:], rollout.next_obs[:, :-1])


def test_a_rollouts_returns_and_advantages_are_those_of_stable_baselines3() -> None:
    # SB3 adds gamma V(last observation) to the reward of a truncated step, then takes it for an end
    t, e, o, a = 24, 3, 4, 2
    config = PPOConfig(n_steps=t, n_envs=e, minibatch_size=t * e, norm_obs=False, norm_reward=False)
    agent = PPO(config, o, a, [(5, 0)])
    rollout = agent.new_rollout()
    episode_data(rollout, seed=0)
    assert rollout.terminated.sum() > 3 and rollout.truncated.sum() > 3
    value = agent.ask(rollout.flat_obs()).value
    next_value = agent.ask(rollout.next_obs.flatten(1, 2)).value
    assert value is not None and next_value is not None
    value, next_value = value.view(t, e), next_value.view(t, e)

    box = spaces.Box(-np.inf, np.inf, (o,), np.float32)
    theirs = RolloutBuffer(
        t, box, spaces.Box(-1, 1, (a,)), "cpu", gae_lambda=0.95, gamma=0.99, n_envs=e
    )
    for i in range(t):
        reward = rollout.reward[0, i] + 0.99 * next_value[i] * rollout.truncated[0, i]
        start = rollout.done[0, i - 1] if i else torch.ones(e, dtype=torch.bool)
        theirs.add(
            rollout.obs[0, i].numpy(),
            rollout.act[0, i].numpy(),
            reward.numpy(),
            start.numpy(),
            value[i],
            torch.zeros(e),
        )
    # of environments whose last step ended an episode, SB3 asks the value of the next one: unused
    theirs.compute_returns_and_advantage(next_value[-1], rollout.done[0, -1].numpy())

    batch = agent.prepare(rollout)
    np.testing.assert_allclose(batch.data.adv.view(t, e), theirs.advantages, atol=1e-5)
    np.testing.assert_allclose(batch.data.ret.view(t, e), theirs.returns, atol=1e-5)
    assert batch.returns is not None
    np.testing.assert_allclose(batch.returns.view(t, e), theirs.returns, atol=1e-5)


def test_take_gathers_each_rows_own_samples() -> None:
    rows = torch.tensor([[0.0, 1, 2], [10, 11, 12]])
    assert take(rows, torch.tensor([[2, 0], [1, 1]])).tolist() == [[2, 0], [11, 11]]
    deep = torch.stack([rows, -rows], -1)  # [N, S, 2]
    assert take(deep, torch.tensor([[1], [2]])).tolist() == [[[1, -1]], [[12, -12]]]
