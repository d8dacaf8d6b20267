"""The dose: how many distillation steps, how far each goes, and on how many states."""

from __future__ import annotations

import math
from typing import NamedTuple

from dpd.agents.learners import Learners
from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.distill.peers_config import DPDConfig


class Dose(NamedTuple):
    """Gradient steps of an iteration."""

    lr: float
    steps: int
    batch_size: int
    max_grad_norm: float


def paper_dose(agent: Learners) -> Dose:
    """Return the paper's dose for a family of learners.

    Off-policy one distillation step follows each of reinforcement, with no bound on its gradient
    (paper and 2020 code). On-policy the paper names no number of steps: 40 of 256 out of 2048
    states are five passes over the peer's states beside PPO's ten over the own.
    """
    if isinstance(agent.config, OffPolicyConfig):
        return Dose(1e-4, agent.config.updates, 64, math.inf)
    return Dose(1e-5, 40, 256, 0.5)


def dose_of(config: DPDConfig, agent: Learners) -> Dose:
    """Return the dose that the settings name, the paper's where they leave it open."""
    named = {name: getattr(config, name) for name in Dose._fields}
    return paper_dose(agent)._replace(**{k: v for k, v in named.items() if v is not None})
