"""Kickstarting and proximal distillation: a teacher's pull inside the learners' own loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import ClosedTerm, Metrics, Minibatch
from dpd.agents.config import LearnerConfig
from dpd.agents.dist import DiagGaussian
from dpd.agents.learners import Learners
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.ppo_loss import TermPart, proximal_weight, term_loss
from dpd.agents.replay import Transitions
from dpd.distill.in_loss import InLoss
from dpd.distill.in_loss_config import KickstartConfig, ProximalConfig
from dpd.distill.independent import Independent
from dpd.distill.method import Context, Method
from dpd.distill.peers_config import IndependentConfig
from dpd.distill.teacher import Teacher
from dpd.distill.teaching_config import TeachingConfig
from dpd.policies.policyfile import Policy
from tests.toy.students import PLAIN, SAC, STUDENT, TD3, A, O, School, constant, drawn

LEARNERS: dict[str, tuple[KickstartConfig, LearnerConfig, LearnerConfig]] = {
    "ppo": (KickstartConfig(), PLAIN, PLAIN),
    "ppo, reverse KL": (KickstartConfig(divergence="kl_reverse"), PLAIN, PLAIN),
    "ppo of sac, mse": (KickstartConfig(divergence="mse"), PLAIN, SAC),
    "ppo of sac, nll": (KickstartConfig(divergence="nll"), PLAIN, SAC),
    "td3, mse": (KickstartConfig(divergence="mse"), TD3, PLAIN),
    "td3, huber": (KickstartConfig(divergence="huber"), TD3, PLAIN),
    "sac": (KickstartConfig(), SAC, SAC),
    "sac of ppo, nll": (KickstartConfig(divergence="nll"), SAC, PLAIN),
    "ppd": (ProximalConfig(), PLAIN, PLAIN),
}


@pytest.mark.parametrize(("config", "algo", "kind"), LEARNERS.values(), ids=LEARNERS)
def test_learners_are_drawn_to_their_teacher(
    config: KickstartConfig, algo: LearnerConfig, kind: LearnerConfig
) -> None:
    strong = replace(config, coef=10.0, schedule="constant")
    found = School(strong, algo, drawn(kind)).run(15)
    first, last = (found[i]["distill/action_error"].item() for i in (0, -1))
    assert last < 0.8 * first
    assert found[-1]["distill/coef"].item() == 10.0


def end(school: School, method: Method, iterations: int) -> Tensor:
    """Learn by a method in the second half of a run; return the parameters."""
    school.method = method
    for i in range(iterations):
        school.iterate(0.5 + i / 10)
    return school.flat


@pytest.mark.parametrize("name", ["ppo", "td3, mse", "sac"])
def test_when_the_pull_is_over_learning_is_as_without_a_method(name: str) -> None:
    config, algo, kind = LEARNERS[name]
    kicked, alone = (School(config, algo, drawn(kind), groups=2) for _ in range(2))
    for school in (kicked, alone):
        first = school.iterate(0.0)
        assert first["distill/coef"].tolist() == [1.0, 1.0]
        # linear to zero at half of the run: at a quarter it is a half
        assert school.iterate(0.25)["distill/coef"].tolist() == [0.5, 0.5]
    assert torch.equal(kicked.flat, alone.flat)
    with_teacher = end(kicked, kicked.method, 3)
    assert kicked.iterate(0.9)["distill/coef"].tolist() == [0.0, 0.0]
    alone_ended = end(alone, Independent(IndependentConfig(), alone.context), 3)
    alone.iterate(0.9)
    assert torch.equal(with_teacher, alone_ended) and torch.equal(kicked.flat, alone.flat)
    for x, y in zip(kicked.agent.state().values(), alone.agent.state().values(), strict=True):
        assert torch.equal(x, y)


def test_a_teacher_that_no_longer_counts_is_not_asked() -> None:
    school = School(KickstartConfig(), PLAIN, drawn())
    assert school.iterate(0.0)["distill/queries"].item() == 64
    assert school.iterate(0.5)["distill/queries"].item() == 64
    assert school.method.loss is None


def test_nobody_is_asked_while_learners_only_collect() -> None:
    # 4 environments x 16 steps in an iteration: the first hundred steps end in the second, which
    # has 16 updates of 16 states
    school = School(KickstartConfig(), replace(SAC, learning_starts=100), drawn(SAC))
    queries = [metrics["distill/queries"].item() for metrics in school.run(4)]
    assert queries == [0, 256, 256, 256]  # at half of the run it is over


class Noted(Policy):
    """A teacher that remembers the states it was asked about."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.tensors, policy.meta)
        self.asked: list[Tensor] = []

    def dist(self, obs: Tensor) -> DiagGaussian:
        self.asked.append(obs)
        return super().dist(obs)


