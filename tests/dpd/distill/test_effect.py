"""Distillation has an effect: an inert dose is the classic failure here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from dpd.agents.base import Batch
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.distill.independent import Independent
from dpd.distill.method import Context, Method
from dpd.distill.peers import DualDistillation
from dpd.distill.peers_config import DPDConfig, IndependentConfig
from tests.toy import probe_envs as probes
from tests.toy.point_mass import (
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

ALGO = PPOConfig(
    n_envs=16,
    n_steps=16,
    minibatch_size=64,
    epochs=4,
    lr=1e-2,
    gamma=0.9,
    hidden=(16, 16),
    norm_reward=False,
)
DOSE = DPDConfig(lr=1e-3, steps=40, batch_size=128)


# --- A fresh learner beside a good one ---


@pytest.fixture(scope="module")
def expert() -> PPO:
    """A stack whose row 1 has learnt the probe."""
    trial = Trial(ALGO, probes.ObsTimesAction)
    trial.train(30, Independent(IndependentConfig(), trial.context))
    return trial.agent


def beside(
    expert: PPO, probe: type[probes.Probe] = probes.ObsTimesAction, value: float = -1.0
) -> Trial:
    """Return a fresh row 0, whose critic answers `value` everywhere, beside the expert's row 1."""
    trial = Trial(ALGO, probe)
    agent = trial.agent
    agent.nets.flat.detach()[1] = expert.nets.flat.detach()[1]
    agent.obs_norm = expert.obs_norm
    agent.nets.views["critic.2.weight"][0] = 0
    agent.nets.views["critic.2.bias"][0] = value
    return trial


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gate": "hard"},
        {"gate": "uniform"},
        {"ruler": "return"},
        {"target": "sample"},
        {"divergence": "kl_forward"},
        {"divergence": "kl_reverse"},
        {"divergence": "nll"},
        {"dose": "shared", "lr": DPDConfig.lr},
        {"memory": 600},
    ],
    ids=str,
)
def test_a_fresh_learner_beside_a_good_one_becomes_good_by_distillation_alone(
    expert: PPO, settings: dict[str, Any]
) -> None:
    trial = beside(expert)
    config = replace(DOSE, students=(0,), **settings)
    teacher = trial.agent.nets.flat.detach()[1].clone()
    method = DualDistillation(config, trial.context)
    assert share_of_return(trial, lambda t: t.distil_only(10, method)) >= 0.8
    assert torch.equal(trial.agent.nets.flat.detach()[1], teacher)


def test_it_learns_nothing_where_the_gate_is_closed_or_there_is_no_method(expert: PPO) -> None:
    closed, none = beside(expert), beside(expert)
    config = replace(DOSE, gate="hard", control="reversed")
    method = DualDistillation(config, closed.context)
    assert share_of_return(closed, lambda t: t.distil_only(10, method)) < 0.3
    assert (
        share_of_return(
            none, lambda t: t.distil_only(10, Independent(IndependentConfig(), t.context))
        )
        < 0.3
    )


def test_inside_the_learners_loss_a_good_peer_teaches_where_no_reward_does(expert: PPO) -> None:
    config = DPDConfig(dose="loss", divergence="kl_forward", coef=1.0, students=(0,))
    # value 0 is right, so that row 0's advantages and value errors are exactly zero
    taught, alone = (beside(expert, probes.Silent, value=0.0) for _ in range(2))
    method = DualDistillation(config, taught.context)
    assert share_of_return(taught, lambda t: t.train(10, method)) >= 0.8
    assert (
        share_of_return(alone, lambda t: t.train(10, Independent(IndependentConfig(), t.context)))
        < 0.3
    )


# --- Peers come together ---


@pytest.fixture(scope="module")
def independent_distance() -> float:
    return final_distance(partial(Independent, IndependentConfig()))


def final_distance(make: Callable[[Context], Method]) -> float:
    """Return the action distance of four pairs after training, from far apart."""
    trial = Trial(ALGO, probes.FreeAction, groups=4)
    trial.agent.nets.views["actor.2.weight"].mul_(200)
    distances = trial.train(10, make(trial.context))
    assert distances[0].mean() > 0.3
    return float(distances[-1].mean())


@pytest.mark.parametrize(
    "config",
    [
        # A small step: all the way to the other's old policy, with weights everywhere, is a swap.
        replace(DOSE, steps=10),
        # The hard gate moves one of the two at each state.
        replace(DOSE, steps=80, gate="hard"),
        DPDConfig(dose="loss", divergence="kl_reverse"),
    ],
    ids=["soft", "hard", "loss"],
)
def test_peers_who_distil_come_closer_than_independent_ones(
    config: DPDConfig, independent_distance: float
) -> None:
    # The second action earns nothing, so reinforcement alone has no reason to bring peers together.
    distance = final_distance(lambda context: DualDistillation(config, context))
    assert distance < 0.5 * independent_distance


# --- Two experts, each on its half ---

RAW = PPOConfig(
    n_envs=32,
    n_steps=32,
    minibatch_size=64,
    hidden=(32, 32),
    gamma=GAMMA,
    norm_obs=False,
    norm_reward=False,
)


@pytest.fixture(scope="module")
def half_experts() -> PPO:
    """Peers of which each knows one half."""
    agent = PPO(RAW, 4, 2, PAIR)
    make_half_experts(agent)
    return agent


def gain_of(half_experts: PPO, config: DPDConfig) -> list[float]:
    """Let both distil, with exact values; return what each gains."""
    agent = PPO(RAW, 4, 2, PAIR)
    agent.nets.flat.detach().copy_(half_experts.nets.flat.detach())

    def batch(i: int) -> Batch:
        state = starts(1024, seed=10 + i)
        got = returns(agent.mode, state, GAMMA)  # exact: the system is deterministic
        fit(agent.nets.flat, agent.value, state, got, 150)
        valid = torch.ones(2, 1024, dtype=torch.bool)
        return Batch(agent.prepare(agent.new_rollout()).data, state, got, valid)

    return gain(agent, config, batch)


HALVES = DPDConfig(gate="hard", lr=1e-3, steps=200, batch_size=256)


@pytest.mark.parametrize("ruler", ["value", "return"])
def test_the_hard_gate_makes_both_half_experts_experts_everywhere(
    half_experts: PPO, ruler: str
) -> None:
    assert min(gain_of(half_experts, replace(HALVES, ruler=ruler))) >= 0.95  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"gate": "uniform"}, {"control": "shuffled"}, {"control": "reversed"}],
    ids=["uniform", "shuffled", "reversed"],
)
def test_without_the_gate_they_do_not(half_experts: PPO, settings: dict[str, Any]) -> None:
    gains = gain_of(half_experts, replace(HALVES, **settings))
    assert sum(gains) / 2 < 0.8
