"""Named settings of methods, by the learners that they are for; imports no torch.

Settings of the learners under the same names are in agents/presets.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpd.agents.config import LearnerConfig
from dpd.agents.offpolicy_config import OffPolicyConfig, SACConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student_config import StudentConfig

MethodPresets = Mapping[str, Mapping[type[LearnerConfig] | None, Mapping[str, Any]]]
"""Preset -> learners, or None for peers of several algorithms -> settings of the method."""

MODERN_OFFPOLICY: dict[str, Any] = {"ruler": "lcb", "gate": "hard", "states": "mixed"}

DPD_PRESETS: MethodPresets = {
    # Eq. 11 as the paper means it: soft gate, gap of values, the peer's most recent 1,000 states.
    "paper": {PPOConfig: {}, OffPolicyConfig: {}},
    # What the 2020 code does. It has no TD3 and SAC: for these, its distillation alone.
    "released": {
        # Sign turned (D3), next to no dose (D4), learners' settings of its own.
        PPOConfig: {
            "control": "reversed",
            "alpha": 0.5,
            "scale": "reward",
            "weight_clip": [0.01, 100.0],
            "target": "sample",
            "memory": 100_000,
            "dose": "shared",
            "steps": 1,
            "batch_size": 512,
            "coef": 1 / 512,
            "every": 5,
        },
        # Weights that cancel (D1), from two critics' disagreement on one action (D2), on states of
        # the whole replay; alpha 0.75 is its command for HalfCheetah.
        OffPolicyConfig: {
            "ruler": "critics",
            "alpha": 0.75,
            "scale": "reward",
            "weight_clip": [0.01, 100.0],
            "control": "cancelled",
            "memory": 0,
        },
    },
    # For PPO a divergence inside the learner's loss, on a leash that keeps about half of the
    # samples which its learners share (tuned: agents/presets.py). Off-policy, imitate only where
    # all critics agree that the peer's action is better. By reasoning: off-policy it is untuned. On
    # own states too, since the learner is to be good where it goes.
    "modern": {
        PPOConfig: {
            "divergence": "kl_forward",
            "states": "mixed",
            "dose": "loss",
            "coef": 0.1,
            "target_kl": 0.35,
        },
        OffPolicyConfig: MODERN_OFFPOLICY,
        SACConfig: MODERN_OFFPOLICY | {"divergence": "kl_forward"},
        # Values of unlike peers are not of the same thing; critics judge any action.
        None: {"ruler": "action", "gate": "hard", "states": "mixed"},
    },
}
# A study on fresh seeds chose it (docs/results.md, Peers that pay). It had PPO's peers alone, so
# all others have the settings of the paper.
DPD_DEFAULT_PRESETS: Mapping[type[LearnerConfig], str] = {PPOConfig: "modern"}
PLAIN_PRESET = "paper"
"""The preset with a method's own defaults, for those who refuse a default preset."""
ON_POLICY_PRESETS: MethodPresets = {
    # rsl_rl's distillation: squared error to the teacher's mean action, gradients without a bound,
    # 2 epochs of 120 / 15 steps. (Its gradient length of 15 is for recurrent students.)
    "rsl_rl": {StudentConfig: {"divergence": "mse", "steps": 2 * 120 // 15, "max_grad_norm": 1e9}},
}
METHOD_OF_PRESET = {"rsl_rl": "on-policy"}
"""The method that a preset means if no other one is named."""
DOSE: dict[str, dict[str, Any]] = {
    # An iteration has 32 times the samples of PPO's default, so there are as many fewer.
    "large": {"lr": 1e-4, "batch_size": 4096},
}
"""Additional settings of the dose `step` for presets of learners."""
