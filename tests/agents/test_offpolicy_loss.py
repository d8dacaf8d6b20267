import pytest
import torch
from torch import Tensor

from dpd.agents.dist import DiagGaussian
from dpd.agents.offpolicy_loss import critic_loss
from dpd.agents.sac import (
    LOG_STD_MAX,
    gaussian,
    gaussian_gradient,
    soft_loss,
    temperature_gradient,
)
from dpd.agents.td3 import deterministic_loss

N, C, B, A = 2, 3, 8, 4


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=tolerance)


def test_critic_loss_worked_by_hand() -> None:
    # target 1, 2; errors 1, -1 and 2, 0: mean squares 1 and 2, together 3; half of that for SAC
    q = torch.tensor([[[2.0, 1.0], [3.0, 2.0]]])
    found = critic_loss(q, torch.tensor([[1.0, 2.0]]), 0.5)
    assert found.loss.tolist() == [1.5]
    assert found.metrics["train/q"].tolist() == [2.0]


@pytest.mark.parametrize("coef", [0.5, 1.0])
def test_the_critics_gradient_is_autograds(coef: float) -> None:
    q, target = draw(0, N, C, B).requires_grad_(), draw(1, N, B)
    found = critic_loss(q, target, coef)
    (expected,) = torch.autograd.grad(found.loss.sum(), q)
    same(found.grads[0], expected)


def value(act: Tensor) -> Tensor:
    """Return some critic's values of act [N, B, A] -> [N, B]."""
    return (act * draw(2, N, B, A) - act.square()).sum(-1)


def gradient_of_value(act: Tensor) -> Tensor:
    """Return the gradient of the sum of -mean_B of those values."""
    return -(draw(2, N, B, A) - 2 * act) / B


def test_a_deterministic_policys_gradient_is_autograds() -> None:
    u = draw(0, N, B, A).requires_grad_()
    act = u.tanh()
    loss = -value(act).mean(1)
    (expected,) = torch.autograd.grad(loss.sum(), u)
    found = deterministic_loss(value(act), act.detach(), gradient_of_value(act.detach()))
    same(found.loss, loss)
    same(found.grads[0], expected)


def test_a_soft_policys_gradient_is_autograds_also_where_the_deviation_is_bounded() -> None:
    output = draw(0, N, B, 2 * A)
    output[..., A:] += 1.0
    output[0, 0, A] = LOG_STD_MAX + 1
    output[0, 1, A] = -30.0
    output.requires_grad_()
    noise, alpha = 0.5 * draw(3, N, B, A), torch.tensor([[0.3], [1.7]], dtype=torch.float64)
    dist = gaussian(output)
    u = dist.sample(noise)
    loss = (alpha * dist.logp(u) - value(u.tanh())).mean(1)
    (expected,) = torch.autograd.grad(loss.sum(), output)
    assert expected[0, :2, A].tolist() == [0, 0]

    fixed = DiagGaussian(dist.mean.detach(), dist.log_std.detach(), squashed=True)
    act = u.detach().tanh()
    found = soft_loss(
        value(act), fixed.logp(u.detach()), alpha, fixed, noise, gradient_of_value(act)
    )
    same(found.loss, loss)
    # autograd goes through (u - mean) / std, which loses digits where std is exp(-20)
    same(gaussian_gradient(output.detach(), *found.grads), expected, 1e-9)


def test_the_temperatures_gradient_is_autograds() -> None:
    logp, log_alpha = draw(0, N, B), draw(1, N, 1).requires_grad_()
    loss = -(log_alpha * (logp - 4.0)).mean(1)
    (expected,) = torch.autograd.grad(loss.sum(), log_alpha)
    same(temperature_gradient(logp, -4.0), expected)
