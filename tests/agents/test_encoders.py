"""Recurrent layers: each row of a stack against torch's own, and what sequences do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpd.agents.config import Encoder
from dpd.agents.encoders import (
    TAPS,
    convolve,
    encode,
    encode_along,
    encoder_shapes,
    features_of,
    init_encoder,
    n_convolutions,
)
from dpd.agents.nets import StackedNets

F64 = torch.float64
N, B, L, F, D = 3, 4, 6, 5, 7
MODULES: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM}
KINDS = pytest.mark.parametrize("kind", MODULES)


class Stack:
    """N recurrent layers of random weights, and the same as modules of torch."""

    def __init__(self, kind: Any) -> None:
        torch.manual_seed(0)
        self.encoder = Encoder(kind=kind, size=D)
        self.nets = StackedNets(encoder_shapes(self.encoder, F, 1), N, "tanh", F64)
        self.modules = [MODULES[kind](F, D, batch_first=True, dtype=F64) for _ in range(N)]
        for n, module in enumerate(self.modules):
            for ours, theirs in (("input", "ih"), ("state", "hh")):
                weight = getattr(module, f"weight_{theirs}_l0").detach()
                self.nets.views[f"encoder.{ours}.weight"][n] = weight.T
                bias = getattr(module, f"bias_{theirs}_l0").detach()
                self.nets.views[f"encoder.{ours}.bias"][n] = bias
        self.x = torch.randn(N, B, L, F, dtype=F64)
        self.memory = torch.randn(N, B, self.encoder.memory_dim, dtype=F64)

    def theirs(self, n: int, begin: Tensor) -> tuple[Tensor, Tensor]:
        """Return torch's h of all steps [B, L, D], and the memory [B, S] after the last."""
        state = begin.unsqueeze(0).chunk(begin.shape[-1] // D, -1)
        given = state if len(state) > 1 else state[0]
        out, last = self.modules[n](self.x[n], given)
        return out, torch.cat(last, -1)[0] if isinstance(last, tuple) else last[0]

    def stored(self, *first: tuple[int, int]) -> Tensor:
        """Return memories [N, B, L, S] stored with the steps: the true one at the beginning.

        Episodes begin at the steps `first`, of sequence b at step t.
        """
        memories = torch.full((N, B, L, self.memory.shape[-1]), 9.0, dtype=F64)
        memories[:, :, 0] = self.memory
        for b, t in first:
            memories[:, b, t] = 0
        return memories


@KINDS
def test_a_step_of_each_row_is_that_of_torch(kind: str) -> None:
    stack = Stack(kind)
    after = stack.memory
    for t in range(L):
        after = encode(stack.encoder, stack.nets.views, stack.x[:, :, t], after)
    for n in range(N):
        out, last = stack.theirs(n, stack.memory[n])
        torch.testing.assert_close(after[n], last, rtol=0, atol=1e-12)
        torch.testing.assert_close(features_of(stack.encoder, after[n]), out[:, -1])


@KINDS
def test_sequences_and_their_gradients_are_those_of_torch(kind: str) -> None:
    stack = Stack(kind)
    after = encode_along(stack.encoder, stack.nets.named(), stack.x, stack.stored())
    h, weight = features_of(stack.encoder, after), torch.randn(B, L, D, dtype=F64)
    (h * weight).sum().backward()
    assert stack.nets.flat.grad is not None
    parts = stack.nets.flat.grad.split(sizes(stack.nets), 1)
    grads = dict(zip(stack.nets.shapes, parts, strict=True))
    for n, module in enumerate(stack.modules):
        out, _ = stack.theirs(n, stack.memory[n])
        torch.testing.assert_close(h[n], out, rtol=0, atol=1e-12)
        (out * weight).sum().backward()
        for ours, theirs in (("input.weight", "weight_ih"), ("state.bias", "bias_hh")):
            expected = getattr(module, f"{theirs}_l0").grad.t().flatten()
            found = grads[f"encoder.{ours}"][n]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def sizes(nets: StackedNets) -> list[int]:
    return [view[0].numel() for view in nets.views.values()]


@KINDS
def test_an_episode_that_begins_inside_a_sequence_begins_without_memory(kind: str) -> None:
    stack = Stack(kind)
    after = encode_along(stack.encoder, stack.nets.views, stack.x, stack.stored((1, 3), (2, 0)))
    whole = encode_along(stack.encoder, stack.nets.views, stack.x, stack.stored())
    assert torch.equal(after[:, [0, 3]], whole[:, [0, 3]])
    assert torch.equal(after[:, 1, :3], whole[:, 1, :3])
    begin = torch.zeros_like(stack.memory)
    for b, t in ((1, 3), (2, 0)):
        memory = begin[:, b : b + 1]
        for k in range(t, L):
            x = stack.x[:, b : b + 1, k]
            memory = encode(stack.encoder, stack.nets.views, x, memory)
            torch.testing.assert_close(after[:, b, k], memory[:, 0], rtol=0, atol=1e-12)


def test_the_memory_of_an_lstm_is_h_and_c() -> None:
    # all parameters 0: gates 1/2 and cell input 0, so c = c / 2 and h = tanh(c / 2) / 2
    encoder = Encoder(kind="lstm", size=1)
    nets = StackedNets(encoder_shapes(encoder, 1, 1), 1, "tanh", F64)
    memory = torch.tensor([[[0.3, 1.0]]], dtype=F64)
    after = encode(encoder, nets.views, torch.ones(1, 1, 1, dtype=F64), memory)
    assert after.flatten().tolist() == pytest.approx([0.5 * 0.46211715726, 0.5])


def test_a_gru_forgets_by_half_if_all_parameters_are_zero() -> None:
    # gates 1/2, candidate 0: h = (1 - 1/2) 0 + 1/2 h
    encoder = Encoder(kind="gru", size=1)
    nets = StackedNets(encoder_shapes(encoder, 1, 1), 1, "tanh", F64)
    memory = torch.tensor([[[0.3]]], dtype=F64)
    after = encode(encoder, nets.views, torch.ones(1, 1, 1, dtype=F64), memory)
    assert after.item() == pytest.approx(0.15)


# --- Convolutions ---


@pytest.mark.parametrize("history", [2, 3, 8, 15])
def test_the_last_frame_depends_on_all_others_through_the_layers_of_torch(history: int) -> None:
    encoder = Encoder(kind="tcn", size=D)
    nets = StackedNets(encoder_shapes(encoder, F, history), N, "tanh", F64)
    init_encoder(encoder, nets, [torch.Generator().manual_seed(n) for n in range(N)])
    frames = torch.randn(N, B, history, F, dtype=F64, requires_grad=True)
    found = convolve(nets.named(), frames)
    for n in range(N):
        x = frames[n].mT
        for i in range(n_convolutions(history)):
            weight = nets.views[f"encoder.conv{i}.weight"][n].unflatten(0, (TAPS, -1))
            bias = nets.views[f"encoder.conv{i}.bias"][n, 0]
            x = nn.functional.pad(x, (2 * 2**i, 0))
            x = nn.functional.conv1d(x, weight.permute(2, 1, 0), bias, dilation=2**i).relu()
        torch.testing.assert_close(found[n], x[..., -1], rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(found.sum(), frames)
    assert (grad.abs().sum((0, 1, 3)) > 0).all()


def test_layers_are_as_many_as_reach_the_first_frame() -> None:
    # three taps, twice as far apart in each layer: 3, 7, 15 and 31 frames
    counts = [n_convolutions(history) for history in (2, 3, 4, 7, 8, 15, 16, 31, 32)]
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4, 5]
