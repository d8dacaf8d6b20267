"""Named settings of learners, whatever the method; imports no torch."""

from __future__ import annotations

from typing import Any

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
