"""Export policies as models of Stable-Baselines3, in the folders of rl-baselines3-zoo.

Only this module and `dpd.sb3.vec_env` import Stable-Baselines3.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import Tensor

from dpd.agents.nets import ACTIVATIONS
from dpd.agents.norm import EPSILON
from dpd.agents.table import ALGORITHMS
from dpd.envs.make import check
from dpd.envs.task import python_warnings
from dpd.errors import BadInput
from dpd.policies.policyfile import (
    ACTIVATION_MODULES,
    ArrayPolicy,
    Policy,
    probes,
    refuse_memory,
    require_bounds,
    require_fit,
    require_same_actions,
)
from dpd.policies.views import refuse_view
from dpd.sb3.kinds import KINDS, Kind

MODELS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC, "td3": TD3, "ddpg": DDPG}
BUFFER_SIZE = 1_000_000  # SB3's default
ZOO_TOLERANCE = 1e-6  # of half an action's range, unless float32 rounds more coarsely


def export_zoo(policy: Policy, out: Path) -> Path:
    """Write a new folder that `python -m rl_zoo3.enjoy --algo ALGO --env ENV -f OUT` can play.

    The policy becomes an SB3 model with its algorithm's default settings and its own exploration
    noise. The value function or critics are untrained, so further training has to learn them first.
    The folder is loaded as enjoy does, and gets its name only if it acts like the policy. Raises
    BadInput if SB3 lacks the algorithm, the policy does not fit its environment, or the folder
    exists.
    """
    if out.exists():
        raise BadInput(f"{out} exists; remove it, or give --out another name")
    kind, meta = _kind(policy), policy.meta
    with python_warnings():
        spec = check(meta.env_id, "gymnasium", meta.env_kwargs)  # as enjoy makes it
    require_fit(policy, spec)
    require_bounds(policy, spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as work:
        draft = Path(work) / out.name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same critics each time
            _write(policy, kind, draft / meta.algo / f"{zoo_name(policy)}_1")
            obs = probes(policy, clipped=False)
            tolerance = max(ZOO_TOLERANCE, rounding(policy, torch.from_numpy(obs)))
            require_same_actions(policy, read_zoo(draft), obs, tolerance)
        os.rename(draft, out)
    return out


def read_zoo(folder: Path) -> ArrayPolicy:
    """Load a folder of `export_zoo` as rl_zoo3.enjoy does.

    This unpickles, so use it only for folders that this process wrote, never for a user's.
    """
    (file,) = folder.glob("*/*_1/*.zip")
    algo = file.parent.parent.name
    settings: dict[str, Any] = {
        "learning_rate": 0.0,
        "lr_schedule": lambda _: 0.0,
        "clip_range": lambda _: 0.0,
    }
    replay: dict[str, Any] = {} if algo == "ppo" else {"buffer_size": 1}  # or it allocates much
    model = MODELS[algo].load(file, device="cpu", custom_objects=settings, **replay)
    env: gymnasium.Env = gymnasium.Env()  # never stepped, only asked for its spaces
    env.observation_space, env.action_space = model.observation_space, model.action_space
    statistics = file.with_suffix("") / "vecnormalize.pkl"
    norm: VecNormalize | None = None
    if statistics.exists():
        norm = VecNormalize.load(str(statistics), DummyVecEnv([lambda: env]))
        norm.training = norm.norm_reward = False

    def act(obs: np.ndarray) -> np.ndarray:
        x: Any = obs.reshape(len(obs), *(model.observation_space.shape or ()))
        x = x if norm is None else norm.normalize_obs(x)
        return model.predict(x, deterministic=True)[0].reshape(len(obs), -1)

    return act


def zoo_name(policy: Policy) -> str:
    """Return the zoo's name of the environment: without module, dashes for slashes."""
    return policy.meta.env_id.rsplit(":", 1)[-1].replace("/", "-")


def _kind(policy: Policy) -> Kind:
    """Return SB3's counterpart of the algorithm. Raises BadInput if it acts differently."""
    refuse_memory(policy, "a model of Stable-Baselines3")
    refuse_view(policy, "a model of Stable-Baselines3")
    meta, instead = policy.meta, "give --format onnx, torchscript or dpd"
    name = ALGORITHMS[meta.algo].sb3 if meta.algo in ALGORITHMS else None
    kind = next((kind for kind in KINDS if kind.algo == name), None)
    if kind is None:
        raise BadInput(f"Stable-Baselines3 has no counterpart of {meta.algo:.40}; {instead}")
    for name in ("squashed", "tanh_mean", "state_std"):
        ours, theirs = getattr(meta, name), getattr(kind, name)
        if ours != theirs:
            raise BadInput(
                f"the policy acts differently from Stable-Baselines3's {meta.algo}: {name} is "
                f"{ours}, not {theirs}; {instead}"
            )
    return kind


