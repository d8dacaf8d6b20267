"""Read Stable-Baselines3 zips without unpickling anything and without Stable-Baselines3.

A zip holds `data`, a JSON object whose `:serialized:` parts are pickles that are never decoded, and
`policy.pth`, which torch reads as weights only. Sizes are checked before anything is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpd.agents.offpolicy_config import TD3Config
from dpd.envs.base import EnvSpec
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.policies import file_checks, policyfile
from dpd.policies.config import NO_STATISTICS, ForeignConfig
from dpd.policies.metadata import MAX_LAYERS, NotAPolicy, PolicyMeta
from dpd.policies.policyfile import ACTIVATION_MODULES, Policy, require_dims
from dpd.sb3.kinds import KINDS, Kind
from dpd.sb3.statistics import Statistics, find_setting, find_statistics, read_statistics
from dpd.sb3.untrusted import BAD_ZIP, MAX_ZIP, open_zip, read_bytes, read_weights, read_zip_member

MAX_DATA = 2**24  # bytes of a zip's JSON
ACTIVATION_NAMES = {module.__name__: name for name, module in ACTIVATION_MODULES.items()}
Layers = list[tuple[Tensor, Tensor]]  # weights [out, in], biases [out]
SUPPORTED = "supported are PPO, SAC, TD3 and DDPG with MlpPolicy"


def load_zip(path: Path, foreign: ForeignConfig) -> Policy:
    """Read a zip as a policy for the environment `foreign.env`.

    The exploration noise of TD3 and DDPG is in a pickle, so the policy gets the paper's instead.
    Raises NotAPolicy if the zip is unreadable or unsupported, BadInput if a setting of `foreign` is
    missing or does not fit.
    """
    if foreign.env is None:
        raise BadInput(f"{path} does not say its environment; give --env, such as HalfCheetah-v5")
    data, packed, origin = _unpack(path)
    kind = _recognise(path, data)
    _check_settings(path, data)
    activation = _activation(path, data, kind, foreign)
    stack, std = _actor(path, packed, kind)
    kwargs = _env_kwargs(path, foreign)
    spec = check(foreign.env, env_kwargs=kwargs)
    require_dims(stack[0][0].shape[1], len(stack[-1][1]), spec, str(path))
    _check_bounds(path, data, spec)
    stats = _statistics(path, data, kind, foreign, spec)
    # a file holds some statistics even if they are not used
    used = stats or Statistics(np.zeros(spec.obs_dim), np.ones(spec.obs_dim), 1e-4, epsilon=0.0)
    tensors = _tensors(kind, stack, std, used, spec)
    file_checks.check_values(path, tensors)
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
        clip_obs=used.clip_obs,
    )
    return Policy(tensors, meta)


def _unpack(path: Path) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """Return a zip's settings, its packed weights and its provenance."""
    version = "_stable_baselines3_version"
    try:
        raw = read_bytes(path, MAX_ZIP)
        with open_zip(raw) as archive:
            data = json.loads(read_zip_member(archive, "data", MAX_DATA))
            packed = read_zip_member(archive, "policy.pth", MAX_ZIP)
            release = (
                read_zip_member(archive, version, 64) if version in archive.namelist() else b""
            )
    except (*BAD_ZIP, ValueError, RecursionError) as error:
        raise NotAPolicy(f"{path} is not a Stable-Baselines3 zip: {error}") from error
    if not isinstance(data, dict):
        raise NotAPolicy(f"{path} is not a Stable-Baselines3 zip: its data is not a JSON object")
    if not isinstance(data.get("policy_kwargs"), dict):
        data["policy_kwargs"] = {}
    steps = data.get("num_timesteps")
    origin = {
        "source": "stable-baselines3",
        "version": release.decode().strip() if re.fullmatch(rb"[\w.+-]+\s*", release) else None,
        "file": path.name,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "steps": steps if type(steps) is int and 0 <= steps < 2**63 else None,
    }
    return data, packed, origin


def _recognise(path: Path, data: dict[str, Any]) -> Kind:
    # the class itself is pickled; SB3 adds readable strings to it
    entry = data.get("policy_class")
    found = re.match(r"<function (\w+)\.__init__", _text(entry, "__init__"))
    name = f"{_text(entry, '__module__')}.{found.group(1) if found else '?'}"
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


