"""An algorithm and a method of our own, which dpd knows only by a row in each of its tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dpd.agents.base import Metrics
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.distill.config import MethodConfig
from dpd.distill.method import Context, Method


@dataclass(frozen=True, kw_only=True)
class OwnConfig(PPOConfig):
    """Settings of our own algorithm."""

    patience: int = 3
    """A setting that no other algorithm has."""


class OwnLearners(PPO):
    """PPO under another name."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig(MethodConfig):
    """Watch the learners, and do nothing else."""

    pace: float = 1.0
    """A setting that no other method has."""


class Watch(Method):
    """A method that logs its pace."""

    def __init__(self, config: WatchConfig, context: Context) -> None:
        super().__init__(context)
        self.pace = torch.full((len(context.ids),), config.pace)

    def step(self) -> Metrics:
        """Return the pace [N]."""
        return {"distill/pace": self.pace}
