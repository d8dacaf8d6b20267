"""Offline students of a sweep: their training states, start, augmentation and steps."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.dist import kl
from dpd.fidelity.sweep import (
    CHUNK_STEPS,
    START_WEIGHTS,
    OfflineData,
    StudentStack,
    SweepStudent,
    Variant,
    distinct_variants,
    make_factors,
    make_stacks,
    why_no_weights,
)
from dpd.policies.policyfile import Policy
from tests.toy import policies as made

BASE = Variant(states=40)
STEPS = 60


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Make a policy of random weights, 11 numbers to 3 actions by 16 and 8 units."""
    return made.saved(tmp_path_factory.mktemp("made"), "ppo", "Hopper-v5")


def lesson_of(teacher: Policy, **changes: Any) -> OfflineData:
    """Return a lesson on 100 random states."""
    pool = 3 * torch.randn(100, 11, generator=torch.Generator().manual_seed(3)) + 1
    rates = {"adam": 3e-3, "sgd": 0.02}
    given: dict[str, Any] = {"teacher": teacher, "pool": pool, "steps": STEPS, "lr": rates}
    return OfflineData(**given | changes)


def varied(name: str, values: Sequence[Any]) -> list[SweepStudent]:
    """Return students that differ in one factor."""
    return [SweepStudent(replace(BASE, **{name: value}), 0) for value in values]


def nearest(obs: Tensor, own: Tensor) -> Tensor:
    """Return the distance of each state to the nearest of others."""
    return (obs.unsqueeze(1) - own).square().sum(-1).amin(1).sqrt()


def policies(stack: StudentStack) -> list[Policy]:
    return [student.policy for student in stack.students()]


def distances(lesson: OfflineData, stack: StudentStack) -> list[float]:
    """Return KL(teacher || student) of every student, mean over states."""
    said = lesson.teacher.dist(lesson.pool)
    return [float(kl(said, policy.dist(lesson.pool)).mean()) for policy in policies(stack)]


# --- What is changed ---


def test_every_factor_changes_one_thing_and_holds_the_student_that_all_share() -> None:
    found = make_factors([300, 100, 200], has_weights=True)
    names = ["states", "augmentation", "optimiser", "length", "capacity", "weight"]
    assert [factor.name for factor in found] == names
    base = Variant(states=200)  # the middle one
    for factor in found:
        assert base in factor.variants
        for variant in factor.variants:
            assert replace(variant, **{factor.name: getattr(base, factor.name)}) == base
    # 3 + 3 + 2 + 2 + 4 + 5 students, of which five are the base again
    assert len(distinct_variants(found)) == 19 - 5
    assert [factor.name for factor in make_factors([1], has_weights=False)][-1] == "capacity"


def test_widths_are_rounded_and_never_nothing() -> None:
    assert replace(BASE, capacity=0.25).hidden((64, 10)) == (16, 2)
    assert replace(BASE, capacity=0.25).hidden((1,)) == (1,)


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_between_a_squashing_teacher_and_a_student_there_is_no_start(
    algo: str, tmp_path: Path
) -> None:
    assert f"{algo}'s are not" in str(why_no_weights(made.saved(tmp_path, algo, "Hopper-v5").meta))


# --- What students learn from ---


def test_more_states_hold_those_of_fewer_and_no_others(teacher: Policy) -> None:
    lesson = lesson_of(teacher)
    few, many = (set(lesson.own(row).tolist()) for row in varied("states", [10, 40]))
    assert few < many and (len(few), len(many)) == (10, 40)
    stack = StudentStack(lesson, varied("states", [10, 40]))
    shown = stack._draw(400)
    own = lesson.teacher.normalised(lesson.pool[lesson.own(stack.rows[0])])
    assert nearest(shown.obs[0], own).max() < 1e-4 and len(shown.obs[0].unique(dim=0)) == 10
    assert len(shown.obs[1].unique(dim=0)) == 40


