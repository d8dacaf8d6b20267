import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from dpd.agents.dist import DiagGaussian

SHAPE = (3, 5, 4)  # [N, B, A]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


MEAN, LOG_STD, SAMPLE = draw(0, *SHAPE), draw(1, 3, 1, 4), 2 * draw(2, *SHAPE)
NORMAL = Independent(Normal(MEAN, LOG_STD.exp().expand(SHAPE)), 1)


def test_log_probability_and_entropy_are_those_of_torch_distributions() -> None:
    dist = DiagGaussian(MEAN, LOG_STD)
    torch.testing.assert_close(dist.logp(SAMPLE), NORMAL.log_prob(SAMPLE), rtol=1e-12, atol=1e-12)
    entropy = dist.entropy().expand(SHAPE[:2])
    torch.testing.assert_close(entropy, NORMAL.entropy(), rtol=1e-12, atol=1e-12)


def test_squashed_log_probability_is_that_of_torch_distributions() -> None:
    # cache_size=1: torch remembers the sample, and needs no inverse tanh either
    transform = TanhTransform(cache_size=1)
    squashed = TransformedDistribution(NORMAL, [transform])
    dist = DiagGaussian(MEAN, LOG_STD, squashed=True)
    action = dist.action(SAMPLE)
    torch.testing.assert_close(action, transform(SAMPLE), rtol=0, atol=0)
    expected = squashed.log_prob(transform(SAMPLE))
    torch.testing.assert_close(dist.logp(SAMPLE), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sample", [50.0, -50.0])
def test_squashed_log_probability_is_finite_and_right_far_out(
    sample: float, dtype: torch.dtype
) -> None:
    # log(1 - tanh(u)^2) = 2 log 2 - 2|u| to 1e-40 at |u| = 50, where 1 - tanh(u)^2 itself is 0.
    # log N(u; u, 1) = -0.9189385, so logp = -0.9189385 - (1.3862944 - 100) = 97.6947671
    u = torch.tensor([sample], dtype=dtype)
    logp = DiagGaussian(u, torch.zeros(1, dtype=dtype), squashed=True).logp(u)
    assert float(logp) == pytest.approx(97.6947671, rel=1e-6)


def test_mode_lies_in_the_action_box() -> None:
    mean = torch.tensor([2.0, -3.0, 0.5])
    log_std = torch.zeros(3)
    assert DiagGaussian(mean, log_std).mode().tolist() == [1.0, -1.0, 0.5]
    squashed = DiagGaussian(mean, log_std, squashed=True).mode()
    # tanh by its definition, (e^2m - 1) / (e^2m + 1)
    expected = [(math.exp(2 * m) - 1) / (math.exp(2 * m) + 1) for m in (2.0, -3.0, 0.5)]
    assert squashed.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_sample_is_mean_plus_deviation_times_noise() -> None:
    # 1 + 2 * 3 = 7, unsquashed and not clipped; tanh(7) squashed
    mean, log_std, noise = torch.tensor([1.0]), torch.tensor([math.log(2)]), torch.tensor([3.0])
    for squashed, expected in ((False, 7.0), (True, math.tanh(7.0))):
        dist = DiagGaussian(mean, log_std, squashed)
        assert float(dist.sample(noise)) == pytest.approx(7.0)
        assert float(dist.action(dist.sample(noise))) == pytest.approx(expected)


def test_a_squashed_gaussian_refuses_a_closed_form_entropy() -> None:
    with pytest.raises(ValueError, match="no closed-form entropy"):
        DiagGaussian(MEAN, LOG_STD, squashed=True).entropy()
