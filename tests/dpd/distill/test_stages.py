"""Which checkpoints come before the teacher, and when the next is due."""

from __future__ import annotations

import math

import pytest

from dpd.distill.progressive import (
    at_random,
    choose_checkpoints,
    equal_return,
    equal_steps,
    has_settled,
    shuffled,
    stage_at,
    steepest,
)
from dpd.distill.teaching_config import ProgressiveConfig
from dpd.policies.policyfile import Policy
from dpd.run.teachers import _up_to
from tests.toy.students import constant

RETURNS = [0.0, 10.0, 5.0, 30.0, 60.0, 55.0, 90.0, 100.0]
STEPS = [100.0 * k for k in range(1, 9)]


def test_stages_are_equally_far_apart_in_return() -> None:
    # levels 25, 50, 75 of 0 to 100: reached first at 30 (3), at 60 (4), at 90 (6)
    assert equal_return(RETURNS, 3) == [3, 4, 6]
    # one stage: level 50, reached at 60
    assert equal_return(RETURNS, 1) == [4]


def test_a_level_that_a_checkpoint_skips_over_is_left_out() -> None:
    # levels 20, 40, 60, 80: the second checkpoint is above the first three, the teacher the fourth
    assert equal_return([0.0, 70.0, 50.0, 100.0], 4) == [1]
    assert equal_return([0.0, 100.0], 4) == []


def test_stages_never_go_back_though_returns_do() -> None:
    # the fall from 90 to 20 is no stage: levels 30 and 60 were both passed at the second
    assert equal_return([0.0, 90.0, 20.0, 40.0, 90.0], 2) == [1]
    # a teacher that is no better than its first checkpoint: that is at or above every level
    assert equal_return([50.0, 10.0, 40.0], 3) == [0]


def test_stages_may_be_equally_far_apart_in_steps() -> None:
    # of 800 steps: 200, 400, 600, the second, fourth and sixth checkpoint
    assert equal_steps(STEPS, 3) == [1, 3, 5]
    # of 100 and 200: 66.7 and 133.3 are both nearest to 100, and once is enough
    assert equal_steps([100.0, 200.0], 2) == [0]


def test_two_shot_takes_the_end_of_the_steepest_rise() -> None:
    # rises per step 0.1, -0.05, 0.25, 0.3, -0.05, 0.35, 0.1: the sixth ends at position 6
    assert steepest(RETURNS, STEPS) == [6]
    # by step, not by checkpoint: 10 in 1 step beat 40 in 100
    assert steepest([0.0, 40.0, 50.0, 51.0], [100.0, 200.0, 201.0, 400.0]) == [2]
    # the last rise ends at the teacher itself, and is no stage
    assert steepest([0.0, 1.0, 0.0, 90.0], [1.0, 2.0, 3.0, 4.0]) == [1]
    assert steepest([0.0, 1.0], [1.0, 2.0]) == []


def test_random_stages_are_in_order_without_the_teacher() -> None:
    chosen = at_random(8, 4, seed=0)
    assert len(set(chosen)) == 4 and chosen == sorted(chosen) and max(chosen) < 7
    assert chosen == at_random(8, 4, seed=0)
    assert len({tuple(at_random(8, 4, seed)) for seed in range(10)}) > 1
    assert at_random(3, 9, seed=0) == [0, 1]  # all there are


def test_shuffled_stages_are_the_same_set_in_another_order() -> None:
    orders = {tuple(shuffled([3, 4, 6], seed)) for seed in range(20)}
    assert {tuple(sorted(order)) for order in orders} == {(3, 4, 6)}
    assert len(orders) == 6
    assert shuffled([], 0) == []


@pytest.mark.parametrize(
    ("progress", "stage"),
    # the first half belongs to four checkpoints, an eighth of the run each
    [(0.0, 0), (0.124, 0), (0.125, 1), (0.25, 2), (0.375, 3), (0.499, 3), (0.5, 4), (1.0, 4)],
)
def test_stages_share_the_first_half_and_the_teacher_has_the_last(
    progress: float, stage: int
) -> None:
    assert stage_at(progress, 4, final_share=0.5) == stage


def test_the_final_share_is_always_the_teachers() -> None:
    for share in (0.2, 0.5, 0.9, 1.0):
        due = [stage_at(k / 100, 3, share) for k in range(101)]
        assert due == sorted(due)
        assert all(stage == 3 for k, stage in enumerate(due) if k / 100 >= 1 - share)
    assert stage_at(0.0, 0, 0.5) == 0  # without checkpoints the teacher is number 0


def test_a_stage_has_settled_when_its_loss_falls_by_less_than_a_hundredth() -> None:
    assert not has_settled([math.nan] + [1.0] * 5)  # five iterations lie between six losses
    assert has_settled([1.0] * 6)
    # 1 to 0.992 is a fall by 0.8 %, to 0.98 by 2 %
    assert has_settled([1.0, 1.0, 1.0, 1.0, 1.0, 0.992])
    assert not has_settled([1.0, 1.0, 1.0, 1.0, 1.0, 0.98])
    assert has_settled([1.0, 1.0, 1.0, 1.0, 1.0, 2.0])  # a rise is no fall
    # -log p may be negative: -1 to -1.005 is a fall by 0.5 %, to -1.1 by 10 %
    assert has_settled([-1.0, 0.0, 0.0, 0.0, 0.0, -1.005])
    assert not has_settled([-1.0, 0.0, 0.0, 0.0, 0.0, -1.1])


# --- From the files of a history ---


def checkpoint(value: float | None, steps: float | None) -> Policy:
    return constant(0.0, 0.0, provenance={"eval_return": value, "steps": steps})


@pytest.fixture(scope="module")
def history() -> list[Policy]:
    return [checkpoint(r, s) for r, s in zip(RETURNS, STEPS, strict=True)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stages": 3}, [3, 4, 6]),
        ({"stages": 3, "spacing": "steps"}, [1, 3, 5]),
        ({"spacing": "two-shot"}, [6]),
        ({"spacing": "one-shot"}, []),
        ({"stages": 2, "spacing": "random"}, at_random(8, 2, 5)),
        ({"stages": 3, "spacing": "shuffled"}, shuffled([3, 4, 6], 5)),
    ],
)
def test_each_spacing_reads_the_history(
    history: list[Policy], settings: dict[str, object], expected: list[int]
) -> None:
    assert choose_checkpoints(ProgressiveConfig(**settings), history, seed=5) == expected  # type: ignore[arg-type]


def test_a_history_that_says_too_little_is_refused(history: list[Policy]) -> None:
    config = ProgressiveConfig()
    for said in ([], [*history, checkpoint(None, 900.0)], [*history, checkpoint(110.0, None)]):
        with pytest.raises(ValueError, match="train the teacher with dpd train --keep-checkpoints"):
            choose_checkpoints(config, said, 0)
    # nothing between the two: to go on without a word would be one-shot under another name
    with pytest.raises(ValueError, match="the teacher's 2 checkpoints can come before it"):
        choose_checkpoints(config, [checkpoint(0.0, 100.0), checkpoint(10.0, 200.0)], 0)


def test_checkpoints_later_than_the_teacher_are_left_out(history: list[Policy]) -> None:
    # the best policy of a run may be an early one
    assert _up_to(history[4], history) == history[:5]
    assert _up_to(checkpoint(100.0, None), history) == history


def test_a_final_share_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distill\.final_share must lie in \[0, 1\], not 1\.5"):
        ProgressiveConfig(final_share=1.5)
    with pytest.raises(ValueError, match=r"distill\.stages must be at least 1, not 0"):
        ProgressiveConfig(stages=0)