def test_noise_and_mixup_change_their_rows_alone(teacher: Policy) -> None:
    lesson = lesson_of(teacher)
    stack = StudentStack(lesson, varied("augmentation", ["none", "noise", "mixup"]))
    plain, noisy, mixed = stack._draw(2000).obs
    own = lesson.teacher.normalised(lesson.pool[lesson.own(stack.rows[0])])
    assert nearest(plain, own).max() < 1e-4
    # rows of one seed draw the same states: what differs is the noise, a tenth of the deviation
    spread = lesson.pool.std(0, correction=0) * lesson.teacher.tensors["obs_scale"]
    noise = (noisy - plain).std(0) / spread.squeeze(0)
    assert ((noise - 0.1).abs() < 0.015).all()
    assert (mixed.amin(0) >= own.amin(0) - 1e-4).all()
    assert (mixed.amax(0) <= own.amax(0) + 1e-4).all()
    # points on a segment between two states: mostly not one of them
    assert (nearest(mixed, own) > 1e-3).double().mean() > 0.9


def test_targets_are_the_teachers_distribution_as_it_is(teacher: Policy) -> None:
    lesson = lesson_of(teacher)
    drawn = StudentStack(lesson, [SweepStudent(BASE, 0)])._draw(50)
    scale, mean = lesson.teacher.tensors["obs_scale"], lesson.teacher.tensors["obs_mean"]
    said = lesson.teacher.dist(drawn.obs[0] / scale + mean)
    assert torch.allclose(drawn.mean[0], said.mean, atol=1e-4)
    assert torch.allclose(drawn.log_std[0], said.log_std.expand(50, 3))


# --- Where they start, and how they learn ---


def test_the_nearer_the_start_to_the_teacher_the_nearer_the_end(teacher: Policy) -> None:
    lesson = lesson_of(teacher)
    (stack,) = make_stacks(lesson, varied("weight", START_WEIGHTS))
    start = distances(lesson, stack)
    assert start == sorted(start, reverse=True) and start[0] > 1 > start[-1] == 0
    stack.train(lambda steps: None)
    end = distances(lesson, stack)
    assert end == sorted(end, reverse=True)  # Spearman's correlation with the weight is -1
    assert end[0] < start[0] and abs(end[-1]) < 1e-6


def test_all_its_steps_are_told_and_the_rate_falls_to_nothing(teacher: Policy) -> None:
    stack = StudentStack(
        lesson_of(teacher, steps=CHUNK_STEPS + 5), [SweepStudent(replace(BASE, length=4), 0)]
    )
    told: list[int] = []
    stack.train(told.append)
    # 4 x 25 steps, twenty at a time; the last twenty at (1 + cos(0.8 pi)) / 2 of the rate
    assert told == [CHUNK_STEPS] * 5
    assert stack.optimizer.lr == pytest.approx([3e-3 * 0.0954915], rel=1e-6)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_student_beside_others_learns_what_it_learns_alone(
    optimiser: str, teacher: Policy
) -> None:
    lesson = lesson_of(teacher, steps=CHUNK_STEPS)
    rows = [
        SweepStudent(replace(BASE, capacity=capacity, optimiser=optimiser), seed)
        for capacity, seed in ((0.25, 4), (0.5, 4), (1.0, 5))
    ]
    together = StudentStack(lesson, rows)
    together.train(lambda steps: None)
    alone = StudentStack(lesson, rows[:1])
    alone.train(lambda steps: None)
    one, other = policies(together)[0], policies(alone)[0]
    assert one.meta.hidden == (4, 2) and one.tensors["actor.0.weight"].shape == (11, 4)
    obs = lesson.pool
    assert torch.allclose(one.mode(obs), other.mode(obs), atol=1e-4)


def test_students_of_one_optimiser_length_and_padding_share_a_stack(teacher: Policy) -> None:
    changed = distinct_variants(make_factors([10, 20, 30], has_weights=True))
    found = make_stacks(lesson_of(teacher), [SweepStudent(variant, 0) for variant in changed])
    kinds = [{row.variant.stack for row in stack.rows} for stack in found]
    # the common one; SGD; four times the steps; twice the width
    assert sorted(map(len, kinds)) == [1] * 4 and len(found) == 4


def test_a_squashing_teacher_is_followed_by_its_actions(tmp_path: Path) -> None:
    sac = made.saved(tmp_path, "sac", "Hopper-v5")
    lesson = lesson_of(sac, steps=150)
    assert lesson.divergence == "mse"
    stack = StudentStack(lesson, [SweepStudent(BASE, 0)])
    seen = lesson.pool[lesson.own(stack.rows[0])]

    def error() -> float:
        return float((policies(stack)[0].mode(seen) - sac.mode(seen)).square().mean())

    before = error()
    stack.train(lambda steps: None)
    assert error() < 0.3 * before
