"""Act on one observation at a time, as a deployed policy does, in a few microseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dpd.agents.config import View
from dpd.agents.nets import layers
from dpd.policies.metadata import PolicyMeta

Vector = NDArray[Any]
"""Numbers of float32, or of float64 in a hybrid policy."""


def relu(x: Vector, out: Vector) -> Vector:
    """Write max(x, 0) into `out`, which may be x."""
    return np.maximum(x, np.float32(0), out=out)


def elu(x: Vector, out: Vector) -> Vector:
    """Write x, or exp(x) - 1 where x is negative, into `out`, which may be x."""
    negative = np.expm1(np.minimum(x, np.float32(0)))
    np.maximum(x, np.float32(0), out=out)
    return np.add(out, negative, out=out)  # one of the two terms is zero


NUMPY_ACTIVATIONS: dict[str, Callable[[Vector, Vector], Vector]] = {
    "tanh": np.tanh,
    "relu": relu,
    "elu": elu,
}


class SeenFrames:
    """The frames that a policy with a view has seen of B running episodes, without noise or delay.

    A robot's own sensors have these. `memory` [B, S] is that of a recurrent policy, before the
    present step.
    """

    def __init__(self, view: View, batch: int, memory_dim: int = 0) -> None:
        self.batch, self._columns = batch, np.array(view.columns)
        self._stack = np.zeros((batch, view.history, view.frame_dim), np.float32)
        self._act = np.zeros((batch, view.frame_dim - len(view.columns)), np.float32)
        self._fresh = np.ones(batch, dtype=bool)  # episodes that begin
        self.memory = np.zeros((batch, memory_dim), np.float32)

    def see(self, obs: np.ndarray) -> np.ndarray:
        """Add raw obs [B, O]; return the stacks of frames [B, H, G], oldest first."""
        stack, n = self._stack, len(self._columns)
        stack[:, :-1] = stack[:, 1:]
        stack[:, -1, :n] = obs[:, self._columns]
        stack[:, -1, n:] = self._act
        if self._fresh.any():
            stack[self._fresh, -1, n:] = 0
            stack[self._fresh] = stack[self._fresh, -1:]
            self.memory[self._fresh] = 0
            self._fresh[:] = False
        return stack

    def took(self, act: np.ndarray) -> None:
        """Store the actions [B, A] in [-1, 1] that followed."""
        if self._act.size:
            self._act[:] = act

    def restart(self, rows: np.ndarray) -> None:
        """Let the next observations begin episodes where rows [B]."""
        self._fresh |= rows


class SingleActor:
    """A policy's action at one observation: NumPy on buffers that are made once.

    PyTorch takes about 100 microseconds for one observation, whatever the size of the network,
    because it dispatches some 25 operations. Here each layer is one product and one function: the
    bias is the last row of the weight and meets a constant 1 in the buffer, and without a tanh the
    scaling to the environment's bounds is part of the last layer. Not for concurrent threads, which
    would share the buffers.
    """

    def __init__(self, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
        arrays = {name: x.detach().cpu().numpy() for name, x in tensors.items()}
        n_layers = len(meta.hidden) + 1
        weights = [
            np.vstack([arrays[f"actor.{i}.weight"], arrays[f"actor.{i}.bias"]])
            for i in range(n_layers)
        ]
        self._low, self._high = arrays["act_low"], arrays["act_high"]
        self._half = 0.5 * (self._high - self._low)
        self._middle = 0.5 * (self._high + self._low)
        self._is_bounded = meta.squashed or meta.tanh_mean
        if not self._is_bounded:
            weights[-1] = weights[-1] * self._half
            weights[-1][-1] += self._middle
        self._last = np.ascontiguousarray(weights[-1], dtype=np.float32)
        inputs = [np.ones(len(w), dtype=np.float32) for w in weights]
        self._first, self._features = inputs[0][:-1], inputs[-1]
        self._hidden = [
            (np.ascontiguousarray(w, dtype=np.float32), x, y[:-1])
            for w, x, y in zip(weights, inputs, inputs[1:], strict=False)
        ]
        self._activation = NUMPY_ACTIVATIONS[meta.activation]
        self._norm = meta.norm_obs
        frames = 1 if meta.view is None else meta.view.history
        self._mean, self._scale = (np.tile(arrays[k][0], frames) for k in ("obs_mean", "obs_scale"))
        self._most = np.full(meta.in_dim, meta.clip_obs, dtype=np.float32)
        self._least = -self._most

    def __call__(self, obs: np.ndarray) -> Vector:
        """Return the action [A], in the environment's bounds, at one raw obs [O].

        Of a policy with a view, `obs` is the stack of frames, flattened [H G].
        """
        x = self._first
        x[...] = obs
        if self._norm:
            np.subtract(x, self._mean, out=x)
            np.multiply(x, self._scale, out=x)
            np.minimum(x, self._most, out=x)
            np.maximum(x, self._least, out=x)
        for weight, inputs, out in self._hidden:
            np.dot(inputs, weight, out=out)
            self._activation(out, out)
        act = np.dot(self._features, self._last)
        if self._is_bounded:
            np.tanh(act, out=act)
            np.multiply(act, self._half, out=act)
            np.add(act, self._middle, out=act)
        np.minimum(act, self._high, out=act)  # np.clip would take as long as all of the above
        return np.maximum(act, self._low, out=act)


def sigmoid(x: Vector) -> Vector:
    """Return 1 / (1 + exp(-x)), without overflow."""
    half: Vector = np.tanh(x * np.float32(0.5))
    return (half + np.float32(1)) * np.float32(0.5)


def gru_step(given: Vector, recalled: Vector, memory: Vector) -> Vector:
    """Return the next memory as `dpd.agents.encoders.gru` does, of one row."""
    size = len(memory)
    gates = sigmoid(given[: 2 * size] + recalled[: 2 * size])
    reset, update = gates[:size], gates[size:]
    candidate: Vector = np.tanh(given[2 * size :] + reset * recalled[2 * size :])
    return candidate + update * (memory - candidate)


def lstm_step(given: Vector, recalled: Vector, memory: Vector) -> Vector:
    """Return the next memory as `dpd.agents.encoders.lstm` does, of one row."""
    enter, forget, cell, output = np.split(given + recalled, 4)
    c = sigmoid(forget) * np.split(memory, 2)[1] + sigmoid(enter) * np.tanh(cell)
    return np.concatenate([sigmoid(output) * np.tanh(c), c])


NUMPY_CELLS: dict[str, Callable[[Vector, Vector, Vector], Vector]] = {
    "gru": gru_step,
    "lstm": lstm_step,
}


class SingleRecurrentActor:
    """A recurrent policy's step on one observation, in NumPy."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: PolicyMeta) -> None:
        encoder, view = meta.encoder, meta.view
        assert encoder is not None and view is not None
        arrays = {name: x.detach().cpu().numpy() for name, x in tensors.items()}
        # The MLP reads h, which is not normalised.
        head = replace(meta, encoder=None, view=None, obs_dim=encoder.size, norm_obs=False)
        self._head, self._step = SingleActor(tensors, head), NUMPY_CELLS[encoder.kind]
        self._size, self._norm, self._clip = encoder.size, meta.norm_obs, np.float32(meta.clip_obs)
        repeated = (np.tile(arrays[k][0], view.history) for k in ("obs_mean", "obs_scale"))
        self._mean, self._scale = repeated
        self._input, self._recur = (
            (arrays[f"encoder.{part}.weight"], arrays[f"encoder.{part}.bias"][0])
            for part in ("input", "state")
        )

    def __call__(self, obs: np.ndarray, memory: np.ndarray) -> tuple[Vector, Vector]:
        """Return the action [A], in the environment's bounds, and the memory [S] after it.

        `obs` is the stack of frames, flattened [H G]; `memory` [S] that before it.
        """
        x = obs
        if self._norm:
            x = np.minimum(np.maximum((x - self._mean) * self._scale, -self._clip), self._clip)
        weight, bias = self._input
        given = np.dot(x, weight) + bias
        weight, bias = self._recur
        after = self._step(given, np.dot(memory[: self._size], weight) + bias, memory)
        return self._head(after[: self._size]), after


