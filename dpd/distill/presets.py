"""Named settings of methods and of learners; imports no torch."""

from __future__ import annotations

from typing import Any

Presets = dict[str, dict[str, dict[str, Any]]]
"""Preset -> algorithm (`unlike`: several) -> settings, in the shape of a configuration file."""

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
RELEASED_OFFPOLICY: dict[str, Any] = {
    # Weights that cancel (D1), from two critics' disagreement on one action (D2), on states of the
    # whole replay; alpha 0.75 is its command for HalfCheetah.
    "ruler": "critics",
    "alpha": 0.75,
    "scale": "reward",
    "weight_clip": [0.01, 100.0],
    "control": "cancelled",
    "memory": 0,
}
MODERN_OFFPOLICY: dict[str, Any] = {"ruler": "lcb", "gate": "hard", "states": "mixed"}

DPD_PRESETS: Presets = {
    # Eq. 11 as the paper means it: soft gate, gap of values, the peer's most recent 1,000 states.
    "paper": {
        "ppo": {},
        "ddpg": BASELINES_DDPG | {"hidden": [64, 64, 64]},
        "td3": {},
        "sac": {},
    },
    # What the 2020 code does. It has no TD3 and SAC: for these, its distillation alone.
    "released": {
        # Sign turned (D3), next to no dose (D4), learners' settings of its own. From OpenAI
        # Baselines' ppo2: clipped values, a quarter of their squared error, deviation 1 at first.
        "ppo": {
            "lr": 5e-5,
            "lr_schedule": "constant",
            "minibatch_size": 32,
            "value_clip": 0.2,
            "value_coef": 0.25,
            "log_std_init": 0.0,
            "distill": {
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
        },
        "ddpg": BASELINES_DDPG | {"hidden": [64, 64], "distill": RELEASED_OFFPOLICY},
        "td3": {"distill": RELEASED_OFFPOLICY},
        "sac": {"distill": RELEASED_OFFPOLICY},
    },
    # For PPO a divergence inside the learner's loss; off-policy, imitate only where all critics
    # agree that the peer's action is better. By reasoning: off-policy it is untuned. On own states
    # too, since the learner is to be good where it goes.
    "modern": {
        "ppo": {
            "distill": {
                "divergence": "kl_forward",
                "states": "mixed",
                "dose": "loss",
                "coef": 0.1,
            }
        },
        "ddpg": {"distill": MODERN_OFFPOLICY},
        "td3": {"distill": MODERN_OFFPOLICY},
        "sac": {"distill": MODERN_OFFPOLICY | {"divergence": "kl_forward"}},
        # Values of unlike peers are not of the same thing; critics judge any action.
        "unlike": {"distill": {"ruler": "action", "gate": "hard", "states": "mixed"}},
    },
}


MANY_OFFPOLICY: dict[str, Any] = {
    # FastTD3 and FastSAC (Seo et al. 2025, their code's defaults): 128 environments, two updates of
    # 32,768 per step of all, normalised observations. Their distributional critics and weight decay
    # are not here, so the targets move at a tenth of their pace.
    "n_envs": 128,
    "n_steps": 8,
    "stagger": True,
    "minibatch_size": 32_768,
    "updates_per_step": 2 / 128,
    "learning_starts": 2_048,
    "lr": 3e-4,
    "tau": 0.01,
    "norm_obs": True,
}
LEARNERS: dict[str, dict[str, dict[str, Any]]] = {
    # Thousands of environments a peer, and few, large updates: for a GPU.
    "large": {
        # IsaacGymEnvs' Ant: 65,536 samples, networks, activation; Brax's HalfCheetah: 2,048
        # environments, learning rate, and several times Isaac's number of updates.
        "ppo": {
            "n_envs": 2048,
            "n_steps": 32,
            "stagger": True,
            "minibatch_size": 4096,
            "epochs": 5,
            "lr": 3e-4,
            "hidden": [256, 128, 64],
            "activation": "elu",
        },
        "td3": MANY_OFFPOLICY,
        "ddpg": MANY_OFFPOLICY,
        "sac": MANY_OFFPOLICY,
    },
}
DOSE: dict[str, dict[str, Any]] = {
    # An iteration has 32 times the samples of PPO's default, so there are as many fewer.
    "large": {"lr": 1e-4, "batch_size": 4096},
}
"""What dual distillation changes beside them."""
