"""Distillation from a saved teacher: supervised, in a learner's loss, as a true gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import Batch, ExtraLoss, Metrics, State, take
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.rollout import Rollout
from dpd.distill.config import (
    TeachingConfig,
)
from dpd.distill.method import Actor, Context, Deployed
from dpd.distill.teacher import Teacher

MEASURED = 256  # of an iteration's states at most, on which agreement is measured


class Answers(NamedTuple):
    """What the teacher says of states [N, K, ...], all constant."""

    mean: Tensor
    log_std: Tensor
    sample: Tensor  # what `mse` and `nll` are measured against

    def at(self, idx: Tensor) -> Answers:
        """Return those at positions idx [N, B]."""
        return Answers(*(take(x, idx) for x in self))


class Taught:
    """What methods with a teacher share: questions to it, and how closely the student follows."""

    def __init__(self, config: TeachingConfig, context: Context) -> None:
        if context.teacher is None:
            raise ValueError("this method needs a teacher: --teacher FILE")
        self.agent, self.teacher = context.agent, context.teacher
        # Its own: each stack counts its questions, and not those of others or of measuring.
        self.current = Teacher(self.teacher.policies)
        config.refuse_unfit(context.agent.config)
        for policy in self.teacher.policies:
            config.refuse_unfit_teacher(policy.meta.squashed, context.agent.config)
        self.divergence = config.divergence
        self.rng = RowRandom(context.seeds, Stream.TEACHER, self.agent.device)
        self.actor: Actor = context.agent
        self.progress = 0.0
        self.metrics: Metrics = {}

    @property
    def loss(self) -> ExtraLoss | None:
        """The term inside the learners' loss: none."""
        return None

    @property
    def policy(self) -> Deployed | None:
        """What is evaluated and saved: the students themselves."""
        return None

    def see(self, rollout: Rollout) -> None:
        """Look at nothing."""

    def prepare(self, batch: Batch, progress: float) -> None:
        """Note how far the run is, and how closely students follow where they are."""
        # Until the next call it is used for what follows, which is no more of the beginning.
        self.progress = max(progress, 1e-9)
        self.metrics = self._agreement(batch)

    def ask(self, obs: Tensor) -> Answers:
        """Ask the current teacher about raw obs [N, K, O]."""
        said = self.current.ask(obs, self.current.pick(self.rng.uniform(obs.shape[1])))
        if self.divergence != "nll":
            return Answers(said.mean, said.log_std, said.mode())
        noise = self.rng.normal(*said.mean.shape[1:], dtype=said.mean.dtype)
        act = said.action(said.sample(noise))
        return Answers(said.mean, said.log_std, self._before_squashing(act.clamp(-1, 1)))

    def _before_squashing(self, act: Tensor) -> Tensor:
        """Return an action as the student's density takes it: before its tanh, if it has one."""
        return act.clamp(-1 + 1e-6, 1 - 1e-6).atanh() if self.agent.config.squashed else act

    def _agreement(self, batch: Batch) -> Metrics:
        """Compare the actions of students and teacher at some of the latest states."""
        obs = batch.raw_obs[:, spread(batch.raw_obs, MEASURED)]
        said = self.teacher.ask(obs, self.teacher.pick(self.rng.uniform(obs.shape[1])))
        error = (self.agent.mode(obs) - said.mode()).abs()
        return {
            "distill/action_error": error.square().mean((1, 2)).sqrt(),
            "distill/agree_0.1": (error.amax(-1) <= 0.1).to(error.dtype).mean(1),
        }

    def _with_queries(self, metrics: Metrics) -> Metrics:
        asked = self.current.n_queries / self.agent.n_learners
        return metrics | {"distill/queries": self._each(asked)}

    def _each(self, number: float) -> Tensor:
        """Return a number for every learner [N]."""
        return torch.full_like(self.agent.gamma.squeeze(1), number)

    def state(self) -> State:
        """Return what a checkpoint must hold."""
        progress = torch.tensor(self.progress, dtype=torch.float64)
        queries = torch.tensor(self.current.n_queries)
        return self.rng.state() | {"progress": progress, "queries": queries}

    def load_state(self, state: State) -> None:
        """Put a state back."""
        self.rng.load_state({"generators": state["generators"]})
        self.progress = float(state["progress"])
        self.current.n_queries = int(state["queries"])


def spread(obs: Tensor, n: int) -> Tensor:
    """Return n positions spread evenly over the samples of obs [N, S, O], on their device.

    Fewer where there are fewer samples: none comes twice.
    """
    size = obs.shape[1]
    return torch.linspace(0, size - 1, min(n, size), device=obs.device).round().long()
