import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from dpd.agents.nets import ACTIVATIONS, Shapes, StackedNets, mlp_shapes
from dpd.agents.optim import StackedAdam

N, SIZES, EXTRA = 3, (5, 8, 7, 2), 4
MODULES: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
SHAPES = {
    **mlp_shapes("net", SIZES),
    "extra": (1, EXTRA),
    **mlp_shapes("other", [SIZES[0], 3]),
}


def sequential(activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(SIZES):
        layers += [nn.Linear(n_in, n_out), MODULES[activation]()]
    return nn.Sequential(*layers[:-1]).double()


def linears(net: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in net if isinstance(layer, nn.Linear)]


def networks(activation: str) -> tuple[list[nn.Sequential], StackedNets]:
    """Return N networks and a stack that holds their weights, one network per row."""
    torch.manual_seed(0)
    nets = [sequential(activation) for _ in range(N)]
    stack = StackedNets(SHAPES, N, activation, torch.float64)
    stack.flat.detach().normal_()
    for n, net in enumerate(nets):
        for i, layer in enumerate(linears(net)):
            stack.views[f"net.{i}.weight"][n] = layer.weight.detach().T
            stack.views[f"net.{i}.bias"][n, 0] = layer.bias.detach()
    return nets, stack


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 6, SIZES[0], generator=generator, dtype=torch.float64)


def by_name(stack: StackedNets, grad: Tensor) -> dict[str, Tensor]:
    """Cut a leaf's gradient [N, D] into those of the named parameters [N, *shape]."""
    parts = grad.split([math.prod(s) for s in SHAPES.values()], dim=1)
    return {k: p.view(N, *s) for (k, s), p in zip(SHAPES.items(), parts, strict=True)}


@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("grad", [True, False])
def test_each_row_computes_what_torch_sequential_computes(activation: str, grad: bool) -> None:
    nets, stack = networks(activation)
    x = inputs()
    expected = torch.stack([net(row) for net, row in zip(nets, x, strict=True)])
    with torch.set_grad_enabled(grad):
        (out,) = stack(x, "net")
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, inputs())  # activations work in place, not on what they were given


@pytest.mark.parametrize("activation", MODULES)
def test_the_leafs_one_gradient_holds_every_layers_gradient(activation: str) -> None:
    nets, stack = networks(activation)
    x = inputs()
    (out,) = stack(x, "net")
    (grad,) = torch.autograd.grad(out.square().sum(), stack.flat)
    found = by_name(stack, grad)
    for n, net in enumerate(nets):
        net(x[n]).square().sum().backward()
        for i, layer in enumerate(linears(net)):
            assert layer.weight.grad is not None and layer.bias.grad is not None
            torch.testing.assert_close(
                found[f"net.{i}.weight"][n].T, layer.weight.grad, rtol=1e-12, atol=1e-12
            )
            torch.testing.assert_close(
                found[f"net.{i}.bias"][n, 0], layer.bias.grad, rtol=1e-12, atol=1e-12
            )