@pytest.mark.parametrize("algo", [TD3, SAC], ids=["td3", "sac"])
def test_with_a_replay_every_state_of_every_policy_minibatch_is_taught_once(
    algo: LearnerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Noted(drawn(algo))
    school = School(KickstartConfig(divergence="mse", until=1.0), algo, teacher)
    taken: list[Tensor] = []
    take = school.agent.replay.take  # type: ignore[union-attr]

    def noted(samples: Tensor, gamma: Tensor) -> Transitions:
        found: Transitions = take(samples, gamma)
        taken.append(found.obs_act[..., :O].flatten(0, 1))
        return found

    monkeypatch.setattr(school.agent.replay, "take", noted)
    for k in range(3):
        taken.clear()
        teacher.asked.clear()
        school.iterate(k / 10)
        asked = teacher.asked[1:]  # first it is asked how closely it is followed
        used = taken[1::2] if algo is TD3 else taken  # TD3's policy moves with every second one
        assert len(asked) == len(used) == (8 if algo is TD3 else 16)
        for states, minibatch in zip(asked, used, strict=True):
            assert torch.equal(states, minibatch)
    # of all 192 states that were seen, not the latest 64
    assert len(torch.cat(taken).unique(dim=0)) > 64


def test_the_loss_with_a_replay_worked_by_hand() -> None:
    # The teacher answers (0.6, 0), the student (0, 0): mse = 0.36 / 2 = 0.18, times coef 2.
    school = School(KickstartConfig(divergence="mse", coef=2.0), TD3, constant(0.6, 0.0))
    school.iterate(0.0)
    with torch.no_grad():
        school.agent.nets.views["actor.2.weight"].zero_()
        school.agent.nets.views["actor.2.bias"].zero_()
    method, raw_obs = school.method, torch.randn(1, 8, O)
    assert isinstance(method, InLoss) and method.loss is not None
    dist = school.agent.dist(school.agent.obs_norm(raw_obs))
    assert not isinstance(method.loss, ClosedTerm)
    loss, metrics = method.loss(Minibatch(dist, raw_obs, torch.ones(1, 8)))
    assert loss.item() == pytest.approx(2 * 0.18)
    assert metrics["distill/loss"].item() == pytest.approx(0.18)
    # by the bias of the first action: 2 * (2 / 2) * (0 - 0.6) = -1.2, where tanh has slope 1
    (grad,) = torch.autograd.grad(loss.sum(), school.agent.nets.flat)
    assert grad[0, -A:].tolist() == pytest.approx([-1.2, 0.0])


@pytest.mark.parametrize("name", ["td3, mse", "sac", "sac of ppo, nll"])
def test_kickstarted_rows_equal_kickstarted_learners_alone(name: str) -> None:
    config, algo, kind = LEARNERS[name]
    rollouts = [School(config, algo, drawn(kind)).rollout for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for rollout in rollouts:
        for x in (rollout.obs, rollout.next_obs, rollout.act, rollout.reward):
            x.normal_(generator=generator)

    def end(rows: list[tuple[int, int]], picked: list[int]) -> Tensor:
        agent: Learners = algo.build(O, A, rows)
        context = Context(agent, len(rows), 1, rows, Teacher([drawn(kind), drawn(kind, 8)]))
        method, rollout = config.build(context), agent.new_rollout()
        for name in ("obs", "next_obs", "act", "reward"):
            x = torch.cat([getattr(rollouts[k], name) for k in picked])
            getattr(rollout, name).copy_(x)
        for i in range(2):
            batch = agent.prepare(rollout)
            method.on_batch(batch, i / 10)
            agent.update(batch, i / 10, method.loss)
            method.step()
            agent.observe(rollout)
        return agent.nets.flat.detach()

    together = end([(0, 0), (5, 0)], [0, 1])
    for n, row in enumerate([(0, 0), (5, 0)]):
        torch.testing.assert_close(end([row], [n])[0], together[n], rtol=0, atol=2e-5)


def method_of(config: TeachingConfig, *teachers: Any) -> InLoss:
    """Return a method with the teacher's answers to an iteration."""
    school = School(config, replace(PLAIN, clip=0.2), *teachers)
    school.iterate(0.0)
    assert isinstance(school.method, InLoss)
    return school.method


def loss_at(method: InLoss, ratio: Tensor) -> tuple[Tensor, Metrics]:
    """Return the loss at samples of these ratios [1, B], where a plain student answers 0."""
    term, n = method.loss, ratio.shape[1]
    assert isinstance(term, ClosedTerm)
    assert term.proximal == isinstance(method.config, ProximalConfig)
    part = TermPart(*term.part(torch.arange(n).unsqueeze(0), 0))
    weight = proximal_weight(ratio, method.agent.config.clip) if term.proximal else part.weight
    zero = torch.zeros(1, n, A)
    return term_loss(term.kind, DiagGaussian(zero, zero), part, weight)


def test_the_weight_is_the_ratio_but_no_less_than_one_less_clip() -> None:
    ratio = torch.tensor([0.5, 0.79, 0.9, 1.0, 3.0], requires_grad=True)
    weight = proximal_weight(ratio, 0.2)
    assert weight.tolist() == pytest.approx([0.8, 0.8, 0.9, 1.0, 3.0])
    weight.sum().backward()
    # where it is held at 0.8 the ratio moves nothing; PPO's upper bound does not hold here
    assert ratio.grad is not None and ratio.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_the_proximal_loss_is_the_weighted_divergence_with_its_gradient() -> None:
    # The teacher answers (0.6, 0) with deviation 1: KL(teacher || student) is 0.6^2 / 2 = 0.18
    method = method_of(ProximalConfig(coef=2.0), constant(0.6, 0.0, log_std=0.0))
    ratio = torch.tensor([[0.5, 1.0, 1.5, 2.0]], requires_grad=True)
    loss, metrics = loss_at(method, ratio)
    # weights 0.8, 1, 1.5, 2 have the mean 1.325: 2 * 1.325 * 0.18
    assert loss.item() == pytest.approx(2 * 1.325 * 0.18)
    assert metrics["distill/loss"].item() == pytest.approx(0.18)
    (grad,) = torch.autograd.grad(loss, ratio)
    # coef * KL / B = 2 * 0.18 / 4 where the ratio counts
    assert grad[0].tolist() == pytest.approx([0.0, 0.09, 0.09, 0.09])


def test_the_loss_of_kickstarting_is_the_divergence_alone() -> None:
    method = method_of(KickstartConfig(coef=2.0), constant(0.6, 0.0, log_std=0.0))
    loss, _ = loss_at(method, torch.tensor([[0.5, 1.0, 1.5, 2.0]]))
    assert loss.item() == pytest.approx(2 * 0.18)


def test_where_the_policy_is_the_old_one_the_weight_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def noted(ratio: Tensor, clip: float) -> Tensor:
        seen.append(proximal_weight(ratio, clip).detach())
        return proximal_weight(ratio, clip)

    monkeypatch.setattr("dpd.agents.ppo.proximal_weight", noted)
    school = School(ProximalConfig(), PLAIN, drawn())
    for _ in range(2):
        seen.clear()
        school.iterate(0.0)
        # the first minibatch of an iteration, and of the 8 only that
        torch.testing.assert_close(seen[0], torch.ones(1, 16), rtol=0, atol=1e-5)
        assert len(seen) == 8 and (seen[-1] - 1).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("config", "algo", "says"),
    [
        (KickstartConfig(), STUDENT, "--algo ppo, td3, ddpg, sac, not student"),
        (ProximalConfig(), SAC, "--algo ppo, not sac"),
        (KickstartConfig(), TD3, "give --distill.divergence mse"),
        (KickstartConfig(divergence="nll"), TD3, "give --distill.divergence mse"),
    ],
)
def test_learners_that_a_method_cannot_move_are_refused(
    config: KickstartConfig, algo: LearnerConfig, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        School(config, algo, drawn(SAC))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"coef": 0.0}, r"distill\.coef must be positive, not 0\.0"),
        ({"until": 0.0}, r"distill\.until must lie in \(0, 1\], not 0\.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KickstartConfig(**settings)  # type: ignore[arg-type]


def test_the_teachers_of_a_group_answer_every_learner() -> None:
    school = School(KickstartConfig(), PPOConfig(**vars(PLAIN)), drawn(), drawn(seed=8), groups=2)
    school.iterate(0.0)
    answers = school.method.answers  # type: ignore[attr-defined]
    obs = school.rollout.flat_obs()
    either = [torch.stack([p.mode(x) for x in obs]) for p in school.teacher.policies]
    near = [(answers.mean - each).abs().amax(-1) < 1e-5 for each in either]
    assert (near[0] | near[1]).all() and near[0].any(1).all() and near[1].any(1).all()
    assert obs.shape == (2, 64, O)
