"""PPO's loss and its written-out gradient."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dpd.agents.dist import DiagGaussian
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.ppo_loss import Samples, ppo_loss

A = 2
SMALL = PPOConfig(n_envs=4, n_steps=16, minibatch_size=16, epochs=3, hidden=(16, 16))


def test_loss_of_three_samples_worked_by_hand() -> None:
    # Clipped to [0.8, 1.2]: min(1.5, 1.2) = 1.2; min(-0.5, -0.8) = -0.8; min(2, 2) = 2.
    # Policy: -(1.2 - 0.8 + 2) / 3 = -0.8. Value: (1 + 0 + 4) / 3 = 5/3.
    # Entropy of a unit Gaussian: (1 + log 2 pi) / 2. Loss: -0.8 + 0.5 * 5/3 - 0.1 * entropy
    config = replace(SMALL, clip=0.2, value_coef=0.5, entropy_coef=0.1)
    dist = DiagGaussian(torch.zeros(1, 3, 1), torch.zeros(1, 1, 1))
    act = torch.zeros(1, 3, 1)
    wanted = torch.tensor([[1.5, 0.5, 1.0]])
    data = Samples(
        obs=torch.zeros(1, 3, 0),
        act=act,
        logp=-0.5 * math.log(2 * math.pi) - wanted.log(),
        adv=torch.tensor([[1.0, -1.0, 2.0]]),
        ret=torch.tensor([[1.0, 1.0, 0.0]]),
        value=torch.zeros(1, 3),
    )
    clipped = ppo_loss(dist, torch.tensor([[0.0, 1.0, 2.0]]), data, config)
    loss, ratio, metrics = clipped.loss, clipped.ratio, clipped.metrics
    entropy = 0.5 * (1 + math.log(2 * math.pi))
    assert ratio[0].tolist() == pytest.approx([1.5, 0.5, 1.0])
    assert loss.tolist() == pytest.approx([-0.8 + 0.5 * 5 / 3 - 0.1 * entropy])
    assert metrics["loss/policy"].tolist() == pytest.approx([-0.8])
    assert metrics["loss/value"].tolist() == pytest.approx([5 / 3])


def test_weights_are_factors_of_the_advantages() -> None:
    # ratios 1: min(w A, w A) = (1/2 - 3/4) / 2; the gradient by logp is -w A / 2
    zero, weight = torch.zeros(1, 2, 1), torch.tensor([[0.5, 0.25]])
    adv, rest = torch.tensor([[1.0, -3.0]]), torch.zeros(1, 2)
    logp = torch.full((1, 2), -0.5 * math.log(2 * math.pi))
    data = Samples(zero, zero + 1, logp - 0.5, adv, rest, rest, weight)
    mean = zero.clone().requires_grad_()
    clipped = ppo_loss(DiagGaussian(mean, torch.zeros(1, 1, 1)), rest, data, SMALL)
    assert clipped.policy.tolist() == pytest.approx([0.125])
    (grad,) = torch.autograd.grad(clipped.loss.sum(), mean)
    assert grad.flatten().tolist() == pytest.approx([-0.25, 0.375])


def test_the_value_loss_within_a_bound_worked_by_hand() -> None:
    # Old values 0, bound 0.2; returns 1, 1, -1, 0.1 and values 0.1, 0.5, 0.5, 0.1.
    # 1 within the bound: 0.9^2 = 0.81, which moves the value by 0.9.
    # 2 beyond it towards the return: larger of 0.5^2 and (1 - 0.2)^2 = 0.64; it moves nothing.
    # 3 beyond it away from the return: larger of 1.5^2 = 2.25 and 1.2^2; it moves by -1.5.
    # 4 there is nothing to move.
    config = replace(SMALL, value_clip=0.2, value_coef=0.25)
    zero = torch.zeros(1, 4, 1)
    data = Samples(
        obs=zero,
        act=zero,
        logp=torch.full((1, 4), -0.5 * math.log(2 * math.pi)),
        adv=torch.zeros(1, 4),
        ret=torch.tensor([[1.0, 1.0, -1.0, 0.1]]),
        value=torch.zeros(1, 4),
    )
    value = torch.tensor([[0.1, 0.5, 0.5, 0.1]], requires_grad=True)
    clipped = ppo_loss(DiagGaussian(zero, torch.zeros(1, 1, 1)), value, data, config)
    expected = (0.81 + 0.64 + 2.25 + 0) / 4
    assert clipped.metrics["loss/value"].tolist() == pytest.approx([expected])
    assert clipped.loss.tolist() == pytest.approx([0.25 * expected])
    (grad,) = torch.autograd.grad(clipped.loss.sum(), value)
    # coef * 2 * -error / 4
    assert grad[0].tolist() == pytest.approx([-0.1125, 0.0, 0.1875, 0.0])


@pytest.mark.parametrize("value_clip", [None, 0.3])
def test_the_written_out_gradient_is_that_of_the_textbook_formula(
    value_clip: float | None,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    config = replace(SMALL, clip=0.2, value_coef=0.7, entropy_coef=0.3, value_clip=value_clip)
    inputs = [x.requires_grad_() for x in (draw(2, 32, A), draw(2, 1, A) * 0.1, draw(2, 32))]
    mean, log_std, value = inputs
    act = mean.detach() + draw(2, 32, A)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    data = Samples(
        torch.zeros(2, 32, 0),
        act,
        normal.log_prob(act).detach() + 0.3 * draw(2, 32),
        draw(2, 32),
        draw(2, 32),
        value.detach() + 0.5 * draw(2, 32),
    )
    on_ratio, on_loss = draw(2, 32), draw(2)

    ours, ratio, *_ = ppo_loss(DiagGaussian(mean, log_std), value, data, config)
    got = torch.autograd.grad((ours * on_loss).sum() + (ratio * on_ratio).sum(), inputs)

    textbook = (normal.log_prob(act) - data.logp).exp()
    surrogate = torch.min(textbook * data.adv, textbook.clamp(0.8, 1.2) * data.adv)
    square = (data.ret - value).square()
    if value_clip is not None:  # OpenAI Baselines' ppo2
        near = data.value + (value - data.value).clamp(-value_clip, value_clip)
        square = torch.maximum(square, (data.ret - near).square())
    loss = -surrogate.mean(1) + 0.7 * square.mean(1)
    loss = loss - 0.3 * normal.entropy().mean(1)
    wanted = torch.autograd.grad((loss * on_loss).sum() + (textbook * on_ratio).sum(), inputs)
    assert 0.1 < ((textbook - 1).abs() > 0.2).double().mean() < 0.9  # both sides of the clip
    torch.testing.assert_close(ours, loss, rtol=1e-12, atol=1e-12)
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
