"""Policy files: one .safetensors file that acts by itself, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import ACTIVATIONS, layers, mlp
from dpd.agents.norm import CLIP
from dpd.envs.base import EnvSpec

FORMAT = 1


class NotAPolicy(ValueError):
    """A path that holds no policy this version can read; the message says why."""


@dataclass(frozen=True, kw_only=True)
class PolicyMeta:
    """What a policy file says of itself, beside its tensors."""

    algo: str
    env_id: str
    activation: str
    squashed: bool
    obs_dim: int
    act_dim: int
    hidden: tuple[int, ...]
    env_kwargs: dict[str, Any]
    provenance: dict[str, Any]
    """Steps, seed, peer, evaluation, configuration hash, versions, git commit."""
    norm_obs: bool = True
    """Observations are normalised and clipped; as they are otherwise."""
    format: int = FORMAT


class Policy:
    """A trained policy: raw observations in, actions in the environment's own units out."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
        self.tensors, self.meta = dict(tensors), meta
        self._params = {k: v.unsqueeze(0) for k, v in tensors.items()}  # a stack of one
        self._actor = layers(self._params, "actor")

    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [B, O] -> [B, A] in [-1, 1]."""
        p, x = self._params, obs.unsqueeze(0)
        if self.meta.norm_obs:
            x = ((x - p["obs_mean"]) * p["obs_scale"]).clamp(-CLIP, CLIP)
        mean, _ = mlp(self._actor, x, self.meta.activation)
        return DiagGaussian(mean, p["log_std"], self.meta.squashed).mode().squeeze(0)

    @torch.no_grad()
    def act(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Act without noise on raw obs [..., O] -> action [..., A] in the environment's bounds.

        Raises ValueError for observations of another size.
        """
        x = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if x.shape[-1:] != (self.meta.obs_dim,):
            raise ValueError(
                f"observation of shape {tuple(x.shape)}; the policy reads {self.meta.obs_dim}"
            )
        act = self.mode(x.reshape(-1, self.meta.obs_dim)).view(*x.shape[:-1], self.meta.act_dim)
        low, high = self.tensors["act_low"], self.tensors["act_high"]
        return (low + (act + 1) * 0.5 * (high - low)).numpy()


def bounds(spec: EnvSpec) -> dict[str, Tensor]:
    """Return an environment's action bounds as a policy file holds them."""
    return {
        "act_low": torch.as_tensor(spec.act_low, dtype=torch.float32).clone(),
        "act_high": torch.as_tensor(spec.act_high, dtype=torch.float32).clone(),
    }


def save(path: Path, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
    """Write a policy, under a temporary name first, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    data = {k: v.detach().to(torch.float32).contiguous() for k, v in tensors.items()}
    try:
        save_file(data, draft, metadata={"dpd": json.dumps(asdict(meta))})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    os.replace(draft, path)


def load(path: str | os.PathLike[str]) -> Policy:
    """Read a policy file. Raises NotAPolicy with the reason where it is none."""
    path = Path(path)
    if not path.is_file():
        raise NotAPolicy(f"{path} is no policy file: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("dpd")
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError) as error:
        raise NotAPolicy(f"{path} is no policy file: {error}") from error
    if text is None:
        raise NotAPolicy(f"{path} is a safetensors file, but no policy of dpd")
    meta = _read_meta(path, text)
    _check_shapes(path, tensors, meta)
    return Policy(tensors, meta)


def _read_meta(path: Path, text: str) -> PolicyMeta:
    try:
        fields = json.loads(text)
        if fields.get("format") != FORMAT:
            raise NotAPolicy(
                f"{path} has policy format {fields.get('format')}; this version reads {FORMAT}"
            )
        meta = PolicyMeta(**fields | {"hidden": tuple(fields["hidden"])})
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise NotAPolicy(f"{path} is no policy file: bad description ({error})") from error
    if meta.activation not in ACTIVATIONS:
        raise NotAPolicy(f"{path} uses the unknown activation '{meta.activation}'")
    return meta


def _check_shapes(path: Path, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
    """Raise NotAPolicy unless exactly the described tensors are there."""
    sizes = [meta.obs_dim, *meta.hidden, meta.act_dim]
    expected: dict[str, tuple[int, ...]] = {
        "obs_mean": (1, meta.obs_dim),
        "obs_scale": (1, meta.obs_dim),
        "log_std": (1, meta.act_dim),
        "act_low": (meta.act_dim,),
        "act_high": (meta.act_dim,),
    }
    for i in range(len(sizes) - 1):
        expected[f"actor.{i}.weight"] = (sizes[i], sizes[i + 1])
        expected[f"actor.{i}.bias"] = (1, sizes[i + 1])
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    for name in expected.keys() | found.keys():
        if found.get(name) != expected.get(name):
            raise NotAPolicy(
                f"{path} does not fit its description: tensor {name} has shape "
                f"{found.get(name)}, expected {expected.get(name)}"
            )
