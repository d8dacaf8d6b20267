"""Stacked networks: all parameters of a row lie in one flat leaf, and layers are views of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpd.agents.base import CPU, State, Stateful

Shapes = dict[str, tuple[int, ...]]


class Activation(NamedTuple):
    """An in-place function, and its in-place backward pass (gradient, output) -> gradient."""

    forward_: Callable[[Tensor], Tensor]
    backward_: Callable[[Tensor, Tensor], Tensor]


ATEN = torch.ops.aten
ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(
        torch.tanh_, lambda grad, out: ATEN.tanh_backward(grad, out, grad_input=grad)
    ),
    "relu": Activation(
        torch.relu_, lambda grad, out: ATEN.threshold_backward(grad, out, 0, grad_input=grad)
    ),
    "elu": Activation(
        torch.nn.functional.elu_,
        lambda grad, out: ATEN.elu_backward(grad, 1, 1, 1, True, out, grad_input=grad),
    ),
}

# Up to this many columns, MKL takes several times as long for a product as for its transpose
# ([4, 256, 256] x [4, 256, 1]: 0.41 instead of 0.11 ms). In a gradient the inner dimension is the
# batch, hence another threshold.
NARROW, NARROW_GRADIENT = 12, 31


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x weight + bias, contiguous: [N, B, in] -> [N, B, out]."""
    if weight.shape[2] > NARROW:
        return torch.baddbmm(bias, x, weight)
    return torch.bmm(weight.mT, x.mT).mT.contiguous().add_(bias)


def affine_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the weight's gradient [N, in, out] of an `affine` from that of its output."""
    if grad.shape[2] > NARROW_GRADIENT:
        return torch.bmm(x.mT, grad)
    return torch.bmm(grad.mT, x).mT


def into_input(grad: Tensor, weight: Tensor) -> Tensor:
    """Return the input's gradient [N, B, in] of an `affine` from that of its output."""
    if grad.shape[2] == 1:
        return grad * weight.mT
    if weight.shape[1] > NARROW:
        return torch.bmm(grad, weight.mT)
    return torch.bmm(weight, grad.mT).mT


def mlp_shapes(prefix: str, sizes: Sequence[int]) -> Shapes:
    """Return the names and shapes of an MLP's weights [in, out] and biases [1, out]."""
    shapes: Shapes = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        shapes[f"{prefix}.{i}.weight"] = (n_in, n_out)
        shapes[f"{prefix}.{i}.bias"] = (1, n_out)
    return shapes


