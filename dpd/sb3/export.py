"""Stable-Baselines3: our simulation as its environment, our policies as its models.

Nothing else in this suite imports it.
`PPO("MlpPolicy", NativeVecEnv("HalfCheetah-v5", 8))` trains on the native simulation.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnv,
)
from torch import Tensor, nn

from dpd.agents.nets import ACTIVATIONS
from dpd.agents.norm import EPSILON
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.policies.policyfile import Policy, refuse_memory
from dpd.sb3.kinds import KINDS, Kind

Act = Callable[[np.ndarray], np.ndarray]
"""Raw observations [B, O] -> actions [B, A] in the environment's bounds."""
MODELS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC, "td3": TD3, "ddpg": DDPG}
BUFFER_SIZE = 1_000_000  # SB3's default
MODULES: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
TOLERANCE = 1e-6  # of half an action's range, unless float32 rounds more coarsely
N_PROBES = 512  # observations on which a written policy must act as the given one


def export_zoo(policy: Policy, out: Path) -> Path:
    """Write a new folder that `python -m rl_zoo3.enjoy --algo ALGO --env ENV -f OUT` plays.

    The policy becomes SB3's model of its algorithm with default settings, and the policy's own
    exploration noise. The value function or the critics are new, so training on from there starts
    with learning those. What was written is loaded as enjoy does, and must act as the policy does
    before the folder gets its name. Raises BadInput for a policy that is none of SB3's algorithms
    or does not fit its environment, and for a folder that exists.
    """
    if out.exists():
        raise BadInput(f"{out} exists; remove it, or give --out another name")
    kind = _kind(policy)
    _check_spec(policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as work:
        draft = Path(work) / out.name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same critics each time
            _write(policy, kind, draft / policy.meta.algo / f"{zoo_name(policy)}_1")
            _check_acts(policy, read_zoo(draft))
        os.rename(draft, out)
    return out


def read_zoo(folder: Path) -> Act:
    """Load a folder of `export_zoo` as rl_zoo3.enjoy does.

    This runs pickles: it is for folders just written here, never for one that a user gives.
    """
    (file,) = folder.glob("*/*_1/*.zip")
    algo = file.parent.parent.name
    settings: dict[str, Any] = {
        "learning_rate": 0.0,
        "lr_schedule": lambda _: 0.0,
        "clip_range": lambda _: 0.0,
    }
    replay: dict[str, Any] = {} if algo == "ppo" else {"buffer_size": 1}  # or it would be allocated
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
    """Return what the zoo calls the policy's environment: no module, dashes for slashes."""
    return policy.meta.env_id.rsplit(":", 1)[-1].replace("/", "-")


def _kind(policy: Policy) -> Kind:
    """Return SB3's counterpart of a policy's algorithm. Raises BadInput where it acts otherwise."""
    refuse_memory(policy, "a model of Stable-Baselines3")
    meta, instead = policy.meta, "give --format onnx, torchscript or dpd"
    kind = next((kind for kind in KINDS if kind.algo == meta.algo), None)
    if kind is None:
        raise BadInput(f"Stable-Baselines3 has no counterpart of {meta.algo:.40}; {instead}")
    for name in ("squashed", "tanh_mean", "state_std"):
        ours, theirs = getattr(meta, name), getattr(kind, name)
        if ours != theirs:
            raise BadInput(
                f"the policy acts otherwise than Stable-Baselines3's {meta.algo}: {name} is "
                f"{ours}, there {theirs}; {instead}"
            )
    return kind


def _check_spec(policy: Policy) -> None:
    """Raise BadInput unless the policy fits its environment."""
    meta = policy.meta
    spec = check(meta.env_id, "gymnasium", meta.env_kwargs)  # enjoy makes it of Gymnasium, too
    if (spec.obs_dim, spec.act_dim) != (meta.obs_dim, meta.act_dim):
        raise BadInput(
            f"the policy reads {meta.obs_dim} observations and gives {meta.act_dim} actions; "
            f"{meta.env_id} has {spec.obs_dim} and {spec.act_dim}"
        )
    for name, bound in (("act_low", spec.act_low), ("act_high", spec.act_high)):
        if not np.allclose(policy.tensors[name].numpy(), bound):
            raise BadInput(f"the policy's {name} is not that of {meta.env_id}, {bound}")


def _write(policy: Policy, kind: Kind, folder: Path) -> None:
    """Write the model, its normaliser, and the settings that enjoy reads."""
    meta, name = policy.meta, zoo_name(policy)
    (folder / name).mkdir(parents=True)
    envs = DummyVecEnv([lambda: gymnasium.make(meta.env_id, **meta.env_kwargs)])
    model = _model(policy, kind, envs)
    if meta.norm_obs:
        _normaliser(policy, envs).save(str(folder / name / "vecnormalize.pkl"))
        if kind.trace:  # as training with VecNormalize leaves it; our import asks by this sign
            setattr(model, kind.trace, np.zeros((1, *(envs.observation_space.shape or ()))))
    model.save(folder / f"{name}.zip")
    envs.close()
    hidden, activation = list(meta.hidden), MODULES[meta.activation].__name__
    said = (
        f"dict(net_arch=dict(pi={hidden}, {kind.critic}={hidden}), activation_fn=nn.{activation})"
    )
    config = {"normalize": meta.norm_obs, "policy": "MlpPolicy", "policy_kwargs": said}
    args = {"algo": kind.algo, "env": meta.env_id, "env_kwargs": meta.env_kwargs or None}
    (folder / name / "config.yml").write_text(_yaml(config), encoding="utf-8")
    (folder / name / "args.yml").write_text(_yaml(args), encoding="utf-8")


def _model(policy: Policy, kind: Kind, envs: VecEnv) -> BaseAlgorithm:
    """Return SB3's model with the policy's weights."""
    meta, hidden = policy.meta, list(policy.meta.hidden)
    arch = {"pi": hidden, kind.critic: hidden}
    network = {"net_arch": arch, "activation_fn": MODULES[meta.activation]}
    settings: dict[str, Any] = {} if kind.algo == "ppo" else {"buffer_size": 1}
    if kind.tanh_mean:
        std = policy.tensors["log_std"].squeeze(0).exp().numpy()
        settings["action_noise"] = NormalActionNoise(np.zeros_like(std), std)
    model: Any = MODELS[kind.algo](
        "MlpPolicy", envs, policy_kwargs=network, device="cpu", **settings
    )
    if "buffer_size" in settings:
        model.buffer_size = BUFFER_SIZE  # for who trains on; nothing is allocated for it here
    steps = meta.provenance.get("steps")
    model.num_timesteps = steps if isinstance(steps, int) else 0
    model.policy.load_state_dict(model.policy.state_dict() | _weights(policy, kind))
    return model


def _weights(policy: Policy, kind: Kind) -> dict[str, Tensor]:
    """Return SB3's names and shapes; PPO's last layer acts in the environment's own units."""
    tensors, last = {k: v.double() for k, v in policy.tensors.items()}, len(policy.meta.hidden)
    half = (tensors["act_high"] - tensors["act_low"]) / 2
    middle = (tensors["act_high"] + tensors["act_low"]) / 2
    weights: dict[str, Tensor] = {}
    for i, name in enumerate(kind.layers(last + 1)):
        weight, bias = tensors[f"actor.{i}.weight"].T, tensors[f"actor.{i}.bias"].squeeze(0)
        if i == last and not kind.is_scaled:
            weight, bias = weight * half.unsqueeze(1), bias * half + middle
        weights[f"{name}.weight"], weights[f"{name}.bias"] = weight, bias
    if kind.tanh_mean:  # the target policy, from which training goes on
        weights |= {k.replace("actor.", "actor_target.", 1): v for k, v in weights.items()}
    elif kind.state_std:
        weights[f"{kind.log_std}.weight"] = tensors["log_std_head.0.weight"].T
        weights[f"{kind.log_std}.bias"] = tensors["log_std_head.0.bias"].squeeze(0)
    else:
        weights[kind.log_std] = tensors["log_std"].squeeze(0) + half.log()
    return weights


def _normaliser(policy: Policy, envs: VecEnv) -> VecNormalize:
    """Return a VecNormalize with the policy's statistics, frozen, that leaves rewards alone."""
    mean, scale = (policy.tensors[k].double().numpy() for k in ("obs_mean", "obs_scale"))
    # an imported policy's epsilon may be a smaller one; no variance may come out below 0
    epsilon = min(EPSILON, float(scale.max()) ** -2)
    clip_obs = policy.meta.clip_obs
    norm = VecNormalize(envs, training=False, norm_reward=False, clip_obs=clip_obs, epsilon=epsilon)
    shape = envs.observation_space.shape
    moments: Any = norm.obs_rms  # one per key for dictionaries, which we have none of
    moments.mean, moments.var = mean.reshape(shape), (scale**-2 - epsilon).reshape(shape)
    moments.count = policy.tensors["obs_count"].item()
    return norm


def _yaml(settings: dict[str, Any]) -> str:
    """Return YAML of settings; all JSON is YAML but for some numbers, which would be strings."""
    lines = ""
    for name, value in settings.items():
        text = json.dumps(value, ensure_ascii=False)
        lines += f"{name}: {re.sub(JSON_ONLY, _in_yaml, text)}\n"
    return lines


JSON_ONLY = r"""("(?:[^"\\]|\\.)*")|(?<![\d.])(\d+)(e[+-]\d+)|(-?)Infinity|NaN"""
"""Strings, which stay as they are, and the numbers that YAML 1.1 writes otherwise."""


def _in_yaml(match: re.Match[str]) -> str:
    string, digits, exponent, sign = match.groups()
    if string is not None:
        return string
    if digits is not None:
        return f"{digits}.0{exponent}"
    return ".nan" if match[0] == "NaN" else f"{sign}.inf"


def _check_acts(policy: Policy, act: Act) -> None:
    """Raise ValueError unless another form of a policy acts as the policy does."""
    noise = np.random.default_rng(0).standard_normal((N_PROBES, policy.meta.obs_dim))
    mean, scale = policy.tensors["obs_mean"].numpy(), policy.tensors["obs_scale"].numpy()
    obs = (mean + noise / scale).astype(np.float32)
    half = (policy.tensors["act_high"] - policy.tensors["act_low"]).numpy() / 2
    difference = float((np.abs(act(obs) - policy.act_flat(obs)) / half).max())
    allowed = max(TOLERANCE, rounding(policy, torch.from_numpy(obs)))
    if not difference <= allowed:  # so that a NaN is refused too
        raise ValueError(
            f"not written: Stable-Baselines3's actions would differ by {difference:.1e} of half "
            f"their range, more than {allowed:.1e}"
        )


def rounding(policy: Policy, obs: Tensor) -> float:
    """Bound how far float32 implementations of a policy differ on raw obs [B, O].

    To first order: each layer rounds its own sums, and passes on what came in. No activation
    of ours is steeper than 1.
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
