"""Distillation has an effect on learners with a replay, as `test_effect` has it for PPO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Batch
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.offpolicy_config import DDPGConfig, SACConfig, TD3Config
from dpd.agents.td3 import TD3
from dpd.distill.independent import Independent
from dpd.distill.method import Context, Method
from dpd.distill.peers import DualDistillation
from dpd.distill.peers_config import DPDConfig, IndependentConfig
from tests.toy import probe_envs as probes
from tests.toy.point_mass import (
    DT,
    GAMMA,
    PAIR,
    Trial,
    fit,
    gain,
    make_half_experts,
    returns,
    share_of_return,
    starts,
)

SIZES: dict[str, Any] = {
    "n_envs": 16,
    "n_steps": 8,
    "minibatch_size": 32,
    "updates_per_step": 0.125,
    "learning_starts": 256,
    "capacity": 4096,
    "gamma": 0.9,
    "lr": 5e-3,
    "tau": 0.05,
    "hidden": (16, 16),
}
ALGOS = {
    "td3": TD3Config(**SIZES),
    "ddpg": DDPGConfig(**SIZES),
    "sac": SACConfig(**SIZES, alpha_init=0.05),
}
DOSE = DPDConfig(lr=1e-3, steps=40, batch_size=128)


# --- A fresh learner beside a good one ---


@pytest.fixture(scope="module")
def experts() -> dict[str, OffPolicy]:
    """Stacks whose row 1 has learnt the probe."""
    found = {}
    for name, algo in ALGOS.items():
        trial = Trial(algo, probes.ObsTimesAction)
        trial.train(40, Independent(IndependentConfig(), trial.context))
        found[name] = trial.agent
    return found


def beside(
    experts: dict[str, OffPolicy],
    name: str,
    probe: type[probes.Probe] = probes.ObsTimesAction,
    value: float = -1.0,
) -> Trial:
    """Return a fresh row 0, whose critics answer `value` everywhere, beside the expert's row 1."""
    trial = Trial(ALGOS[name], probe)
    agent, expert = trial.agent, experts[name]
    c = agent.config.n_critics
    agent.nets.flat.detach()[1] = expert.nets.flat.detach()[1]
    for critics, learnt in (
        (agent.critics, expert.critics),
        (agent.target_critics, expert.target_critics),
    ):
        critics.flat.detach()[c:] = learnt.flat.detach()[c:]
        critics.views["critic.2.weight"][:c] = 0
        critics.views["critic.2.bias"][:c] = value
    # Row 1 stays as it is when the learners update.
    agent.lr[1] = agent.critic_lr[1] = 0
    for _ in range(2):
        trial.collect()
    assert not agent.warming_up
    return trial


@pytest.mark.parametrize("name", ALGOS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ruler": "value", "gate": "hard"},
        {"ruler": "action", "gate": "hard"},
        {"ruler": "lcb", "lcb_k": 0.5, "gate": "hard"},
        {"ruler": "critics", "gate": "hard"},
        {"memory": 0},
        {"dose": "shared", "lr": DPDConfig.lr},
    ],
    ids=str,
)
def test_a_fresh_learner_beside_a_good_one_becomes_good_by_distillation_alone(
    experts: dict[str, OffPolicy], name: str, settings: dict[str, Any]
) -> None:
    trial = beside(experts, name)
    teacher = trial.agent.nets.flat.detach()[1].clone()
    method = DualDistillation(replace(DOSE, students=(0,), **settings), trial.context)
    assert share_of_return(trial, lambda t: t.distil_only(10, method)) >= 0.8
    assert torch.equal(trial.agent.nets.flat.detach()[1], teacher)


@pytest.mark.parametrize("divergence", ["kl_forward", "kl_reverse", "nll"])
def test_a_stochastic_learner_becomes_good_by_every_divergence(
    experts: dict[str, OffPolicy], divergence: Any
) -> None:
    trial = beside(experts, "sac")
    config = replace(DOSE, students=(0,), divergence=divergence)
    method = DualDistillation(config, trial.context)
    assert share_of_return(trial, lambda t: t.distil_only(10, method)) >= 0.8


