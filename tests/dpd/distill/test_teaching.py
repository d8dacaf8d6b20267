"""Supervised distillation from a saved teacher: BC, DAgger, on-policy, progressive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dpd.agents.dist import kl
from dpd.agents.student_config import StudentConfig
from dpd.distill.config import Divergence
from dpd.distill.teacher import Teacher
from dpd.distill.teaching_config import (
    CloningConfig,
    DAggerConfig,
    OnPolicyConfig,
    ProgressiveConfig,
    SupervisedConfig,
)
from dpd.policies.policyfile import Policy
from tests.toy.point_mass import DT, HORIZON, fit, returns, starts, steer
from tests.toy.students import (
    PLAIN,
    SAC,
    STUDENT,
    A,
    DoubleIntegrator,
    O,
    School,
    constant,
    drawn,
    linear,
    policy_of,
)

STEPS = 16


def gentle() -> Policy:
    """Return a policy whose mean stays well inside the box, without a normaliser."""
    policy = drawn(replace(PLAIN, norm_obs=False))
    weaker = {k: 0.2 * x if k.startswith("actor.2") else x for k, x in policy.tensors.items()}
    return Policy(weaker, policy.meta)


def history(*returned: float) -> list[Policy]:
    """Return checkpoints of these returns, a hundred steps apart."""
    found = []
    for k, value in enumerate(returned):
        policy = drawn(seed=30 + k)
        said = {"eval_return": value, "steps": 100 * k}
        found.append(Policy(policy.tensors, replace(policy.meta, provenance=said)))
    return found


# --- A student that is its teacher ---


@pytest.mark.parametrize("divergence", ["kl_forward", "kl_reverse", "mse"])
def test_a_copy_of_the_teacher_is_at_no_distance_and_stays_there(divergence: Divergence) -> None:
    teacher = gentle()
    school = School(
        OnPolicyConfig(divergence=divergence, steps=STEPS),
        replace(STUDENT, norm_obs=False, lr=1e-4),
        teacher,
    )
    school.agent.start_from(0, teacher.tensors)
    start = school.flat.clone()
    found = school.run(4)
    # 64 steps at 1e-4 could move a parameter by 6.4e-3; what rounding leaves is not that steady
    assert (school.flat - start).abs().max() < 1e-3
    for metrics in found:
        assert metrics["distill/loss"].item() < 1e-6
        assert metrics["distill/action_error"].item() < 1e-3
        assert metrics["distill/agree_0.1"].item() == 1.0


def test_a_copy_of_the_teacher_has_no_gradient() -> None:
    teacher = gentle()
    school = School(CloningConfig(), replace(STUDENT, norm_obs=False), teacher)
    school.agent.start_from(0, teacher.tensors)
    obs = 3 * torch.randn(1, 200, O, generator=torch.Generator().manual_seed(0))
    student = school.agent.dist(obs)
    said = school.teacher.ask(obs, torch.zeros(1, 200, dtype=torch.int64))
    distance = kl(said, student)
    assert distance.abs().max() < 1e-6
    (grad,) = torch.autograd.grad(distance.mean(), school.agent.nets.flat)
    # one that answered 0.1 otherwise would have a gradient of 0.1 / std^2 by the last bias alone
    assert grad.abs().max() < 1e-5


# --- Learning ---

DIVERGENCES: list[Divergence] = ["kl_forward", "kl_reverse", "mse", "huber", "nll"]
METHODS: list[type[SupervisedConfig]] = [
    CloningConfig,
    DAggerConfig,
    OnPolicyConfig,
    ProgressiveConfig,
]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("method", METHODS)
def test_students_come_nearer_to_their_teacher(
    method: type[SupervisedConfig], divergence: Divergence
) -> None:
    checkpoints = history(0.0, 60.0, 100.0) if method is ProgressiveConfig else []
    config = method(divergence=divergence, steps=STEPS)
    school = School(config, STUDENT, drawn(), history=checkpoints, groups=2)
    found = school.run(16)
    last, first = found[-1], found[0]
    assert (last["distill/action_error"] < 0.8 * first["distill/action_error"]).all()
    if method is not ProgressiveConfig:  # whose first loss is from another teacher
        assert (last["distill/loss"] < first["distill/loss"]).all()


@pytest.mark.parametrize("divergence", ["mse", "huber", "nll"])
def test_a_plain_student_learns_from_a_teacher_that_squashes(divergence: Divergence) -> None:
    school = School(DAggerConfig(divergence=divergence, steps=STEPS), STUDENT, drawn(SAC))
    found = school.run(16)
    assert (found[-1]["distill/loss"] < found[0]["distill/loss"]).all()
    assert found[-1]["distill/action_error"] < 0.8 * found[0]["distill/action_error"]
    # actions of the teacher, not what it had before its tanh
    assert school.rollout.act.abs().max() < 1.5


@pytest.mark.parametrize("divergence", ["kl_forward", "kl_reverse"])
def test_kl_from_a_teacher_that_squashes_is_refused(divergence: Divergence) -> None:
    with pytest.raises(ValueError, match="squashes its actions and these students do not"):
        School(DAggerConfig(divergence=divergence), STUDENT, drawn(SAC))


def test_samples_of_a_teacher_are_actions_in_the_box() -> None:
    school = School(CloningConfig(divergence="nll"), STUDENT, constant(0.9, -0.9, log_std=0.0))
    said = school.method.ask(torch.zeros(1, 400, O))  # type: ignore[attr-defined]
    # beyond 1 lie 46 % of N(0.9, 1), beyond -1 another 3 %
    assert said.sample.abs().max() == 1.0
    assert 0.4 < (said.sample.abs() == 1.0).float().mean() < 0.6


def test_bc_learns_from_all_that_was_seen_and_on_policy_from_what_it_just_saw() -> None:
    bc, on = (School(m(steps=2), STUDENT, drawn()) for m in (CloningConfig, OnPolicyConfig))
    seen = {}
    for school in (bc, on):
        states: list[Tensor] = []
        ask = school.method.ask  # type: ignore[attr-defined]
        school.method.ask = lambda obs, a=ask, s=states: s.append(obs) or a(obs)  # type: ignore
        school.run(6)
        latest = {tuple(row) for row in school.rollout.obs.flatten(0, 2).tolist()}
        seen[school] = [tuple(row) in latest for row in states[-1][0].tolist()]
    assert all(seen[on])
    # of 6 x 64 states a sixth are the latest
    assert 0 < sum(seen[bc]) < len(seen[bc])


def test_queries_count_acting_and_learning_and_no_measuring() -> None:
    # bc: 64 steps of the teacher, and 2 x 16 labels, in each iteration; on-policy: 64 labels alone
    for method, each in ((CloningConfig, 64 + 32), (OnPolicyConfig, 64)):
        school = School(method(steps=2), STUDENT, drawn(), groups=2)
        asked = [metrics["distill/queries"].tolist() for metrics in school.run(3)]
        assert asked == [[each] * 2, [2 * each] * 2, [3 * each] * 2]


def test_progressive_counts_the_queries_of_all_its_checkpoints() -> None:
    checkpoints = history(0.0, 60.0, 100.0)
    school = School(ProgressiveConfig(steps=2), STUDENT, drawn(), history=checkpoints)
    found = school.run(4)
    # levels 20, 40, 60, 80 of 0 to 100: the second checkpoint, then the teacher
    assert [metrics["distill/stage"].item() for metrics in found] == [0, 0, 1, 1]
    assert [m["distill/queries"].item() for m in found] == [96, 192, 288, 384]
    assert found[0]["distill/stage_return"].item() == 60.0
    assert "distill/stage_return" not in found[-1]  # its file does not say


def test_progressive_goes_on_as_soon_as_a_stage_has_settled() -> None:
    # 12 checkpoints equally far apart: with 3 stages the 4th, 7th and 10th
    config = ProgressiveConfig(steps=1, stages=3, switch="saturate", final_share=0.2)
    school = School(
        config,
        replace(STUDENT, lr=1e-9),  # that learns nothing has settled
        drawn(),
        history=history(*(10.0 * k for k in range(13))),
    )
    stages = [metrics["distill/stage"].item() for metrics in school.run(40)]
    # six losses of a stage, on random states, must not fall by a hundredth: about every second time
    assert stages == sorted(stages) and set(stages) == {0, 1, 2, 3}
    assert stages[:6] == [0] * 6
    assert stages[32:] == [3] * 8  # the last fifth is the teacher's


# --- Where students go themselves ---

STEER = torch.tensor([[-1.0, 0.0], [0.0, -1.0], [-1.5, 0.0], [0.0, -1.5]])
# Of the teacher's deviation, which mse leaves as it is: KL is then that of the means.
FEW = StudentConfig(
    n_envs=4, n_steps=HORIZON, minibatch_size=32, hidden=(3,), lr=1e-2, log_std_init=-3.0
)
GROUPS = 16


@torch.no_grad()
def kl_at_states_of(school: School, actor: Callable[[Tensor], Tensor]) -> Tensor:
    """Return KL(teacher || student) of every student [N], in episodes of someone."""
    state = starts(200, seed=5)[:1].expand(GROUPS, -1, -1)
    visited = []
    for _ in range(HORIZON):
        visited.append(state)
        velocity = state[..., 2:] + DT * actor(state)
        state = torch.cat([state[..., :2] + DT * velocity, velocity], -1)
    obs = torch.cat(visited, 1)
    said = school.teacher.ask(obs, torch.zeros(obs.shape[:2], dtype=torch.int64))
    return kl(said, school.agent.ask(obs).dist).mean(1)


@pytest.fixture(scope="module")
def taught() -> dict[str, School]:
    """Students of three units: BC's and DAgger's, of as many steps, queries and gradient steps."""
    found = {}
    for name, method in (("bc", CloningConfig), ("dagger", DAggerConfig)):
        teacher = linear(STEER, torch.zeros(A), log_std=-3.0)
        config = method(divergence="mse", steps=60)
        found[name] = School(config, FEW, teacher, groups=GROUPS, world=DoubleIntegrator)
        found[name].run(12)
    return found


def test_the_kl_of_a_cloned_student_is_larger_where_it_goes_than_where_its_teacher_went(
    taught: dict[str, School],
) -> None:
    school = taught["bc"]
    own, teachers = (kl_at_states_of(school, each) for each in (school.agent.mode, steer))
    assert (own > teachers).sum() >= 15  # of 16
    assert own.mean() > 1.1 * teachers.mean()


def test_dagger_shrinks_the_kl_where_the_student_goes(taught: dict[str, School]) -> None:
    bc, dagger = (
        kl_at_states_of(taught[name], taught[name].agent.mode) for name in ("bc", "dagger")
    )
    assert dagger.mean() < 0.8 * bc.mean()


def test_self_distillation_leaves_a_gap_though_the_return_is_kept() -> None:
    algo = StudentConfig(n_envs=4, n_steps=HORIZON, minibatch_size=64, hidden=(16, 16), lr=3e-3)
    expert = algo.build(4, 2, [(9, 0)])
    state = starts(4096, seed=1)[:1]
    fit(expert.nets.flat, lambda s: expert.dist(s).mean, state, steer(state), 200)
    teacher = policy_of(expert)
    school = School(DAggerConfig(steps=60), algo, teacher, world=DoubleIntegrator)
    school.run(10)
    held_out = starts(300, seed=9)[:1]
    obs = held_out.flatten(0, 1).unsqueeze(0)
    gap = kl(
        Teacher([teacher]).ask(obs, torch.zeros(1, 300, dtype=torch.int64)),
        school.agent.ask(obs).dist,
    )
    error = (school.agent.mode(obs) - teacher.mode(obs[0])).abs().amax(-1)
    assert gap.mean() > 1e-4 and (error <= 0.01).float().mean() < 0.9
    generator = torch.Generator().manual_seed(0)
    uniform = returns(lambda s: torch.rand(1, 300, 2, generator=generator) * 2 - 1, held_out)
    good = returns(lambda s: teacher.mode(s[0]).unsqueeze(0), held_out)
    kept = (returns(school.agent.mode, held_out) - uniform).mean() / (good - uniform).mean()
    assert 0.9 < kept < 1.1
