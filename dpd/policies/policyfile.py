"""Load, save, run and check policies: one self-contained .safetensors file, without pickle."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dpd.agents.config import View
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import Shapes, layers, mlp
from dpd.agents.sac import LOG_STD_MAX, LOG_STD_MIN
from dpd.envs.base import EnvSpec, bounds_defect
from dpd.errors import BadInput
from dpd.files import replacing
from dpd.policies import memory
from dpd.policies.memory import MemoryMeta, Neighbours
from dpd.policies.metadata import (
    HYBRID_KEY,
    NotAPolicy,
    PolicyMeta,
    read_meta,
    shapes,
    to_json,
)
from dpd.policies.single import SeenFrames, SingleActor

# Far beyond any policy of this suite: larger files are rejected before they cost memory or time.
MAX_POLICY_FILE = 2**30  # bytes
MAX_HEADER = 2**20  # bytes of JSON: tensor names and the description

ACTIVATION_MODULES: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
"""torch's own modules, for the formats that other programs run."""
N_PROBES = 512

ArrayPolicy = Callable[[np.ndarray], np.ndarray]
"""Raw flattened obs [B, O] float32 -> flattened actions [B, A] in the environment's bounds."""


class Policy:
    """A trained policy: raw observations in, actions in the environment's own units out."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
        self.tensors, self.meta = dict(tensors), meta
        self._params = {k: v.unsqueeze(0) for k, v in tensors.items()}  # a stack of one
        self._actor = layers(self._params, "actor")
        self._log_std_head = layers(self._params, "log_std_head")
        self._wide: Policy | None = None  # a copy in float64, made on first use
        self._obs_shape, self._act_shape = meta.full_obs_shape, meta.full_act_shape
        self._memory: Neighbours | None = None
        self._columns: Tensor | None = None  # made once, since a copy to a GPU waits for it
        if meta.view is not None:
            device = next(iter(self.tensors.values())).device
            self._columns = torch.tensor(meta.view.columns, device=device)
        self._seen: SeenFrames | None = None  # of the episodes that `act` is in
        if meta.memory is not None and meta.memory.student_weight < 1:
            keys, actions = self._params["memory.keys"], self._params["memory.actions"]
            self._memory = Neighbours.of(keys, actions, meta.memory.k, meta.memory.tau)

    def on(self, device: torch.device) -> Policy:
        """Return the same policy on a device."""
        return Policy({k: v.to(device) for k, v in self.tensors.items()}, self.meta)

    def acts_as(self, other: Policy) -> bool:
        """Return True if both have the same parameters and description, whatever their origin."""
        is_alike = replace(self.meta, provenance={}) == replace(other.meta, provenance={})
        return is_alike and all(torch.equal(x, other.tensors[k]) for k, x in self.tensors.items())

    def repeatable_mode(self, obs: Tensor) -> Tensor:
        """Act as `mode` does, but in float64: obs as `dist` reads them -> [B, A] float32.

        The result does not depend on B or the number of threads. In float32, MKL rounds rows of a
        product differently when their number or the threads change, and in a chaotic task such as
        Humanoid the last bit changes the episode. Computed in float64, such differences vanish
        when the action is rounded to float32.
        """
        if self._wide is None:
            self._wide = Policy({k: v.double() for k, v in self.tensors.items()}, self.meta)
        return self._wide.mode(obs.double()).float()

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the action distribution at raw obs [B, O]: mean [B, A], log_std [B, A] or [1, A].

        Actions are in [-1, 1], as in training. A memory changes only the mean. A policy with a view
        reads the stack of frames [B, H, G] that it sees; raw observations are enough for it only if
        its view has no memory.
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
            mean = self._mix_memory(self._memory, mean, inputs)
        return DiagGaussian(mean.squeeze(0), log_std.squeeze(0), meta.squashed)

    def _mix_memory(self, stored: Neighbours, mean: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Mix an action [1, B, A], clipped to its box, with those of the nearest entries."""
        meta = self.meta.memory
        assert meta is not None
        if memory.has_projection(meta):
            query = memory.unit(inputs[-1] @ self._params["memory.projection"])
        else:
            query = memory.scaled(inputs[0])
        weight = mean.new_full((1,), meta.student_weight)
        return memory.mix(mean.clamp(-1, 1), stored.answer(query), weight)

    def features(self, obs: Tensor) -> Tensor:
        """Return the last hidden layer at obs as in `dist` [B, H], or the input without one."""
        return self._run(obs)[1][-1].squeeze(0)

    def _run(self, obs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the actor's output [1, B, A] at obs as in `dist`, and each layer's input."""
        if (view := self.meta.view) is not None:
            obs = self.normalised(self._stacked(view, obs)).flatten(1)
        else:
            obs = self.normalised(obs)
        return mlp(self._actor, obs.unsqueeze(0), self.meta.activation)

    def _stacked(self, view: View, obs: Tensor) -> Tensor:
        """Return stacks of frames [B, H, G] as they are, or make them of raw obs [B, O]."""
        if obs.ndim == 3:
            return obs
        if not view.is_memoryless:
            raise ValueError(
                f"the policy sees {view.history} frames of an episode, and one observation does "
                "not tell them; let it act step by step"
            )
        assert self._columns is not None
        return obs.index_select(1, self._columns).unsqueeze(1)

    def seen_in(self, frames: Tensor) -> Tensor:
        """Return the stacks [B, H, G] that a policy with a view sees in whole frames.

        Those are the last L raw observations and the actions before them [B, L, O + A].
        """
        view = self.meta.view
        assert view is not None
        places = torch.tensor(view.places(frames.shape[1]), device=frames.device)
        return frames.flatten(1)[:, places].unflatten(1, (view.history, -1))

    def normalised(self, obs: Tensor) -> Tensor:
        """Return raw obs [..., O], or the frames of a view [..., G], as the network reads them."""
        if not self.meta.norm_obs:
            return obs
        scaled = (obs - self.tensors["obs_mean"]) * self.tensors["obs_scale"]
        return scaled.clamp(-self.meta.clip_obs, self.meta.clip_obs)

    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on obs as in `dist` -> [B, A] in [-1, 1]."""
        return self.dist(obs).mode()

    def act(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Act without noise on raw observations -> float32 actions in the environment's bounds.

        Both have the shapes of the environment's spaces after any leading batch axes: obs
        [..., O] -> [..., A] for vectors, [..., 3, 4] -> [..., 2, 3] for matrices. A policy with a
        view takes each call as the next step of the same episodes, one per row of the batch; call
        `reset` where episodes begin. It adds no noise and no delay, which are those of sensors.
        Raises ValueError for observations of another shape, and for another batch before a `reset`.
        """
        x, meta = np.asarray(obs), self.meta
        if x.shape == self._obs_shape and self._memory is None and meta.view is None:
            return self._act_on_one(x.ravel()).reshape(self._act_shape)
        batch = x.shape[: max(0, x.ndim - len(meta.full_obs_shape))]
        if x.shape != (*batch, *meta.full_obs_shape):
            raise ValueError(
                f"observation of shape {x.shape}; the policy reads observations of shape "
                f"{meta.full_obs_shape}, one or a batch"
            )
        flat = x.reshape(-1, meta.obs_dim)
        act = self.act_flat(flat) if meta.view is None else self._act_next(meta.view, flat)
        return act.reshape((*batch, *meta.full_act_shape))

    def reset(self, mask: np.ndarray | Tensor | None = None) -> None:
        """Begin new episodes: of all rows of a batch, or where mask [B] is true.

        Policies without a view have nothing to forget. Raises ValueError for a mask of another size
        than the batch that the policy acts on.
        """
        if mask is None or self._seen is None:
            self._seen = None
            return
        rows = np.asarray(mask, dtype=bool).ravel()
        if len(rows) != self._seen.batch:
            raise ValueError(f"a mask of {len(rows)} rows; the policy acts on {self._seen.batch}")
        self._seen.restart(rows)

    def _act_next(self, view: View, obs: np.ndarray) -> np.ndarray:
        """Act on the next flattened observations [B, O] of running episodes."""
        if self._seen is None:
            self._seen = SeenFrames(view, len(obs))
        if self._seen.batch != len(obs):
            raise ValueError(
                f"{len(obs)} observations after {self._seen.batch}: the policy keeps a history of "
                "each row; call reset() before another batch"
            )
        stack = self._seen.see(obs)
        if len(obs) == 1 and self._memory is None:
            act = self._act_on_one(stack.ravel())[None]
        else:
            act = self.act_flat(stack)
        if view.prev_action:
            low, high = self.tensors["act_low"].numpy(), self.tensors["act_high"].numpy()
            self._seen.took((act - low) / (high - low) * 2 - 1)
        return act

    @cached_property
    def _act_on_one(self) -> Callable[[np.ndarray], np.ndarray]:
        return SingleActor(self.tensors, self.meta)

    @torch.no_grad()
    def act_flat(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Act as `act` does on flattened observations [B, O] -> flattened actions [B, A].

        With a view, obs are stacks of frames [B, H, G], and nothing is remembered.
        """
        return self.scaled(self.mode(torch.as_tensor(np.asarray(obs), dtype=torch.float32)))

    def scaled(self, act: Tensor) -> np.ndarray:
        """Return actions [B, A] in [-1, 1] in the environment's bounds."""
        low, high = self.tensors["act_low"], self.tensors["act_high"]
        scaled = low + (act + 1) * 0.5 * (high - low)
        return scaled.clamp(low, high).numpy()  # rounding may leave the bounds


def bounds(spec: EnvSpec) -> dict[str, Tensor]:
    """Return an environment's action bounds in the form of a policy file."""
    return {
        "act_low": torch.as_tensor(spec.act_low, dtype=torch.float32).clone(),
        "act_high": torch.as_tensor(spec.act_high, dtype=torch.float32).clone(),
    }


def save(path: Path, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
    """Write a policy, under a temporary name first so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in tensors.items()}
    try:
        with replacing(path) as draft:
            save_file(data, draft, metadata={"dpd": to_json(meta)})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def load(path: str | os.PathLike[str]) -> Policy:
    """Read a policy file. Raises NotAPolicy with the reason if it is not a valid one.

    The file may come from an untrusted source: nothing in it is executed, sizes are checked
    before anything is read, and tensors are read only after their shapes match the description.
    """
    path = Path(path)
    try:
        check_sizes(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if HYBRID_KEY in header:
                raise NotAPolicy(
                    f"{path} is the hybrid policy of several peers, which only dpd evaluate, "
                    "dpd export and dpd.load read; give the policy of one peer"
                )
            meta = read_meta(path, header.get("dpd"))
            check_layout(path, file, shapes(meta))
            # Clone: the file is memory-mapped, and truncating it would crash the process.
            tensors = {k: file.get_tensor(k).clone() for k in shapes(meta)}
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotAPolicy(f"{path} is not a policy file: {reason}") from error
    check_values(path, tensors, meta.memory)
    return Policy(tensors, meta)


def check_sizes(path: Path) -> None:
    """Raise NotAPolicy unless the path is a regular file with a size and header within limits."""
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "not a regular file"
        reason = kind if path.exists() else "no such file"
        raise NotAPolicy(f"{path} is not a policy file: {reason}")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    if size > MAX_POLICY_FILE or not 0 < header <= min(MAX_HEADER, size):
        raise NotAPolicy(
            f"{path} is not a policy file: it has {size} bytes and claims a header of {header}"
        )


def refuse_memory(policy: Policy, target: str) -> None:
    """Raise ValueError for a policy with a memory, which other formats cannot store."""
    if policy.meta.memory is not None:
        raise ValueError(
            f"the policy has a memory of {policy.meta.memory.entries:,} states, which {target} "
            "cannot hold; give --format dpd"
        )


def check_layout(path: Path, file: safe_open, expected: Shapes) -> None:
    """Raise NotAPolicy unless the file has exactly the described tensors; reads only headers."""
    actual: dict[str, tuple[int, ...]] = {}
    for name in file.keys():  # noqa: SIM118, not a mapping
        part = file.get_slice(name)
        if part.get_dtype() != "F32":
            raise NotAPolicy(
                f"{path} is not a policy file: tensor {name!r:.40} is {part.get_dtype()}, not F32"
            )
        actual[name] = tuple(part.get_shape())
    for name in sorted(expected.keys() | actual.keys()):
        if actual.get(name) != expected.get(name):
            raise NotAPolicy(
                f"{path} does not fit its description: tensor {name!r:.40} has shape "
                f"{actual.get(name)!s:.60}, expected {expected.get(name)}"
            )


def check_values(
    path: Path, tensors: Mapping[str, Tensor], stored: MemoryMeta | None = None
) -> None:
    """Raise NotAPolicy unless all numbers are finite and in the range that gives valid actions."""
    if defect := _defect(tensors, stored):
        raise NotAPolicy(f"{path} can't act: {defect}")


def _defect(tensors: Mapping[str, Tensor], stored: MemoryMeta | None) -> str | None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            return f"{name} contains NaN or infinity"
    for name in ("obs_scale", "obs_count"):
        if not (tensors[name] > 0).all():
            return f"{name} is not positive"
    if stored is not None:
        limit = 1.001 if memory.has_projection(stored) else memory.MAX_KEY
        if (tensors["memory.keys"].abs() > limit).any():
            return f"memory.keys exceeds {limit:g}"
        if (tensors["memory.actions"].abs() > 1).any():
            return "memory.actions leaves [-1, 1]"
    return bounds_defect(tensors["act_low"].numpy(), tensors["act_high"].numpy())


def require_fit(policy: Policy, spec: EnvSpec, name: str = "the policy") -> None:
    """Raise BadInput unless the environment has the policy's numbers of inputs and outputs."""
    require_dims(policy.meta.obs_dim, policy.meta.act_dim, spec, name)


def require_dims(obs_dim: int, act_dim: int, spec: EnvSpec, name: str) -> None:
    """Raise BadInput unless the environment has these numbers of observations and actions."""
    if (spec.obs_dim, spec.act_dim) != (obs_dim, act_dim):
        raise BadInput(
            f"{name} reads {obs_dim} observations and gives {act_dim} actions; "
            f"{spec.env_id} has {spec.obs_dim} and {spec.act_dim}"
        )


def require_bounds(policy: Policy, spec: EnvSpec, name: str = "the policy") -> None:
    """Raise BadInput unless the policy acts within the environment's action bounds."""
    for key, bound in (("act_low", spec.act_low), ("act_high", spec.act_high)):
        if not np.allclose(policy.tensors[key].numpy(), bound, rtol=1e-6):
            raise BadInput(
                f"{name} acts within other bounds than {spec.env_id}: {key} is "
                f"{policy.tensors[key].tolist()}, not {bound.tolist()}"
            )


def probes(policy: Policy, clipped: bool = True) -> np.ndarray:
    """Return random raw obs [B, O] as in training, or what a policy with a view sees [B, H, G].

    `clipped`: every second one is so far out that the clip of normalised observations counts.
    """
    obs = np.random.default_rng(0).standard_normal((N_PROBES, *policy.meta.input_shape))
    if clipped:
        obs[1::2] *= 30
    mean, scale = policy.tensors["obs_mean"].numpy(), policy.tensors["obs_scale"].numpy()
    return (mean + obs / scale).astype(np.float32)


def require_same_actions(
    policy: Policy, act: ArrayPolicy, obs: np.ndarray, tolerance: float
) -> float:
    """Return the largest difference between two forms of a policy on obs [B, O].

    It is measured in halves of an action's range. Raises ValueError if it exceeds `tolerance`.
    """
    half = (0.5 * (policy.tensors["act_high"] - policy.tensors["act_low"])).numpy()
    difference = float((np.abs(act(obs) - policy.act_flat(obs)) / half).max())
    if not difference <= tolerance:  # rejects NaN as well
        raise ValueError(
            "not written: the exported actions would differ from the policy's by "
            f"{difference:.1e} of half their range, more than {tolerance:.1e}"
        )
    return difference
