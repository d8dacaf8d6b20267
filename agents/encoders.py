"""Layers between what learners see and their MLPs, stacked over N learners.

Parameters of recurrent layers are those of torch.nn.GRU and LSTM, transposed:
`encoder.input.weight` [F, 3 D] is weight_ih_l0.T, and so on; gates are in the same order. Memories
[N, B, S] are h, and behind it c of an LSTM; 0 where an episode begins. A convolution over frames
has `encoder.conv0.weight` [3 C, D], the oldest of three taps first. All functions take parameters
by name [N, ...].
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


TAPS = 3
"""Frames that each convolution joins; their distance doubles from layer to layer."""


def n_convolutions(history: int) -> int:
    """Return how many layers it takes until the last frame depends on all of `history`.

    n layers reach 1 + 2 (1 + 2 + ... + 2^(n-1)) = 2^(n+1) - 1 frames.
    """
    return max(1, history.bit_length() - 1)


def encoder_shapes(encoder: Encoder, frame_dim: int, history: int) -> Shapes:
    """Return the names and shapes of an encoder's parameters, for H frames of G numbers."""
    if encoder.kind == "tcn":
        shapes: Shapes = {}
        for i in range(n_convolutions(history)):
            n_in = encoder.size if i else frame_dim
            shapes[f"encoder.conv{i}.weight"] = (TAPS * n_in, encoder.size)
            shapes[f"encoder.conv{i}.bias"] = (1, encoder.size)
        return shapes
    in_dim = frame_dim * history
    size = CELLS[encoder.kind].gates * encoder.size
    return {
        "encoder.input.weight": (in_dim, size),
        "encoder.input.bias": (1, size),
        "encoder.state.weight": (encoder.size, size),
        "encoder.state.bias": (1, size),
    }


def init_encoder(
    encoder: Encoder, nets: StackedNets, generators: Sequence[torch.Generator]
) -> None:
    """Fill an encoder as torch does; row n from generators[n].

    U(+-1 / sqrt(D)) in recurrent layers, and U(+-1 / sqrt(inputs)) in convolutions.
    """
    for name in [name for name in nets.views if name.startswith("encoder.")]:
        for n, generator in zip(range(len(nets.rows)), generators, strict=True):
            row, of_weight = nets.own(n, name), name.replace("bias", "weight")
            inputs = encoder.size if encoder.memory_dim else len(nets.own(n, of_weight))
            drawn = torch.empty(row.shape, dtype=row.dtype)
            row.copy_(drawn.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator))


def convolve(params: Params, frames: Tensor) -> Tensor:
    """Return the features [N, B, D] of the last of normalised frames [N, B, H, G].

    Each layer joins a frame with those 2^i and 2 * 2^i steps before it, 0 before the first.
    """
    n, batch, history, _ = frames.shape
    x = frames
    for i in range(n_convolutions(history)):
        apart = 2**i
        before = torch.nn.functional.pad(x, (0, 0, (TAPS - 1) * apart, 0))
        taps = [before[:, :, k * apart : k * apart + history] for k in range(TAPS)]
        weight, bias = params[f"encoder.conv{i}.weight"], params[f"encoder.conv{i}.bias"]
        x = affine(torch.cat(taps, -1).flatten(1, 2), weight, bias).relu()
        x = x.view(n, batch, history, -1)
    return x[:, :, -1]


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
