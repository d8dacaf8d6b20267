"""Stacked networks: every row's parameters lie in one flat leaf, layers are views of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpd.agents.base import State, put_back

Shapes = dict[str, tuple[int, ...]]


class Activation(NamedTuple):
    """A function in place, and its gradient from that of the output and the output itself.

    The gradient takes the place of the output's.
    """

    forward_: Callable[[Tensor], Tensor]
    backward_: Callable[[Tensor, Tensor], Tensor]


_aten = torch.ops.aten
ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(
        torch.tanh_, lambda grad, out: _aten.tanh_backward(grad, out, grad_input=grad)
    ),
    "relu": Activation(
        torch.relu_, lambda grad, out: _aten.threshold_backward(grad, out, 0, grad_input=grad)
    ),
    "elu": Activation(
        torch.nn.functional.elu_,
        lambda grad, out: _aten.elu_backward(grad, 1, 1, 1, True, out, grad_input=grad),
    ),
}

# Columns of a product up to which MKL takes several times as long as for its transpose (for
# [4, 256, 256] x [4, 256, 1], 0.41 ms against 0.11); a gradient's inner dimension is the batch.
NARROW, NARROW_GRADIENT = 12, 31


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x weight + bias, contiguous: [N, B, in] -> [N, B, out]."""
    if weight.shape[2] > NARROW:
        return torch.baddbmm(bias, x, weight)
    return torch.bmm(weight.mT, x.mT).mT.contiguous().add_(bias)


def affine_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of the weight [N, in, out] of an `affine` from its output's."""
    if grad.shape[2] > NARROW_GRADIENT:
        return torch.bmm(x.mT, grad)
    return torch.bmm(grad.mT, x).mT


