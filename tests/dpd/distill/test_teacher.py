"""Teachers answer raw observations, one of several at each state, and never move."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dpd.agents.config import LearnerConfig
from dpd.agents.dist import STD_FLOOR
from dpd.distill.in_loss_config import GradientConfig, KickstartConfig
from dpd.distill.teacher import Route, Teacher
from dpd.distill.teaching_config import (
    CloningConfig,
    DAggerConfig,
    ProgressiveConfig,
    TeachingConfig,
)
from dpd.errors import BadInput
from dpd.policies.policyfile import Policy
from tests.toy.students import PLAIN, SAC, STUDENT, A, O, School, constant, drawn, linear

FIRST = torch.zeros(2, 7, dtype=torch.int64)  # of several teachers, for two learners' seven states


def test_a_teacher_answers_raw_observations_with_its_own_normaliser() -> None:
    # (12, 8) less 10, times 0.5, is (1, -1); 0.3 * 1 + 0.1 * -1 + 0.1 is 0.3
    weight, bias = torch.tensor([[0.3], [0.1]]), torch.tensor([0.1])
    policy = linear(weight, bias, norm_obs=True)
    own = {"obs_mean": torch.full((1, 2), 10.0), "obs_scale": torch.full((1, 2), 0.5)}
    teacher = Teacher([Policy(policy.tensors | own, policy.meta)])
    said = teacher.ask(torch.tensor([[[12.0, 8.0]]]), FIRST[:1, :1])
    assert said.mean.item() == pytest.approx(0.3)
    assert said.log_std.item() == -1.0 and not said.squashed


def test_students_with_statistics_of_their_own_ask_about_raw_states() -> None:
    policy = drawn()
    school = School(DAggerConfig(steps=2), STUDENT, policy, groups=2)
    school.run(2)
    batch = school.agent.prepare(school.rollout)
    expected = torch.stack([policy.mode(obs) for obs in batch.raw_obs])
    assert not torch.allclose(school.agent.obs_norm(batch.raw_obs), batch.raw_obs)
    said = school.method.ask(batch.raw_obs)  # type: ignore[attr-defined]
    torch.testing.assert_close(said.sample, expected, rtol=0, atol=1e-6)


def test_a_mean_beyond_the_box_is_put_on_its_edge_unless_a_tanh_follows() -> None:
    obs = torch.zeros(2, 7, O)
    plain = Teacher([constant(2.5, -0.5)]).ask(obs, FIRST)
    assert plain.mean[0, 0].tolist() == [1.0, -0.5]
    squashed = Teacher([constant(2.5, -0.5, squashed=True)]).ask(obs, FIRST)
    assert squashed.mean[0, 0].tolist() == [2.5, -0.5]


@pytest.mark.parametrize("squashed", [False, True])
def test_a_deviation_is_at_least_the_floor(squashed: bool) -> None:
    obs = torch.zeros(2, 7, O)
    certain = Teacher([constant(0.0, 0.0, log_std=-9.0, squashed=squashed)]).ask(obs, FIRST)
    assert certain.log_std.shape == (2, 7, A)
    assert certain.log_std.exp().flatten().tolist() == pytest.approx([STD_FLOOR] * 28)
    unsure = Teacher([constant(0.0, 0.0, log_std=-1.0, squashed=squashed)]).ask(obs, FIRST)
    assert unsure.log_std.unique().tolist() == [-1.0]


def test_of_several_teachers_each_state_gets_the_answer_of_one() -> None:
    stds = (0.1, 0.2, 0.3)
    policies = [constant(x, -x, log_std=math.log(x)) for x in stds]
    teacher = Teacher(policies)
    uniform = torch.rand(2, 3000, generator=torch.Generator().manual_seed(0))
    obs = torch.zeros(2, 3000, O)
    said = teacher.ask(obs, teacher.pick(uniform, obs))
    which = (said.mean[..., 0] * 10).round().long() - 1
    # mean and deviation, in all dimensions, are the same one's
    torch.testing.assert_close(said.mean[..., 1], -said.mean[..., 0])
    torch.testing.assert_close(said.log_std.exp()[..., 0], said.mean[..., 0])
    # of 6000 a third is 2000, with a deviation of sqrt(6000 * 1/3 * 2/3) = 37
    assert all(1850 < int((which == k).sum()) < 2150 for k in range(3))


def test_numbers_below_one_are_shared_equally_among_teachers() -> None:
    teacher = Teacher([constant(0.0, 0.0)] * 2)
    uniform = torch.tensor([0.0, 0.49, 0.5, 0.99999994])
    assert teacher.pick(uniform, torch.zeros(4, O)).tolist() == [0, 0, 1, 1]


def routed() -> Teacher:
    return Teacher([constant(0.5, 0.0), constant(-0.5, 0.0)], route=Route(2, "terrain"))


def test_a_column_of_the_observation_picks_the_teacher() -> None:
    obs = torch.zeros(1, 4, O)
    obs[0, :, 2] = torch.tensor([0.0, 1.0, 1.0, 0.0])
    teacher = routed()
    # whatever the chance says
    for uniform in (torch.zeros(1, 4), torch.full((1, 4), 0.9)):
        said = teacher.ask(obs, teacher.pick(uniform, obs))
        assert said.mean[0, :, 0].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert teacher.routed_mode(obs[0])[:, 0].tolist() == [0.5, -0.5, -0.5, 0.5]


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, math.nan])
def test_a_value_that_is_no_teachers_number_is_refused(value: float) -> None:
    obs = torch.zeros(1, 3, O)
    obs[0, 1, 2] = value
    with pytest.raises(BadInput, match="terrain is not 0 to 1 in every state, and there are 2"):
        routed().pick(torch.zeros(1, 3), obs)
    teacher = Teacher(routed().policies, route=Route(2, "terrain", 3))
    with pytest.raises(BadInput, match=r"not 3 to 4 in every state, .* counted from 3"):
        teacher.pick(torch.zeros(1, 3), obs)


def test_the_state_of_teachers_tells_of_values_seen_where_asking_would_stall() -> None:
    teacher = routed()
    teacher.state()
    teacher.has_strayed.fill_(True)
    with pytest.raises(BadInput, match="--teacher-by terrain"):
        teacher.state()


def test_where_the_teacher_acts_the_route_says_which_does() -> None:
    # beta is 1 in behaviour cloning; std 1e-4 leaves the mean
    policies = [constant(x, 0.0, log_std=-9.0) for x in (0.5, -0.5)]
    school = School(CloningConfig(), STUDENT, *policies)
    school.teacher.route = Route(0, "0")
    method = CloningConfig().build(school.context)
    obs = torch.zeros(1, 2, O)
    obs[0, 1, 0] = 1.0
    act = method.actor.act(obs, method.actor.noise()[:, 0, :1].expand(-1, 2, -1))
    # as a target, a teacher's deviation is at least 0.05: 0.5 is ten of them
    assert act[0, 0, 0] > 0.2 and act[0, 1, 0] < -0.2


def test_queries_are_the_states_asked_about() -> None:
    teacher = Teacher([constant(0.0, 0.0)] * 3)
    teacher.ask(torch.zeros(2, 7, O), FIRST)
    assert teacher.n_queries == 14  # whoever of the three answers
    teacher.ask(torch.zeros(2, 5, O), FIRST[:, :5])
    assert teacher.n_queries == 24


RAW = replace(PLAIN, norm_adv=False, norm_reward=False)
HISTORY = [
    Policy(p.tensors, replace(p.meta, provenance={"eval_return": 10.0 * k, "steps": 100 * k}))
    for k, p in enumerate([drawn(seed=20), drawn(seed=21), drawn(seed=22)])
]


@pytest.mark.parametrize(
    ("config", "algo", "kind"),
    [
        (DAggerConfig(steps=4, beta_schedule="linear"), STUDENT, PLAIN),
        (ProgressiveConfig(steps=4), STUDENT, PLAIN),
        (KickstartConfig(), PLAIN, PLAIN),
        (KickstartConfig(), SAC, SAC),
        (GradientConfig(), RAW, PLAIN),
    ],
    ids=["dagger", "progressive", "kickstart", "sac", "n-distill"],
)
def test_a_teacher_never_moves(
    config: TeachingConfig, algo: LearnerConfig, kind: LearnerConfig
) -> None:
    history = HISTORY if isinstance(config, ProgressiveConfig) else []
    policies = [drawn(kind), *history]
    before = [{k: x.clone() for k, x in p.tensors.items()} for p in policies]
    school = School(config, algo, policies[0], history=history)
    start = school.flat.clone()
    school.run(4)
    assert not torch.equal(school.flat, start)
    for policy, tensors in zip(policies, before, strict=True):
        assert all(torch.equal(policy.tensors[k], x) for k, x in tensors.items())
        assert not any(x.requires_grad for x in policy.tensors.values())
