"""TD3's and SAC's compiled updates equal torch's, and depend on no thread or other learner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dpd.agents.base import Batch, Metrics, Minibatch
from dpd.agents.kernels import Kernels
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.agents.sac import SAC
from dpd.agents.td3 import TD3

F32, F64 = torch.float32, torch.float64
ONE, THREE = Kernels(1), Kernels(3)
COMMON: dict[str, Any] = {
    "learning_starts": 0,
    "capacity": 400,
    "n_steps": 5,
    "minibatch_size": 24,
    "hidden": (20, 9),
}
KINDS: dict[str, OffPolicyConfig] = {
    "td3": TD3Config(**COMMON),
    "ddpg": DDPGConfig(**COMMON),
    "sac": SACConfig(**COMMON),
}
NOTHING = Batch(None, torch.empty(0), None, torch.empty(0))


def build(
    config: OffPolicyConfig, dtype: torch.dtype, peers: tuple[int, ...] = (0, 1)
) -> OffPolicy:
    """Return learners with replays of which one learner's does not depend on the others."""
    make = SAC if isinstance(config, SACConfig) else TD3
    agent = make(config, 5, 3, [(7, peer) for peer in peers], dtype)
    extend(agent, peers, 0)
    return agent


def extend(agent: OffPolicy, peers: tuple[int, ...], part: int) -> None:
    """Add steps to the replays, with episode ends, terminations and invalid steps."""
    rows = []
    for peer in peers:
        generator = torch.Generator().manual_seed(100 * part + peer)
        shape = (60, agent.config.n_envs, 2 * 5 + 3 + 4)
        x = torch.randn(shape, generator=generator, dtype=F64)
        x[..., 5:8].tanh_()
        x[..., -3] = (x[..., -3] > 1.5).double()
        x[..., -2] = ((x[..., -2] > 1.5) | (x[..., -3] > 0)).double()
        x[..., -1] = (x[..., -1] > -1.5).double()
        rows.append(x)
    stacked = torch.stack(rows)
    agent.obs_norm.update(stacked[..., :5].flatten(1, 2).to(agent.dtype))
    agent.replay.extend(stacked.to(agent.dtype))


def close(plain: OffPolicy, fused: OffPolicy) -> None:
    """Require equal states up to rounding, relative to their scale."""
    bound = 1e-10 if plain.dtype == F64 else 1e-4
    for name, x in plain.state().items():
        y = fused.state()[name]
        if not x.is_floating_point():
            assert torch.equal(x, y), name
        elif "exp_avg_sq" not in name:  # its scale is the square of the gradient's
            scale = float(x.abs().nan_to_num(posinf=1.0).max())  # log_alpha may be -inf
            torch.testing.assert_close(y, x, rtol=0, atol=bound * max(1.0, scale), msg=name)


def require_equal(expected: Metrics, found: Metrics, bound: float) -> None:
    assert list(expected) == list(found)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=bound, atol=bound, msg=name)


def both_update(config: OffPolicyConfig, dtype: torch.dtype) -> None:
    """Run three iterations by torch and by the kernels; require equal states and metrics."""
    plain, fused = build(config, dtype), build(config, dtype)
    fused.kernels = ONE
    before = fused.nets.flat.detach().clone()
    for part in range(1, 4):
        expected, found = (agent.update(NOTHING, 0.0) for agent in (plain, fused))
        close(plain, fused)
        require_equal(expected, found, 1e-9 if dtype == F64 else 1e-3)
        for agent in (plain, fused):
            extend(agent, (0, 1), part)
    assert not torch.equal(before, fused.nets.flat)


CASES: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "one critic": {"n_critics": 1},
    "three critics": {"n_critics": 3},
    "tanh": {"activation": "tanh"},
    "elu, one hidden layer": {"activation": "elu", "hidden": (33,)},
    "normalised observations": {"norm_obs": True},
    "several environments and rewards": {"n_envs": 2, "n_step": 3, "updates_per_step": 0.5},
    "shared replays": {"share_replay": True},
    "two of four critics drawn": {"n_critics": 4, "target_critics": 2},
    "shared experience": {"share_experience": True, "updates_per_step": 2.0},
    "peers' critics in targets": {"share_experience": True, "share_critics": "targets"},
    "peers' critics in the policy": {"share_experience": True, "share_critics": "policy"},
    "three of six critics drawn": {"share_experience": True, "n_critics": 3, "target_critics": 3},
    "shared, normalised": {"share_experience": True, "norm_obs": True},
    "rates and discounts of peers": {"peer_lr": (1e-3, 3e-2), "peer_gamma": (0.9, 0.99)},
    "another rate of the critics": {"critic_lr": 1e-2, "tau": 0.3},
    "minibatches of several blocks": {"minibatch_size": 300},
    "more updates than are drawn at once": {"updates_per_step": 13.0, "lr": 1e-4},
}
OWN_CASES: list[tuple[str, dict[str, Any]]] = [
    ("td3", {"policy_delay": 3}),
    ("td3", {"target_noise": 0.0}),
    ("td3", {"target_noise": 1.0, "target_noise_clip": 2.0}),
    ("sac", {"alpha": 0.0}),
    ("sac", {"alpha": 0.3}),
    ("sac", {"alpha_init": 0.1, "target_entropy": 1.0}),
]


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_updates_equal_the_torch_path(kind: str, case: str, dtype: torch.dtype) -> None:
    both_update(replace(KINDS[kind], **CASES[case]), dtype)