@pytest.mark.parametrize("name", ALGOS)
def test_it_learns_nothing_where_the_gate_is_closed_or_there_is_no_method(
    experts: dict[str, OffPolicy], name: str
) -> None:
    closed, none = beside(experts, name), beside(experts, name)
    config = replace(DOSE, gate="hard", control="reversed")
    method = DualDistillation(config, closed.context)
    assert share_of_return(closed, lambda t: t.distil_only(10, method)) < 0.3
    assert (
        share_of_return(
            none, lambda t: t.distil_only(10, Independent(IndependentConfig(), t.context))
        )
        < 0.3
    )


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_inside_the_learners_loss_a_good_peer_teaches_where_no_reward_does(
    experts: dict[str, OffPolicy], name: str
) -> None:
    # value 0 is right, and the same for all actions: row 0 has no other reason to move
    taught, alone = (beside(experts, name, probes.Silent, value=0.0) for _ in range(2))
    method = DualDistillation(DPDConfig(dose="loss", students=(0,)), taught.context)
    assert share_of_return(taught, lambda t: t.train(15, method)) >= 0.8
    assert (
        share_of_return(alone, lambda t: t.train(15, Independent(IndependentConfig(), t.context)))
        < 0.3
    )


# --- Peers come together ---


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("td3", replace(DOSE, gate="hard")),
        ("td3", DPDConfig(dose="loss")),
        ("sac", DPDConfig(dose="loss", divergence="kl_reverse")),
    ],
    ids=["td3, step", "td3, loss", "sac, loss"],
)
def test_peers_who_distil_come_closer_than_independent_ones(name: str, config: DPDConfig) -> None:
    # The second action earns nothing, so reinforcement alone has no reason to bring peers together.
    together = final_distance(name, lambda context: DualDistillation(config, context))
    assert together < 0.5 * final_distance(name, partial(Independent, IndependentConfig()))


def final_distance(name: str, make: Callable[[Context], Method]) -> float:
    """Return the action distance of two pairs after training, from far apart."""
    trial = Trial(ALGOS[name], probes.FreeAction, groups=2)
    trial.agent.nets.views["actor.2.weight"].mul_(5)
    distances = trial.train(8, make(trial.context))
    assert distances[0].mean() > 0.3
    return float(distances[-1].mean())


# --- Two experts, each on its half ---

HELD = 1024
UNIT = 100.0  # of rewards, so that critics are fitted in a few steps
RAW = TD3Config(
    n_envs=32,
    n_steps=HELD // 32,
    capacity=HELD,
    learning_starts=0,
    hidden=(32, 32),
    gamma=GAMMA,
)


@pytest.fixture(scope="module")
def half_experts() -> TD3:
    """Peers of which each knows one half."""
    agent = TD3(RAW, 4, 2, PAIR)
    make_half_experts(agent)
    return agent


def evaluate_actions(agent: TD3, state: Tensor, seed: int) -> None:
    """Fit every critic to the exact value of random actions at states [2, K, 4]."""
    state = state.repeat(1, 4, 1)
    act = torch.rand(2, state.shape[1], 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    velocity = state[..., 2:] + DT * act
    successor = torch.cat([state[..., :2] + DT * velocity, velocity], -1)
    got = -state.square().sum(-1) + GAMMA * returns(agent.mode, successor, GAMMA)
    c = RAW.n_critics
    asked = torch.cat([state, act], -1).repeat_interleave(c, 0)
    target = got.repeat_interleave(c, 0).unsqueeze(-1) / UNIT
    fit(agent.critics.flat, lambda x: agent.critics(x, "critic")[0], asked, target, 200)


def gain_of(half_experts: TD3, config: DPDConfig) -> list[float]:
    """Let both distil, with critics of exact values; return what each gains."""
    agent = TD3(RAW, 4, 2, PAIR)
    agent.nets.flat.detach().copy_(half_experts.nets.flat.detach())

    def batch(i: int) -> Batch:
        state = starts(HELD, seed=10 + i)
        evaluate_actions(agent, state, seed=i)
        rollout = agent.new_rollout()
        rollout.obs.copy_(state.view_as(rollout.obs))
        return agent.prepare(rollout)

    return gain(agent, config, batch)


HALVES = DPDConfig(gate="hard", lr=1e-3, steps=200, batch_size=256, memory=0)


@pytest.mark.parametrize("ruler", ["value", "action", "lcb"])
def test_the_hard_gate_makes_both_half_experts_experts_everywhere(
    half_experts: TD3, ruler: str
) -> None:
    assert min(gain_of(half_experts, replace(HALVES, ruler=ruler))) >= 0.95  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"gate": "uniform"}, *({"control": c} for c in ("shuffled", "reversed", "cancelled"))],
    ids=str,
)
def test_without_the_gate_they_do_not(half_experts: TD3, settings: dict[str, Any]) -> None:
    gains = gain_of(half_experts, replace(HALVES, ruler="action", **settings))
    assert sum(gains) / 2 < 0.5
