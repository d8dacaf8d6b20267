"""Base of the methods with a teacher: asking it, and measuring how closely students follow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import Batch, Metrics, State, take
from dpd.agents.rng import RowRandom, Stream
from dpd.distill.config import TeachingConfig
from dpd.distill.method import Context, Method
from dpd.distill.teacher import Teacher

MEASURED = 256  # states of an iteration on which agreement is measured, at most


class Answers(NamedTuple):
    """The teacher's policy at states [N, K, ...], all constant."""

    mean: Tensor
    log_std: Tensor
    sample: Tensor  # the action that `mse` and `nll` compare with

    def at(self, idx: Tensor) -> Answers:
        """Return the answers at positions idx [N, B]."""
        return Answers(*(take(x, idx) for x in self))


class TeacherMethod(Method):
    """Asks the teacher, counts the questions, and measures how closely the students follow."""

    def __init__(self, config: TeachingConfig, context: Context) -> None:
        super().__init__(context)
        if context.teacher is None:
            raise ValueError("this method needs a teacher: --teacher FILE")
        self.teacher = context.teacher
        # A separate object, so that it counts only the questions of this stack's distillation.
        self.current = Teacher(self.teacher.policies)
        config.refuse_unfit(context.agent.config)
        for policy in self.teacher.policies:
            config.refuse_unfit_teacher(policy.meta.squashed, context.agent.config)
        self.divergence = config.divergence
        self.rng = RowRandom(context.seeds, Stream.TEACHER, self.agent.device)
        self.progress = 0.0
        self.metrics: Metrics = {}

    def on_batch(self, batch: Batch, progress: float) -> None:
        """Store the progress, and measure how closely students follow on the latest states."""
        # From here on, progress refers to the next iteration, so it must be > 0.
        self.progress = max(progress, 1e-9)
        self.metrics = self._agreement(batch)

    def ask(self, obs: Tensor) -> Answers:
        """Ask the current teacher about raw obs [N, K, O]."""
        answer = self.current.ask(obs, self.current.pick(self.rng.uniform(obs.shape[1])))
        if self.divergence != "nll":
            return Answers(answer.mean, answer.log_std, answer.mode())
        noise = self.rng.normal(*answer.mean.shape[1:], dtype=answer.mean.dtype)
        act = answer.action(answer.sample(noise))
        return Answers(answer.mean, answer.log_std, self._before_squashing(act.clamp(-1, 1)))

    def _before_squashing(self, act: Tensor) -> Tensor:
        """Return the sample that the student's density takes for an action: before its tanh."""
        return act.clamp(-1 + 1e-6, 1 - 1e-6).atanh() if self.agent.config.squashed else act

    def _agreement(self, batch: Batch) -> Metrics:
        """Compare the students' actions with the teacher's at some of the latest states."""
        obs = batch.raw_obs[:, spread(batch.raw_obs, MEASURED)]
        answer = self.teacher.ask(obs, self.teacher.pick(self.rng.uniform(obs.shape[1])))
        error = (self.agent.mode(obs) - answer.mode()).abs()
        return {
            "distill/action_error": error.square().mean((1, 2)).sqrt(),
            "distill/agree_0.1": (error.amax(-1) <= 0.1).to(error.dtype).mean(1),
        }

    def _with_queries(self, metrics: Metrics) -> Metrics:
        queries = self.current.n_queries / self.agent.n_learners
        return metrics | {"distill/queries": self._repeat(queries)}

    def _repeat(self, number: float) -> Tensor:
        """Repeat a number for every learner [N]."""
        return torch.full_like(self.agent.gamma.squeeze(1), number)

    def state(self) -> State:
        """Return generators, progress and the number of questions."""
        progress = torch.tensor(self.progress, dtype=torch.float64)
        queries = torch.tensor(self.current.n_queries)
        return self.rng.state() | {"progress": progress, "queries": queries}

    def load_state(self, state: State) -> None:
        """Restore a state."""
        self.rng.load_state({"generators": state["generators"]})
        self.progress = float(state["progress"])
        self.current.n_queries = int(state["queries"])


def spread(obs: Tensor, n: int) -> Tensor:
    """Return n positions spread evenly over the samples of obs [N, S, O], without repetition.

    There are fewer if obs has fewer samples. They are on the device of obs.
    """
    size = obs.shape[1]
    return torch.linspace(0, size - 1, min(n, size), device=obs.device).round().long()
