import pytest
import torch
from stable_baselines3 import DDPG as SB3DDPG
from stable_baselines3 import TD3 as SB3TD3
from torch import Tensor

from dpd.agents.offpolicy_config import DDPGConfig, TD3Config
from dpd.agents.td3 import TD3
from tests.agents import parity
from tests.agents.parity import A, B, O

HIDDEN = (64, 48)
SMALL = TD3Config(
    n_envs=2, n_steps=32, minibatch_size=B, learning_starts=0, capacity=256, hidden=HIDDEN
)
PLAIN = DDPGConfig(
    n_envs=2, n_steps=32, minibatch_size=B, learning_starts=0, capacity=256, hidden=HIDDEN
)


def copy_of(model: SB3TD3, config: TD3Config) -> TD3:
    """Return one learner with the weights of a model of Stable-Baselines3."""
    agent = TD3(config, O, A, [(1, 0)], parity.F64)
    parity.load(agent.nets, 0, parity.named("actor", parity.linear(model.actor.mu)))
    target = parity.named("actor", parity.linear(model.actor_target.mu))
    parity.load(agent.target_nets, 0, target)
    parity.load_critics(agent.critics, model.critic.q_networks)
    parity.load_critics(agent.target_critics, model.critic_target.q_networks)
    return agent


def give_targets_a_mind_of_their_own(model: SB3TD3) -> None:
    """Move the targets off, so that it shows which of the two a learner uses."""
    with torch.no_grad():
        for net in (model.actor_target, model.critic_target):
            for p in net.parameters():
                p.add_(torch.randn_like(p), alpha=0.05)


@pytest.mark.parametrize(("config", "theirs"), [(SMALL, SB3TD3), (PLAIN, SB3DDPG)])
@pytest.mark.parametrize("updates", [1, 2, 4])
def test_updates_move_every_parameter_as_stable_baselines3_does(
    config: TD3Config, theirs: type[SB3TD3], updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = {"net_arch": list(HIDDEN)}
    model = theirs("MlpPolicy", parity.Nothing(), policy_kwargs=arch, seed=3, device="cpu")
    parity.in_float64(model, monkeypatch)
    give_targets_a_mind_of_their_own(model)
    agent = copy_of(model, config)
    start = agent.nets.flat.detach().clone()
    monkeypatch.setattr(TD3Config, "updates", updates)
    batch = agent.prepare(parity.filled(agent, [5]))
    parity.feed(model, parity.batches(agent, batch, updates))

    torch.manual_seed(7)
    model.train(updates, B)
    torch.manual_seed(7)
    std, clip = config.target_noise, config.target_noise_clip
    drawn = [torch.empty(B, A, dtype=parity.F64).normal_(0, std) for _ in range(updates)]
    noise = torch.stack(drawn).clamp(-clip, clip).unsqueeze(0)
    if std:
        monkeypatch.setattr(agent, "_draw", lambda _: noise)
    agent.update(batch, 0.0)

    moved = bool((agent.nets.flat.detach() - start).abs().max() > 1e-4)
    assert moved == (updates >= config.policy_delay)
    expected = copy_of(model, config)
    for nets in ("nets", "target_nets", "critics", "target_critics"):
        ours: Tensor = getattr(agent, nets).flat
        torch.testing.assert_close(ours, getattr(expected, nets).flat, rtol=0, atol=1e-10, msg=nets)