def _write(policy: Policy, kind: Kind, folder: Path) -> None:
    """Write the model, its normaliser and the settings that enjoy reads."""
    meta, name = policy.meta, zoo_name(policy)
    (folder / name).mkdir(parents=True)
    with python_warnings():
        env: gymnasium.Env = gymnasium.make(meta.env_id, **meta.env_kwargs)
    if isinstance(env.observation_space, gymnasium.spaces.Dict):
        raise BadInput(
            f"{meta.env_id} observes a Dict, which Stable-Baselines3's MlpPolicy cannot read as "
            "one vector; give --format onnx, torchscript or dpd"
        )
    envs = DummyVecEnv([lambda: env])
    model = _model(policy, kind, envs)
    if meta.norm_obs:
        _normaliser(policy, envs).save(str(folder / name / "vecnormalize.pkl"))
        if kind.trace:  # left by training with VecNormalize; `load_zip` looks for it
            setattr(model, kind.trace, np.zeros((1, *(envs.observation_space.shape or ()))))
    model.save(folder / f"{name}.zip")
    envs.close()
    hidden, activation = list(meta.hidden), ACTIVATION_MODULES[meta.activation].__name__
    arch = f"dict(pi={hidden}, {kind.critic}={hidden})"
    kwargs = f"dict(net_arch={arch}, activation_fn=nn.{activation})"
    config = {"normalize": meta.norm_obs, "policy": "MlpPolicy", "policy_kwargs": kwargs}
    args = {"algo": kind.algo, "env": meta.env_id, "env_kwargs": meta.env_kwargs or None}
    for file, settings in (("config.yml", config), ("args.yml", args)):
        text = "".join(f"{key}: {_yaml(value)}\n" for key, value in settings.items())
        (folder / name / file).write_text(text, encoding="utf-8")


def _model(policy: Policy, kind: Kind, envs: VecEnv) -> BaseAlgorithm:
    """Return SB3's model with the policy's weights."""
    meta, hidden = policy.meta, list(policy.meta.hidden)
    arch = {"pi": hidden, kind.critic: hidden}
    network = {"net_arch": arch, "activation_fn": ACTIVATION_MODULES[meta.activation]}
    settings: dict[str, Any] = {} if kind.algo == "ppo" else {"buffer_size": 1}
    if kind.tanh_mean:
        std = policy.tensors["log_std"].squeeze(0).exp().numpy()
        settings["action_noise"] = NormalActionNoise(np.zeros_like(std), std)
    model: Any = MODELS[kind.algo](
        "MlpPolicy", envs, policy_kwargs=network, device="cpu", **settings
    )
    if "buffer_size" in settings:
        model.buffer_size = BUFFER_SIZE  # for further training; nothing is allocated here
    steps = meta.provenance.get("steps")
    model.num_timesteps = steps if isinstance(steps, int) else 0
    model.policy.load_state_dict(model.policy.state_dict() | _weights(policy, kind))
    return model


def _weights(policy: Policy, kind: Kind) -> dict[str, Tensor]:
    """Convert tensors to SB3's names and shapes; PPO's last layer gets the environment's units."""
    tensors, last = {k: v.double() for k, v in policy.tensors.items()}, len(policy.meta.hidden)
    half = (tensors["act_high"] - tensors["act_low"]) / 2
    middle = (tensors["act_high"] + tensors["act_low"]) / 2
    weights: dict[str, Tensor] = {}
    for i, name in enumerate(kind.layers(last + 1)):
        weight, bias = tensors[f"actor.{i}.weight"].T, tensors[f"actor.{i}.bias"].squeeze(0)
        if i == last and not kind.is_scaled:
            weight, bias = weight * half.unsqueeze(1), bias * half + middle
        weights[f"{name}.weight"], weights[f"{name}.bias"] = weight, bias
    if kind.tanh_mean:  # the target policy, for further training
        weights |= {k.replace("actor.", "actor_target.", 1): v for k, v in weights.items()}
    elif kind.state_std:
        weights[f"{kind.log_std}.weight"] = tensors["log_std_head.0.weight"].T
        weights[f"{kind.log_std}.bias"] = tensors["log_std_head.0.bias"].squeeze(0)
    else:
        weights[kind.log_std] = tensors["log_std"].squeeze(0) + half.log()
    return weights


def _normaliser(policy: Policy, envs: VecEnv) -> VecNormalize:
    """Return a frozen VecNormalize with the policy's statistics and unnormalised rewards."""
    mean, scale = (policy.tensors[k].double().numpy() for k in ("obs_mean", "obs_scale"))
    # An imported policy may have a smaller epsilon; the variance must not become negative.
    epsilon = min(EPSILON, float(scale.max()) ** -2)
    clip_obs = policy.meta.clip_obs
    norm = VecNormalize(envs, training=False, norm_reward=False, clip_obs=clip_obs, epsilon=epsilon)
    shape = envs.observation_space.shape
    moments: Any = norm.obs_rms  # a dict for dictionary spaces, which are not supported
    moments.mean, moments.var = mean.reshape(shape), (scale**-2 - epsilon).reshape(shape)
    moments.count = policy.tensors["obs_count"].item()
    return norm


def _yaml(value: Any) -> str:
    """Write a value as YAML 1.1, which takes JSON's 1e-05, Infinity and NaN for strings."""
    match value:
        case dict():
            return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_yaml, value)) + "]"
        case float():
            text = re.sub("inf|nan", r".\g<0>", float.__repr__(value))
            return re.sub(r"^(-?\d+)e", r"\1.0e", text)
        case _:
            return json.dumps(value, ensure_ascii=False)


def rounding(policy: Policy, obs: Tensor) -> float:
    """Bound the difference between float32 implementations of a policy on raw obs [B, O].

    First-order: each layer rounds its own sums and passes on the error of its input. No supported
    activation is steeper than 1.
    """
    unit, x = 4 * torch.finfo(torch.float32).eps, obs
    if policy.meta.norm_obs:
        clip = policy.meta.clip_obs
        x = (x - policy.tensors["obs_mean"]).mul(policy.tensors["obs_scale"]).clamp(-clip, clip)
    error = unit * x.abs()
    for i in range(len(policy.meta.hidden) + 1):
        weight, bias = policy.tensors[f"actor.{i}.weight"], policy.tensors[f"actor.{i}.bias"]
        error = (error + unit * x.abs()) @ weight.abs() + unit * bias.abs()
        x = ACTIVATIONS[policy.meta.activation].forward_(x @ weight + bias)
    return float(error.max())
