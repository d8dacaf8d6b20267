"""Read Stable-Baselines3 zips without unpickling anything and without Stable-Baselines3.

A zip holds `data`, a JSON object whose `:serialized:` parts are pickles that nobody here decodes,
and `policy.pth`, which torch reads as weights only. Sizes are checked before they are believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpd.agents.config import TD3Config
from dpd.agents.norm import CLIP
from dpd.config import NO_STATISTICS, ForeignConfig
from dpd.envs.base import EnvSpec
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.policies import policyfile
from dpd.policies.metadata import MAX_LAYERS, NotAPolicy, PolicyMeta
from dpd.policies.policyfile import Policy
from dpd.sb3.archive import BAD_ZIP, MAX_FILE, open_zip, read_bytes, read_member, read_weights
from dpd.sb3.kinds import KINDS, Kind
from dpd.sb3.nearby import said_beside, statistics_beside
from dpd.sb3.statistics import Statistics, read_statistics

MAX_DATA = 2**24  # bytes, of a zip's JSON
ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "ELU": "elu"}
Layers = list[tuple[Tensor, Tensor]]  # weights [out, in], biases [out]
SUPPORTED = "supported are PPO, SAC, TD3 and DDPG with MlpPolicy"


def load_zip(path: Path, foreign: ForeignConfig) -> Policy:
    """Read a zip as a policy of ours, for the environment `foreign.env`.

    A zip of TD3 or DDPG has its exploration noise in a pickle; the policy gets the paper's.
    Raises NotAPolicy for what can't be read or is not supported, BadInput where a setting of
    `foreign` is missing or does not fit.
    """
    if foreign.env is None:
        raise BadInput(f"{path} does not say its environment; give --env, such as HalfCheetah-v5")
    data, packed, origin = _unpack(path)
    kind = _recognise(path, data)
    _check_settings(path, data)
    activation = _activation(path, data, kind, foreign)
    try:
        weights = read_weights(packed)
    except ValueError as error:
        raise NotAPolicy(f"{path} is not read: its policy.pth: {error}") from error
    stack, std = _actor(path, weights, kind)
    kwargs = _env_kwargs(path, foreign.env, foreign)
    spec = check(foreign.env, env_kwargs=kwargs)
    _check_spec(path, data, stack, spec)
    stats = _statistics(path, data, kind, foreign, spec)
    tensors = _layers(kind, stack, std, spec) | _norm(stats, spec) | policyfile.bounds(spec)
    policyfile.check_values(path, tensors)
    meta = PolicyMeta(
        algo=kind.algo,
        env_id=foreign.env,
        activation=activation,
        squashed=kind.squashed,
        tanh_mean=kind.tanh_mean,
        state_std=kind.state_std,
        obs_dim=spec.obs_dim,
        act_dim=spec.act_dim,
        obs_shape=spec.obs_shape,
        act_shape=spec.act_shape,
        hidden=tuple(len(bias) for _, bias in stack[:-1]),
        env_kwargs=kwargs,
        provenance=origin,
        norm_obs=stats is not None,
        clip_obs=CLIP if stats is None else stats.clip_obs,
    )
    return Policy(tensors, meta)


def _unpack(path: Path) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """Return a zip's settings, its packed weights, and where it comes from."""
    version = "_stable_baselines3_version"
    try:
        raw = read_bytes(path, MAX_FILE)
        with open_zip(raw) as archive:
            data = json.loads(read_member(archive, "data", MAX_DATA))
            packed = read_member(archive, "policy.pth", MAX_FILE)
            said = read_member(archive, version, 64) if version in archive.namelist() else b""
    except (*BAD_ZIP, ValueError, RecursionError) as error:
        raise NotAPolicy(f"{path} is no Stable-Baselines3 zip: {error}") from error
    if not isinstance(data, dict):
        raise NotAPolicy(f"{path} is no Stable-Baselines3 zip: its data is no JSON object")
    steps = data.get("num_timesteps")
    origin = {
        "source": "stable-baselines3",
        "version": said.decode().strip() if re.fullmatch(rb"[\w.+-]+\s*", said) else None,
        "file": path.name,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "steps": steps if type(steps) is int and 0 <= steps < 2**63 else None,
    }
    return data, packed, origin


def _recognise(path: Path, data: dict[str, Any]) -> Kind:
    name = _policy_class(data.get("policy_class"))
    kinds = [kind for kind in KINDS if kind.policy == name]
    if not kinds:
        raise NotAPolicy(f"{path} holds a {name:.100}; {SUPPORTED}")
    for kind in kinds:
        if kind.fits(data):
            return kind
    (setting,) = kinds[-1].settings
    raise NotAPolicy(
        f"{path} is of another algorithm (its settings have no {setting}); {SUPPORTED}"
    )


