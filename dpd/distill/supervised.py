"""Supervised distillation: behaviour cloning, DAgger and on-policy distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import Batch, Metrics, State
from dpd.distill.config import SupervisedConfig
from dpd.distill.exchange import state_source
from dpd.distill.method import Context
from dpd.distill.targets import Targets, descend, distance, order
from dpd.distill.teacher import Mixture
from dpd.distill.teaching import TeacherMethod


class Supervised(TeacherMethod):
    """Students learn from the teacher's answers alone, on states that a mixture of both visits."""

    def __init__(self, config: SupervisedConfig, context: Context) -> None:
        super().__init__(config, context)
        self.config = config
        self.actor = self.mixture = Mixture(self.agent, self.current, self.rng, config.explores)
        self.mixture.beta = config.beta(0.0)
        self.memory = state_source(self.agent, 0) if config.WHOLE_MEMORY else None
        self.batch: Batch | None = None

    def on_batch(self, batch: Batch, progress: float) -> None:
        """Store the states of the iteration."""
        super().on_batch(batch, progress)
        self.batch = batch

    def step(self) -> Metrics:
        """Take the iteration's gradient steps."""
        assert self.batch is not None
        size = self.config.steps * self.agent.config.minibatch_size
        learnt = self._learn(self._states(self.batch, size), size)
        beta = self._repeat(self.mixture.beta)
        self.mixture.beta = self.config.beta(self.progress)
        return self._with_queries(self.metrics | learnt | {"distill/beta": beta})

    def _learn(self, obs: Tensor, size: int) -> Metrics:
        """Take the steps on `size` of the raw states [N, K, O] of each learner."""
        c, agent = self.config, self.agent
        drawn = self._targets(obs).at(order(self.rng, obs.shape[1], size))
        leaf = agent.nets.flat, agent.optimizer
        fused = agent.fused_imitation(c.divergence, agent.optimizer)
        loss = descend(leaf, self.imitation_loss, drawn, c.steps, c.max_grad_norm, fused=fused)
        return {"distill/loss": loss}

    def imitation_loss(self, targets: Targets) -> Tensor:
        """Return the mean divergence of every student from the teacher [N]."""
        student = self.agent.dist(targets.obs)
        return distance(self.config.divergence, student, targets).mean(1)

    def _states(self, batch: Batch, size: int) -> Tensor:
        """Return the raw states to learn from [N, K, O]."""
        if self.memory is None:
            return batch.raw_obs
        rows = torch.arange(self.agent.n_learners, device=self.agent.device)
        own = rows.unsqueeze(1).expand(-1, size)
        obs, _ = self.memory.draw(self.rng, own)
        return obs

    @torch.no_grad()
    def _targets(self, obs: Tensor) -> Targets:
        """Label raw states [N, K, O]."""
        answers = self.ask(obs)
        return Targets(self.agent.obs_norm(obs), *answers, weight=obs.new_ones(obs.shape[:2]))

    def state(self) -> State:
        """Return the state of the base class, and beta."""
        return super().state() | {"beta": torch.tensor(self.mixture.beta, dtype=torch.float64)}

    def load_state(self, state: State) -> None:
        """Restore a state."""
        super().load_state(state)
        self.mixture.beta = float(state["beta"])