class WideNetwork:
    """K networks of equal widths, in float64: x [B, in] -> [K, B, out]."""

    def __init__(self, params: Sequence[Sequence[tuple[Tensor, Tensor]]], activation: str) -> None:
        def joined(tensors: Sequence[Tensor]) -> Vector:
            return np.stack([x.detach().cpu().numpy() for x in tensors]).astype(np.float64)

        self._layers = [
            (joined([w for w, _ in layer]), joined([b for _, b in layer]))
            for layer in zip(*params, strict=True)
        ]
        self._activation = NUMPY_ACTIVATIONS[activation]

    def __call__(self, x: Vector) -> Vector:
        last = len(self._layers) - 1
        for i, (weight, bias) in enumerate(self._layers):
            x = np.matmul(x, weight)
            x += bias
            if i < last:
                self._activation(x, x)
        return x


class SingleHybrid:
    """A hybrid policy's action at one observation, in NumPy and float64.

    The critics of a peer judge all proposals by one product per layer.
    """

    def __init__(
        self,
        parts: Sequence[Mapping[str, Tensor]],
        peers: Sequence[PolicyMeta],
        critics: Sequence[int],
    ) -> None:
        wide = [{k: x.detach().cpu().double().numpy() for k, x in part.items()} for part in parts]
        self._peers = peers
        self._norms = [(own["obs_mean"], own["obs_scale"]) for own in wide]
        self._actors = [
            WideNetwork([layers(dict(part), "actor")], meta.activation)
            for part, meta in zip(parts, peers, strict=True)
        ]
        self._judges = {
            k: WideNetwork(
                [layers(dict(parts[k]), f"critic{c}") for c in range(n)], peers[k].activation
            )
            for k, n in enumerate(critics)
            if n
        }
        self._low, self._high = wide[0]["act_low"], wide[0]["act_high"]
        self._half = 0.5 * (self._high - self._low)

    def __call__(self, obs: np.ndarray) -> Vector:
        """Return the action [A], in the environment's bounds, at one raw obs [O]."""
        raw = obs.astype(np.float32).astype(np.float64).reshape(1, -1)
        inputs = [self._normalised(k, raw) for k in range(len(self._peers))]
        acts = np.concatenate([self._propose(k, x) for k, x in enumerate(inputs)])
        values = [
            judge(np.concatenate([inputs[k].repeat(len(acts), 0), acts], 1))[..., 0].min(0)
            for k, judge in self._judges.items()
        ]
        best = acts[np.sum(values, axis=0).argmax()]
        scaled = self._low + (best + 1) * self._half
        return np.minimum(np.maximum(scaled, self._low), self._high).astype(np.float32)

    def _normalised(self, k: int, raw: Vector) -> Vector:
        meta, (mean, scale) = self._peers[k], self._norms[k]
        if not meta.norm_obs:
            return raw
        x: Vector = np.minimum(np.maximum((raw - mean) * scale, -meta.clip_obs), meta.clip_obs)
        return x

    def _propose(self, k: int, x: Vector) -> Vector:
        mean, meta = self._actors[k](x)[0], self._peers[k]
        if meta.squashed or meta.tanh_mean:
            return np.tanh(mean)
        act: Vector = np.minimum(np.maximum(mean, -1), 1)
        return act