def _policy_class(said: Any) -> str:
    """Return the policy's class from what SB3 writes beside the pickled one, as far as it goes."""
    name = re.match(r"<function (\w+)\.__init__", _text(said, "__init__"))
    return f"{_text(said, '__module__')}.{name.group(1) if name else '?'}"


def _check_settings(path: Path, data: dict[str, Any]) -> None:
    """Raise NotAPolicy for what an MLP and a Gaussian of ours can't do."""
    kwargs = _policy_kwargs(data)
    spaces = {k: _text(data.get(k), ":type:") for k in ("observation_space", "action_space")}
    extractor = kwargs.get("features_extractor_class", "FlattenExtractor")
    problems = {
        "gSDE (use_sde)": bool(data.get("use_sde") or kwargs.get("use_sde")),
        "squash_output": bool(kwargs.get("squash_output")),
        "a features extractor of its own": "FlattenExtractor" not in str(extractor),
        **{f"an {k} that is no Box": "Box" not in (v or "Box") for k, v in spaces.items()},
    }
    for problem in (p for p, there in problems.items() if there):
        raise NotAPolicy(f"{path} uses {problem}, which is not supported")


def _policy_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """Return policy_kwargs, plain or as the readable strings beside the pickled ones."""
    kwargs = data.get("policy_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def _text(said: Any, name: str) -> str:
    """Return a string in a JSON object, if it is one."""
    found = said.get(name) if isinstance(said, dict) else None
    return found if isinstance(found, str) else ""


def _activation(path: Path, data: dict[str, Any], kind: Kind, foreign: ForeignConfig) -> str:
    """Return the actor's activation: as the zip says, else as the user does."""
    kwargs = _policy_kwargs(data)
    is_hidden = ":serialized:" in kwargs and not kwargs.keys() - {":type:", ":serialized:"}
    said = kwargs.get("activation_fn")
    if is_hidden or (said is not None and not isinstance(said, str)):
        if foreign.activation is None:
            raise BadInput(
                f"{path} does not say its activation readably; give {foreign.PREFIX}activation"
            )
        return foreign.activation
    found = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", said or "")
    name = ACTIVATIONS.get(found.group(1) if found else "") if said else kind.activation
    if name is None:
        raise NotAPolicy(
            f"{path} uses the activation {said:.80}; supported are {', '.join(ACTIVATIONS)}"
        )
    if foreign.activation not in (None, name):
        raise BadInput(f"{path} says its activation, {name}; leave {foreign.PREFIX}activation out")
    return name


def _actor(path: Path, weights: dict[str, Tensor], kind: Kind) -> tuple[Layers, list[Tensor]]:
    """Return the layers of the actor, and what gives its log standard deviation."""
    n_trunk = 0
    while f"{kind.trunk}.{2 * n_trunk}.weight" in weights:
        n_trunk += 1
    names = kind.layers(n_trunk + 1 if kind.head else max(n_trunk, 1))
    needed = {f"{n}.{part}" for n in names for part in ("weight", "bias")} | set(kind.std)
    for name in sorted(needed - weights.keys()):
        raise NotAPolicy(f"{path} is not supported: it has no {name}, as for discrete actions")
    for name in weights.keys() - needed:
        if not name.startswith(kind.others):
            raise NotAPolicy(f"{path} is not supported: it has {name!r:.80}, as no plain MLP does")
    stack = [(weights[f"{n}.weight"], weights[f"{n}.bias"]) for n in names]
    if len(stack) > MAX_LAYERS:
        raise NotAPolicy(f"{path} is not supported: it has {len(stack)} layers")
    n_in = (0, *stack[0][0].shape)[-1]  # a crafted weight may have no dimension
    for name, (weight, bias) in zip(names, stack, strict=True):
        if bias.dim() != 1 or weight.shape != (len(bias), n_in) or 0 in weight.shape:
            raise NotAPolicy(f"{path} is not supported: {name} does not follow the layer before")
        n_in = len(bias)
    return stack, _std(path, weights, kind, stack)


def _std(path: Path, weights: dict[str, Tensor], kind: Kind, stack: Layers) -> list[Tensor]:
    """Return what gives the log standard deviation: a layer like the last one, or a vector [A]."""
    weight, bias = stack[-1]
    for name, like in zip(kind.std, (weight, bias) if kind.state_std else (bias,), strict=False):
        if weights[name].shape != like.shape:
            raise NotAPolicy(f"{path} is not supported: {name} is {tuple(weights[name].shape)}")
    return [weights[name] for name in kind.std]


def _check_spec(path: Path, data: dict[str, Any], stack: Layers, spec: EnvSpec) -> None:
    """Raise BadInput unless the policy fits the environment, as far as the zip tells."""
    n_obs, n_act = stack[0][0].shape[1], len(stack[-1][1])
    if (n_obs, n_act) != (spec.obs_dim, spec.act_dim):
        raise BadInput(
            f"{path} reads {n_obs} observations and gives {n_act} actions; "
            f"{spec.env_id} has {spec.obs_dim} and {spec.act_dim}"
        )
    space = data.get("action_space")
    for name, bound in (("low", spec.act_low), ("high", spec.act_high)):
        said = _text(space, name)
        numbers = re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", said)
        if len(numbers) == n_act and not np.allclose([float(x) for x in numbers], bound, 1e-4):
            raise BadInput(
                f"{path} acts within other bounds than {spec.env_id}: {name} is {said:.60}, "
                f"not {bound}; give --env another"
            )


def _env_kwargs(path: Path, env_id: str, foreign: ForeignConfig) -> dict[str, Any]:
    """Return the environment's arguments. Raises BadInput where others are said and none given."""
    if (given := foreign.parsed_env_kwargs()) is not None:
        return given
    file, said = said_beside(path, env_id, ("args.yml",), "env_kwargs")
    if said:
        raise BadInput(
            f"{path} was trained with arguments of its environment: {file} says {said:.80}; give "
            f"them as JSON: --env-kwargs '{{\"NAME\": VALUE}}'{foreign.FOR_NONE}"
        )
    return {}


def _statistics(
    path: Path, data: dict[str, Any], kind: Kind, foreign: ForeignConfig, spec: EnvSpec
) -> Statistics | None:
    """Return the statistics observations are normalised with, if they are.

    A zip of SAC, TD3 or DDPG does not say whether they are, and one of PPO does not say which of
    several files is its own. So wherever there is a sign of any, the user must say.
    """
    if foreign.vecnormalize == NO_STATISTICS:
        return None
    if foreign.vecnormalize is not None:
        return read_statistics(foreign.vecnormalize, spec.obs_dim, spec.obs_shape)
    flag = f"{foreign.PREFIX}vecnormalize"
    otherwise = f"or {flag} none if its observations are not normalised"
    if found := statistics_beside(path, spec.env_id):
        more = f" (and {len(found) - 1} more)" if found[1:] else ""
        raise BadInput(
            f"{path}: {found[0]}{more} lies with it and holds VecNormalize statistics; give "
            f"{flag} {shlex.quote(str(found[0]))}, {otherwise}"
        )
    file, said = said_beside(path, spec.env_id, ("config.yml",), "normalize")
    if said:
        raise BadInput(
            f"{path} was trained with VecNormalize: {file} says normalize {said:.60}; give its "
            f"statistics: {flag} FILE, {otherwise}"
        )
    if kind.trace and data.get(kind.trace) is not None:
        raise BadInput(
            f"{path} was trained with VecNormalize; give its file: {flag} FILE, {otherwise}"
        )
    return None


def _layers(kind: Kind, stack: Layers, std: list[Tensor], spec: EnvSpec) -> dict[str, Tensor]:
    """Return a policy file's tensors for SB3's layers."""
    stack = [(weight.double(), bias.double()) for weight, bias in stack]
    std = [x.double() for x in std]
    if not kind.is_scaled:
        stack[-1], std[0] = _scaled(*stack[-1], std[0], spec)
    tensors: dict[str, Tensor] = {}
    if kind.state_std:
        tensors["log_std_head.0.weight"], tensors["log_std_head.0.bias"] = std[0].T, std[1][None]
    else:
        unknown = torch.full((spec.act_dim,), math.log(TD3Config.noise_std))
        tensors["log_std"] = (std[0] if std else unknown)[None]
    for i, (weight, bias) in enumerate(stack):
        tensors[f"actor.{i}.weight"], tensors[f"actor.{i}.bias"] = weight.T, bias[None]
    return {k: v.float().contiguous() for k, v in tensors.items()}


def _scaled(
    weight: Tensor, bias: Tensor, log_std: Tensor, spec: EnvSpec
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return a last layer and log_std [A] that act in [-1, 1] for such that act in the bounds.

    They take in the inverse of the map to the bounds (exact, for bounds of ±1: nothing changes).
    """
    low, high = (torch.as_tensor(b, dtype=torch.float64) for b in (spec.act_low, spec.act_high))
    half, middle = (high - low) / 2, (high + low) / 2
    return (weight / half.unsqueeze(1), (bias - middle) / half), log_std - half.log()


def _norm(stats: Statistics | None, spec: EnvSpec) -> dict[str, Tensor]:
    if stats is None:
        unused = np.zeros(spec.obs_dim)
        stats = Statistics(unused, unused + 1, 1e-4, 0.0)
    return {
        "obs_mean": torch.as_tensor(stats.mean, dtype=torch.float32).unsqueeze(0),
        "obs_scale": torch.as_tensor(stats.scale, dtype=torch.float32).unsqueeze(0),
        "obs_count": torch.tensor([[stats.n_samples]], dtype=torch.float32),
    }