@pytest.mark.parametrize("activation", MODULES)
def test_gradients_are_the_finite_differences_of_all_outputs(activation: str) -> None:
    _, stack = networks(activation)
    x = inputs().requires_grad_()
    names = ("other", "extra", "net")

    def outputs(flat: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return stack(x, *names)

    # gradcheck moves the leaf in place, which the views follow
    assert torch.autograd.gradcheck(outputs, (stack.flat, x), eps=1e-6, atol=1e-6, fast_mode=True)


def test_a_parameter_that_was_not_asked_for_has_gradient_zero() -> None:
    _, stack = networks("tanh")
    out, extra = stack(inputs(), "net", "extra")
    (grad,) = torch.autograd.grad(out.sum() + (3 * extra).sum(), stack.flat)
    found = by_name(stack, grad)
    assert found["extra"].eq(3).all()
    assert found["other.0.weight"].eq(0).all() and found["other.0.bias"].eq(0).all()
    # six samples a row: d sum / d last bias = 6
    assert found["net.2.bias"].eq(6).all()


def test_views_are_the_parameters_memory() -> None:
    stack = StackedNets(SHAPES, N, "tanh")
    stack.views["net.1.bias"][2] = 7.0
    # before net.1.bias lie 5*8 + 8 + 8*7 = 104 numbers of its row; it is 7 long
    assert stack.flat.nonzero().tolist() == [[2, 104 + i] for i in range(7)]
    assert stack.flat.requires_grad and not stack.views["net.1.bias"].requires_grad


def test_orthogonal_weights_are_those_stable_baselines3_draws_from_the_same_seed() -> None:
    gains, seeds = (math.sqrt(2), math.sqrt(2), 0.01), (11, 12, 13)
    stack = StackedNets(SHAPES, N, "tanh", torch.float64)
    stack.init_orthogonal("net", gains, [torch.Generator().manual_seed(s) for s in seeds])
    for n, seed in enumerate(seeds):
        layers = linears(sequential("tanh"))
        torch.manual_seed(seed)
        for i, (layer, gain) in enumerate(zip(layers, gains, strict=True)):
            BasePolicy.init_weights(layer, gain)
            assert torch.equal(stack.views[f"net.{i}.weight"][n].T, layer.weight)
            assert torch.equal(stack.views[f"net.{i}.bias"][n, 0], layer.bias)


def test_a_network_without_input_is_refused() -> None:
    with pytest.raises(ValueError, match="the network net needs an input"):
        StackedNets(SHAPES, N, "tanh")(None, "net")


@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("first", [0, 2])
def test_the_inputs_gradient_alone_is_the_same(activation: str, first: int) -> None:
    _, stack = networks(activation)
    (out,), tape = stack.run(inputs(), "net")
    grad = torch.randn_like(out)
    _, expected = stack.gradient(tape, [grad], wants_x=True)
    assert expected is not None
    found = stack.input_gradient(tape, grad, first)
    torch.testing.assert_close(found, expected[..., first:], rtol=1e-12, atol=1e-12)


def test_every_other_row_shares_its_parameters_with_the_whole() -> None:
    _, stack = networks("tanh")
    part = stack.every(2)
    x = inputs()
    stack.flat.detach()[2] += 1.0
    torch.testing.assert_close(part(x[::2], "net")[0], stack(x, "net")[0][::2])


def test_networks_at_rows_are_copies_of_those_rows() -> None:
    _, stack = networks("tanh")
    part, x = stack.at(torch.tensor([2, 0])), inputs()
    (whole,), _ = stack.run(x, "net")
    (found,), _ = part.run(x[[2, 0]], "net")
    torch.testing.assert_close(found, whole[[2, 0]], rtol=1e-12, atol=1e-12)
    part.flat.zero_()
    assert torch.equal(stack.run(x, "net")[0][0], whole)


def test_a_twin_is_equal_and_apart() -> None:
    _, stack = networks("tanh")
    twin = stack.twin()
    assert torch.equal(twin.flat, stack.flat)
    stack.flat.detach().zero_()
    assert twin.flat.abs().max() > 0


def test_uniform_weights_are_those_of_linear_layers_and_each_rows_own() -> None:
    # U(+-1 / sqrt(in)): deviation bound / sqrt 3
    stack = StackedNets(mlp_shapes("net", (100, 200, 1)), 2, "relu", torch.float64)
    stack.init_uniform("net", [torch.Generator().manual_seed(s) for s in (1, 2)])
    weight, bias = stack.views["net.0.weight"], stack.views["net.0.bias"]
    assert weight.abs().max() <= 0.1 and bias.abs().max() <= 0.1
    assert weight.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    alone = StackedNets(mlp_shapes("net", (100, 200, 1)), 1, "relu", torch.float64)
    alone.init_uniform("net", [torch.Generator().manual_seed(2)])
    assert torch.equal(stack.flat[1], alone.flat[0])
    assert not torch.equal(stack.flat[0], stack.flat[1])


# Padded stacks: row n's own hidden sizes, in the leading block of the widest, 8 and 7.
WIDTHS = ((8, 2), (3, 7), (1, 1))


def row_shapes(hidden: tuple[int, ...]) -> Shapes:
    return {**mlp_shapes("net", (SIZES[0], *hidden, SIZES[-1])), "extra": (1, EXTRA)}


def drawn(rows: Sequence[Shapes], seeds: Sequence[int], activation: str, init: str) -> StackedNets:
    """Return a stack with row n's parameters drawn from seeds[n]."""
    stack = StackedNets.padded(rows, activation, torch.float64)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if init == "uniform":
        stack.init_uniform("net", generators)
    else:
        stack.init_orthogonal("net", (math.sqrt(2), math.sqrt(2), 0.01), generators)
    return stack


def descend(stack: StackedNets, x: Tensor, steps: int) -> None:
    """Take Adam's steps towards outputs of 1 and a parameter of 2."""
    adam = StackedAdam(stack.flat, [1e-2] * len(x))
    for _ in range(steps):
        out, extra = stack(x, "net", "extra")
        loss = (out - 1).square().mean((1, 2)) + (extra - 2).square().mean((1, 2))
        adam.step(torch.autograd.grad(loss.sum(), stack.flat)[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("init", ["uniform", "orthogonal"])
def test_a_padded_row_is_drawn_and_learns_as_a_network_of_its_own_width(
    activation: str, init: str
) -> None:
    rows = [row_shapes(hidden) for hidden in WIDTHS]
    together, x = drawn(rows, (1, 2, 3), activation, init), inputs()
    # 5*8+8 + 8*7+7 + 7*2+2 + 4 = 131 a row; own 48+18+6+4 = 76, 18+28+16+4 = 66, 6+2+4+4 = 16
    assert together.flat.shape == (3, 131)
    assert together.padding is not None
    assert together.padding.sum(1).tolist() == [131 - 76, 131 - 66, 131 - 16]
    alone = [drawn([row], [n + 1], activation, init) for n, row in enumerate(rows)]
    for n, solo in enumerate(alone):
        for name, view in solo.views.items():
            assert torch.equal(together.own(n, name), view[0]), name
    start = together.flat.detach().clone()
    descend(together, x, 20)
    assert not together.flat[together.padding].any()
    assert (together.flat - start)[~together.padding].abs().max() > 0.1
    for n, solo in enumerate(alone):
        descend(solo, x[n : n + 1], 20)
        for name, view in solo.views.items():
            torch.testing.assert_close(together.own(n, name), view[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_zero_is_zero_or_padding_would_not_be_exact(activation: str) -> None:
    assert not ACTIVATIONS[activation].forward_(torch.zeros(3)).any()


def test_an_activation_that_is_not_zero_at_zero_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unfit = ACTIVATIONS["tanh"]._replace(forward_=torch.sigmoid_)  # 1 / 2 at 0
    monkeypatch.setitem(ACTIVATIONS, "sigmoid", unfit)
    with pytest.raises(ValueError, match=r"sigmoid\(0\) is not 0"):
        StackedNets.padded([row_shapes(hidden) for hidden in WIDTHS], "sigmoid")


def test_rows_of_unequal_depth_are_refused() -> None:
    with pytest.raises(ValueError, match="need the same depth"):
        StackedNets.padded([row_shapes((8, 8)), row_shapes((8,))], "tanh")


def test_rows_of_one_width_need_no_padding() -> None:
    stack = drawn([row_shapes((8, 7))] * N, (1, 2, 3), "tanh", "orthogonal")
    plain = StackedNets(row_shapes((8, 7)), N, "tanh", torch.float64)
    assert stack.padding is None and plain.padding is None
    assert stack.shapes == plain.shapes
    assert torch.equal(stack.own(1, "net.1.weight"), stack.views["net.1.weight"][1])


def test_parameters_of_rows_of_other_widths_are_refused() -> None:
    rows = [row_shapes(hidden) for hidden in WIDTHS]
    stack, swapped = (drawn(r, (1, 2, 3), "tanh", "uniform") for r in (rows, rows[::-1]))
    before = stack.flat.detach().clone()
    with pytest.raises(ValueError, match="other widths"):
        stack.load_state(swapped.state())
    assert torch.equal(stack.flat, before)
    for part in (stack.twin(), stack.every(2)):
        assert part.padding is not None and not part.flat[part.padding].any()
        assert torch.equal(part.own(-1, "net.0.weight"), stack.own(2, "net.0.weight"))
