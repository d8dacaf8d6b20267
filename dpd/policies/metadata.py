"""What a policy file says of itself, and what of it is believed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from dpd.agents.nets import ACTIVATIONS, Shapes, mlp_shapes
from dpd.agents.norm import CLIP
from dpd.policies import memory
from dpd.policies.memory import MemoryMeta

FORMAT = 1
# Far beyond any policy of ours: what exceeds them is refused before it costs memory or time.
MAX_LAYERS = 64
MAX_WIDTH = 2**24
MAX_DIMS = 32  # axes of an observation or an action
MAX_DEPTH = 16  # of lists and objects in the description
MAX_CLIP = torch.finfo(torch.float32).max
LATER: dict[str, Any] = {
    "tanh_mean": False,
    "state_std": False,
    "memory": None,
    "obs_shape": None,
    "act_shape": None,
}
"""Fields that the first files of this format lack, and what those mean by it."""
BOOLEANS = ("squashed", "tanh_mean", "state_std", "norm_obs")


class NotAPolicy(ValueError):
    """A path that holds no policy this version can read; the message says why."""


@dataclass(frozen=True, kw_only=True)
class PolicyMeta:
    """What a policy file says of itself, beside its tensors.

    Three fields say what the actor's output u is to the distribution `Policy.dist`: PPO's are all
    false, N(u, std); TD3 and DDPG set `tanh_mean`, N(tanh(u), std); SAC sets `squashed` and
    `state_std`, tanh of N(u, std(obs)). `squashed` with `tanh_mean` is refused.
    """

    algo: str
    env_id: str
    activation: str
    squashed: bool
    """The action is the tanh of the Gaussian's sample, as in `DiagGaussian`."""
    tanh_mean: bool = False
    """The Gaussian's mean is the tanh of the actor's output; noise is added behind it."""
    state_std: bool = False
    """The log standard deviation is `log_std_head`, a second linear layer on the actor's last
    hidden features, clamped as SAC's; otherwise the constant `log_std`."""
    obs_dim: int
    act_dim: int
    hidden: tuple[int, ...]
    env_kwargs: dict[str, Any]
    provenance: dict[str, Any]
    """Steps, seed, peer, evaluation, configuration hash, versions, git commit."""
    norm_obs: bool = True
    """Observations are normalised and clipped; as they are otherwise."""
    clip_obs: float = CLIP
    """Normalised observations are clipped to plus and minus this."""
    memory: MemoryMeta | None = None
    """What lies beside the network, and is asked before it acts; a file without one says nothing
    of it."""
    obs_shape: tuple[int, ...] | None = None
    """The shape of the environment's observations, obs_dim numbers in all. None for vectors, of
    which a file says nothing; the network reads all of them flattened, in C order."""
    act_shape: tuple[int, ...] | None = None
    """The shape of the environment's actions, act_dim numbers in all, likewise."""
    format: int = FORMAT

    @property
    def full_obs_shape(self) -> tuple[int, ...]:
        """The shape of one observation of the environment."""
        return (self.obs_dim,) if self.obs_shape is None else self.obs_shape

    @property
    def full_act_shape(self) -> tuple[int, ...]:
        """The shape of one action of the environment."""
        return (self.act_dim,) if self.act_shape is None else self.act_shape


def shapes(meta: PolicyMeta) -> Shapes:
    """Return the tensors that a policy file of this description holds."""
    return {
        "obs_mean": (1, meta.obs_dim),
        "obs_scale": (1, meta.obs_dim),
        "obs_count": (1, 1),  # samples that mean and scale come from
        **_std_shapes(meta),
        "act_low": (meta.act_dim,),
        "act_high": (meta.act_dim,),
        **mlp_shapes("actor", [meta.obs_dim, *meta.hidden, meta.act_dim]),
        **memory.shapes(meta.memory, n_features(meta), meta.act_dim),
    }


def n_features(meta: PolicyMeta) -> int:
    """Return the width of the last hidden layer; without one, of what the actor reads."""
    return [meta.obs_dim, *meta.hidden][-1]


