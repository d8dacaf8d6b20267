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

from dpd.agents.base import CPU, State, put_back

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


def widest(rows: Sequence[Shapes]) -> Shapes:
    """Return the least shapes that hold those of every row. Raises ValueError for unequal depth."""
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("the rows' networks differ in depth; one stack holds one depth")
    return {k: tuple(map(max, zip(*(row[k] for row in rows), strict=True))) for k in rows[0]}


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
        """Where in `flat` [N, D] a row has no parameter; None: nowhere."""
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
        """Return a stack whose rows have widths of their own, zeros up to the widest.

        It is exact: a unit that a row lacks puts out act(0) = 0 and is read by weights of 0, so
        the gradients into it and out of it are 0, and Adam leaves it. Noise on `flat` would not.
        Raises ValueError for unequal depth, and for an activation with act(0) != 0.
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
        """Return row n's own part of a parameter, without padding, as a view."""
        return self.views[name][n][tuple(map(slice, self.rows[n][name]))]

    def state(self) -> State:
        """Return the parameters, as a live tensor."""
        return {"flat": self.flat.detach()}

    def load_state(self, state: State) -> None:
        """Put parameters back. Raises ValueError where they are of rows of other widths."""
        self._refuse_other_widths(state)
        put_back(self.state(), state)

    def _refuse_other_widths(self, state: State) -> None:
        """Raise ValueError where saved parameters lie in the padding: they would come to life."""
        flat = state.get("flat")
        if self.padding is None or flat is None or flat.shape != self.padding.shape:
            return
        if bool(flat[self.padding].any()):
            raise ValueError("the saved networks' rows have other widths than these")

    def __call__(self, x: Tensor | None, *names: str) -> tuple[Tensor, ...]:
        """Return the output of each named MLP on x [N, B, in], or the named parameter itself.

        Differentiable with respect to `flat` and x; under `no_grad` without trace.
        """
        if torch.is_grad_enabled():
            return _Forward.apply(self.flat, x, self, names)
        return self.run(x, *names)[0]

    def with_features(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return a named MLP's output [N, B, out] and its last hidden layer [N, B, H], or x.

        Both are differentiable with respect to `flat`, through autograd: a call has no gradient of
        what lies inside. Units that a row lacks put out 0; whoever reads them must weigh them 0, or
        they get a gradient.
        """
        sizes = [view[0].numel() for view in self.views.values()]
        parts = zip(self.views.items(), self.flat.split(sizes, dim=1), strict=True)
        params = {k: part.view_as(view) for (k, view), part in parts}
        out, inputs = mlp(layers(params, name), x, self.activation)
        return out, inputs[-1]

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
        part.flat, part.rows = self.flat.detach()[::stride], self.rows[::stride]
        part.padding = None if self.padding is None else self.padding[::stride]
        part.views = {k: v[::stride] for k, v in self.views.items()}
        part.layers = {p: layers(part.views, p) for p in self.layers}
        return part

    def twin(self) -> StackedNets:
        """Return a copy with parameters of its own, equal to these."""
        return self.repeated(1)

    def repeated(self, times: int) -> StackedNets:
        """Return copies with parameters of their own: row n as rows n * times and on."""
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

        They are the CPU's, so that learners begin alike on every device.
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
        # A parameter is returned as a copy: autograd would take the view for an in-place input.
        pairs = zip(outputs, ctx.tape.inputs, strict=True)
        return tuple(out if inputs else out.clone() for out, inputs in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_x = ctx.nets.gradient(ctx.tape, grads, ctx.needs_input_grad[1])
        return grad, grad_x, None, None
