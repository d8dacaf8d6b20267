"""Lessons: the search for new states, and which parts of a student change."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.lessons import (
    GapProxies,
    LessonBatch,
    Lessons,
    are_distinct,
    imitation_error,
    lesson_batch,
    lesson_loss,
    search_loss,
    search_states,
    target_gaps,
    teach,
)
from tests.toy.two_experts import described, starts, untrained

CONFIG = CooperateConfig(paths=(Path("a"), Path("b")), steps=300)
KINDS = {
    "ppo": described(),
    "td3": described(algo="td3", tanh_mean=True),
    "sac": described(algo="sac", squashed=True, state_std=True, activation="relu"),
}


def part(act: list[float], target: list[float]) -> LessonBatch:
    some = torch.zeros(1)
    return LessonBatch(torch.tensor([act]), some, torch.tensor([target]), some)


def test_the_loss_by_hand() -> None:
    # distances: (0.2^2 + 0.4^2) / 2 = 0.1, and (0.1^2 + 0) / 2 = 0.005, weighted 3 -> 0.115
    learn, stay = part([0.5, 0.0], [0.7, 0.4]), part([0.1, 0.0], [0.0, 0.0])
    torch.testing.assert_close(imitation_error(learn), torch.tensor([0.1]))
    torch.testing.assert_close(lesson_loss(learn, stay, 3.0), torch.tensor(0.115))
    torch.testing.assert_close(lesson_loss(learn, None, 3.0), torch.tensor(0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_follows_where_it_is_taught_and_stays_elsewhere(kind: str) -> None:
    student = untrained(KINDS[kind], 0)
    before = {name: tensor.clone() for name, tensor in student.tensors.items()}
    state = starts(400, 1)
    left, right = state[state[:, 0] < 0], state[state[:, 0] > 0]
    target = torch.full((len(left), 2), 0.6)
    lessons = Lessons(left, target, right)
    new = teach(student, lessons, CONFIG, torch.Generator().manual_seed(0))
    error = (new.mode(left) - target).abs().mean()
    assert error < 0.5 * (student.mode(left) - target).abs().mean()
    assert (new.mode(right) - student.mode(right)).abs().mean() < 0.12
    fixed = [name for name in before if not name.startswith(("actor", "log_std_head"))]
    assert all(torch.equal(new.tensors[name], before[name]) for name in fixed)
    for name, tensor in student.tensors.items():  # the teacher of others stays as it was
        assert torch.equal(tensor, before[name]) and not new.tensors[name].requires_grad
    old_std, new_std = student.dist(state).log_std, new.dist(state).log_std
    assert (new_std - old_std).abs().mean() < 0.15


def test_without_a_lesson_a_student_stays_bit_for_bit() -> None:
    student, state = untrained(KINDS["sac"], 0), starts(50, 1)
    nothing = Lessons(state[:0], torch.zeros(0, 2), state)
    new = teach(student, nothing, CONFIG, torch.Generator().manual_seed(0))
    assert all(torch.equal(new.tensors[k], v) for k, v in student.tensors.items())
    assert new.tensors["actor.0.weight"] is not student.tensors["actor.0.weight"]


def test_without_a_place_of_its_own_a_student_only_follows() -> None:
    student, state = untrained(KINDS["ppo"], 0), starts(50, 1)
    lessons = Lessons(state, torch.full((50, 2), 0.3), state[:0])
    new = teach(student, lessons, replace(CONFIG, anchor=100.0), torch.Generator().manual_seed(0))
    assert (new.mode(state) - 0.3).abs().mean() < 0.05


def test_an_action_beyond_the_bounds_is_still_pulled_back() -> None:
    student, state = untrained(KINDS["ppo"], 0), starts(20, 1)
    student.tensors["actor.2.bias"].fill_(5.0)  # every action is clipped to 1
    assert (student.mode(state) == 1).all()
    asked = lesson_batch(student, student, state, torch.zeros(20, 2))
    assert (imitation_error(asked) > 4).all()  # the clipped one would have been 1, without gradient


def test_the_anchor_is_nothing_before_the_first_step() -> None:
    for meta in KINDS.values():
        student = untrained(meta, 0)
        assert imitation_error(lesson_batch(student, student, starts(20, 1))).abs().max() == 0


def test_the_aim_is_part_of_the_way_to_the_largest_gaps() -> None:
    gap = torch.arange(101.0)  # its 95th percentile is 95
    aimed = target_gaps(gap, 0.5)
    assert aimed[0] == 47.5 and aimed[95] == 95
    assert torch.equal(aimed[96:], gap[96:])  # what is beyond stays


def test_the_objective_by_hand() -> None:
    # (1 - 3)^2 + 0.05 * (0.5 + 0.1) = 4.03
    shift = torch.tensor([[0.5, -0.1]])
    found = search_loss(torch.tensor([1.0]), torch.tensor([3.0]), shift, 0.05)
    torch.testing.assert_close(found, torch.tensor([4.03]))


def test_the_search_goes_uphill_no_farther_than_the_box_and_along_what_matters() -> None:
    start = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))

    def height(z: Tensor) -> Tensor:
        return 2 * z[:, 0]  # the other coordinates do nothing, and cost

    moved = search_states(height, start, CONFIG) - start
    low = height(start) < height(start).quantile(0.95) - 0.2  # nearer, it is not worth its price
    assert moved.abs().max() <= CONFIG.cf_box + 1e-6
    assert (moved[low, 0] > 0).all() and moved[:, 1:].abs().max() == 0
    far = height(start) < 0  # half the way would be farther than the box
    torch.testing.assert_close(moved[far, 0], torch.full((int(far.sum()),), CONFIG.cf_box))


def test_states_that_are_near_a_known_one_or_each_other_are_dropped() -> None:
    known = torch.tensor([[0.0, 0.0]])
    found = torch.tensor([[0.04, 0.0], [1.0, 0.0], [1.03, 0.03], [1.0, 0.05], [2.0, 2.0]])
    # first: 0.04 from a known one; third: 0.042 from the second; fourth: 0.05 from it, enough
    assert are_distinct(found, known, 0.05).tolist() == [False, True, False, True, True]


def test_the_proxy_explains_a_smooth_gap_that_it_has_not_seen_and_no_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    coords = torch.randn(400, 4, generator=generator).double() * torch.tensor([1, 10, 0.1, 1])
    smooth = 100 + 30 * torch.tanh(coords[:, 0] + coords[:, 1] / 10)
    noise = torch.randn(400, generator=generator).double()
    gaps = torch.stack([smooth, noise])
    proxies = GapProxies(coords[:320], gaps[:, :320], CONFIG, generator)
    found = [proxies.r2(pair, coords[320:], gaps[pair, 320:]) for pair in (0, 1)]
    assert found[0] is not None and found[0] > 0.9
    assert found[1] is not None and found[1] < 0.2
    assert proxies.r2(0, coords[320:], torch.full((80,), 100.0).double()) is None
    z = proxies.standard(coords)
    torch.testing.assert_close(proxies.coordinates(z), coords, atol=1e-5, rtol=1e-5)