def _std_shapes(meta: PolicyMeta) -> Shapes:
    if not meta.state_std:
        return {"log_std": (1, meta.act_dim)}
    return mlp_shapes("log_std_head", [n_features(meta), meta.act_dim])


def written(meta: PolicyMeta) -> str:
    """Return a description as `read_meta` reads it."""
    said = asdict(meta)
    for name in ("memory", "obs_shape", "act_shape"):
        if said[name] is None:
            del said[name]  # so that older versions read it
    return json.dumps(said)


def read_meta(path: Path, text: str | None) -> PolicyMeta:
    """Read a description. Raises NotAPolicy, which names the path, with what is wrong with it."""
    if text is None:
        raise NotAPolicy(f"{path} is a safetensors file, but no policy of dpd")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotAPolicy(f"{path} is no policy file: bad description ({error})") from error
    if not isinstance(said, dict) or _is_deeper(said, MAX_DEPTH):
        raise NotAPolicy(f"{path} is no policy file: bad description (no plain JSON object)")
    version = said.get("format")
    if type(version) is not int or version != FORMAT:
        raise NotAPolicy(f"{path} has policy format {version!r:.40}; this version reads {FORMAT}")
    said = LATER | said
    _check_fields(path, said)
    try:
        kept = memory.described(said["memory"], said["obs_dim"])
    except ValueError as error:
        raise NotAPolicy(f"{path} is no policy file: bad description ({error})") from error
    lists = {k: tuple(said[k]) for k in ("hidden", "obs_shape", "act_shape") if said[k] is not None}
    return PolicyMeta(**said | lists | {"memory": kept})


def _is_deeper(value: Any, left: int) -> bool:
    """Whether lists and objects are nested more than `left` times."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return left == 0 or any(_is_deeper(v, left - 1) for v in inner)


def _check_fields(path: Path, said: dict[str, Any]) -> None:
    """Raise NotAPolicy unless exactly a PolicyMeta's fields are there, each of its type."""
    names = {f.name for f in fields(PolicyMeta)}
    if said.keys() != names:
        odd = ", ".join(f"{name:.40}" for name in sorted(said.keys() ^ names)[:5])
        raise NotAPolicy(f"{path} is no policy file: bad description (missing or unknown: {odd})")
    hidden = said["hidden"]
    is_good = {
        **{k: isinstance(said[k], str) and said[k].isprintable() for k in ("algo", "env_id")},
        **{k: isinstance(said[k], bool) for k in BOOLEANS},
        **{k: _is_width(said[k]) for k in ("obs_dim", "act_dim")},
        **{k: isinstance(said[k], dict) for k in ("env_kwargs", "provenance")},
        "hidden": isinstance(hidden, list)
        and len(hidden) <= MAX_LAYERS
        and all(_is_width(x) for x in hidden),
        "clip_obs": type(said["clip_obs"]) in (int, float) and 0 < said["clip_obs"] <= MAX_CLIP,
        "activation": isinstance(said["activation"], str),
        "obs_shape": _is_shape(said["obs_shape"], said["obs_dim"]),
        "act_shape": _is_shape(said["act_shape"], said["act_dim"]),
    }
    for name in (k for k, good in is_good.items() if not good):
        raise NotAPolicy(
            f"{path} is no policy file: bad description ({name} is {said[name]!r:.40})"
        )
    if said["squashed"] and said["tanh_mean"]:
        raise NotAPolicy(
            f"{path} is no policy file: bad description (squashed and tanh_mean: one tanh too many)"
        )
    if said["squashed"] and said["memory"] is not None:
        raise NotAPolicy(
            f"{path} is no policy file: bad description (squashed with a memory, whose actions are "
            "behind the tanh)"
        )
    if said["activation"] not in ACTIVATIONS:
        raise NotAPolicy(f"{path} uses the unknown activation {said['activation']!r:.40}")


def _is_shape(value: Any, n: Any) -> bool:
    """Whether a value is None, or the shape of n numbers."""
    if value is None:
        return True
    is_shape = isinstance(value, list) and len(value) <= MAX_DIMS and all(map(_is_width, value))
    return is_shape and math.prod(value) == n


def _is_width(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_WIDTH  # a bool is an int, but no size
