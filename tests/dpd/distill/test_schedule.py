"""Schedules at their ends."""

from __future__ import annotations

import pytest

from dpd.distill.config import DAggerConfig, KickstartConfig, ProximalConfig, Schedule, scheduled

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