def into_input(grad: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the input [N, B, in] of an `affine` from its output's."""
    if grad.shape[2] == 1:
        return grad * weight.mT
    if weight.shape[1] > NARROW:
        return torch.bmm(grad, weight.mT)
    return torch.bmm(weight, grad.mT).mT


def mlp_shapes(prefix: str, sizes: Sequence[int]) -> Shapes:
    """Name the layers of an MLP: weights [in, out], biases [1, out]."""
    shapes: Shapes = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        shapes[f"{prefix}.{i}.weight"] = (n_in, n_out)
        shapes[f"{prefix}.{i}.bias"] = (1, n_out)
    return shapes


def layers(params: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """Return the weights and biases of a named MLP in order; none if there is no such MLP."""
    found: list[tuple[Tensor, Tensor]] = []
    while (weight := params.get(f"{prefix}.{len(found)}.weight")) is not None:
        found.append((weight, params[f"{prefix}.{len(found)}.bias"]))
    return found


def mlp(
    stack: Sequence[tuple[Tensor, Tensor]], x: Tensor, activation: str
) -> tuple[Tensor, list[Tensor]]:
    """Run N MLPs on their own inputs: x [N, B, in] -> [N, B, out], and each layer's input.

    The last layer is linear.
    """
    act_ = ACTIVATIONS[activation].forward_
    inputs = [x]
    for i, (weight, bias) in enumerate(stack):
        x = affine(x, weight, bias)
        if i < len(stack) - 1:
            inputs.append(act_(x))
    return x, inputs


class Tape(NamedTuple):
    """What a pass through the networks left for its gradient."""

    names: tuple[str, ...]
    inputs: list[list[Tensor]]  # of every layer; none for a parameter


class StackedNets:
    """The parameters and MLPs of N learners as one leaf [N, D] with named views.

    One leaf means one gradient, one norm and one optimizer step for all learners and layers.
    The chain rule of an MLP is written out, because at these sizes autograd's bookkeeping counts:
    PPO's gradient for two learners takes 1.28 ms with it and 0.88 without. A call is one node of
    its graph; `run` and `gradient` do without it.
    """

    def __init__(
        self, shapes: Shapes, n: int, activation: str, dtype: torch.dtype = torch.float32
    ) -> None:
        self.shapes, self.activation = shapes, activation
        sizes = [math.prod(s) for s in shapes.values()]
        self.flat = torch.zeros(n, sum(sizes), dtype=dtype, requires_grad=True)
        parts = self.flat.detach().split(sizes, dim=1)
        self.views = {k: p.view(n, *s) for (k, s), p in zip(shapes.items(), parts, strict=True)}
        prefixes = {k.split(".")[0] for k in shapes}
        self.layers = {p: layers(self.views, p) for p in prefixes}

    def state(self) -> State:
        """Return the parameters, as a live tensor."""
        return {"flat": self.flat.detach()}

    def load_state(self, state: State) -> None:
        """Put parameters back."""
        put_back(self.state(), state)

    def __call__(self, x: Tensor | None, *names: str) -> tuple[Tensor, ...]:
        """Return the output of each named MLP on x [N, B, in], or the named parameter itself.

        Differentiable with respect to `flat` and x; under `no_grad` without trace.
        """
        if torch.is_grad_enabled():
            return _Forward.apply(self.flat, x, self, names)
        return self.run(x, *names)[0]

    def run(self, x: Tensor | None, *names: str) -> tuple[tuple[Tensor, ...], Tape]:
        """Return what a call does, and what `gradient` needs of it."""
        ran: list[tuple[Tensor, list[Tensor]]] = []
        for name in names:
            if not self.layers[name]:
                ran.append((self.views[name], []))
            elif x is None:
                raise ValueError(f"the network {name} needs an input")
            else:
                ran.append(mlp(self.layers[name], x, self.activation))
        return tuple(out for out, _ in ran), Tape(names, [inputs for _, inputs in ran])

    def gradient(
        self, tape: Tape, grads: Sequence[Tensor], wants_x: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of `flat` [N, D], and of x if wanted, from those of the outputs.

        To be called before the parameters move on.
        """
        pieces: dict[str, Tensor] = {}
        grad_x: Tensor | None = None
        for name, grad, inputs in zip(tape.names, grads, tape.inputs, strict=True):
            if not inputs:
                pieces[name] = grad
                continue
            found, into_x = self._gradient_mlp(name, grad, inputs, wants_x)
            pieces |= found
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
        """Return the gradient of x[..., first:] alone from that of the only output.

        To be called before the parameters move on.
        """
        (name,), (inputs,) = tape.names, tape.inputs
        backward_ = ACTIVATIONS[self.activation].backward_
        for i in reversed(range(1, len(inputs))):
            grad = backward_(into_input(grad, self.layers[name][i][0]), inputs[i])
        return into_input(grad, self.layers[name][0][0][:, first:])

    def every(self, stride: int) -> StackedNets:
        """Return the networks of every stride-th row, which share these parameters."""
        part = copy.copy(self)
        part.flat = self.flat.detach()[::stride]
        part.views = {k: v[::stride] for k, v in self.views.items()}
        part.layers = {p: layers(part.views, p) for p in self.layers}
        return part

    def twin(self) -> StackedNets:
        """Return a copy with parameters of its own, equal to these."""
        n, dtype = self.flat.shape[0], self.flat.dtype
        twin = StackedNets(self.shapes, n, self.activation, dtype)
        twin.load_state(self.state())
        return twin

    def init_uniform(self, prefix: str, generators: Sequence[torch.Generator]) -> None:
        """Fill an MLP as torch.nn.Linear does, U(+-1 / sqrt(in)); row n from generators[n]."""
        for weight, bias in self.layers[prefix]:
            bound = weight.shape[1] ** -0.5
            for w, b, generator in zip(weight, bias, generators, strict=True):
                w.uniform_(-bound, bound, generator=generator)
                b.uniform_(-bound, bound, generator=generator)

    def init_orthogonal(
        self, prefix: str, gains: Sequence[float], generators: Sequence[torch.Generator]
    ) -> None:
        """Fill an MLP's weights orthogonally, layer i with gains[i], row n from generators[n]."""
        for (weight, _), gain in zip(self.layers[prefix], gains, strict=True):
            for row, generator in zip(weight, generators, strict=True):
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
        # A parameter is returned as a copy: autograd would take the view for an in-place input.
        pairs = zip(outputs, ctx.tape.inputs, strict=True)
        return tuple(out if inputs else out.clone() for out, inputs in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_x = ctx.nets.gradient(ctx.tape, grads, ctx.needs_input_grad[1])
        return grad, grad_x, None, None
