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
from dpd.agents.encoders import convolve, encode, features_of
from dpd.agents.nets import layers, mlp
from dpd.agents.sac import LOG_STD_MAX, LOG_STD_MIN
from dpd.envs.base import EnvSpec
from dpd.errors import BadInput
from dpd.files import replacing
from dpd.policies import memory
from dpd.policies.file_checks import check_layout, check_sizes, check_values
from dpd.policies.memory import Neighbours
from dpd.policies.metadata import (
    HYBRID_KEY,
    NotAPolicy,
    PolicyMeta,
    read_meta,
    shapes,
    to_json,
)
from dpd.policies.single import SeenFrames, SingleActor, SingleRecurrentActor

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
        return self._in_float64.mode(obs.double()).float()

    @cached_property
    def _in_float64(self) -> Policy:
        return Policy({k: v.double() for k, v in self.tensors.items()}, self.meta)

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the action distribution at raw obs [B, O]: mean [B, A], log_std [B, A] or [1, A].

        Actions are in [-1, 1], as in training. A memory changes only the mean. A policy with a view
        reads the stack of frames [B, H, G] that it sees; raw observations are enough for it only if
        its view has no memory. A recurrent policy reads the flattened frames, and behind them its
        memory of the steps before [B, F + S], 0 where an episode begins.
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
        encoder, view = self.meta.encoder, self.meta.view
        if encoder is not None and encoder.memory_dim:
            x = features_of(encoder, self.recall(obs).unsqueeze(0))
        elif view is None:
            x = self.normalised(obs).unsqueeze(0)
        else:
            frames = self.normalised(self._stacked(view, obs)).unsqueeze(0)
            x = frames.flatten(2) if encoder is None else convolve(self._params, frames)
        return mlp(self._actor, x, self.meta.activation)

    def recall(self, obs: Tensor) -> Tensor:
        """Return the memory [B, S] of a recurrent policy after a step at obs as in `dist`.

        Raises ValueError for other inputs.
        """
        encoder, view = self.meta.encoder, self.meta.view
        assert encoder is not None and view is not None
        if obs.shape[1:] != self.meta.input_shape:
            raise ValueError(
                "the policy remembers its episode, and one observation does not tell it; let it "
                "act step by step"
            )
        seen, before = obs.split([view.dim, encoder.memory_dim], 1)
        x = self.normalised(seen.unflatten(1, (view.history, -1))).flatten(1)
        return encode(encoder, self._params, x.unsqueeze(0), before.unsqueeze(0)).squeeze(0)

    def repeatable_recall(self, obs: Tensor) -> Tensor:
        """Remember as `recall` does, but in float64 as `repeatable_mode` -> [B, S] float32."""
        return self._in_float64.recall(obs.double()).float()

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
        view takes each call as the next step of the same episodes, one per row of the batch, whose
        history and memory it keeps; call `reset` where episodes begin. It adds no noise and no
        delay, which are those of sensors.
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
            self._seen = SeenFrames(view, len(obs), self.meta.memory_dim)
        if self._seen.batch != len(obs):
            raise ValueError(
                f"{len(obs)} observations after {self._seen.batch}: the policy keeps a history of "
                "each row; call reset() before another batch"
            )
        stack = self._seen.see(obs)
        if self.meta.memory_dim:
            act = self._act_and_remember(self._seen, stack)
        elif len(obs) == 1 and self._memory is None and self.meta.encoder is None:
            act = self._act_on_one(stack.ravel())[None]
        else:
            act = self.act_flat(stack)
        if view.prev_action:
            low, high = self.tensors["act_low"].numpy(), self.tensors["act_high"].numpy()
            self._seen.took((act - low) / (high - low) * 2 - 1)
        return act

    def _act_and_remember(self, seen: SeenFrames, stack: np.ndarray) -> np.ndarray:
        """Act on stacks of frames [B, H, G], and store the memory after them."""
        if len(stack) == 1:
            act, seen.memory[0] = self._step_on_one(stack.ravel(), seen.memory[0])
            return act[None]
        obs = np.concatenate([stack.reshape(len(stack), -1), seen.memory], 1)
        seen.memory[:] = self.recall(torch.from_numpy(obs)).numpy()
        return self.act_flat(obs)

    @cached_property
    def _act_on_one(self) -> Callable[[np.ndarray], np.ndarray]:
        return SingleActor(self.tensors, self.meta)

    @cached_property
    def _step_on_one(self) -> SingleRecurrentActor:
        return SingleRecurrentActor(self.tensors, self.meta)

    @torch.no_grad()
    def act_flat(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Act as `act` does on flattened observations [B, O] -> flattened actions [B, A].

        With a view, obs are those of `dist`, and nothing is remembered.
        """
        return self.scaled(self.mode(torch.as_tensor(np.asarray(obs), dtype=torch.float32)))

    @torch.no_grad()
    def step_flat(self, obs: np.ndarray) -> np.ndarray:
        """Act as `act_flat` does; of a recurrent policy, with the memory after it [B, A + S]."""
        act = self.act_flat(obs)
        if not self.meta.memory_dim:
            return act
        return np.concatenate([act, self.recall(torch.from_numpy(obs)).numpy()], 1)

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


def refuse_memory(policy: Policy, target: str) -> None:
    """Raise ValueError for a policy with a memory, which other formats cannot store."""
    if policy.meta.memory is not None:
        raise ValueError(
            f"the policy has a memory of {policy.meta.memory.entries:,} states, which {target} "
            "cannot hold; give --format dpd"
        )


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
    """Return random inputs as in training: raw obs [B, O], or what a policy with a view reads.

    `clipped`: every second one is so far out that the clip of normalised observations counts.
    """
    meta, rng = policy.meta, np.random.default_rng(0)
    view = meta.view
    shape = meta.input_shape if view is None else (view.history, view.frame_dim)
    obs = rng.standard_normal((N_PROBES, *shape))
    if clipped:
        obs[1::2] *= 30
    mean, scale = policy.tensors["obs_mean"].numpy(), policy.tensors["obs_scale"].numpy()
    obs = mean + obs / scale
    if meta.memory_dim:
        memory = rng.uniform(-1, 1, (N_PROBES, meta.memory_dim))
        obs = np.concatenate([obs.reshape(N_PROBES, -1), memory], 1)
    return obs.astype(np.float32)


def require_same_actions(
    policy: Policy, act: ArrayPolicy, obs: np.ndarray, tolerance: float
) -> float:
    """Return the largest difference between two forms of a policy on obs [B, O].

    It is measured in halves of an action's range; of a recurrent policy, memories count too, as
    they are. Raises ValueError if it exceeds `tolerance`.
    """
    half = (0.5 * (policy.tensors["act_high"] - policy.tensors["act_low"])).numpy()
    unit = np.concatenate([half, np.ones(policy.meta.memory_dim, half.dtype)])
    difference = float((np.abs(act(obs) - policy.step_flat(obs)) / unit).max())
    if not difference <= tolerance:  # rejects NaN as well
        raise ValueError(
            "not written: the exported actions would differ from the policy's by "
            f"{difference:.1e} of half their range, more than {tolerance:.1e}"
        )
    return difference