def _check_settings(path: Path, data: dict[str, Any]) -> None:
    """Raise NotAPolicy for settings that an MLP with a Gaussian can't represent."""
    kwargs = data["policy_kwargs"]  # plain values, or the strings that SB3 adds to pickled ones
    problem = ""
    if data.get("use_sde") or kwargs.get("use_sde"):
        problem = "gSDE (use_sde)"
    elif kwargs.get("squash_output"):
        problem = "squash_output"
    elif "FlattenExtractor" not in str(kwargs.get("features_extractor_class", "FlattenExtractor")):
        problem = "a custom features extractor"
    for name in ("observation_space", "action_space"):
        if "Box" not in (_text(data.get(name), ":type:") or "Box"):
            problem = problem or f"an {name} that is not a Box"
    if problem:
        raise NotAPolicy(f"{path} uses {problem}, which is not supported")


def _text(entry: Any, name: str) -> str:
    """Return a string from a JSON object, or "" for anything else."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else ""


def _activation(path: Path, data: dict[str, Any], kind: Kind, foreign: ForeignConfig) -> str:
    """Return the activation stored in the zip, or the user's if the zip has it only pickled."""
    kwargs = data["policy_kwargs"]
    stored = kwargs.get("activation_fn")
    is_pickled = ":serialized:" in kwargs and not kwargs.keys() - {":type:", ":serialized:"}
    if is_pickled or (stored is not None and not isinstance(stored, str)):
        if foreign.activation is None:
            raise BadInput(
                f"{path} stores its activation only pickled; give {foreign.PREFIX}activation"
            )
        return foreign.activation
    if stored:
        match = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", stored)
        name = ACTIVATION_NAMES.get(match.group(1) if match else "")
    else:
        name = kind.activation
    if name is None:
        raise NotAPolicy(
            f"{path} uses the activation {stored:.80}; supported are {', '.join(ACTIVATION_NAMES)}"
        )
    if foreign.activation not in (None, name):
        raise BadInput(
            f"{path} stores its activation, {name}; leave out {foreign.PREFIX}activation"
        )
    return name


def _actor(path: Path, packed: bytes, kind: Kind) -> tuple[Layers, list[Tensor]]:
    """Return the layers of the actor and the tensors of its log standard deviation."""
    try:
        weights = read_weights(packed)
    except ValueError as error:
        raise NotAPolicy(f"{path} cannot be read: its policy.pth: {error}") from error
    n_trunk = 0
    while f"{kind.trunk}.{2 * n_trunk}.weight" in weights:
        n_trunk += 1
    names = kind.layers(n_trunk + 1 if kind.head else max(n_trunk, 1))
    needed = {f"{n}.{part}" for n in names for part in ("weight", "bias")} | set(kind.std)
    for name in sorted(needed - weights.keys()):
        raise NotAPolicy(f"{path} is not supported: it has no {name}; actions may be discrete")
    for name in weights.keys() - needed:
        if not name.startswith(kind.others):
            raise NotAPolicy(f"{path} is not supported: it has {name!r:.80}, which plain MLPs lack")
    stack = [(weights[f"{n}.weight"], weights[f"{n}.bias"]) for n in names]
    if len(stack) > MAX_LAYERS:
        raise NotAPolicy(f"{path} is not supported: it has {len(stack)} layers")
    # the last axis; a crafted tensor may have none, and is refused because no layer has size 0
    sizes = [(0, *x.shape)[-1] for x in (stack[0][0], *(bias for _, bias in stack))]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (n_in, n_out) in zip(names, pairwise(sizes), strict=True):
        shapes |= {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}
    last = (sizes[-1], sizes[-2]), (sizes[-1],)
    shapes |= zip(kind.std, last if kind.state_std else last[1:], strict=False)
    for name, shape in shapes.items():
        if weights[name].shape != shape or 0 in shape:
            raise NotAPolicy(
                f"{path} is not supported: {name} has shape {tuple(weights[name].shape)}, which "
                "does not fit the layer before"
            )
    return stack, [weights[name] for name in kind.std]


