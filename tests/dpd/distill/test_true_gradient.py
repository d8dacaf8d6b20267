"""n-distill and reverse-kl: the gradient of E_student[sum_t ell(s_t)] (Czarnecki et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from dpd.agents.base import ClosedTerm, Metrics
from dpd.agents.dist import kl
from dpd.agents.ppo import PPO
from dpd.distill.in_loss import TrueGradient, next_divergence_reward
from dpd.distill.in_loss_config import GradientConfig, ReverseGradientConfig
from tests.toy.students import PLAIN, SAC, School, drawn

F64 = torch.float64

# --- A tabular problem: every episode enumerated ---

STATES, ACTIONS, LONGEST = 3, 2, 4
END = STATES  # where an episode terminates
Steps = list[tuple[int, int, int]]  # state, action, next state


def episodes(state: int = 0, left: int = LONGEST) -> Iterator[Steps]:
    """Yield every possible episode; the last step of the longest terminates in any case."""
    for act, after in product(range(ACTIONS), range(STATES + 1)):
        if after == END or left == 1:
            yield [(state, act, after)]
        else:
            yield from ([(state, act, after), *rest] for rest in episodes(after, left - 1))


class Tabular:
    """A random decision problem with a random teacher; episodes [M, T] begin in state 0."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.theta = torch.randn(STATES, ACTIONS, generator=g, dtype=F64)
        moves = torch.rand(STATES, ACTIONS, STATES + 1, generator=g, dtype=F64)
        self.log_moves = (moves / moves.sum(-1, keepdim=True)).log()
        self.teacher = torch.randn(STATES, ACTIONS, generator=g, dtype=F64).log_softmax(1)
        every = list(episodes())
        padded = [x + [(0, 0, 0)] * (LONGEST - len(x)) for x in every]
        self.state, self.act, self.after = torch.tensor(padded).unbind(-1)
        length = torch.tensor([len(x) for x in every]).unsqueeze(1)
        self.there = torch.arange(LONGEST) < length
        self.last = torch.arange(LONGEST) == length - 1

    def sum(self, x: Tensor) -> Tensor:
        """Sum what there is at the steps of each episode [M, T] -> [M]."""
        return torch.where(self.there, x, 0.0).sum(1)

    def ell(self, theta: Tensor, reverse: bool) -> Tensor:
        """Return the divergence of student and teacher at every state."""
        student = theta.log_softmax(1)
        p, q = (student, self.teacher) if reverse else (self.teacher, student)
        return (p.exp() * (p - q)).sum(1)

    def chance(self, theta: Tensor) -> Tensor:
        """Return the probability of every episode [M]."""
        logp = theta.log_softmax(1)[self.state, self.act]
        return self.sum(logp + self.log_moves[self.state, self.act, self.after]).exp()

    def cost(self, theta: Tensor, reverse: bool) -> Tensor:
        """Return E_student[sum_t ell(s_t)]."""
        ell = self.ell(theta, reverse)[self.state]
        return (self.chance(theta) * self.sum(ell)).sum()


def finite_differences(problem: Tabular, reverse: bool, h: float = 1e-5) -> Tensor:
    """Return the gradient by central differences, whose error is of the order h^2 = 1e-10."""
    moved = torch.eye(STATES * ACTIONS, dtype=F64).view(-1, STATES, ACTIONS) * h
    up, down = (
        torch.stack([problem.cost(problem.theta + sign * x, reverse) for x in moved])
        for sign in (1, -1)
    )
    return ((up - down) / (2 * h)).view(STATES, ACTIONS)


def corrected(problem: Tabular, reverse: bool, rewarded: bool) -> Tensor:
    """Return E[sum_t grad ell(s_t) - grad log pi(a_t|s_t) R_t], R_t the rewards from t on.

    A reward is minus the next state's ell, so a step towards disagreement is made less likely.
    """
    theta = problem.theta.clone().requires_grad_()
    logp, ell = theta.log_softmax(1), problem.ell(theta, reverse)
    following = ell.detach()[problem.after.clamp(max=STATES - 1)]
    reward = next_divergence_reward(following, problem.last) * problem.there * rewarded
    to_go = reward.flip(1).cumsum(1).flip(1)
    surrogate = problem.sum(ell[problem.state] - logp[problem.state, problem.act] * to_go)
    (grad,) = torch.autograd.grad((problem.chance(theta).detach() * surrogate).sum(), theta)
    return grad


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_with_the_reward_it_is_the_gradient_and_without_it_is_not(seed: int, reverse: bool) -> None:
    problem = Tabular(seed)
    assert problem.chance(problem.theta).sum().item() == pytest.approx(1)  # none is left out
    truth = finite_differences(problem, reverse)
    assert (corrected(problem, reverse, rewarded=True) - truth).abs().max() < 1e-6
    assert (corrected(problem, reverse, rewarded=False) - truth).abs().max() > 1e-3


def test_a_terminated_step_leads_nowhere_and_is_not_rewarded() -> None:
    ell = torch.tensor([0.5, 2.0, 3.0])
    reward = next_divergence_reward(ell, torch.tensor([False, False, True]))
    assert reward.tolist() == [-0.5, -2.0, 0.0]


# --- What PPO gets to learn from ---

RAW = replace(PLAIN, norm_adv=False, norm_reward=False, gamma=1.0, lam=1.0)


