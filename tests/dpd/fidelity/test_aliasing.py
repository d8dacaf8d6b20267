"""Aliasing on states whose answer is known."""

import pytest
import torch
from torch import Tensor

from dpd.fidelity.aliasing import aliasing, local_variance


def states(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return independent positions in [-1, 1] and normal velocities of standard deviation 2."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.rand(n, 1, generator=generator) * 2 - 1
    return position, 2 * torch.randn(n, 1, generator=generator)


def test_an_action_that_the_view_does_not_show_is_aliased_by_its_own_variance() -> None:
    position, velocity = states(4000)
    # 4,000 states of variance 4: standard error 4 * sqrt(2 / 4000) = 0.09, and pairs share states
    assert local_variance(position, velocity).mean() == pytest.approx(4, abs=0.4)
    assert aliasing(position, velocity) == pytest.approx(1, abs=0.07)
    # unbiased for any number of neighbours, so one is enough, if noisier
    assert aliasing(position, velocity, k=1) == pytest.approx(1, abs=0.12)


def test_half_of_the_variance_hidden_is_an_aliasing_of_a_half() -> None:
    position, velocity = states(4000)
    # var(position) = 1/3, so that sqrt(12) * position has variance 4, as much as the velocity
    seen = 12**0.5 * position
    assert aliasing(position, seen + velocity) == pytest.approx(0.5, abs=0.05)
    # two actions, each with its own column: the sum of their variances counts
    assert aliasing(position, torch.cat([seen, velocity], 1)) == pytest.approx(0.5, abs=0.05)


def test_a_function_of_the_view_is_aliased_ever_less_by_more_states() -> None:
    found = []
    for n in (200, 800, 3200):
        position, _ = states(n)
        found.append(aliasing(position, torch.sin(3 * position)))
    # neighbours are 1/n apart in one dimension, and its square counts: each time 16 times less
    assert found[0] < 0.05
    assert found[1] < found[0] / 8 and found[2] < found[1] / 8


def test_every_column_of_a_view_counts_alike_whatever_its_unit() -> None:
    position, velocity = states(1000)
    view = torch.cat([position, velocity], 1)
    truth = aliasing(view, velocity)
    units = torch.tensor([1000.0, 0.001])
    assert aliasing(view * units + 5, velocity) == pytest.approx(truth, rel=1e-3)
    # a column that never changes says nothing
    constant = torch.cat([view, torch.full((1000, 1), 7.0)], 1)
    assert aliasing(constant, velocity) == pytest.approx(truth, rel=1e-9)


def test_steps_of_one_episode_do_not_vouch_for_each_other() -> None:
    # 40 episodes, each of 100 steps at nearly one place, with a velocity of its own: the nearest
    # places are those of the same episode
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(40, 1, generator=generator)
    start = torch.rand(40, 1, generator=generator)
    place = (start + torch.linspace(0, 1, 100) * 0.001).reshape(-1, 1)
    velocity = own.expand(40, 100).reshape(-1, 1)
    episodes = torch.arange(40).repeat_interleave(100)
    assert aliasing(place, velocity) < 0.01  # as if the view determined the velocity
    # 40 velocities: the estimate has a standard error of about sqrt(2 / 40) = 0.22
    assert aliasing(place, velocity, episodes) == pytest.approx(1, abs=0.5)


def test_the_result_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    position, velocity = states(300)
    truth = local_variance(position, velocity)
    monkeypatch.setattr("dpd.fidelity.aliasing._BLOCK", 7)
    torch.testing.assert_close(local_variance(position, velocity), truth)


def test_a_hand_worked_case() -> None:
    # nearest other state of 0: 1, of 1: 0, of 3: 1; half the squared differences of the actions:
    # (0 - 2)^2 / 2 = 2, 2, (5 - 2)^2 / 2 = 4.5
    views, actions = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [5.0]])
    assert local_variance(views, actions, k=1).tolist() == [[2.0], [2.0], [4.5]]
    # the variance of 0, 2, 5 is 38 / 9, and the mean of the three is 17 / 6
    assert aliasing(views, actions, k=1) == pytest.approx((17 / 6) / (38 / 9))


def test_a_teacher_that_always_acts_the_same_has_nothing_to_alias() -> None:
    position, _ = states(50)
    assert aliasing(position, torch.ones(50, 2)) == 0


def test_too_few_states_are_refused() -> None:
    position, velocity = states(20)
    with pytest.raises(ValueError, match="20 states, up to 1 of them of one episode: each needs"):
        local_variance(position, velocity, k=20)
    with pytest.raises(ValueError, match="20 states, up to 10 of them of one episode: each needs"):
        local_variance(position, velocity, torch.arange(20) // 10)
