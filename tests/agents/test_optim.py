import pytest
import torch
from torch import Tensor

from dpd.agents.optim import StackedAdam, StackedSGD, clip_grad_norm

N, D, STEPS = 3, 37, 20  # 37: no multiple of a vector register


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def leaf(dtype: torch.dtype) -> Tensor:
    return numbers(N, D, seed=0, dtype=dtype).requires_grad_()


def separate_adams(start: Tensor, lr: list[float], fused: bool) -> Tensor:
    """Return where torch's own Adam takes each row, one optimizer per row."""
    rows = [row.detach().clone().requires_grad_() for row in start]
    optimizers = [
        torch.optim.Adam([row], lr=x, eps=1e-5, fused=fused)
        for row, x in zip(rows, lr, strict=True)
    ]
    for t in range(STEPS):
        grad = numbers(N, D, seed=t + 1, dtype=start.dtype)
        for row, g, optimizer in zip(rows, grad, optimizers, strict=True):
            row.grad = g.clone()
            optimizer.step()
    return torch.stack([row.detach() for row in rows])


def stacked_adam(param: Tensor, lr: list[float]) -> StackedAdam:
    optimizer = StackedAdam(param, lr, eps=1e-5)
    for t in range(STEPS):
        optimizer.step(numbers(N, D, seed=t + 1, dtype=param.dtype))
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alike_rows_move_bit_for_bit_as_under_torchs_fused_adam(dtype: torch.dtype) -> None:
    param = leaf(dtype)
    expected = separate_adams(param, [1e-2] * N, fused=True)
    stacked_adam(param, [1e-2] * N)
    assert torch.equal(param, expected)


@pytest.mark.parametrize("lr", [[1e-2, 1e-2, 1e-2], [1e-2, 3e-4, 1e-3]])
def test_rows_move_as_under_separate_adams_of_their_own_learning_rate(lr: list[float]) -> None:
    param = leaf(torch.float64)
    expected = separate_adams(param, lr, fused=False)
    stacked_adam(param, lr)
    torch.testing.assert_close(param.detach(), expected, rtol=0, atol=1e-12)


def test_an_inactive_row_changes_in_nothing() -> None:
    param = leaf(torch.float64)
    optimizer = stacked_adam(param, [1e-2] * N)  # by now row 1 has momentum
    state = (param, optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.steps)
    before = [x.detach().clone() for x in state]
    optimizer.step(numbers(N, D, seed=99), active=[True, False, True])
    for new, old in zip(state, before, strict=True):
        assert torch.equal(new[1], old[1])
        assert not torch.equal(new[0], old[0]) and not torch.equal(new[2], old[2])


def test_a_row_that_paused_goes_on_with_its_own_step_count() -> None:
    # Row 0 steps at t = 1, 2, row 1 at t = 2 only: as an Adam that saw just that gradient.
    # First step of Adam: lr g / (|g| + eps), bias corrections cancel.
    param = leaf(torch.float64)
    start = param.detach().clone()
    optimizer = StackedAdam(param, [0.1] * N, eps=1e-5)
    grad = numbers(N, D, seed=5)
    optimizer.step(numbers(N, D, seed=4), active=[True, False, False])
    optimizer.step(grad, active=[True, True, False])
    assert optimizer.steps.tolist() == [2, 1, 0]
    expected = start[1] - 0.1 * grad[1] / (grad[1].abs() + 1e-5)
    torch.testing.assert_close(param[1].detach(), expected, rtol=1e-12, atol=1e-12)


def test_each_row_is_clipped_as_torch_clips_it() -> None:
    grad = numbers(N, D, seed=3) * torch.tensor([[0.01], [1.0], [100.0]], dtype=torch.float64)
    rows = [torch.zeros(D, dtype=torch.float64, requires_grad=True) for _ in range(N)]
    norms = []
    for row, g in zip(rows, grad, strict=True):
        row.grad = g.clone()
        norms.append(torch.nn.utils.clip_grad_norm_([row], 0.5))
    found = clip_grad_norm(grad, 0.5)
    torch.testing.assert_close(found, torch.stack(norms), rtol=1e-12, atol=0)
    for g, row in zip(grad, rows, strict=True):
        torch.testing.assert_close(g, row.grad, rtol=1e-12, atol=0)
    # 37 normal numbers: norms near 0.06, 6 and 600, so the first is left as it is
    assert found[0] < 0.5 < found[1] and float(grad[2].norm()) == pytest.approx(0.5, rel=1e-6)


def test_a_learning_rate_is_wanted_for_every_row() -> None:
    with pytest.raises(ValueError, match="2 learning rates for 3 learners"):
        StackedAdam(leaf(torch.float64), [1e-3, 1e-3])


# --- SGD ---


@pytest.mark.parametrize("lr", [[1e-2, 1e-2, 1e-2], [1e-2, 3e-4, 1e-3]])
def test_rows_move_as_under_torchs_sgd_with_nesterovs_momentum(lr: list[float]) -> None:
    param = leaf(torch.float64)
    rows = [row.detach().clone().requires_grad_() for row in param]
    separate = [
        torch.optim.SGD([row], lr=x, momentum=0.9, nesterov=True)
        for row, x in zip(rows, lr, strict=True)
    ]
    stacked = StackedSGD(param, lr)
    for t in range(STEPS):
        grad = numbers(N, D, seed=t + 1)
        stacked.step(grad.clone())
        for row, g, optimizer in zip(rows, grad, separate, strict=True):
            row.grad = g.clone()
            optimizer.step()
    expected = torch.stack([row.detach() for row in rows])
    torch.testing.assert_close(param.detach(), expected, rtol=0, atol=1e-12)


def test_under_sgd_too_an_inactive_row_changes_in_nothing() -> None:
    param = leaf(torch.float64)
    optimizer = StackedSGD(param, [1e-2] * N)
    optimizer.step(numbers(N, D, seed=1))  # by now row 1 has momentum
    before = param.detach().clone(), optimizer.velocity.clone()
    optimizer.step(numbers(N, D, seed=2), active=[True, False, True])
    for new, old in zip((param.detach(), optimizer.velocity), before, strict=True):
        assert torch.equal(new[1], old[1])
        assert not torch.equal(new[0], old[0]) and not torch.equal(new[2], old[2])


def test_under_sgd_too_a_learning_rate_is_wanted_for_every_row() -> None:
    with pytest.raises(ValueError, match="2 learning rates for 3 learners"):
        StackedSGD(leaf(torch.float64), [1e-3, 1e-3])
