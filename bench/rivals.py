"""Build other projects' learners with this suite's hyper-parameters; as a script, time their PPO.

python bench/rivals.py --n-envs 8 --threads 1 --seconds 15                  Stable-Baselines3
python bench/rivals.py --n-envs 8 --package sbx                             SBX, compiled by JAX
python bench/rivals.py --n-envs 8 --file path/to/ppo_continuous_action.py   CleanRL or LeanRL
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock, patch

import torch

from dpd.agents.offpolicy_config import OffPolicyConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig

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


def make_ppo(
    venv: VecEnv, n_steps: int, seed: int, config: PPOConfig, package: str = "stable_baselines3"
) -> PPO:
    """Return the PPO of SB3 or SBX with all settings of dpd, including normalisation."""
    from stable_baselines3.common.vec_env import VecNormalize

    layers, activation = list(config.hidden), ACTIVATIONS[config.activation]
    if package == "sbx":
        activation = getattr(import_module("flax.linen"), config.activation)
    model: PPO = import_module(package).PPO(
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
            "activation_fn": activation,
            "log_std_init": config.log_std_init,
            "optimizer_kwargs": {"eps": config.adam_eps},
        },
        seed=seed,
        device="cpu",
    )
    return model


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


def measure(args: argparse.Namespace) -> TimeBox:
    """Build and run the model of the flags."""
    config = PPOConfig()
    venv = make_vec(args.vec, args.env, args.n_envs, args.seed, args.threads)
    model = make_ppo(venv, config.samples // args.n_envs, args.seed, config, args.package)
    box = learn_for(model, args.seconds)
    venv.close()
    return box


class TimeUp(Exception):
    """Ends a file that has no callback."""


def measure_file(args: argparse.Namespace) -> TimeBox:
    """Run CleanRL's or LeanRL's file as its users do, until the time is up.

    An iteration ends when its vector environment steps again after the update.
    """
    from gymnasium.vector import SyncVectorEnv

    box, n_steps, n_done = TimeBox(args.seconds), PPOConfig().samples // args.n_envs, 0
    plain = SyncVectorEnv.step

    def step(self: SyncVectorEnv, actions: Any) -> Any:
        nonlocal n_done
        if n_done and n_done % n_steps == 0 and box.mark(n_done * args.n_envs):
            raise TimeUp
        n_done += 1
        return plain(self, actions)

    file, home = args.file.resolve(), os.getcwd()
    argv = [str(file), *file_flags(file, args.env, args.n_envs, args.seed)]
    with tempfile.TemporaryDirectory() as folder, patch.object(SyncVectorEnv, "step", step):
        os.chdir(folder)  # the file writes its logs into the current directory
        try:
            with patch.object(sys, "argv", argv), for_gymnasium_1(), without_wandb():
                runpy.run_path(str(file), run_name="__main__")
        except TimeUp:
            return box
        finally:
            os.chdir(home)
    raise RuntimeError(f"{args.file} ended before its time was up")


def file_flags(file: Path, env_id: str, n_envs: int, seed: int) -> list[str]:
    """Return the flags that give a file this suite's sizes; a file that can compile does."""
    config = PPOConfig()
    flags: Mapping[str, object] = {
        "--env-id": env_id,
        "--seed": seed,
        "--total-timesteps": ENDLESS,
        "--num-envs": n_envs,
        "--num-steps": config.samples // n_envs,
        "--num-minibatches": config.samples // config.minibatch_size,
        "--update-epochs": config.epochs,
        "--learning-rate": config.lr,
        "--gamma": config.gamma,
        "--gae-lambda": config.lam,
        "--clip-coef": config.clip,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    compiles = "    compile: bool" in file.read_text()
    return [*words, "--no-cuda", *(["--compile"] if compiles else [])]


def for_gymnasium_1() -> Any:
    """Let a file written for Gymnasium 0.29 wrap observations without naming their space."""
    from gymnasium import wrappers

    plain = wrappers.TransformObservation
    if inspect.signature(plain).parameters["observation_space"].default is None:
        return patch.object(wrappers, "TransformObservation", plain)
    transform = partial(plain, observation_space=None)
    return patch.object(wrappers, "TransformObservation", transform)


def without_wandb() -> Any:
    """Let a file import wandb where it is not installed, and send nothing where it is."""
    return patch.dict(sys.modules, {"wandb": MagicMock()})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time another project's PPO.")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--n-envs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's choice")
    parser.add_argument("--vec", choices=("dummy", "subproc", "native"), default="dummy")
    packages = ("stable_baselines3", "sbx")
    parser.add_argument("--package", choices=packages, default=packages[0])
    parser.add_argument("--file", type=Path, help="CleanRL's or LeanRL's ppo_continuous_action.py")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.n_envs < 1 or PPOConfig().samples % args.n_envs:
        parser.error(f"--n-envs must divide {PPOConfig().samples}, not {args.n_envs}")
    if not find_spec(args.package):
        parser.error(f"{args.package} is not installed")
    return args


def main() -> int:
    """Parse flags, measure, print."""
    args = parse()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    box = measure(args) if args.file is None else measure_file(args)
    found = {"steps": box.steps, "seconds": box.seconds, "threads": torch.get_num_threads()}
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
