"""Learners on another device: every tensor is there, and nothing waits for it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dpd.agents.base import ClosedTerm
from dpd.agents.graphs import Graphs, cloned
from dpd.agents.offpolicy_config import DDPGConfig, SACConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student_config import StudentConfig
from tests.agents.parity import A, O, filled
from tests.toy.meta_device import META, Recorded, on_device

SEEDS = [(0, 0), (0, 1)]
SMALL: dict[str, Any] = {"n_envs": 2, "n_steps": 8, "minibatch_size": 8, "hidden": (8, 8)}
REPLAY: dict[str, Any] = SMALL | {"capacity": 64, "learning_starts": 0, "updates_per_step": 0.25}
REPLAYED: dict[str, Any] = {
    "td3": TD3Config(**REPLAY),
    "td3, ou": TD3Config(**REPLAY, exploration="ou"),
    "td3, parameter noise": TD3Config(**REPLAY, exploration="param", norm_obs=True),
    "td3, shared": TD3Config(**REPLAY, share_replay=True),
    "td3, acting by turns": TD3Config(**REPLAY, act="hybrid", act_every=3),
    "td3, pooled": TD3Config(**REPLAY, share_experience=True, norm_obs=True),
    "sac, pooled": SACConfig(**REPLAY, share_experience=True),
    "sac, two of four critics": SACConfig(**REPLAY, n_critics=4, target_critics=2),
    "ddpg, extra": DDPGConfig(**REPLAY, extra_policy_updates=1),
    "sac": SACConfig(**REPLAY),
    "sac, shared": SACConfig(**REPLAY, share_replay=True, peer_lr=(1e-3, 2e-3), norm_obs=True),
    "sac, fixed temperature": SACConfig(**REPLAY, alpha=0.2, critic_lr=1e-3),
}
CONFIGS: dict[str, Any] = {
    "ppo": PPOConfig(**SMALL, epochs=2),
    "ppo, entropy": PPOConfig(**SMALL, epochs=2, entropy_coef=0.01, norm_adv=False),
    "ppo, unscaled, unlike rates": PPOConfig(
        **SMALL, epochs=2, norm_obs=False, norm_reward=False, peer_lr=(1e-3, 2e-3)
    ),
    "ppo, shared": PPOConfig(**SMALL, epochs=2, share_experience=True),
    "ppo, own past": PPOConfig(**SMALL, epochs=2, reuse_iterations=2),
    **REPLAYED,
    **{f"{name}, 3 steps": replace(config, n_step=3) for name, config in REPLAYED.items()},
    "student": StudentConfig(**SMALL, capacity=64),
}


def iterate(agent: Any) -> dict[str, torch.Tensor]:
    """Do what a stack of a run does, without an environment."""
    rollout, noise = agent.new_rollout(), agent.noise()
    for t in range(agent.config.n_steps):
        rollout.act[:, t] = agent.act(rollout.obs[:, t], noise[:, t])
    batch = agent.prepare(rollout)
    if agent.replay is not None:
        agent.replay._ready = True  # the one thing that is waited for, until it is true
    metrics = agent.update(batch, 0.5)
    agent.observe(rollout)
    agent.ask(rollout.obs[:, 0]), agent.mode(rollout.obs[:, 0])
    return metrics


@pytest.mark.parametrize("name", CONFIGS)
def test_an_iteration_waits_for_nothing_and_stays_on_the_device(name: str) -> None:
    agent = CONFIGS[name].build(O, A, SEEDS, META)
    with on_device():
        for _ in range(2):
            metrics = iterate(agent)
    assert all(x.device == META for x in metrics.values())


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "student"])
def test_a_recorded_update_copies_nothing_from_the_host(name: str) -> None:
    agent = CONFIGS[name].build(O, A, SEEDS, META)
    agent.graphs = Graphs(torch.device("cuda"), record=Recorded)
    before = Recorded.made
    with on_device():
        for _ in range(2):
            iterate(agent)
    # one kind of update, or of TD3 two: with and without the policy
    delay = getattr(agent.config, "policy_delay", 1)
    assert Recorded.made - before == (2 if delay > 1 else 1)


def test_a_bound_on_the_kl_is_all_that_ppo_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = PPOConfig(**SMALL, epochs=3, target_kl=0.01).build(O, A, SEEDS, META)
    agent.graphs = Graphs(torch.device("cuda"), record=Recorded)
    with on_device(), pytest.raises(AssertionError, match="copies to cpu"):
        iterate(agent)
    monkeypatch.setattr("dpd.agents.ppo.mean_kl", lambda *_: torch.zeros(2))
    with on_device():
        iterate(agent)


class Again:
    """What a recording does, on the CPU: the same work on arguments that lie at one place."""

    made = 0

    def __init__(self, work: Any, args: Any) -> None:
        self.work, self.inputs = work, [x.clone() for x in args]
        Again.made += 1

    def replay(self, args: Any) -> Any:
        for kept, given in zip(self.inputs, args, strict=True):
            kept.copy_(given)
        return cloned(self.work(*self.inputs))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "student"])
def test_recorded_updates_are_those_that_are_not(name: str) -> None:
    config = CONFIGS[name]
    plain, recorded = config.build(O, A, SEEDS), config.build(O, A, SEEDS)
    recorded.graphs = Graphs(torch.device("cuda"), record=Again)
    for k in range(3):
        found = []
        for agent in (plain, recorded):
            rollout = filled(agent, [k, k + 10])
            found.append(agent.update(agent.prepare(rollout), k / 3))
            agent.observe(rollout)
        assert found[0].keys() == found[1].keys()
        for metric, value in found[0].items():
            assert torch.equal(value, found[1][metric]), metric
        assert torch.equal(plain.nets.flat, recorded.nets.flat)
        if k == 1:
            for agent in (plain, recorded):
                agent.retry([0], 1)  # half the rate of one row: recorded anew


def term_of(kind: str, place: str, agent: Any, samples: int) -> ClosedTerm:
    """Return half the divergence from random targets."""
    generator, rows = torch.Generator().manual_seed(3), agent.n_learners
    mean, log_std, act, obs = (
        torch.randn(rows, samples, size, generator=generator) / 4 for size in (A, A, A, O)
    )
    weight = torch.rand(rows, samples, generator=generator)
    own = obs if place == "own states" else None
    return ClosedTerm(0.5, kind, mean, log_std, act, weight, own, place == "ratio")


@pytest.mark.parametrize(
    ("kind", "place"),
    [("kl_forward", "own states"), ("mse", "samples"), ("nll", "ratio"), ("kl_reverse", "samples")],
)
def test_a_recorded_update_with_a_term_in_its_loss_is_that_without_a_recording(
    kind: str, place: str
) -> None:
    config = PPOConfig(**SMALL, epochs=3)
    plain, recorded = config.build(O, A, SEEDS), config.build(O, A, SEEDS)
    recorded.graphs = Graphs(torch.device("cuda"), record=Again)
    before = Again.made
    for k in range(2):
        found = []
        for agent in (plain, recorded):
            # 2 envs x 8 steps = 16 samples, of which the term's own states are half
            term = term_of(kind, place, agent, 8 if place == "own states" else 16)
            batch = agent.prepare(filled(agent, [k, k + 10]))
            found.append(agent.update(batch, 0.0, term))
        for metric, value in found[0].items():
            assert torch.equal(value, found[1][metric]), metric
        assert torch.equal(plain.nets.flat, recorded.nets.flat)
    assert Again.made - before == 1  # one recording serves all iterations


def test_a_first_call_runs_a_second_is_recorded_and_what_is_forgotten_begins_anew() -> None:
    calls: list[str] = []

    class Noted(Again):
        def __init__(self, work: Any, args: Any) -> None:
            calls.append("record")
            super().__init__(work, args)

    def work(x: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append("work")
        return {"twice": 2 * x}

    graphs = Graphs(torch.device("cuda"), record=Noted)
    given = [torch.tensor([float(k)]) for k in range(4)]
    found = [graphs.run("key", work, x)["twice"] for x in given[:3]]
    assert calls == ["work", "record", "work", "work"]
    assert [x.item() for x in found] == [0, 2, 4]  # each result is the caller's own
    graphs.forget()
    graphs.run("key", work, given[3])
    assert calls[-2:] == ["work", "work"]
