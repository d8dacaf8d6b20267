from dataclasses import replace

import pytest
import torch
from stable_baselines3 import SAC as SB3SAC
from torch import Tensor

from dpd.agents.offpolicy_config import SACConfig
from dpd.agents.sac import SAC
from tests.agents import parity
from tests.agents.parity import A, B, O

HIDDEN = (64, 48)
SMALL = SACConfig(
    n_envs=2, n_steps=32, minibatch_size=B, learning_starts=0, capacity=256, hidden=HIDDEN
)


def copy_of(model: SB3SAC, config: SACConfig) -> SAC:
    """Return one learner with the weights of a model of Stable-Baselines3."""
    agent = SAC(config, O, A, [(1, 0)], parity.F64)
    trunk = parity.linear(model.actor.latent_pi)
    means = parity.named("actor", [*trunk, *parity.linear(model.actor.mu)])
    log_stds = parity.named("actor", [*trunk, *parity.linear(model.actor.log_std)])
    last = f"actor.{len(HIDDEN)}."
    for name in (n for n in means if n.startswith(last)):
        means[name] = torch.cat([means[name], log_stds[name]], -1)
    parity.load(agent.nets, 0, means)
    parity.load_critics(agent.critics, model.critic.q_networks)
    parity.load_critics(agent.target_critics, model.critic_target.q_networks)
    if model.log_ent_coef is not None:
        agent.log_alpha[:] = model.log_ent_coef.detach()
    return agent


@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("updates", [1, 3])
def test_updates_move_every_parameter_as_stable_baselines3_does(
    updates: int, alpha: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, alpha=alpha)
    model = SB3SAC(
        "MlpPolicy",
        parity.Nothing(),
        policy_kwargs={"net_arch": list(HIDDEN)},
        ent_coef="auto" if alpha is None else alpha,
        seed=3,
        device="cpu",
    )
    parity.in_float64(model, monkeypatch)
    if model.log_ent_coef is not None:
        model.log_ent_coef.data = model.log_ent_coef.data.double() - 0.7
    else:
        model.ent_coef_tensor = torch.tensor(alpha, dtype=parity.F64)
    # SB3 adds 1e-6 to 1 - tanh(u)^2 before it takes the logarithm; ours needs no such guard
    monkeypatch.setattr(model.actor.action_dist, "epsilon", 0.0)
    agent = copy_of(model, config)
    start = agent.nets.flat.detach().clone()
    monkeypatch.setattr(SACConfig, "updates", updates)
    batch = agent.prepare(parity.filled(agent, [5]))
    parity.feed(model, parity.batches(agent, batch, updates))

    torch.manual_seed(7)
    model.train(updates, B)
    torch.manual_seed(7)
    zeros, ones = torch.zeros(B, A, dtype=parity.F64), torch.ones(B, A, dtype=parity.F64)
    drawn = [torch.normal(zeros, ones) for _ in range(2 * updates)]  # pi(s), then pi(s')
    noise = torch.stack(drawn).view(1, updates, 2, B, A)
    monkeypatch.setattr(agent, "_draw", lambda _: noise)
    agent.update(batch, 0.0)

    assert (agent.nets.flat.detach() - start).abs().max() > 1e-4
    expected = copy_of(model, config)
    for nets in ("nets", "critics", "target_critics"):
        ours: Tensor = getattr(agent, nets).flat
        torch.testing.assert_close(ours, getattr(expected, nets).flat, rtol=0, atol=1e-10, msg=nets)
    torch.testing.assert_close(agent.log_alpha, expected.log_alpha, rtol=0, atol=1e-10)


def test_the_temperature_falls_where_the_entropy_is_above_its_target_and_rises_below() -> None:
    for target, sign in ((-50.0, -1), (50.0, 1)):
        agent = SAC(replace(SMALL, target_entropy=target), O, A, [(1, 0), (2, 0)], parity.F64)
        before = agent.log_alpha.clone()
        agent.update(agent.prepare(parity.filled(agent, [1, 2])), 0.0)
        # Adam's steps are of the learning rate's length while the gradient keeps its sign
        expected = sign * SMALL.updates * SMALL.lr
        moved = agent.log_alpha - before
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=0.1, atol=0)


def test_a_fixed_temperature_stays() -> None:
    agent = SAC(replace(SMALL, alpha=0.2), O, A, [(1, 0)], parity.F64)
    metrics = agent.update(agent.prepare(parity.filled(agent, [1])), 0.0)
    assert metrics["train/alpha"].tolist() == pytest.approx([0.2])
