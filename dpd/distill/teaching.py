"""Methods with a teacher: their base, and supervised ones (cloning, DAgger, on-policy)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dpd.agents.base import Batch, Metrics
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student import Student
from dpd.distill.exchange import state_source
from dpd.distill.method import Context, Method
from dpd.distill.targets import Answers, Targets, descend, distance, order, samples_at
from dpd.distill.teacher import Mixture, Teacher
from dpd.distill.teaching_config import SupervisedConfig, TeachingConfig

MEASURED = 256  # states of an iteration on which agreement is measured, at most


class TeacherMethod(Method):
    """Asks the teacher, counts the questions, and measures how closely the students follow."""

    STATE: ClassVar[tuple[str, ...]] = ("rng", "progress", "current")

    def __init__(self, config: TeachingConfig, context: Context) -> None:
        super().__init__(context)
        if context.teacher is None:
            raise ValueError("this method needs a teacher: --teacher FILE")
        self.teacher = context.teacher
        # A separate object, so that it counts only the questions of this stack's distillation.
        self.current = Teacher(self.teacher.policies, route=self.teacher.route)
        config.refuse_unfit(context.agent.config)
        for policy in self.teacher.policies:
            config.refuse_unfit_teacher(policy.meta.squashed, context.agent.config)
        self.divergence = config.divergence
        self.rng = RowRandom(context.ids, Stream.TEACHER, self.agent.device)
        self.progress = 0.0
        self.metrics: Metrics = {}

    def on_batch(self, batch: Batch, progress: float) -> None:
        """Store the progress, and measure how closely students follow on the latest states."""
        # From here on, progress refers to the next iteration, so it must be > 0.
        self.progress = max(progress, 1e-9)
        self.metrics = self._agreement(batch)

    def ask(self, obs: Tensor) -> Answers:
        """Ask the current teacher about raw obs [N, K, O]."""
        answer = self.current.ask(obs, self.current.pick(self.rng.uniform(obs.shape[1]), obs))
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
        answer = self.teacher.ask(obs, self.teacher.pick(self.rng.uniform(obs.shape[1]), obs))
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


def spread(obs: Tensor, n: int) -> Tensor:
    """Return n positions spread evenly over the samples of obs [N, S, O], without repetition.

    There are fewer if obs has fewer samples. They are on the device of obs.
    """
    size = obs.shape[1]
    return torch.linspace(0, size - 1, min(n, size), device=obs.device).round().long()


class Supervised(TeacherMethod):
    """Students learn from the teacher's answers alone, on states that a mixture of both visits."""

    STATE: ClassVar[tuple[str, ...]] = (*TeacherMethod.STATE, "mixture")
    agent: Student

    def __init__(self, config: SupervisedConfig, context: Context) -> None:
        super().__init__(config, context)
        self.config = config
        self.actor = self.mixture = Mixture(self.agent, self.current, self.rng, config.explores)
        self.mixture.beta = config.beta(0.0)
        self.memory = state_source(self.agent, 0) if config.WHOLE_MEMORY else None
        self.batch: Batch | None = None

    def on_batch(self, batch: Batch, progress: float) -> None:
        super().on_batch(batch, progress)
        self.batch = batch

    def step(self) -> Metrics:
        assert self.batch is not None
        size = self.config.steps * self.agent.config.minibatch_size
        length = self.agent.sequence_length
        if length > 1:
            learnt = self._learn_sequences(length)
        else:
            learnt = self._learn(self._states(self.batch, size), size)
        beta = self._repeat(self.mixture.beta)
        self.mixture.beta = self.config.beta(self.progress)
        return self._with_queries(self.metrics | learnt | {"distill/beta": beta})

    def _learn(self, obs: Tensor, size: int) -> Metrics:
        """Take the steps on `size` of the raw states [N, K, O] of each learner."""
        drawn = samples_at(self._targets(obs), order(self.rng, obs.shape[1], size))
        return self._descend(drawn)

    def _learn_sequences(self, length: int) -> Metrics:
        """Take the steps on as many sequences of states as fit into their minibatches."""
        c, algo = self.config, self.agent.config
        count = c.steps * (algo.minibatch_size // length)
        recent = None if c.WHOLE_MEMORY else algo.n_steps
        obs, valid = self.agent.replay.draw_sequences(self.rng, count, length, recent)
        targets = self._targets(obs)
        return self._descend(targets._replace(weight=valid.to(targets.weight.dtype)))

    def _descend(self, drawn: Targets) -> Metrics:
        """Take the steps on equal parts of what was drawn for them."""
        c, agent = self.config, self.agent
        leaf = agent.nets.flat, agent.optimizer
        fused = agent.fused_imitation(c.divergence, agent.optimizer)
        loss = descend(leaf, self.imitation_loss, drawn, c.steps, c.max_grad_norm, fused=fused)
        return {"distill/loss": loss}

    def imitation_loss(self, targets: Targets) -> Tensor:
        """Return the mean divergence of every student from the teacher [N]."""
        student = self.agent.dist_along(targets.obs)
        off = distance(self.config.divergence, student, targets)
        if self.agent.sequence_length == 1:
            return off.mean(1)
        return (off * targets.weight).sum(1) / targets.weight.sum(1).clamp(min=1)

    def _states(self, batch: Batch, size: int) -> Tensor:
        """Return the raw states to learn from [N, K, O]."""
        if self.memory is None:
            return batch.raw_obs
        rows = torch.arange(self.agent.n_learners, device=self.agent.device)
        own = rows.unsqueeze(1).expand(-1, size)
        obs = self.memory.draw(self.rng, own).obs
        return obs

    @torch.no_grad()
    def _targets(self, obs: Tensor) -> Targets:
        """Label raw states [N, K, O]."""
        answers = self.ask(obs)
        return Targets(self.agent.obs_norm(obs), *answers, weight=obs.new_ones(obs.shape[:2]))