def seen(config: GradientConfig, progress: float = 0.0) -> tuple[School, Tensor, Tensor]:
    """Collect an iteration; return the task's rewards and -ell of the next states, 0 at ends."""
    school = School(config, RAW, drawn(), groups=2)
    if progress:
        school.iterate(progress / 2)
    collected = school.rollout.reward.clone()

    def note(rollout: object, see: object = school.method.on_rollout) -> None:
        collected.copy_(school.rollout.reward)
        see(rollout)  # type: ignore[operator]

    school.method.on_rollout = note  # type: ignore[method-assign]
    before = school.agent.state()
    policy = {name: x.clone() for name, x in before.items()}
    school.iterate(progress)
    school.agent.load_state(policy)  # as it was when the states were seen
    rollout = school.rollout
    obs = rollout.next_obs.flatten(1, 2)
    student = school.agent.ask(obs).dist
    said = school.teacher.ask(obs, torch.zeros(obs.shape[:2], dtype=torch.int64))
    pair = (student, said) if config.divergence == "kl_reverse" else (said, student)
    away = -kl(*pair).view_as(rollout.reward).masked_fill(rollout.terminated, 0.0)
    return school, collected, away


@pytest.mark.parametrize("config", [GradientConfig(), ReverseGradientConfig()])
def test_rewards_are_replaced(config: GradientConfig) -> None:
    school, _, away = seen(config)
    torch.testing.assert_close(school.rollout.reward, away)
    # every eighth step ends an episode: 2 learners x 4 environments x 2
    assert int((school.rollout.reward == 0).sum()) == 16
    assert (school.rollout.reward <= 0).all()


def test_the_tasks_rewards_may_be_kept_beside_them() -> None:
    school, task, away = seen(GradientConfig(coef=2.0, reward_coef=0.5))
    torch.testing.assert_close(school.rollout.reward, 0.5 * task + 2.0 * away)


def test_both_parts_have_the_same_weight_while_it_falls() -> None:
    config = GradientConfig(coef=2.0, schedule="linear")
    school, _, away = seen(config, progress=0.25)
    # Rewards are given before the iteration's progress is known: by an eighth, the last one's.
    # Linear to zero at a half, that is three quarters of 2; by a quarter it would be 1.
    torch.testing.assert_close(school.rollout.reward, 1.5 * away)
    assert isinstance(school.method, TrueGradient)
    assert school.method.coef == pytest.approx(1.5)


def test_a_schedule_of_the_first_iteration_ends_with_it_for_both_parts() -> None:
    school = School(GradientConfig(schedule="first"), RAW, drawn())
    school.iterate(0.0)
    assert school.method.coef == 1.0  # type: ignore[attr-defined]
    school.iterate(0.1)
    assert school.method.coef == 0.0  # type: ignore[attr-defined]
    assert not school.rollout.reward.any()


def test_advantages_are_the_rewards_from_there_on_less_a_baseline() -> None:
    school, _, away = seen(GradientConfig())
    with torch.no_grad():
        school.agent.nets.views["critic.2.weight"].zero_()
        school.agent.nets.views["critic.2.bias"].zero_()
    adv = school.agent.prepare(school.rollout).data.adv.view_as(away)
    # episodes of 8 steps, with gamma and lambda 1 and values of 0
    to_go = away.unflatten(1, (2, 8)).flip(2).cumsum(2).flip(2).flatten(1, 2)
    torch.testing.assert_close(adv, to_go, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [GradientConfig(coef=3.0), ReverseGradientConfig(coef=3.0)])
def test_students_come_nearer_to_their_teacher(config: GradientConfig) -> None:
    found = School(config, RAW, drawn(), groups=2).run(20)
    first, last = found[0]["distill/action_error"], found[-1]["distill/action_error"]
    assert (last < 0.8 * first).all()


def test_normalised_rewards_scale_both_parts_alike() -> None:
    # The gradient on one batch, rewards in the unit of their deviation, is the plain one over it.
    normed = replace(RAW, norm_reward=True, value_coef=0.0)
    school = School(GradientConfig(coef=2.0), normed, drawn(), groups=2)
    school.iterate(0.0)  # from here on there are statistics
    scale = school.agent.reward_scale
    assert (scale > 1.5).all() and scale[0] != scale[1]
    with torch.no_grad():
        school.agent.nets.views["critic.2.weight"].zero_()
        school.agent.nets.views["critic.2.bias"].zero_()
    in_unit = gradient(school)
    school.agent.return_norm.enabled = False  # type: ignore[attr-defined]
    plain = gradient(school)
    assert (plain.abs().amax(1) > 0.1).all()
    torch.testing.assert_close(in_unit * scale, plain, rtol=1e-4, atol=1e-5)


def gradient(school: School) -> Tensor:
    """Return what PPO and the method descend together [N, D], on the latest rollout."""
    batch = school.agent.prepare(school.rollout)
    school.method.on_batch(batch, 0.0)
    idx = torch.arange(batch.data.adv.shape[1]).expand_as(batch.data.adv)
    agent, term, grads = school.agent, school.method.loss, []
    assert isinstance(agent, PPO) and isinstance(term, ClosedTerm)

    def noted(grad: Tensor, active: list[bool]) -> Metrics:
        grads.append(grad)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent, "_descend", noted)
        agent._step(batch.data, idx, 0, [True] * agent.n_learners, term)
    return grads[0]


def test_advantages_of_another_scale_and_other_learners_are_refused() -> None:
    with pytest.raises(ValueError, match="leave --norm-adv off"):
        School(GradientConfig(), replace(RAW, norm_adv=True), drawn())
    with pytest.raises(ValueError, match="--algo ppo, not sac"):
        School(GradientConfig(), SAC, drawn(SAC))
    with pytest.raises(ValueError, match=r"reward_coef must not be negative, not -1\.0"):
        GradientConfig(reward_coef=-1.0)
