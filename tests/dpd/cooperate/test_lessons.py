"""Lessons: which parts of a student they change, and which they leave unchanged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.lessons import (
    LessonBatch,
    Lessons,
    imitation_error,
    lesson_batch,
    lesson_loss,
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
