"""Memories: who is near, what they say, and how it is mixed."""

import pytest
import torch

from dpd.policies import memory
from dpd.policies.memory import Neighbours, mix, scaled, unit


def filled(n=2, m=50, d=4, k=3, tau=0.5):
    g = torch.Generator().manual_seed(0)
    keys = unit(torch.randn(n, m, d, generator=g))
    return Neighbours.of(keys, torch.rand(n, m, 2, generator=g) * 2 - 1, k, tau)


def test_the_nearest_are_found_by_distance():
    kept, query = filled(), unit(torch.randn(2, 7, 4))
    _, index = kept.find(query)
    expected = torch.cdist(query, kept.keys).topk(3, largest=False).indices
    assert torch.equal(index, expected)


def test_on_the_sphere_they_weigh_as_their_cosine_does():
    kept, query = filled(), unit(torch.randn(2, 7, 4))
    similarity, index = kept.find(query)
    cosine = (query @ kept.keys.mT).gather(2, index)
    torch.testing.assert_close(kept.weigh(similarity), (cosine / 0.5).softmax(-1))


def test_the_answer_is_the_weighted_mean_of_the_nearest():
    # Keys at 0, 1 and 9 on a line; query 0: similarities 0 and -1/2, weights 1 : e^-1 at tau 1/2.
    keys = torch.tensor([[[0.0], [1.0], [9.0]]])
    actions = torch.tensor([[[1.0], [0.0], [-1.0]]])
    found = Neighbours.of(keys, actions, 2, 0.5).answer(torch.zeros(1, 1, 1))
    assert found.item() == pytest.approx(1 / (1 + torch.e**-1), rel=1e-6)


def test_fewer_entries_than_neighbours_all_answer():
    kept = filled(m=2, k=8)
    assert kept.k == 2 and kept.answer(unit(torch.randn(2, 3, 4))).shape == (2, 3, 2)


def test_queries_in_parts_give_the_same(monkeypatch):
    kept, query = filled(), unit(torch.randn(2, 33, 4))
    whole = kept.answer(query)
    monkeypatch.setattr(memory, "MAX_SIMILARITIES", 300)  # three queries at once
    torch.testing.assert_close(kept.answer(query), whole)


def test_weight_one_is_the_own_action_whatever_the_others_say():
    own, found = torch.tensor([[[0.3]], [[0.3]]]), torch.tensor([[[float("nan")]], [[0.7]]])
    mixed = mix(own, found, torch.tensor([1.0, 0.5]))
    assert mixed[0].item() == own[0].item() and mixed[1].item() == pytest.approx(0.5)


def test_observations_are_scaled_so_that_their_size_does_not_count():
    # Two states that differ by 1 in every dimension are 1 apart, in 4 dimensions as in 400.
    for dim in (4, 400):
        distance = (scaled(torch.ones(dim)) - scaled(torch.zeros(dim))).norm()
        assert distance.item() == pytest.approx(1)
