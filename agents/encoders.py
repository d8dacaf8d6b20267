"""Recurrent layers between what learners see and their MLPs, stacked over N learners.

Parameters are those of torch.nn.GRU and LSTM, transposed: `encoder.input.weight` [F, 3 D] is
weight_ih_l0.T, and so on; gates are in the same order. All functions take them by name [N, ...].
Memories [N, B, S] are h, and behind it c of an LSTM; 0 where an episode begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.config import Encoder
from dpd.agents.nets import Shapes, StackedNets, affine

Params = Mapping[str, Tensor]


def gru(given: Tensor, recalled: Tensor, memory: Tensor) -> Tensor:
    """Return the next h [N, B, D] (Cho et al. 2014, as cuDNN has it).

    `given` and `recalled` [N, B, 3 D] are the parts of reset gate, update gate and candidate that
    come from the input and from h.
    """
    size = memory.shape[-1]
    gates = (given[..., : 2 * size] + recalled[..., : 2 * size]).sigmoid()
    reset, update = gates.chunk(2, -1)
    candidate = torch.addcmul(given[..., 2 * size :], reset, recalled[..., 2 * size :]).tanh()
    return torch.lerp(candidate, memory, update)


def lstm(given: Tensor, recalled: Tensor, memory: Tensor) -> Tensor:
    """Return the next h and c [N, B, 2 D] (Hochreiter and Schmidhuber 1997, with forget gates).

    The gates' order is input, forget, cell, output.
    """
    c = memory.chunk(2, -1)[1]
    enter, forget, cell, output = (given + recalled).chunk(4, -1)
    c = forget.sigmoid() * c + enter.sigmoid() * cell.tanh()
    return torch.cat([output.sigmoid() * c.tanh(), c], -1)


class Cell(NamedTuple):
    """A recurrent layer: its number of gates, and its step."""

    gates: int
    step: Callable[[Tensor, Tensor, Tensor], Tensor]


CELLS = {"gru": Cell(3, gru), "lstm": Cell(4, lstm)}


def encoder_shapes(encoder: Encoder, in_dim: int) -> Shapes:
    """Return the names and shapes of an encoder's parameters, for so many inputs."""
    size = CELLS[encoder.kind].gates * encoder.size
    return {
        "encoder.input.weight": (in_dim, size),
        "encoder.input.bias": (1, size),
        "encoder.state.weight": (encoder.size, size),
        "encoder.state.bias": (1, size),
    }


def init_encoder(nets: StackedNets, size: int, generators: Sequence[torch.Generator]) -> None:
    """Fill recurrent layers as torch does, U(+-1 / sqrt(D)); row n from generators[n]."""
    names = [name for name in nets.views if name.startswith("encoder.")]
    for name in names:
        for n, generator in zip(range(len(nets.rows)), generators, strict=True):
            row = nets.own(n, name)
            drawn = torch.empty(row.shape, dtype=row.dtype)
            row.copy_(drawn.uniform_(-(size**-0.5), size**-0.5, generator=generator))


def encode(encoder: Encoder, params: Params, x: Tensor, memory: Tensor) -> Tensor:
    """Return the memory [N, B, S] after one step on normalised x [N, B, F]."""
    given = affine(x, params["encoder.input.weight"], params["encoder.input.bias"])
    return _remember(encoder, params, given, memory)


def encode_along(encoder: Encoder, params: Params, x: Tensor, memories: Tensor) -> Tensor:
    """Return the memories [N, B, L, S] after each of L successive steps on x [N, B, L, F].

    `memories` [N, B, L, S] are those that were stored with the steps: the first one is where the
    sequence begins, and one of 0 says that an episode begins there.
    """
    n, batch, length, _ = x.shape
    given = affine(x.flatten(1, 2), params["encoder.input.weight"], params["encoder.input.bias"])
    each = given.view(n, batch, length, -1).unbind(2)
    goes_on = (memories != 0).any(-1, keepdim=True).unbind(2)
    memory, after = memories[:, :, 0], []
    for k, of_step in enumerate(each):
        memory = memory if k == 0 else memory * goes_on[k]
        memory = _remember(encoder, params, of_step, memory)
        after.append(memory)
    return torch.stack(after, 2)


def features_of(encoder: Encoder, memory: Tensor) -> Tensor:
    """Return the part of memories [..., S] that the MLP reads, h [..., D]."""
    return memory[..., : encoder.size]


def _remember(encoder: Encoder, params: Params, given: Tensor, memory: Tensor) -> Tensor:
    h = features_of(encoder, memory)
    recalled = affine(h, params["encoder.state.weight"], params["encoder.state.bias"])
    return CELLS[encoder.kind].step(given, recalled, memory)
