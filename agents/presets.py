"""Named settings of learners; imports no torch.

A preset that a method has as well (dpd/distill/presets.py) sets both; any other one, such as large,
goes with every method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Presets = Mapping[str, Mapping[str, Any]]
"""Preset -> settings, in the shape of a configuration file."""

BASELINES_DDPG: dict[str, Any] = {
    # 100 environment steps, then 50 updates. Their critics' weight decay of 0.01 and the layer
    # normalisation that the 2020 code has are left out.
    "n_steps": 100,
    "updates_per_step": 0.5,
    "learning_starts": 0,
    "lr": 1e-4,
    "critic_lr": 1e-3,
    "tau": 0.01,
    "minibatch_size": 64,
    "exploration": "param",
    "noise_std": 0.2,
    "norm_obs": True,
}
PPO_PRESETS: Presets = {
    # Peers that learn from each other's samples. A pair collects 16 * 128 steps an iteration, as
    # one learner does by default, so its policies change as often. Twice the epochs, tuned on seeds
    # 0 to 7 of HalfCheetah, Hopper and Walker2d: the leash keeps them from going too far.
    "modern": {"share_experience": True, "n_envs": 8, "epochs": 20},
    # The 2020 code's learners are OpenAI Baselines' ppo2: clipped values, a quarter of their
    # squared error, deviation 1 at first.
    "released": {
        "lr": 5e-5,
        "lr_schedule": "constant",
        "minibatch_size": 32,
        "value_clip": 0.2,
        "value_coef": 0.25,
        "log_std_init": 0.0,
    },
    # Thousands of environments a peer, and few, large updates: for a GPU. IsaacGymEnvs' Ant: 65,536
    # samples, networks, activation; Brax's HalfCheetah: 2,048 environments, learning rate, and
    # several times Isaac's number of updates.
    "large": {
        "n_envs": 2048,
        "n_steps": 32,
        "stagger": True,
        "minibatch_size": 4096,
        "epochs": 5,
        "lr": 3e-4,
        "hidden": [256, 128, 64],
        "activation": "elu",
    },
}
OFF_POLICY_PRESETS: Presets = {
    # FastTD3 and FastSAC (Seo et al. 2025, their code's defaults): 128 environments, two updates of
    # 32,768 per step of all, normalised observations. Their distributional critics and weight decay
    # are not here, so the targets move at a tenth of their pace.
    "large": {
        "n_envs": 128,
        "n_steps": 8,
        "stagger": True,
        "minibatch_size": 32_768,
        "updates_per_step": 2 / 128,
        "learning_starts": 2_048,
        "lr": 3e-4,
        "tau": 0.01,
        "norm_obs": True,
    },
}
STUDENT_PRESETS: Presets = {
    # rsl_rl's distillation as Isaac Lab configures it for ANYmal-D: a student of deviation 0.1 acts
    # for 120 steps; each gradient step takes 15 steps of all environments, here 8.
    "rsl_rl": {
        "n_envs": 8,
        "n_steps": 120,
        "minibatch_size": 15 * 8,
        "lr": 1e-3,
        "log_std_init": math.log(0.1),
    },
}
DDPG_PRESETS: Presets = {
    "paper": BASELINES_DDPG | {"hidden": [64, 64, 64]},
    "released": BASELINES_DDPG | {"hidden": [64, 64]},
    **OFF_POLICY_PRESETS,
}