@pytest.mark.parametrize(("kind", "settings"), OWN_CASES)
def test_an_algorithms_own_settings(kind: str, settings: dict[str, Any]) -> None:
    both_update(replace(KINDS[kind], **settings), F64)


@pytest.mark.parametrize("bias", [-30.0, 5.0])
def test_log_deviations_outside_their_bounds_have_no_gradient(bias: float) -> None:
    agents = [build(KINDS["sac"], F64) for _ in range(2)]
    agents[1].kernels = ONE
    for agent in agents:
        agent.nets.views["actor.2.bias"][..., 3:] = bias
        agent.update(NOTHING, 0.0)
    close(*agents)
    assert torch.equal(
        agents[1].nets.views["actor.2.bias"][..., 3:], torch.full((2, 1, 3), bias, dtype=F64)
    )


def states_after(
    kernels: Kernels, config: OffPolicyConfig, peers: tuple[int, ...] = (0, 1, 2, 3)
) -> OffPolicy:
    agent = build(config, F32, peers)
    agent.kernels = kernels
    for part in range(1, 4):
        agent.update(NOTHING, 0.0)
        extend(agent, peers, part)
    return agent


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(kind: str, shared: bool) -> None:
    sizes: dict[str, Any] = {"hidden": (33, 17), "minibatch_size": 150, "share_experience": shared}
    config = replace(KINDS[kind], **sizes)
    one, three = (states_after(kernels, config).state() for kernels in (ONE, THREE))
    assert all(torch.equal(x, three[name]) for name, x in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_learners_equal_single_ones_bit_for_bit(kind: str) -> None:
    stacked = states_after(THREE, KINDS[kind])
    c = stacked.config.n_critics
    for peer in range(4):
        alone = states_after(ONE, KINDS[kind], (peer,))
        assert torch.equal(alone.nets.flat[0], stacked.nets.flat[peer])
        assert torch.equal(alone.critics.flat, stacked.critics.flat[peer * c : peer * c + c])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", [ONE, None], ids=["kernels", "torch"])
def test_updates_go_on_from_a_saved_state(kind: str, kernels: Kernels | None) -> None:
    first, second = build(KINDS[kind], F64), build(KINDS[kind], F64)
    first.kernels = ONE
    first.update(NOTHING, 0.0)
    second.load_state(first.state())
    second.kernels = kernels
    for agent in (first, second):
        agent.update(NOTHING, 0.0)
    close(first, second)
    if kernels is not None:
        assert torch.equal(first.nets.flat, second.nets.flat)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_computes_what_kernels_do_not(kind: str) -> None:
    def extra(minibatch: Minibatch) -> tuple[torch.Tensor, Metrics]:
        loss = minibatch.dist.mean.square().mean((1, 2))
        return loss, {"distill/loss": loss.detach()}

    more = replace(KINDS[kind], extra_policy_updates=2)
    for config, loss in ((more, None), (KINDS[kind], extra)):
        plain, fused = (build(config, F32) for _ in range(2))
        fused.kernels = ONE
        for agent in (plain, fused):
            agent.update(NOTHING, 0.0, loss)
        assert torch.equal(plain.nets.flat, fused.nets.flat)


ACTING: dict[str, OffPolicyConfig] = {
    **KINDS,
    "normalised": replace(KINDS["sac"], norm_obs=True),
    "process noise": replace(TD3Config(**COMMON), exploration="ou"),
    "parameter noise": replace(TD3Config(**COMMON), exploration="param"),
}


@pytest.mark.parametrize("name", ACTING)
def test_actions_equal_the_torch_path(name: str) -> None:
    agents = [build(replace(ACTING[name], n_envs=4, capacity=1600), F64) for _ in range(3)]
    agents[1].kernels, agents[2].kernels = ONE, THREE
    obs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3), dtype=F64)
    plain, one, three = (agent.act(obs, agent.noise()[:, 0]) for agent in agents)
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-12)
    assert torch.equal(one, three)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_reaches_the_parameters(kind: str) -> None:
    agent = build(KINDS[kind], F32)
    agent.kernels = ONE
    agent.replay.rows[0, :, :, -4] = torch.nan
    agent.update(NOTHING, 0.0)
    assert agent.critics.flat[0].isnan().any() and agent.nets.flat[0].isnan().any()
    assert not agent.critics.flat[agent.config.n_critics :].isnan().any()
    assert not agent.nets.flat[1].isnan().any()