def layers(params: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """Return the weights and biases of a named MLP in order; none if there is no such MLP."""
    pairs: list[tuple[Tensor, Tensor]] = []
    while (weight := params.get(f"{prefix}.{len(pairs)}.weight")) is not None:
        pairs.append((weight, params[f"{prefix}.{len(pairs)}.bias"]))
    return pairs


def mlp(
    stack: Sequence[tuple[Tensor, Tensor]], x: Tensor, activation: str
) -> tuple[Tensor, list[Tensor]]:
    """Run N MLPs on x [N, B, in] -> [N, B, out], and the inputs of every layer.

    The last layer is linear.
    """
    act_ = ACTIVATIONS[activation].forward_
    inputs = [x]
    for i, (weight, bias) in enumerate(stack):
        x = affine(x, weight, bias)
        if i < len(stack) - 1:
            inputs.append(act_(x))
    return x, inputs


def widest(rows: Sequence[Shapes]) -> Shapes:
    """Return the smallest shapes that fit every row. Raises ValueError for unequal depths."""
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(
            "the rows' networks differ in depth; all rows of a stack need the same depth"
        )
    return {k: tuple(map(max, zip(*(row[k] for row in rows), strict=True))) for k in rows[0]}


class Tape(NamedTuple):
    """The record of a forward pass that `gradient` needs."""

    names: tuple[str, ...]
    inputs: list[list[Tensor]]  # of every layer; empty for a plain parameter


class StackedNets(Stateful):
    """The parameters and MLPs of N learners as one leaf [N, D] with named views.

    One leaf means one gradient, one norm and one optimizer step for all learners and layers.
    Gradients are written by hand, because autograd's overhead matters at these sizes: PPO's
    gradient for two learners takes 1.28 ms with autograd and 0.88 ms without. Calling the networks
    makes one node of autograd's graph; `run` and `gradient` bypass autograd.
    """

    STATE = ("flat",)

    def __init__(
        self,
        shapes: Shapes,
        n: int,
        activation: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        self.shapes, self.activation = shapes, activation
        self.rows: Sequence[Shapes] = [shapes] * n
        """Each row's own shapes."""
        self.padding: Tensor | None = None
        """True where `flat` [N, D] is only padding; None if there is no padding."""
        sizes = [math.prod(s) for s in shapes.values()]
        self.flat = torch.zeros(n, sum(sizes), dtype=dtype, device=device, requires_grad=True)
        parts = self.flat.detach().split(sizes, dim=1)
        self.views = {k: p.view(n, *s) for (k, s), p in zip(shapes.items(), parts, strict=True)}
        prefixes = {k.split(".")[0] for k in shapes}
        self.layers = {p: layers(self.views, p) for p in prefixes}

    @classmethod
    def padded(
        cls,
        rows: Sequence[Shapes],
        activation: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> StackedNets:
        """Return a stack whose rows differ in width, padded with zeros to the widest.

        Padding is exact: a padded unit outputs act(0) = 0 and its outgoing weights are 0, so all of
        its gradients are 0 and Adam leaves it at 0. Noise added to `flat` would break this. Raises
        ValueError for unequal depths, and for an activation with act(0) != 0.
        """
        if bool(ACTIVATIONS[activation].forward_(torch.zeros(1)).any()):
            raise ValueError(f"{activation}(0) is not 0, so rows of unequal width cannot be padded")
        nets = cls(widest(rows), len(rows), activation, dtype, device)
        nets.rows = rows
        if any(row != nets.shapes for row in rows):
            used = nets.twin()
            for n, row in enumerate(rows):
                for name in row:
                    used.own(n, name).fill_(1)
            nets.padding = used.flat.detach() == 0
        return nets

    def own(self, n: int, name: str) -> Tensor:
        """Return row n of a parameter as a view without padding."""
        return self.views[name][n][tuple(map(slice, self.rows[n][name]))]

    def load_state(self, state: State) -> None:
        if self._would_wake_padding(state.get("flat")):
            raise ValueError("the saved networks' rows have other widths than these")
        super().load_state(state)

    def _would_wake_padding(self, flat: Tensor | None) -> bool:
        if self.padding is None or flat is None or flat.shape != self.padding.shape:
            return False
        return bool(flat[self.padding].any())

    def __call__(self, x: Tensor | None, *names: str) -> tuple[Tensor, ...]:
        """Return the output of each named MLP on x [N, B, in], or the named parameter itself.

        The result is differentiable with respect to `flat` and x.
        """
        if torch.is_grad_enabled():
            return _Forward.apply(self.flat, x, self, names)
        return self.run(x, *names)[0]

    def with_features(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return a named MLP's output [N, B, out] and its last hidden layer [N, B, H], or x.

        Both are differentiable with respect to `flat` by plain autograd, since a call exposes no
        hidden layer. Padded units output 0; multiply them by weights of 0, or they get a gradient.
        """
        out, inputs = mlp(layers(self.named(), name), x, self.activation)
        return out, inputs[-1]

    def named(self) -> dict[str, Tensor]:
        """Return all parameters by name [N, ...], differentiable with respect to `flat`."""
        sizes = [view[0].numel() for view in self.views.values()]
        parts = zip(self.views.items(), self.flat.split(sizes, dim=1), strict=True)
        return {k: part.view_as(view) for (k, view), part in parts}

    def run(self, x: Tensor | None, *names: str) -> tuple[tuple[Tensor, ...], Tape]:
        """Return the outputs of a call, and the tape for `gradient`."""
        passes: list[tuple[Tensor, list[Tensor]]] = []
        for name in names:
            if not self.layers[name]:
                passes.append((self.views[name], []))
            elif x is None:
                raise ValueError(f"the network {name} needs an input")
            else:
                passes.append(mlp(self.layers[name], x, self.activation))
        return tuple(out for out, _ in passes), Tape(names, [inputs for _, inputs in passes])

    def gradient(
        self, tape: Tape, grads: Sequence[Tensor], wants_x: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of `flat` [N, D], and of x if wanted, from those of the outputs.

        Call it before the parameters change.
        """
        pieces: dict[str, Tensor] = {}
        grad_x: Tensor | None = None
        for name, grad, inputs in zip(tape.names, grads, tape.inputs, strict=True):
            if not inputs:
                pieces[name] = grad
                continue
            params, into_x = self._gradient_mlp(name, grad, inputs, wants_x)
            pieces |= params
            if into_x is not None:
                grad_x = into_x if grad_x is None else grad_x + into_x
        n = self.flat.shape[0]
        blocks = [
            pieces[k].reshape(n, -1) if k in pieces else view.new_zeros(n, view[0].numel())
            for k, view in self.views.items()
        ]
        return torch.cat(blocks, 1), grad_x

    def _gradient_mlp(
        self, name: str, grad: Tensor, inputs: list[Tensor], wants_x: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the gradients of an MLP's parameters, and of its input if wanted."""
        backward_ = ACTIVATIONS[self.activation].backward_
        pieces = {}
        for i in reversed(range(len(inputs))):
            pieces[f"{name}.{i}.weight"] = affine_gradient(inputs[i], grad)
            pieces[f"{name}.{i}.bias"] = grad.sum(1, keepdim=True)
            if i > 0:
                grad = backward_(into_input(grad, self.layers[name][i][0]), inputs[i])
        return pieces, into_input(grad, self.layers[name][0][0]) if wants_x else None

    def input_gradient(self, tape: Tape, grad: Tensor, first: int = 0) -> Tensor:
        """Return the gradient of x[..., first:] from that of the only output.

        Call it before the parameters change.
        """
        (name,), (inputs,) = tape.names, tape.inputs
        backward_ = ACTIVATIONS[self.activation].backward_
        for i in reversed(range(1, len(inputs))):
            grad = backward_(into_input(grad, self.layers[name][i][0]), inputs[i])
        return into_input(grad, self.layers[name][0][0][:, first:])

    def every(self, stride: int) -> StackedNets:
        """Return the networks of every stride-th row; they share these parameters."""
        part = copy.copy(self)
        part.flat, part.rows = self.flat.detach()[::stride], self.rows[::stride]
        part.padding = None if self.padding is None else self.padding[::stride]
        part.views = {k: v[::stride] for k, v in self.views.items()}
        part.layers = {p: layers(part.views, p) for p in self.layers}
        return part

    def at(self, rows: Tensor) -> StackedNets:
        """Return copies of the networks at `rows` [M], in that order; the host reads no row."""
        part = copy.copy(self)
        part.flat, part.padding = self.flat.detach().index_select(0, rows), None
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), part.flat.split(sizes, dim=1), strict=True)
        part.views = {k: x.view(len(rows), *shape) for (k, shape), x in pieces}
        part.rows = [self.shapes] * len(rows)
        part.layers = {p: layers(part.views, p) for p in self.layers}
        return part

    def twin(self) -> StackedNets:
        """Return a copy with separate parameters."""
        return self.repeated(1)

    def repeated(self, times: int) -> StackedNets:
        """Return `times` copies of each row, next to each other, with separate parameters."""
        rows = [row for row in self.rows for _ in range(times)]
        dtype, device = self.flat.dtype, self.flat.device
        copies = StackedNets(self.shapes, len(rows), self.activation, dtype, device)
        copies.rows = rows
        if self.padding is not None:
            copies.padding = self.padding.repeat_interleave(times, 0)
        copies.flat.detach().copy_(self.flat.detach().repeat_interleave(times, 0))
        return copies

    def init_uniform(self, prefix: str, generators: Sequence[torch.Generator]) -> None:
        """Fill an MLP as torch.nn.Linear does, U(+-1 / sqrt(in)); row n from generators[n].

        The generators are the CPU's, so that initial parameters are equal on every device.
        """
        for i in range(len(self.layers[prefix])):
            for n, generator in zip(range(len(self.rows)), generators, strict=True):
                bound = self.rows[n][f"{prefix}.{i}.weight"][0] ** -0.5
                for kind in ("weight", "bias"):
                    row = self.own(n, f"{prefix}.{i}.{kind}")
                    drawn = torch.empty(row.shape, dtype=row.dtype)
                    row.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def init_orthogonal(
        self, prefix: str, gains: Sequence[float], generators: Sequence[torch.Generator]
    ) -> None:
        """Fill an MLP's weights orthogonally, layer i with gains[i], row n from generators[n]."""
        for i, (_, gain) in enumerate(zip(self.layers[prefix], gains, strict=True)):
            for n, generator in zip(range(len(self.rows)), generators, strict=True):
                row = self.own(n, f"{prefix}.{i}.weight")
                # nn.Linear stores [out, in]; drawing that shape gives Stable-Baselines3's values
                drawn = torch.empty(row.shape[1], row.shape[0], dtype=row.dtype)
                torch.nn.init.orthogonal_(drawn, gain, generator=generator)
                row.copy_(drawn.T)


class _Forward(torch.autograd.Function):
    """All named outputs of a `StackedNets` as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, x: Tensor | None, nets: StackedNets, names: tuple[str, ...]
    ) -> tuple[Tensor, ...]:
        outputs, ctx.tape = nets.run(x, *names)
        ctx.nets = nets
        # Copy parameters: autograd would treat a returned view as an in-place change of its input.
        pairs = zip(outputs, ctx.tape.inputs, strict=True)
        return tuple(out if inputs else out.clone() for out, inputs in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_x = ctx.nets.gradient(ctx.tape, grads, ctx.needs_input_grad[1])
        return grad, grad_x, None, None
