"""Compiled imitation steps equal those of torch, for learners and for students of unlike widths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpd.agents.kernels import Kernels
from dpd.agents.learners import GaussianLearners
from dpd.agents.optim import StackedAdam
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student import Student
from dpd.agents.student_config import StudentConfig
from dpd.distill.targets import Targets, descend, distance

F32, F64 = torch.float32, torch.float64
O, A, K, STEPS = 4, 2, 60, 5  # noqa: E741
STUDENT = StudentConfig(n_envs=1, n_steps=4, minibatch_size=4, capacity=40, sizes=("4x8", "9x3"))
PEERS = PPOConfig(n_envs=1, n_steps=4, minibatch_size=4, hidden=(6, 6))


def targets(dtype: torch.dtype) -> Targets:
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, K, *shape, generator=g, dtype=F64).to(dtype)

    weight = normal().abs()
    weight[0, : K // STEPS] = 0  # row 0 stands still in the first step
    return Targets(normal(O), normal(A), 0.3 * normal(A), normal(A), weight)


def after_steps(
    agent: GaussianLearners, kind: str, kernels: Kernels | None, students: Tensor | None
) -> tuple[Tensor, Tensor, StackedAdam]:
    """Take steps; return the mean loss, the parameters and the optimizer."""
    agent.kernels = kernels
    optimizer = StackedAdam(agent.nets.flat, [1e-2, 3e-3])
    leaf = agent.nets.flat, optimizer

    def loss(t: Targets) -> Tensor:
        return (t.weight * distance(kind, agent.dist(t.obs), t)).mean(1)

    fused = agent.fused_imitation(kind, optimizer)
    assert (fused is None) == (kernels is None)
    told = descend(leaf, loss, targets(agent.dtype), STEPS, 0.5, 0.8, students, fused)
    return told, agent.nets.flat.detach(), optimizer


def build(what: str, dtype: torch.dtype) -> GaussianLearners:
    seeds = [(0, 0), (0, 1)]
    if what == "peers":
        return PPO(PEERS, O, A, seeds, dtype)
    return Student(STUDENT, O, A, seeds, dtype)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("what", ["peers", "students"])
@pytest.mark.parametrize("kind", ["mse", "huber", "kl_forward", "kl_reverse", "nll"])
def test_imitation_steps_equal_those_by_autograd(kind: str, what: str, dtype: torch.dtype) -> None:
    bound = 1e-10 if dtype == F64 else 1e-5
    plain = after_steps(build(what, dtype), kind, None, None)
    fused = after_steps(build(what, dtype), kind, Kernels(2), None)
    torch.testing.assert_close(fused[0], plain[0], rtol=bound, atol=bound)
    torch.testing.assert_close(fused[1], plain[1], rtol=0, atol=bound)
    assert torch.equal(fused[2].steps, plain[2].steps)
    assert fused[2].steps.tolist() == [STEPS - 1, STEPS]


def test_learners_that_do_not_imitate_stand_still() -> None:
    agent = build("peers", F32)
    before = agent.nets.flat.detach().clone()
    _, param, _ = after_steps(agent, "mse", Kernels(1), torch.tensor([True, False]))
    assert not torch.equal(param[0], before[0]) and torch.equal(param[1], before[1])


def test_padding_stays_zero() -> None:
    agent = build("students", F32)
    _, param, _ = after_steps(agent, "kl_forward", Kernels(1), None)
    assert agent.nets.padding is not None and not param[agent.nets.padding].any()
