"""Schedules inside the loss of reinforcement learning: its own weight, and teachers that act."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import ClosedTerm
from dpd.agents.config import LearnerConfig
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.ppo import PPO
from dpd.agents.sac import SAC as SoftActorCritic
from dpd.distill.in_loss_config import GradientConfig, KickstartConfig, ProximalConfig
from tests.toy.students import PLAIN, SAC, TD3, School, Wandering, constant, drawn

UNBOUNDED = replace(PLAIN, max_grad_norm=1e9)  # or the value's gradient would shorten the policy's
LEARNERS: dict[str, LearnerConfig] = {"ppo": UNBOUNDED, "td3": TD3, "sac": SAC}


class Reversed(Wandering):
    """The same states, where every reward has the other sign."""

    def reward(self) -> Tensor:
        return -super().reward()


def parts(school: School) -> tuple[Tensor, Tensor]:
    """Return copies of the parameters of the policies and of the values."""
    agent = school.agent
    if isinstance(agent, OffPolicy):
        return school.flat.clone(), agent.critics.flat.detach().clone()
    flat = {name: x.detach().clone().flatten(1) for name, x in agent.nets.views.items()}
    critic = torch.cat([x for name, x in flat.items() if name.startswith("critic")], 1)
    return torch.cat([x for name, x in flat.items() if not name.startswith("critic")], 1), critic


@pytest.mark.parametrize("name", LEARNERS)
def test_without_a_weight_rewards_move_the_values_and_not_the_policy(name: str) -> None:
    points = {"rl_coef_points": "0:0,0.4:0,0.5:1", "coef_points": "0:1"}
    config = KickstartConfig(divergence="mse", **points)  # type: ignore[arg-type]
    algo = LEARNERS[name]
    schools = [School(config, algo, drawn(algo), world=world) for world in (Wandering, Reversed)]
    start = parts(schools[0])[0]
    for school in schools:
        for progress in (0.0, 0.1):
            metrics = school.iterate(progress)
            assert metrics["distill/rl_coef"].item() == 0
    (policy, value), (other_policy, other_value) = map(parts, schools)
    assert torch.equal(policy, other_policy) and not torch.equal(policy, start)
    assert not torch.isclose(value, other_value).all()
    for school in schools:
        assert school.iterate(0.5)["distill/rl_coef"].item() == 1
    moved, other_moved = (parts(school)[0] for school in schools)
    assert not torch.isclose(moved, other_moved).all()


def first_gradients(algo: LearnerConfig, weight: float) -> tuple[Tensor, ...]:
    """Return the gradients of policies and values in the first update of an iteration.

    Adam's first mean is a tenth of it.
    """
    config = KickstartConfig(divergence="mse", rl_coef_points=f"0:{weight}", coef_points="0:0,1:1")
    school = School(config, algo, drawn(algo))
    school.iterate(0.0)  # at the beginning, the teacher has no weight
    agent = school.agent
    if isinstance(agent, OffPolicy):
        return 10 * agent.optimizer.exp_avg, 10 * agent.critic_optimizer.exp_avg
    assert isinstance(agent, PPO)
    grad, of_value = 10 * agent.optimizer.exp_avg, agent._of_value
    return grad * (1 - of_value), grad * of_value


ONE_UPDATE: dict[str, LearnerConfig] = {
    "ppo": replace(UNBOUNDED, epochs=1, minibatch_size=64, entropy_coef=0.1),
    "td3": replace(TD3, updates_per_step=2 / 64),  # the policy moves in the second
    "sac": replace(SAC, updates_per_step=1 / 64),
}


@pytest.mark.parametrize("name", ONE_UPDATE)
def test_a_weight_multiplies_the_gradient_of_the_policy_alone(name: str) -> None:
    (full, of_value), (part, same) = (first_gradients(ONE_UPDATE[name], w) for w in (1.0, 0.25))
    assert full.abs().max() > 1e-3
    torch.testing.assert_close(part, 0.25 * full, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(same, of_value, rtol=1e-4, atol=1e-7)


def test_a_temperature_waits_until_rewards_have_a_weight() -> None:
    points = {"rl_coef_points": "0:0,0.4:0,0.5:1", "coef_points": "0:1"}
    school = School(KickstartConfig(**points), SAC, drawn(SAC))  # type: ignore[arg-type]
    assert isinstance(school.agent, SoftActorCritic)
    for progress, moves in ((0.0, False), (0.2, False), (0.6, True)):
        school.iterate(progress)
        assert (school.agent.log_alpha.item() != 0) == moves  # it begins at 1


def test_the_tasks_reward_follows_its_points_where_the_method_makes_the_rewards() -> None:
    algo = replace(PLAIN, norm_adv=False, norm_reward=False)
    settings: list[dict[str, Any]] = [{"rl_coef_points": "0:3,1:0"}, {"reward_coef": 3.0}, {}]
    schools = [School(GradientConfig(**each), algo, drawn()) for each in settings]
    # Rewards are given before an iteration's progress is known: they follow that of the last one.
    found = [school.iterate(0.5) for school in schools]
    points, constant_one, without = (school.rollout.reward for school in schools)
    assert torch.equal(points, constant_one) and not torch.equal(points, without)
    assert torch.equal(schools[0].flat, schools[1].flat)
    assert found[0]["distill/rl_coef"].item() == 3 and "distill/rl_coef" not in found[1]
    assert schools[0].iterate(0.6)["distill/rl_coef"].item() == 1.5  # half of the way to 0
    assert schools[0].agent.rl_coef == 1  # the loss is that of all rewards


# --- Teachers that act ---

BETA = KickstartConfig(divergence="mse", beta_start=0.5, beta_schedule="constant")
FAR = constant(0.9, 0.9, log_std=-20.0)  # as a target, its deviation is 0.05


def test_the_teachers_steps_are_no_samples_of_ppo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    part = ClosedTerm.part

    def noted(self: ClosedTerm, idx: Tensor, number: int) -> tuple[Tensor, ...]:
        seen.append(idx)
        return part(self, idx, number)

    monkeypatch.setattr(ClosedTerm, "part", noted)
    school = School(BETA, replace(PLAIN, log_std_init=-3.0), FAR, groups=2)
    assert school.iterate(0.0)["distill/beta"].tolist() == [0.5, 0.5]
    valid, act = school.rollout.valid, school.rollout.act
    # students of deviation 0.05 act near 0 at first
    assert torch.equal(valid, (act - 0.9).abs().amax(-1) > 0.5)
    # a fair coin 128 times: five deviations are 28
    assert abs(int(valid.sum()) - 64) < 28
    for idx in seen:
        assert valid.flatten(1).gather(1, idx).all()


def test_a_step_before_one_of_the_teachers_bootstraps_from_its_own_successor() -> None:
    algo = replace(PLAIN, norm_reward=False, lam=0.9)
    school = School(BETA, algo, FAR)
    school.iterate(0.0)
    agent, rollout = school.agent, school.rollout
    assert isinstance(agent, PPO)
    rollout.terminated.zero_(), rollout.truncated.zero_()
    rollout.valid[:] = True
    rollout.valid[:, 5] = False
    data = agent.prepare(rollout).data
    shape = rollout.reward.shape
    values = agent.value(agent.inputs(rollout.next_obs.flatten(1, 2))).detach().view(shape)
    adv, value = data.adv.view(shape), data.value.view(shape)
    alone = rollout.reward[:, 4] + agent.gamma * values[:, 4] - value[:, 4]
    torch.testing.assert_close(adv[:, 4], alone, rtol=1e-4, atol=1e-4)
    assert not adv[:, 5].any() and adv[:, 6].any()


@pytest.mark.parametrize("algo", [TD3, SAC], ids=["td3", "sac"])
def test_a_replay_takes_the_teachers_steps_within_the_bounds(algo: LearnerConfig) -> None:
    wild = constant(0.0, 0.0, log_std=1.0)  # of whose samples most are beyond the bounds
    school = School(replace(BETA, divergence="mse"), algo, wild)
    school.iterate(0.0)
    rollout = school.rollout
    assert rollout.valid.all() and rollout.act.abs().max() == 1
    # P(|x| > 1) at deviation e is 0.71, in one of two dimensions 0.92, in half of 64 steps: 29
    clipped = (rollout.act.abs() == 1).any(-1).sum()
    assert abs(int(clipped) - 29) < 20


@pytest.mark.parametrize("name", LEARNERS)
def test_a_loaded_state_goes_on_with_the_same_probability_and_weights(name: str) -> None:
    settings: dict[str, Any] = {"rl_coef_points": "0:0,0.3:0,0.9:1", "coef_points": "0:1"}
    config = KickstartConfig(divergence="mse", beta_points="0:0.9,1:0", **settings)
    algo = LEARNERS[name]
    straight, resumed = (School(config, algo, drawn(algo)) for _ in range(2))
    for progress in (0.0, 0.5):
        straight.iterate(progress)
    for old, new in ((straight.agent, resumed.agent), (straight.method, resumed.method)):
        new.load_state({k: x.clone() for k, x in old.state().items()})
    if straight.agent.replay is not None and resumed.agent.replay is not None:
        resumed.agent.replay.extend(straight.agent.replay.since(0))
    resumed.env, resumed.obs = straight.env, straight.obs
    before = straight.env.generator.get_state()
    steps = straight.env.t, straight.env.obs.clone()
    found = []
    for school in (straight, resumed):
        straight.env.generator.set_state(before)
        straight.env.t, straight.env.obs = steps[0], steps[1].clone()
        found.append(school.iterate(0.6))
    assert found[0].keys() == found[1].keys()
    for metric, x in found[0].items():
        assert torch.equal(x, found[1][metric]), metric
    assert found[0]["distill/beta"].item() == pytest.approx(0.45)  # that of 0.5: 0.9 / 2
    assert found[0]["distill/rl_coef"].item() == pytest.approx(0.5)  # that of 0.6, the present
    assert torch.equal(straight.flat, resumed.flat)


def test_proximal_learners_may_have_a_teacher_that_acts() -> None:
    config = ProximalConfig(divergence="mse", beta_start=0.5, beta_until=1.0)
    found = School(config, PLAIN, drawn()).run(4)
    assert [x["distill/beta"].item() for x in found] == pytest.approx([0.5, 0.5, 0.375, 0.25])
