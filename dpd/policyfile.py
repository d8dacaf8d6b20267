"""Policy files: one .safetensors file that acts by itself, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpd import memory
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import ACTIVATIONS, Shapes, layers, mlp, mlp_shapes
from dpd.agents.norm import CLIP
from dpd.agents.sac import LOG_STD_MAX, LOG_STD_MIN
from dpd.envs.base import EnvSpec
from dpd.files import replacing
from dpd.memory import MemoryMeta, Neighbours

FORMAT = 1
# Far beyond any policy of ours: what exceeds them is refused before it costs memory or time.
MAX_FILE = 2**30  # bytes
MAX_HEADER = 2**20  # bytes of JSON: tensor names and the description
MAX_LAYERS = 64
MAX_WIDTH = 2**24
MAX_DEPTH = 16  # of lists and objects in the description
MAX_CLIP = torch.finfo(torch.float32).max
LATER: dict[str, Any] = {"tanh_mean": False, "state_std": False, "memory": None}
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
    format: int = FORMAT


class Policy:
    """A trained policy: raw observations in, actions in the environment's own units out."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
        self.tensors, self.meta = dict(tensors), meta
        self._params = {k: v.unsqueeze(0) for k, v in tensors.items()}  # a stack of one
        self._actor = layers(self._params, "actor")
        self._log_std_head = layers(self._params, "log_std_head")
        self._memory: Neighbours | None = None
        if meta.memory is not None and meta.memory.student_weight < 1:
            keys, actions = self._params["memory.keys"], self._params["memory.actions"]
            self._memory = Neighbours.of(keys, actions, meta.memory.k, meta.memory.tau)

    def on(self, device: torch.device) -> Policy:
        """Return the same policy on a device."""
        return Policy({k: v.to(device) for k, v in self.tensors.items()}, self.meta)

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at raw obs [B, O]: mean [B, A], log_std [B, A] or [1, A].

        Actions are in [-1, 1], as the learner's were. A memory moves the mean alone.
        """
        p, meta = self._params, self.meta
        mean, inputs = self._run(obs)
        if meta.state_std:
            log_std, _ = mlp(self._log_std_head, inputs[-1], meta.activation)
            log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        else:
            log_std = p["log_std"]
        mean = mean.tanh() if meta.tanh_mean else mean
        if self._memory is not None:
            mean = self._ask_memory(self._memory, mean, inputs)
        return DiagGaussian(mean.squeeze(0), log_std.squeeze(0), meta.squashed)

    def _ask_memory(self, kept: Neighbours, mean: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Mix an action [1, B, A], inside its box, with what the nearest entries say."""
        meta = self.meta.memory
        assert meta is not None
        if memory.has_projection(meta):
            query = memory.unit(inputs[-1] @ self._params["memory.projection"])
        else:
            query = memory.scaled(inputs[0])
        weight = mean.new_tensor([meta.student_weight])
        return memory.mix(mean.clamp(-1, 1), kept.answer(query), weight)

    def features(self, obs: Tensor) -> Tensor:
        """Return the last hidden layer at raw obs [B, O] -> [B, H]; without one, its input."""
        return self._run(obs)[1][-1].squeeze(0)

    def _run(self, obs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the actor's output [1, B, A] at raw obs [B, O], and each layer's input."""
        p, meta, x = self._params, self.meta, obs.unsqueeze(0)
        if meta.norm_obs:
            x = ((x - p["obs_mean"]) * p["obs_scale"]).clamp(-meta.clip_obs, meta.clip_obs)
        return mlp(self._actor, x, meta.activation)

    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [B, O] -> [B, A] in [-1, 1]."""
        return self.dist(obs).mode()

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


def save(path: Path, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
    """Write a policy, under a temporary name first, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in tensors.items()}
    said = asdict(meta)
    if meta.memory is None:
        del said["memory"]
    try:
        with replacing(path) as draft:
            save_file(data, draft, metadata={"dpd": json.dumps(said)})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def load(path: str | os.PathLike[str]) -> Policy:
    """Read a policy file. Raises NotAPolicy with the reason where it is none.

    The file may come from anyone: nothing in it is run, sizes are checked before they are
    believed, and a tensor is read only where it fits the description.
    """
    path = Path(path)
    try:
        check_sizes(path)
        with safe_open(path, framework="pt") as file:
            meta = _read_meta(path, (file.metadata() or {}).get("dpd"))
            _check_layout(path, file, meta)
            # cloned: the file is mapped, and could be cut short under a policy that acts
            tensors = {k: file.get_tensor(k).clone() for k in shapes(meta)}
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotAPolicy(f"{path} is no policy file: {reason}") from error
    check_values(path, tensors)
    if meta.memory is not None:
        _check_memory(path, meta.memory, tensors)
    return Policy(tensors, meta)


def check_sizes(path: Path) -> None:
    """Raise NotAPolicy unless a regular file is there whose size and header's are bearable."""
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no regular file"
        raise NotAPolicy(f"{path} is no policy file: {what if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE or not 0 < header <= min(MAX_HEADER, size):
        raise NotAPolicy(
            f"{path} is no policy file: it has {size} bytes and claims a header of {header}"
        )


def refuse_memory(policy: Policy, what: str) -> None:
    """Raise ValueError for a policy with a memory, which formats of others do not hold."""
    if policy.meta.memory is not None:
        raise ValueError(
            f"the policy asks a memory of {policy.meta.memory.entries:,} states, which {what} "
            "cannot hold; give --format dpd"
        )


def _read_meta(path: Path, text: str | None) -> PolicyMeta:
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
    return PolicyMeta(**said | {"hidden": tuple(said["hidden"]), "memory": kept})


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


def _is_width(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_WIDTH  # a bool is an int, but no size


def _check_layout(path: Path, file: safe_open, meta: PolicyMeta) -> None:
    """Raise NotAPolicy unless exactly the described tensors are there; reads none of them."""
    expected = shapes(meta)
    found: dict[str, tuple[int, ...]] = {}
    for name in file.keys():  # noqa: SIM118, no mapping
        part = file.get_slice(name)
        if part.get_dtype() != "F32":
            raise NotAPolicy(
                f"{path} is no policy file: tensor {name!r:.40} is {part.get_dtype()}, not F32"
            )
        found[name] = tuple(part.get_shape())
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise NotAPolicy(
                f"{path} does not fit its description: tensor {name!r:.40} has shape "
                f"{found.get(name)!s:.60}, expected {expected.get(name)}"
            )


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise NotAPolicy unless a policy can act with these numbers."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise NotAPolicy(f"{path} can't act: {name} holds NaN or infinity")
    for name in ("obs_scale", "obs_count"):
        if not (tensors[name] > 0).all():
            raise NotAPolicy(f"{path} can't act: {name} is not positive")
    width = tensors["act_high"] - tensors["act_low"]
    if not ((width > 0) & width.isfinite()).all():
        raise NotAPolicy(f"{path} can't act: act_low is not below act_high, or too far")


def _check_memory(path: Path, meta: MemoryMeta, tensors: Mapping[str, Tensor]) -> None:
    """Raise NotAPolicy unless a memory can answer with these numbers."""
    try:
        memory.refuse_values(meta, tensors["memory.keys"], tensors["memory.actions"])
    except ValueError as error:
        raise NotAPolicy(f"{path} can't act: {error}") from error