def _check_bounds(path: Path, data: dict[str, Any], spec: EnvSpec) -> None:
    """Raise BadInput if the action bounds printed in the zip differ from the environment's."""
    for name, bound in (("low", spec.act_low), ("high", spec.act_high)):
        text = _text(data.get("action_space"), name)
        numbers = re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text)
        # SB3 prints four decimals, and abbreviates long vectors, which can't be compared.
        if len(numbers) == spec.act_dim and not np.allclose(list(map(float, numbers)), bound, 1e-4):
            raise BadInput(
                f"{path} acts within other bounds than {spec.env_id}: {name} is {text:.60}, "
                f"not {bound}; give another --env"
            )


def _env_kwargs(path: Path, foreign: ForeignConfig) -> dict[str, Any]:
    """Return the environment's arguments. Raises BadInput if only args.yml has some."""
    if (given := foreign.parsed_env_kwargs()) is not None:
        return given
    file, text = find_setting(path, str(foreign.env), "args.yml", "env_kwargs")
    if text:
        raise BadInput(
            f"{path} was trained with environment arguments: {file} has {text:.80}; give them "
            f"as JSON: --env-kwargs '{{\"NAME\": VALUE}}'{foreign.FOR_NONE}"
        )
    return {}


def _statistics(
    path: Path, data: dict[str, Any], kind: Kind, foreign: ForeignConfig, spec: EnvSpec
) -> Statistics | None:
    """Return the statistics that normalise observations, or None if they are not normalised.

    A zip of SAC, TD3 or DDPG does not record whether they are, and a zip of PPO does not name the
    file. So the user must choose if there is any sign of statistics.
    """
    if foreign.vecnormalize == NO_STATISTICS:
        return None
    if foreign.vecnormalize is not None:
        return read_statistics(foreign.vecnormalize, spec.obs_dim, spec.obs_shape)
    flag = f"{foreign.PREFIX}vecnormalize"
    otherwise = f"or {flag} none if its observations are not normalised"
    if files := find_statistics(path, spec.env_id):
        more = f" (and {len(files) - 1} more)" if files[1:] else ""
        raise BadInput(
            f"{path}: {files[0]}{more} near it holds VecNormalize statistics; give "
            f"{flag} {shlex.quote(str(files[0]))}, {otherwise}"
        )
    file, text = find_setting(path, spec.env_id, "config.yml", "normalize")
    if text:
        raise BadInput(
            f"{path} was trained with VecNormalize: {file} has normalize {text:.60}; give its "
            f"statistics: {flag} FILE, {otherwise}"
        )
    if kind.trace and data.get(kind.trace) is not None:
        raise BadInput(
            f"{path} was trained with VecNormalize; give its file: {flag} FILE, {otherwise}"
        )
    return None


def _tensors(
    kind: Kind, layers: Layers, std: list[Tensor], stats: Statistics, spec: EnvSpec
) -> dict[str, Tensor]:
    """Convert SB3's layers and statistics to the tensors of a policy file.

    The last layer and log_std of PPO are in the environment's units. The inverse of the map from
    [-1, 1] to the bounds is folded into them; bounds of ±1 change nothing.
    """
    stack = [(weight.double(), bias.double()) for weight, bias in layers]
    std = [x.double() for x in std]
    if not kind.is_scaled:
        low, high = (torch.as_tensor(b, dtype=torch.float64) for b in (spec.act_low, spec.act_high))
        half, middle = (high - low) / 2, (high + low) / 2
        weight, bias = stack[-1]
        stack[-1] = weight / half.unsqueeze(1), (bias - middle) / half
        std[0] = std[0] - half.log()  # not in place: a stored tensor may repeat one number
    tensors = {
        "obs_mean": torch.as_tensor(stats.mean)[None],
        "obs_scale": torch.as_tensor(stats.scale)[None],
        "obs_count": torch.tensor([[stats.n_samples]], dtype=torch.float64),
    }
    if kind.state_std:
        tensors["log_std_head.0.weight"], tensors["log_std_head.0.bias"] = std[0].T, std[1][None]
    else:
        default = torch.full((spec.act_dim,), math.log(TD3Config.noise_std))
        tensors["log_std"] = (std[0] if std else default)[None]
    for i, (weight, bias) in enumerate(stack):
        tensors[f"actor.{i}.weight"], tensors[f"actor.{i}.bias"] = weight.T, bias[None]
    return {k: v.float().contiguous() for k, v in tensors.items()} | policyfile.bounds(spec)
