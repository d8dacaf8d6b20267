"""Build Stable-Baselines3 models with this suite's hyper-parameters; as a script, time PPO.

python bench/sb3_baseline.py --n-envs 8 --threads 1 --seconds 15
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from dpd.agents.config import OffPolicyConfig, PPOConfig, TD3Config

if TYPE_CHECKING:  # imports take seconds, and bench/train.py only needs TimeBox
    from gymnasium import Env
    from stable_baselines3 import PPO
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

ENDLESS = 100_000_000  # steps; the clock ends the run
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "elu": torch.nn.ELU}


class TimeBox:
    """Counter of steps and seconds, from its first mark to the first one after the time limit."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, seconds: float) -> None:
        self.limit = seconds
        self.first: tuple[int, float] | None = None
        self.last = (0, 0.0)

    def mark(self, steps: int) -> bool:
        """Record the end of an iteration; return True if the time is up."""
        self.last = (steps, self.clock())
        if self.first is None:
            self.first = self.last
        return self.seconds >= self.limit

    @property
    def steps(self) -> int:
        """Steps since the first mark."""
        return self.last[0] - self.first[0] if self.first else 0

    @property
    def seconds(self) -> float:
        """Seconds since the first mark."""
        return self.last[1] - self.first[1] if self.first else 0.0


def make_vec(kind: str, env_id: str, n_envs: int, seed: int, threads: int | None) -> VecEnv:
    """Make monitored environments: native, or SB3's in this process or in subprocesses."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

    if kind == "native":
        from dpd.sb3.vec_env import NativeVecEnv

        return VecMonitor(NativeVecEnv(env_id, n_envs, seed, threads))
    own: type[DummyVecEnv] | type[SubprocVecEnv]
    own = SubprocVecEnv if kind == "subproc" else DummyVecEnv
    return make_vec_env(env_id, n_envs, seed, vec_env_cls=own)


def learning_rate(config: PPOConfig) -> float | Callable[[float], float]:
    """Return the learning rate in SB3's form: a function of the remaining share of the run."""
    if config.lr_schedule == "constant":
        return config.lr
    return lambda left: config.lr * left


def make_ppo(venv: VecEnv, n_steps: int, seed: int, config: PPOConfig) -> PPO:
    """Return SB3's PPO with all settings of dpd, including normalisation."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecNormalize

    layers = list(config.hidden)
    return PPO(
        "MlpPolicy",
        VecNormalize(
            venv, norm_obs=config.norm_obs, norm_reward=config.norm_reward, gamma=config.gamma
        ),
        learning_rate=learning_rate(config),
        n_steps=n_steps,
        batch_size=config.minibatch_size,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.lam,
        clip_range=config.clip,
        ent_coef=config.entropy_coef,
        vf_coef=config.value_coef,
        max_grad_norm=config.max_grad_norm,
        target_kl=config.target_kl,
        policy_kwargs={
            "net_arch": {"pi": layers, "vf": layers},
            "activation_fn": ACTIVATIONS[config.activation],
            "log_std_init": config.log_std_init,
            "optimizer_kwargs": {"eps": config.adam_eps},
        },
        seed=seed,
        device="cpu",
    )


def make_offpolicy(
    name: str,
    env: VecEnv | Env[Any, Any],
    seed: int,
    config: OffPolicyConfig,
    package: str = "stable_baselines3",
) -> OffPolicyAlgorithm:
    """Return SB3's TD3, DDPG or SAC with all settings of dpd; an update follows every step.

    `package` may be `sbx`, which has the same classes.
    """
    import numpy as np
    from stable_baselines3.common.noise import NormalActionNoise

    own: dict[str, Any] = {}
    if isinstance(config, TD3Config):
        assert env.action_space.shape
        size = env.action_space.shape[0]
        own["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, config.noise_std))
    if isinstance(config, TD3Config) and name == "td3":
        own |= {
            "policy_delay": config.policy_delay,
            "target_policy_noise": config.target_noise,
            "target_noise_clip": config.target_noise_clip,
        }
    model: OffPolicyAlgorithm = getattr(import_module(package), name.upper())(
        "MlpPolicy",
        env,
        learning_rate=config.lr,
        buffer_size=config.capacity,
        learning_starts=config.learning_starts,
        batch_size=config.minibatch_size,
        tau=config.tau,
        gamma=config.gamma,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": list(config.hidden), "n_critics": config.n_critics},
        seed=seed,
        device="cpu",
        **own,
    )
    return model


def learn_for(model: PPO, seconds: float) -> TimeBox:
    """Train until the time is up; count whole iterations after the first."""
    box = TimeBox(seconds)

    def on_step(scope: dict[str, Any], _: dict[str, Any]) -> bool:
        steps = scope["self"].num_timesteps
        begins = scope["n_steps"] == 0 and steps > model.n_envs
        return not (begins and box.mark(steps))

    model.learn(ENDLESS, callback=on_step)
    return box


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Build and run the model of the flags."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = PPOConfig()
    venv = make_vec(args.vec, args.env, args.n_envs, args.seed, args.threads)
    model = make_ppo(venv, config.samples // args.n_envs, args.seed, config)
    box = learn_for(model, args.seconds)
    venv.close()
    return {"steps": box.steps, "seconds": box.seconds, "threads": torch.get_num_threads()}


def main() -> int:
    """Parse flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--n-envs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's choice")
    parser.add_argument("--vec", choices=("dummy", "subproc", "native"), default="dummy")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.n_envs < 1 or PPOConfig().samples % args.n_envs:
        parser.error(f"--n-envs must divide {PPOConfig().samples}, not {args.n_envs}")
    sys.stdout.write(json.dumps(measure(args)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
