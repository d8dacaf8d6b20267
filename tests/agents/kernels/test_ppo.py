"""PPO's compiled update equals the torch path, and depends on no thread and no other learner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Batch, ClosedTerm, Metrics
from dpd.agents.kernels import Kernels
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.ppo_loss import Samples

F32, F64 = torch.float32, torch.float64
SMALL = PPOConfig(n_envs=4, n_steps=16, minibatch_size=16, epochs=3, hidden=(8, 8), lr=1e-2)
ONE, THREE = Kernels(1), Kernels(3)


def build(config: PPOConfig, dtype: torch.dtype = F64, rows: int = 2, act_dim: int = 3) -> PPO:
    return PPO(config, 5, act_dim, [(7, peer) for peer in range(rows)], dtype)


def samples(agent: PPO, seed: int = 0, valid: Tensor | None = None) -> Batch:
    """Return random samples near the policy: ratios on both sides of the clip, values as well.

    A row's samples do not depend on the other rows.
    """
    size = agent.config.samples
    generators = [torch.Generator().manual_seed(100 * seed + n) for n in range(agent.n_learners)]

    def normal(*shape: int) -> Tensor:
        drawn = [torch.randn(size, *shape, generator=g, dtype=F64) for g in generators]
        return torch.stack(drawn).to(agent.dtype)

    obs, act = normal(agent.obs_dim), normal(agent.act_dim)
    with torch.no_grad():
        logp = agent.dist(obs).logp(act) + 0.2 * normal()
        value = agent.value(obs)
    data = Samples(obs, act, logp, normal(), normal() + value, value + 0.1 * normal())
    given = torch.ones(agent.n_learners, size, dtype=torch.bool) if valid is None else valid
    return Batch(data, obs, None, given)


def close(a: PPO, b: PPO) -> None:
    """Require equal parameters and Adam state up to rounding, relative to their scale."""
    bound = 1e-10 if a.dtype == F64 else 1e-5
    for name, x in a.state().items():
        y = b.state()[name]
        if not x.is_floating_point():
            assert torch.equal(x, y), name
        elif "exp_avg_sq" not in name:  # its scale is the square of the gradient's
            assert (x - y).abs().max() <= bound * max(1.0, float(x.abs().max())), name


def both_update(
    config: PPOConfig, dtype: torch.dtype, valid: Tensor | None = None, **sizes: int
) -> tuple[PPO, PPO]:
    """Run two iterations by torch and by the kernels; require equal states and metrics."""
    plain, fused = (build(config, dtype, **sizes) for _ in range(2))
    fused.kernels = ONE
    for i in range(2):
        batch = samples(plain, i, valid)
        expected, found = (agent.update(batch, 0.3 * i) for agent in (plain, fused))
        close(plain, fused)
        require_equal(expected, found, 1e-9 if dtype == F64 else 2e-4)
    return plain, fused


def require_equal(expected: Metrics, found: Metrics, bound: float) -> None:
    assert list(expected) == list(found)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=bound, atol=bound, msg=name)


CASES: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "value clip": {"value_clip": 0.05},
    "entropy bonus": {"entropy_coef": 0.1},
    "raw advantages": {"norm_adv": False},
    "gradients never clipped": {"max_grad_norm": 1e9},
    "gradients always clipped": {"max_grad_norm": 1e-3},
    "constant rate": {"lr_schedule": "constant"},
    "a rate per peer": {"peer_lr": (1e-2, 1e-3)},
    "one hidden layer": {"hidden": (12,)},
    "three layers of unlike widths": {"hidden": (20, 9, 33)},
    "relu": {"activation": "relu", "hidden": (24, 8)},
    "elu": {"activation": "elu", "hidden": (24, 8)},
    "minibatches of several blocks": {"n_steps": 150, "minibatch_size": 300},
    "minibatches of odd size": {"n_envs": 3, "n_steps": 7, "minibatch_size": 7},
}


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_a_whole_update_equals_the_torch_path(name: str, dtype: torch.dtype) -> None:
    both_update(replace(SMALL, **CASES[name]), dtype)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_rewards_count_with_their_weight_as_on_the_torch_path(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PPO, "rl_coef", weight)
    both_update(replace(SMALL, entropy_coef=0.1), F64)


@pytest.mark.parametrize("sizes", [{"rows": 1}, {"rows": 5}, {"act_dim": 1}, {"act_dim": 20}])
def test_learners_and_actions_of_any_number(sizes: dict[str, int]) -> None:
    both_update(SMALL, F64, None, **sizes)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_learners_that_exceed_the_target_kl_stand_still_while_others_move(
    dtype: torch.dtype,
) -> None:
    config = replace(SMALL, target_kl=0.02, peer_lr=(3e-2, 1e-3), epochs=5)
    plain, fused = both_update(config, dtype)
    steps = fused.optimizer.steps
    assert steps[0] < steps[1] and torch.equal(steps, plain.optimizer.steps)


def test_invalid_samples_are_replaced_by_the_same_valid_ones() -> None:
    valid = torch.rand(2, SMALL.samples, generator=torch.Generator().manual_seed(1)) < 0.7
    both_update(SMALL, F64, valid)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_adv": False},
        {"value_clip": 0.05, "entropy_coef": 0.1, "target_kl": 0.02},
        {"share_min_ess": 0.88},
        {"share_experience": False, "reuse_iterations": 2},
    ],
    ids=[
        "defaults",
        "raw advantages",
        "clipped values, entropy, target KL",
        "some dropped",
        "own past",
    ],
)
def test_samples_of_peers_count_as_by_torch(changes: dict[str, Any], dtype: torch.dtype) -> None:
    config = replace(SMALL, **({"share_experience": True} | changes))
    plain, fused = (build(config, dtype, rows=3) for _ in range(2))
    fused.kernels = ONE
    for i in range(2):
        rollout, g = plain.new_rollout(), torch.Generator().manual_seed(i)
        for x in (rollout.obs, rollout.next_obs, rollout.act, rollout.reward):
            x.normal_(generator=g)
        rollout.valid[1, 5, 2] = False
        fused.prepare(rollout)  # only for its own past
        batch = plain.prepare(rollout)
        dropped = ~batch.valid & (batch.data.weight == 0)
        if i and "share_min_ess" in changes:
            assert dropped.any()
        elif i or "reuse_iterations" not in changes:
            assert 0 < float(batch.data.weight.min()) < float(batch.data.weight.max()) == 1
        expected, found = (agent.update(batch, 0.3 * i) for agent in (plain, fused))
        close(plain, fused)
        require_equal(expected, found, 1e-9 if dtype == F64 else 2e-4)


def states_after(kernels: Kernels | None, config: PPOConfig, dtype: torch.dtype) -> PPO:
    agent = build(config, dtype, rows=4)
    agent.kernels = kernels
    for i in range(3):
        agent.update(samples(agent, i), 0.1 * i)
    return agent


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    config = replace(SMALL, hidden=(33, 17))
    one, three = (states_after(kernels, config, dtype).state() for kernels in (ONE, THREE))
    assert all(torch.equal(x, three[name]) for name, x in one.items())


def test_stacked_learners_equal_single_ones_bit_for_bit() -> None:
    stacked = states_after(THREE, SMALL, F32)
    for n in range(4):
        alone = PPO(SMALL, 5, 3, [(7, n)], F32)
        alone.kernels = ONE
        # samples of all four learners, of which this one is given its own
        for i, batch in enumerate(samples_over_time(SMALL)):
            mine = Samples(*(x[n : n + 1] for x in batch.data[:-1]))
            alone.update(Batch(mine, mine.obs, None, batch.valid[n : n + 1]), 0.1 * i)
        assert torch.equal(alone.nets.flat[0], stacked.nets.flat[n])


def samples_over_time(config: PPOConfig) -> list[Batch]:
    """Return the batches that `states_after` learns from."""
    agent = build(config, F32, rows=4)
    agent.kernels = THREE
    batches = []
    for i in range(3):
        batches.append(samples(agent, i))
        agent.update(batches[-1], 0.1 * i)
    return batches


@pytest.mark.parametrize("then", [ONE, None], ids=["by kernels", "by torch"])
def test_a_run_resumes_exactly_by_kernels_and_up_to_rounding_by_torch(
    then: Kernels | None,
) -> None:
    whole, resumed = (build(SMALL) for _ in range(2))
    whole.kernels, resumed.kernels = ONE, then
    whole.update(samples(whole), 0.0)
    resumed.load_state({name: x.clone() for name, x in whole.state().items()})
    batch = samples(whole, 1)
    for agent in (whole, resumed):
        agent.update(batch, 0.5)
    if then is None:
        close(resumed, whole)
    else:
        assert all(torch.equal(x, resumed.state()[name]) for name, x in whole.state().items())


def test_a_nan_reaches_the_parameters_of_its_learner_only() -> None:
    agent = build(SMALL, F32)
    agent.kernels = ONE
    batch = samples(agent)
    batch.data.obs[0, 3, 2] = torch.nan
    metrics = agent.update(batch, 0.0)
    assert agent.nets.flat[0].isnan().any() and agent.nets.flat[1].isfinite().all()
    assert metrics["loss/value"].isnan().tolist() == [True, False]


def term_of(agent: PPO, kind: str, place: str) -> ClosedTerm:
    """Return a term in the loss with random targets."""
    n, size, a = agent.n_learners, agent.config.samples, agent.act_dim
    g = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, size, *shape, generator=g, dtype=F64).to(agent.dtype)

    obs, mean, log_std = normal(agent.obs_dim), normal(a), 0.3 * normal(a) - 1
    given = obs if place == "own states" else None
    targets = mean, log_std, normal(a), normal().abs()
    return ClosedTerm(0.7, kind, *targets, given, place == "proximal")


@pytest.mark.parametrize("target_kl", [None, 0.5])
@pytest.mark.parametrize("place", ["own states", "samples", "proximal"])
@pytest.mark.parametrize("kind", ["mse", "huber", "kl_forward", "kl_reverse", "nll"])
def test_a_term_of_a_method_equals_autograd(kind: str, place: str, target_kl: float | None) -> None:
    plain, fused = (build(replace(SMALL, target_kl=target_kl)) for _ in range(2))
    fused.kernels = ONE
    batch = samples(plain)
    expected, found = (a.update(batch, 0.0, term_of(a, kind, place)) for a in (plain, fused))
    close(plain, fused)
    require_equal(expected, found, 1e-9)


def test_a_term_may_have_a_coefficient_for_each_learner() -> None:
    # as if the weights were as many times larger
    agents, coef = [build(SMALL) for _ in range(2)], torch.tensor([0.5, 3.0], dtype=F64)
    for agent, each in zip(agents, (False, True), strict=True):
        agent.kernels = ONE
        batch, term = samples(agent), term_of(agent, "kl_forward", "own states")
        weight = term.weight if each else term.weight * coef.unsqueeze(1)
        agent.update(batch, 0.0, replace(term, coef=coef if each else 1.0, weight=weight))
    close(*agents)
