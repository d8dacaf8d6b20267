"""Losses of scaffolding, worked out for single states."""

import math

import pytest
import torch

from dpd.distill.scaffold import (
    capped,
    guide_loss,
    mixture_nll,
    responsibility,
    spent,
    student_loss,
)

F64 = torch.float64
NONE = torch.tensor([[-torch.inf]], dtype=F64)


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=F64)


def test_the_mixture_is_normalised_and_worked_out():
    # pi = 0.4, b = 0.25, g = 0.8: (0.4 + 0.2) / 1.8 = 1/3; responsibility 0.4 / 0.6 = 2/3.
    logp, log_b, log_g = row(0.4).log(), row(0.25).log(), row(0.8).log()
    assert mixture_nll(logp, log_b, log_g).item() == pytest.approx(math.log(3))
    assert responsibility(logp, log_b, log_g).item() == pytest.approx(2 / 3)


def test_its_gradient_is_that_of_the_likelihood_times_the_responsibility():
    logp = row(-3.0, 0.5, 2.0).requires_grad_()
    log_b, log_g = row(-1.0, -1.0, -1.0), row(0.9, 0.5, 0.1).log()
    (grad,) = torch.autograd.grad(mixture_nll(logp, log_b, log_g).sum(), logp)
    torch.testing.assert_close(grad, -responsibility(logp, log_b, log_g).detach())


@pytest.mark.parametrize("logp", [-800.0, -1.3, 5.0])
def test_no_guide_leaves_the_likelihood_exactly(logp):
    x = row(logp).requires_grad_()
    nll = mixture_nll(x, row(-1.0), NONE)
    assert nll.item() == -logp
    assert torch.autograd.grad(nll.sum(), x)[0].item() == -1.0


def test_a_hopeless_state_moves_nothing_and_overflows_nothing():
    x = row(-1e4).requires_grad_()
    nll = mixture_nll(x, row(-1.0), row(0.5).log())
    # what is left is the broad part: -log(0.5 e^-1 / 1.5) = 1 + log 3
    assert nll.item() == pytest.approx(1 + math.log(3))
    assert torch.autograd.grad(nll.sum(), x)[0].item() == 0.0


def test_the_cap_scales_the_guide_where_it_takes_too_much():
    # Means 0.75 and 0.25 under a cap of 0.5: the first row is scaled by 2/3, the second is not.
    g = torch.tensor([[0.9, 0.6], [0.4, 0.1]], dtype=F64)
    torch.testing.assert_close(
        capped(g.log(), 0.5).exp(), torch.tensor([[0.6, 0.4], [0.4, 0.1]], dtype=F64)
    )


def test_a_guide_near_one_everywhere_can_still_come_down():
    # With the scale in the gradient all of it would cancel.
    logit = torch.full((1, 4), 3.0, dtype=F64, requires_grad=True)
    g = capped(torch.nn.functional.logsigmoid(logit), 0.5).exp()
    (grad,) = torch.autograd.grad(g.sum(), logit)
    assert bool((grad > 0).all())


def test_the_budget_counts_large_errors_alike_and_divides_by_the_students_errors():
    # d = 1, 2.5, 50 count 0.2, 0.5, 1; g = 1, 0.4, 0.5: 0.2 + 0.2 + 0.5 = 0.9, over 2 errors.
    found = spent(row(1.0, 0.4, 0.5), row(1.0, 2.5, 50.0), torch.tensor([[False, True, True]]))
    assert found.item() == pytest.approx(0.45)
    none = spent(row(1.0, 0.4, 0.5), row(1.0, 2.5, 50.0), torch.tensor([[False, False, False]]))
    assert none.item() == pytest.approx(0.9)  # never over nothing


def test_losses_are_means_inside_a_learner():
    nll, square = row(1.0, 3.0), row(0.5, 1.5)
    assert student_loss(nll, square, 0.1).tolist() == pytest.approx([2.1])
    excess, price = torch.tensor([0.2, -0.2]), torch.tensor([5.0, 5.0])
    found = guide_loss(nll.expand(2, -1), excess, price)
    assert found.tolist() == pytest.approx([3.0, 2.0])  # being under the budget earns nothing
