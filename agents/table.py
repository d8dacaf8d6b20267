"""The table of all algorithms; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpd.agents.offpolicy_config import DDPGConfig, SACConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.presets import (
    DDPG_PRESETS,
    OFF_POLICY_PRESETS,
    PPO_PRESETS,
    STUDENT_PRESETS,
    Presets,
)
from dpd.agents.student_config import StudentConfig


@dataclass(frozen=True)
class AlgorithmSpec:
    """An algorithm: a row of ALGORITHMS."""

    settings: type[Any]
    """A class of settings, derived from LearnerConfig."""
    learners: str
    """Import path of the stack of learners, `module:class`; the module may import torch."""
    presets: Presets = field(default_factory=dict)
    """Settings of the learners under named presets."""
    sb3: str = ""
    """Name of the counterpart among the policies of Stable-Baselines3 (dpd/sb3/kinds.py)."""


ALGORITHMS: dict[str, AlgorithmSpec] = {
    "ppo": AlgorithmSpec(PPOConfig, "dpd.agents.ppo:PPO", PPO_PRESETS, "ppo"),
    "td3": AlgorithmSpec(TD3Config, "dpd.agents.td3:TD3", OFF_POLICY_PRESETS, "td3"),
    "ddpg": AlgorithmSpec(DDPGConfig, "dpd.agents.td3:TD3", DDPG_PRESETS, "ddpg"),
    "sac": AlgorithmSpec(SACConfig, "dpd.agents.sac:SAC", OFF_POLICY_PRESETS, "sac"),
    "student": AlgorithmSpec(StudentConfig, "dpd.agents.student:Student", STUDENT_PRESETS),
}
"""All algorithms, by the name that `--algo` takes."""


def rl_algorithms() -> dict[str, AlgorithmSpec]:
    """Return the algorithms that learn from rewards."""
    rows = ALGORITHMS.items()
    return {name: row for name, row in rows if not issubclass(row.settings, StudentConfig)}
