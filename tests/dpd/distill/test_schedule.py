"""Schedules at their ends."""

from __future__ import annotations

from typing import Any

import pytest

from dpd.distill.config import (
    DAggerConfig,
    GradientConfig,
    KickstartConfig,
    ProximalConfig,
    Schedule,
    scheduled,
)

KINDS: list[Schedule] = ["constant", "linear", "exponential", "first"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_begins_at_its_start(kind: Schedule) -> None:
    assert scheduled(kind, 0.8, 0.5, 0.0) == 0.8


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("constant", 1.0, 0.8),
        ("linear", 0.125, 0.6),  # a quarter of the way to 0.5: 0.8 * 3/4
        ("linear", 0.5, 0.0),
        ("linear", 0.75, 0.0),  # and no lower
        ("exponential", 0.25, 0.08),  # half-way to a hundredth is a tenth
        ("exponential", 0.5, 0.008),
        ("exponential", 1.0, 0.00008),  # and on: two hundredfold falls
        ("first", 1e-9, 0.0),
        ("first", 1.0, 0.0),
    ],
)
def test_a_schedule_of_a_start_of_08_until_05(
    kind: Schedule, progress: float, expected: float
) -> None:
    assert scheduled(kind, 0.8, 0.5, progress) == pytest.approx(expected, rel=1e-12)


def test_schedules_fall_from_the_settings_of_their_methods() -> None:
    assert [DAggerConfig().beta(progress) for progress in (0.0, 0.001, 1.0)] == [1.0, 0.0, 0.0]
    # linear to zero at half of the run
    kickstart = KickstartConfig(coef=2.0)
    assert [kickstart.coef_at(progress) for progress in (0.0, 0.25, 0.5)] == [2.0, 1.0, 0.0]
    assert ProximalConfig().coef_at(1.0) == 1.0  # published code: constant


@pytest.mark.parametrize("method", [KickstartConfig, ProximalConfig, GradientConfig])
def test_a_weight_is_linear_between_its_points_and_constant_outside(
    method: type[KickstartConfig],
) -> None:
    # from 2 to 1 over 0.4: 1.5 at half of it; from 1 to 0 over 0.01
    config = method(coef_points="0.1:2,0.5:1,0.51:0")
    found = [config.coef_at(x) for x in (0.0, 0.1, 0.3, 0.5, 0.505, 0.51, 1.0)]
    assert found == pytest.approx([2, 2, 1.5, 1, 0.5, 0, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ("0:1,0.5", "'0:1,0.5' is no schedule; give progress:value pairs, for example 0:1"),
        ("", "is no schedule"),
        ("0:1,a:2", "is no schedule"),
        ("0.5:1,0.3:0", "progress must rise from pair to pair, within"),
        ("0.5:1,0.5:0", "progress must rise"),
        ("0:1,1.5:0", "progress must rise"),
        ("nan:1", "progress must rise"),
        ("0:-1", "values must be finite and not negative"),
        ("0:inf", "values must be finite"),
        ("0:0,1:0", "the teacher never has a weight"),
    ],
)
def test_points_that_are_no_schedule_are_refused(points: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KickstartConfig(coef_points=points)


@pytest.mark.parametrize(
    "other", [{"coef": 2.0}, {"schedule": "exponential"}, {"until": 0.9}], ids=str
)
def test_points_beside_another_schedule_are_refused(other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(ValueError, match=f"{name} does nothing beside distill.coef_points"):
        KickstartConfig(coef_points="0:1,1:0", **other)
