"""Losses of retrieval, worked out for batches of three."""

import math

import pytest
import torch

from dpd.distill.retrieval import contrastive_loss, others_answer, relational_loss
from dpd.policies.memory import unit

F64 = torch.float64
# Two keys in one place and one at a right angle; tau = 1.
KEYS = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=F64)


def test_contrast_compares_a_state_with_all_others_by_their_actions():
    # Actions 0, 0 and far off: w_01 = w_10 = 1, w_02 = 0, and the third weighs both others alike.
    # States 0 and 1: -log(e / (e + 1)); state 2: -log(1 / 2).
    actions = torch.tensor([[[0.0], [0.0], [1.0]]], dtype=F64)
    found = contrastive_loss(KEYS, actions, torch.tensor([0.1], dtype=F64), 1.0)
    near = math.log(1 + math.exp(-1))
    assert found.item() == pytest.approx((2 * near + math.log(2)) / 3)


def test_a_wide_bandwidth_finds_all_actions_alike():
    # w = 1/2 each: for states 0 and 1 the mean of -log(e / (e + 1)) and -log(1 / (e + 1)).
    actions = torch.tensor([[[0.0], [0.0], [1.0]]], dtype=F64)
    found = contrastive_loss(KEYS, actions, torch.tensor([1e6], dtype=F64), 1.0)
    near, far = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    assert found.item() == pytest.approx((2 * 0.5 * (near + far) + math.log(2)) / 3)


def test_actions_far_apart_underflow_to_no_number_that_is_nan():
    actions = torch.tensor([[[0.0], [500.0], [-900.0]]])
    assert contrastive_loss(KEYS.float(), actions, torch.tensor([1e-3]), 0.1).isfinite().all()


def test_the_relational_loss_is_a_divergence_without_the_state_itself():
    assert relational_loss(KEYS, KEYS, 1.0).item() == 0.0
    # Query 0 turned to the third key: p = (e, 1) / (e + 1) over keys 1 and 2, q = (1, e) / (e + 1);
    # KL = (e - 1) / (e + 1) * log e. Its similarity to its own key counts nowhere.
    x = KEYS.clone()
    x[0, 0] = torch.tensor([0.0, 1.0])
    found = relational_loss(x, KEYS, 1.0)
    assert found.item() == pytest.approx((math.e - 1) / (math.e + 1) / 3)


def test_it_moves_queries_and_never_keys():
    x = unit(torch.randn(2, 5, 4, dtype=F64)).requires_grad_()
    z = unit(torch.randn(2, 5, 4, dtype=F64)).requires_grad_()
    loss = relational_loss(x, z, 0.1)
    of_x, of_z = torch.autograd.grad(loss.sum(), [x, z], allow_unused=True)
    assert loss.shape == (2,) and bool((of_x != 0).any()) and of_z is None


def test_no_state_answers_itself():
    torch.manual_seed(0)
    z = unit(torch.randn(1, 6, 4, dtype=F64))
    actions = torch.randn(1, 6, 2, dtype=F64)
    before = others_answer(z, z, actions, 0.1)
    actions[0, 3] += 100  # its own answer stays, and others' change
    after = others_answer(z, z, actions, 0.1)
    assert torch.equal(before[0, 3], after[0, 3])
    assert not torch.allclose(before[0, [0, 1, 2, 4, 5]], after[0, [0, 1, 2, 4, 5]])
