"""Speed of learning, worked by hand on made-up curves."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from dpd.policies.policyfile import Policy
from dpd.run.sources import Records, Run, SavedLearner
from dpd.study.compare import EvaluatedPolicy, RunResult
from dpd.study.learning import learning_json, learning_table, short_steps
from dpd.study.study import TaskResult

STEPS = (10_000, 20_000, 30_000)


def made(scores: list[float], curves: list[list[float]], seconds: float | None = 8) -> RunResult:
    """Make the result of an arm of one peer per seed, with evaluations at STEPS."""
    members = [SavedLearner(s, 0, Path(), cast(Policy, None), None) for s in range(len(scores))]
    evaluations = {(s, 0): dict(zip(STEPS, x, strict=True)) for s, x in enumerate(curves)}
    records = Records(evaluations, STEPS[0], seconds) if curves else None
    run = Run(path=Path(), name="", members=tuple(members), budget=None, records=records)
    played = [EvaluatedPolicy(m, np.array([x])) for m, x in zip(members, scores, strict=True)]
    return RunResult(run, {p.member.seed: [p] for p in played})


def task(**results: RunResult) -> TaskResult:
    """Make a task in which uniform actions get 10."""
    return TaskResult(env="A", random=10, results=results)


SLOW = made([30.0, 30.0], [[10.0, 10.0, 20.0], [10.0, 10.0, 28.0]])
FAST = made([40.0, 40.0], [[10.0, 30.0, 40.0], [20.0, 30.0, 40.0]])


def test_arms_are_measured_by_the_final_return_of_one() -> None:
    study = task(fast=FAST, one=made([30.0, 30.0], [[10, 20, 30], [10, 20, 30]]), slow=SLOW)
    assert study.level == 28  # 10 + 0.9 * (30 - 10)
    fast, one, slow = (learning_json(study, arm, 0) for arm in study.results)
    # the mean curve 15 30 40 passes 28 at 13 / 15 of the way from 10,000 to 20,000
    assert fast["reach"]["steps"] == pytest.approx(10_000 + 10_000 * 13 / 15)
    assert fast["reach"]["seeds"] == 2
    # both seeds of `one` are alike: at 28 after 80 % of the last 10,000 steps
    assert one["reach"] == {"steps": 28_000, "interval": [28_000, 28_000], "seeds": 2}
    # the mean ends at 24, but the second seed alone would reach 28 at the very end
    assert slow["reach"] == {"steps": None, "interval": [30_000, None], "seeds": 1}
    # areas: (10 + 20 + 35) / 3 and (20 + 25 + 35) / 3
    assert fast["area"] == pytest.approx((65 / 3 + 80 / 3) / 2)
    gap = study.area_gaps["one"]  # `one`: (10 + 15 + 25) / 3 twice
    assert gap.mean == pytest.approx(fast["area"] - 50 / 3) and gap.paired
    assert set(study.area_gaps) == {"one", "slow"}


def test_arms_are_compared_after_equal_seconds() -> None:
    one, slow = made([30.0, 30.0], [[10, 20, 30], [10, 20, 30]], 4), SLOW
    gaps = task(fast=FAST, one=one, slow=slow, untimed=made([1.0, 1.0], [[0] * 3] * 2, None))
    # after the 4 s of `one`, `fast` has made 15,000 of 30,000 steps: 20 and 25, where `one` has 30
    assert gaps.time_gaps["one"].mean == pytest.approx((20 + 25) / 2 - 30)
    # `slow` takes 8 s too: both have finished, 40 and 40 against 20 and 28
    assert gaps.time_gaps["slow"].mean == pytest.approx(40 - 24)
    assert set(gaps.time_gaps) == {"one", "slow"}
    # the other way around it is the other arm that has not finished
    assert task(one=one, fast=FAST).time_gaps["fast"].mean == pytest.approx(30 - (20 + 25) / 2)


def test_without_one_or_if_one_learned_nothing_there_is_no_level() -> None:
    assert task(fast=FAST, slow=SLOW).level is None
    study = task(fast=FAST, one=made([10.0, 9.0], [[10, 10, 10], [9, 9, 9]]))
    assert study.level is None and learning_json(study, "fast", 0)["reach"] is None


def test_an_arm_without_evaluations_has_no_curve() -> None:
    study = task(fast=FAST, one=made([30.0, 30.0], []))
    assert learning_json(study, "one", 0) == {"area": None, "area_interval": None, "reach": None}
    assert study.area_gaps == {} and learning_json(study, "fast", 0)["reach"] is not None


def test_the_table_says_never_and_has_dashes_for_what_is_unknown() -> None:
    study = task(fast=FAST, one=made([30.0, 30.0], [[10, 20, 30], [10, 20, 30]]), slow=SLOW)
    more = {"seconds": 1234.4, "seeds": [0, 1]}
    arms = {arm: learning_json(study, arm, 0) | more for arm in study.results}
    arms["none"] = {"area": None, "area_interval": None, "reach": None} | more | {"seconds": None}
    table = learning_table("t", arms)
    assert len(table.columns) == 7
    rows = {row[0]: row[3:] for row in table.rows}
    assert rows["one"] == ["28k", "28k…28k", "2 of 2", "1,234"]
    assert rows["slow"] == ["never", "30k…never", "1 of 2", "1,234"]
    assert table.rows[-1] == ["none", *["-"] * 6]


def test_steps_are_shown_in_thousands() -> None:
    assert [short_steps(x) for x in (None, 512.4, 9_999, 10_499, 1_234_567)] == [
        *("never", "512", "9,999", "10k", "1,235k")
    ]
