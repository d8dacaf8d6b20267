"""Schedules at their ends."""

from __future__ import annotations

from typing import Any

import pytest

from dpd.agents.offpolicy_config import SACConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.distill.in_loss_config import GradientConfig, KickstartConfig, ProximalConfig
from dpd.distill.schedules import Schedule, scheduled
from dpd.distill.teaching_config import DAggerConfig, RetrievalConfig, TeachingConfig

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


def test_a_probability_is_linear_between_its_points() -> None:
    # from 0.9 to 0.5 over 0.4: 0.7 at half of it
    for config in (
        DAggerConfig(beta_points="0.1:0.9,0.5:0.5,0.6:0"),
        RetrievalConfig(beta_points="0.1:0.9,0.5:0.5,0.6:0"),
        KickstartConfig(beta_points="0.1:0.9,0.5:0.5,0.6:0"),
    ):
        found = [config.beta(x) for x in (0.0, 0.1, 0.3, 0.55, 0.6, 1.0)]
        assert found == pytest.approx([0.9, 0.9, 0.7, 0.25, 0, 0], abs=1e-12)
        assert config.most_beta == 0.9
    assert KickstartConfig().most_beta == 0  # nobody asked for it
    # linear to 0 at half of the run: a half of 0.5 at a quarter
    assert KickstartConfig(beta_start=0.5).beta(0.25) == 0.25


def test_rewards_have_the_weight_of_their_points() -> None:
    # from 0 to 1 over 0.01: a half at half of it
    config = KickstartConfig(rl_coef_points="0:0,0.3:0,0.31:1")
    found = [config.rl_coef_at(x) for x in (0.0, 0.3, 0.305, 0.31, 1.0)]
    assert found == pytest.approx([0, 0, 0.5, 1, 1])
    assert KickstartConfig().rl_coef_at(0.5) == ProximalConfig().rl_coef_at(0.0) == 1
    assert (
        GradientConfig().rl_coef_at(0.5) == 0 and GradientConfig(reward_coef=2).rl_coef_at(0) == 2
    )
    assert GradientConfig(rl_coef_points="0:0,1:1").rl_coef_at(0.5) == 0.5


UNFIT: list[tuple[type[TeachingConfig], dict[str, Any], str]] = [
    (DAggerConfig, {"beta_points": "0:1.5"}, "'0:1.5': values must be probabilities, 0 to 1"),
    (DAggerConfig, {"beta_points": "0:1,x"}, r"distill\.beta_points '0:1,x' is no schedule"),
    (DAggerConfig, {"beta_points": "0:1", "beta_start": 0.5}, "beta_start does nothing beside"),
    (DAggerConfig, {"beta_points": "0:1", "beta_until": 0.7}, "beta_until does nothing beside"),
    (DAggerConfig, {"beta_start": 1.5}, r"distill\.beta_start must lie in \[0, 1\]"),
    (KickstartConfig, {"beta_schedule": "constant"}, "does nothing if the teacher never acts"),
    (KickstartConfig, {"rl_coef_points": "0:0,1:0"}, "rewards never have a weight; give --method"),
    (KickstartConfig, {"rl_coef_points": "0:0,x"}, r"distill\.rl_coef_points '0:0,x' is no"),
    # the teacher's weight is 0 from half of the run on, and that of rewards until 0.8
    (KickstartConfig, {"rl_coef_points": "0:0,0.8:0,0.9:1"}, "from 0.5 to 0.8 of the run neither"),
    (ProximalConfig, {"rl_coef_points": "0:1,0.4:0", "coef_points": "0:1,0.6:0"}, "0.6 to 1 of"),
    (GradientConfig, {"beta_start": 0.5}, "only if the student alone acts"),
    (GradientConfig, {"rl_coef_points": "0:1", "reward_coef": 0.5}, "reward_coef does nothing"),
]


@pytest.mark.parametrize(("method", "settings", "says"), UNFIT)
def test_schedules_that_make_no_sense_are_refused(
    method: type[TeachingConfig], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        method(**settings)


def test_ppo_needs_steps_of_its_own() -> None:
    for config in (KickstartConfig(beta_start=1.0), ProximalConfig(beta_points="0:1,0.2:0")):
        with pytest.raises(ValueError, match="must act with a probability of less than 1"):
            config.refuse_unfit(PPOConfig())
    KickstartConfig(beta_start=1.0).refuse_unfit(SACConfig())


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
