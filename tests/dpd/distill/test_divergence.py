import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from dpd.agents.dist import STD_FLOOR, DiagGaussian, as_target, divergence, kl

SHAPE = (2, 5, 3)  # [N, B, A]
NO_SAMPLE = torch.empty(0)


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gaussian(seed: int, squashed: bool = False) -> DiagGaussian:
    return DiagGaussian(draw(seed, *SHAPE), draw(seed + 1, 2, 1, 3), squashed)


def as_torch(dist: DiagGaussian) -> Independent:
    return Independent(Normal(dist.mean, dist.log_std.exp().expand(SHAPE)), 1)


P, Q = gaussian(0), gaussian(10)


def test_kl_is_that_of_torch_distributions_in_both_directions() -> None:
    forward, backward = (
        kl_divergence(as_torch(P), as_torch(Q)),
        kl_divergence(as_torch(Q), as_torch(P)),
    )
    assert not torch.allclose(forward, backward)
    torch.testing.assert_close(kl(P, Q), forward, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kl(Q, P), backward, rtol=1e-10, atol=1e-12)


def test_a_target_is_no_surer_than_the_floor_and_inside_the_box_unless_a_tanh_follows() -> None:
    mean = torch.tensor([[2.5, -0.5]])
    plain = as_target(DiagGaussian(mean, torch.tensor([[-9.0, -1.0]])))
    assert plain.mean.tolist() == [[1.0, -0.5]]
    assert plain.log_std.tolist()[0] == pytest.approx([math.log(STD_FLOOR), -1.0])
    squashed = as_target(DiagGaussian(mean, torch.tensor([[-9.0, -1.0]]), True))
    assert squashed.mean.tolist() == [[2.5, -0.5]] and squashed.squashed
    assert torch.equal(squashed.log_std, plain.log_std)


def test_forward_kl_asks_the_target_and_reverse_kl_the_student() -> None:
    student, target = P, Q
    forward = divergence("kl_forward", student, target, NO_SAMPLE)
    reverse = divergence("kl_reverse", student, target, NO_SAMPLE)
    torch.testing.assert_close(forward, kl_divergence(as_torch(target), as_torch(student)))
    torch.testing.assert_close(reverse, kl_divergence(as_torch(student), as_torch(target)))


def test_kl_worked_by_hand() -> None:
    # KL(N(0, 1) || N(1, 2^2)) = log 2 + (1 + 1) / (2 * 4) - 1/2 = 0.6931472 - 0.25
    p = DiagGaussian(torch.zeros(1), torch.zeros(1))
    q = DiagGaussian(torch.ones(1), torch.full((1,), math.log(2)))
    assert float(kl(p, q)) == pytest.approx(math.log(2) - 0.25, rel=1e-6)


def test_kl_of_two_squashed_policies_is_that_before_the_tanh() -> None:
    # KL does not change under a bijection; estimated here from the squashed densities themselves:
    # mean over 40000 samples of log p(a) - log q(a), whose standard error is below 0.01
    p = DiagGaussian(torch.tensor([0.2], dtype=torch.float64), torch.tensor([-0.5]).double(), True)
    q = DiagGaussian(torch.tensor([-0.3], dtype=torch.float64), torch.tensor([0.1]).double(), True)
    u = p.sample(draw(3, 40_000, 1))
    estimate = (p.logp(u) - q.logp(u)).mean()
    assert float(kl(p, q)) == pytest.approx(float(estimate), abs=0.03)
    assert torch.equal(kl(p, q), kl(p._replace(squashed=False), q._replace(squashed=False)))


def test_kl_between_a_squashed_and_a_plain_policy_is_refused() -> None:
    for p, q in ((P, gaussian(10, squashed=True)), (gaussian(0, squashed=True), Q)):
        with pytest.raises(ValueError, match="between a squashed and a plain Gaussian; use mse"):
            kl(p, q)


def test_mse_worked_by_hand() -> None:
    # ((1 - 0)^2 + (2 - 4)^2) / 2 = 2.5; the student's mean is not clipped, so that it can come back
    student = DiagGaussian(torch.tensor([[1.0, 2.0]]), torch.zeros(2))
    sample = torch.tensor([[0.0, 4.0]])
    assert divergence("mse", student, student, sample).tolist() == [2.5]
    # squashed: (tanh(1)^2 + (tanh(2) - 4)^2) / 2
    squashed = divergence("mse", student._replace(squashed=True), student, sample)
    expected = (math.tanh(1) ** 2 + (math.tanh(2) - 4) ** 2) / 2
    assert squashed.tolist() == pytest.approx([expected])


@pytest.mark.parametrize("squashed", [False, True])
def test_huber_is_that_of_torch_on_mean_actions(squashed: bool) -> None:
    student, sample = gaussian(0, squashed), 2 * draw(5, *SHAPE)
    act = student.action(student.mean)
    assert ((act - sample).abs() > 1).any() and ((act - sample).abs() < 1).any()
    expected = torch.nn.functional.huber_loss(act, sample, reduction="none", delta=1.0).mean(-1)
    assert torch.equal(divergence("huber", student, student, sample), expected)


def test_huber_worked_by_hand() -> None:
    # errors 0.5 and 3: (0.5^2 / 2 + (3 - 1/2)) / 2 = 1.3125
    student = DiagGaussian(torch.tensor([[0.5, -1.0]]), torch.zeros(2))
    sample = torch.tensor([[0.0, 2.0]])
    assert divergence("huber", student, student, sample).tolist() == [1.3125]


def test_nll_worked_by_hand() -> None:
    # -log N(1; 0, 1) = 1/2 + log(2 pi) / 2 = 1.4189385, in each of two dimensions
    student = DiagGaussian(torch.zeros(1, 2), torch.zeros(2))
    nll = divergence("nll", student, student, torch.ones(1, 2))
    assert nll.tolist() == pytest.approx([2 * 1.4189385])


def test_an_unknown_divergence_is_named() -> None:
    with pytest.raises(ValueError, match="unknown divergence 'hellinger'"):
        divergence("hellinger", P, Q, NO_SAMPLE)
