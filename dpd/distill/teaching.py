"""Distillation from a saved teacher: supervised, in a learner's loss, as a true gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import Batch, ExtraLoss, Metrics, Minibatch, State, take
from dpd.agents.buffers import Rollout
from dpd.agents.dist import DiagGaussian
from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.agents.rng import RowRandom, Stream
from dpd.distill.acting import Mixture
from dpd.distill.base import Actor, Context, Deployed
from dpd.distill.divergence import divergence
from dpd.distill.states import memory_of
from dpd.distill.targets import Targets, descend, order
from dpd.distill.teacher import Teacher
from dpd.distill.teaching_config import (
    GradientConfig,
    KickstartConfig,
    ProximalConfig,
    SupervisedConfig,
    TeachingConfig,
)

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


class Supervised(Taught):
    """Students learn from the teacher's answers alone, on states that a mixture of both visits."""

    def __init__(self, config: SupervisedConfig, context: Context) -> None:
        super().__init__(config, context)
        self.config = config
        self.actor = self.mixture = Mixture(self.agent, self.current, self.rng, config.explores)
        self.mixture.beta = config.beta(0.0)
        self.memory = memory_of(self.agent, 0) if config.WHOLE_MEMORY else None
        self.batch: Batch | None = None

    def prepare(self, batch: Batch, progress: float) -> None:
        """Keep the iteration's states."""
        super().prepare(batch, progress)
        self.batch = batch

    def step(self) -> Metrics:
        """Take the iteration's gradient steps."""
        assert self.batch is not None
        size = self.config.steps * self.agent.config.minibatch_size
        learnt = self._learn(self._states(self.batch, size), size)
        beta = self._each(self.mixture.beta)
        self.mixture.beta = self.config.beta(self.progress)
        return self._with_queries(self.metrics | learnt | {"distill/beta": beta})

    def _learn(self, obs: Tensor, size: int) -> Metrics:
        """Take the steps on `size` of the raw states [N, K, O] of each learner."""
        c, agent = self.config, self.agent
        drawn = self._targets(obs).at(order(self.rng, obs.shape[1], size))
        loss = descend(
            agent,
            agent.optimizer,
            c.divergence,
            drawn,
            c.steps,
            1.0,
            c.max_grad_norm,
        )
        return {"distill/loss": loss}

    def _states(self, batch: Batch, size: int) -> Tensor:
        """Return the raw states to learn from [N, K, O]."""
        if self.memory is None:
            return batch.raw_obs
        rows = torch.arange(self.agent.n_learners, device=self.agent.device)
        own = rows.unsqueeze(1).expand(-1, size)
        return self.memory.draw(self.rng, own).obs

    @torch.no_grad()
    def _targets(self, obs: Tensor) -> Targets:
        """Label raw states [N, K, O]."""
        said = self.ask(obs)
        return Targets(self.agent.obs_norm(obs), *said, weight=obs.new_ones(obs.shape[:2]))

    def state(self) -> State:
        """Return what a checkpoint must hold."""
        return super().state() | {"beta": torch.tensor(self.mixture.beta, dtype=torch.float64)}

    def load_state(self, state: State) -> None:
        """Put a state back."""
        super().load_state(state)
        self.mixture.beta = float(state["beta"])


class InLoss(Taught):
    """The divergence from the teacher as a term in the loss of reinforcement learning.

    On-policy the teacher labels an iteration's states once, for all epochs. With a replay it labels
    the minibatch of every policy update: the states that the learner's own step uses, each once.
    """

    def __init__(self, config: KickstartConfig, context: Context) -> None:
        super().__init__(config, context)
        self.config = config
        self.has_replay = isinstance(self.agent.config, OffPolicyConfig)
        self.answers: Answers | None = None
        self.coef = 0.0
        self.asks = False

    def prepare(self, batch: Batch, progress: float) -> None:
        """Label the iteration's states, while the teacher still counts and students learn."""
        self.coef = self._coef(progress)
        super().prepare(batch, progress)
        self.asks = self.coef > 0 and not self.agent.warming_up
        self.answers = self.ask(batch.raw_obs) if self.asks and not self.has_replay else None

    def _coef(self, progress: float) -> float:
        """Return the iteration's weight, before its progress is noted."""
        return self.config.coef_at(progress)

    @property
    def loss(self) -> ExtraLoss | None:
        """The weighted divergence at the learner's own samples."""
        return self._minibatch_loss if self.asks else None

    def _minibatch_loss(self, batch: Minibatch) -> tuple[Tensor, Metrics]:
        here = self._answers_at(batch)
        target = DiagGaussian(here.mean, here.log_std, batch.dist.squashed)
        distance = divergence(self.divergence, batch.dist, target, here.sample)
        loss = (self._weight(batch) * distance).mean(1)
        return self.coef * loss, {"distill/loss": distance.detach().mean(1)}

    @torch.no_grad()
    def _answers_at(self, batch: Minibatch) -> Answers:
        """Return the teacher's answers at a minibatch's states [N, B, ...]."""
        if batch.raw_obs is not None:
            return self.ask(batch.raw_obs)
        assert self.answers is not None and batch.idx is not None
        return self.answers.at(batch.idx)

    def _weight(self, batch: Minibatch) -> Tensor:
        """Return the weight of each sample [N, B]."""
        if isinstance(self.config, ProximalConfig):
            return proximal_weight(batch.ratio, self.agent.config.clip)
        return torch.ones_like(batch.ratio)

    def step(self) -> Metrics:
        """Take no steps of its own; report."""
        return self._with_queries(self.metrics | {"distill/coef": self._each(self.coef)})


class TrueGradient(InLoss):
    """The divergence at each state, and its negative at the next as a reward for going there."""

    config: GradientConfig

    @torch.no_grad()
    def see(self, rollout: Rollout) -> None:
        """Give the rewards of distillation in the place of the task's."""
        n, steps, envs, size = rollout.next_obs.shape
        obs = rollout.next_obs.view(n, steps * envs, size)
        said = self.ask(obs)
        student = self.agent.dist(self.agent.obs_norm(obs))
        target = DiagGaussian(said.mean, said.log_std, student.squashed)
        ell = divergence(self.divergence, student, target, said.sample).view_as(rollout.reward)
        corrected = self._coef(0.0) * next_divergence_reward(ell, rollout.terminated)
        rollout.reward.mul_(self.config.reward_coef).add_(corrected)

    def _weight(self, batch: Minibatch) -> Tensor:
        """Return the weight of each sample [N, B]: as much as rewards have, once normalised."""
        return self.agent.reward_scale.reciprocal().expand_as(batch.ratio)

    def _coef(self, progress: float) -> float:
        """Return the weight of both parts: rewards are given before the iteration's is known."""
        return self.config.coef_at(self.progress)


def spread(obs: Tensor, n: int) -> Tensor:
    """Return n positions spread evenly over the samples of obs [N, S, O], on their device.

    Fewer where there are fewer samples: none comes twice.
    """
    size = obs.shape[1]
    return torch.linspace(0, size - 1, min(n, size), device=obs.device).round().long()


def proximal_weight(ratio: Tensor, clip: float) -> Tensor:
    """Return max(ratio, 1 - clip) [...], with its gradient (Spigler 2024, Eq. 5)."""
    return ratio.clamp(min=1 - clip)


def next_divergence_reward(ell: Tensor, terminated: Tensor) -> Tensor:
    """Return the reward -ell(s_{t+1}) of each step; none where there is no next state [...].

    With it, sum_t grad ell(s_t) - grad log pi(a_t | s_t) R_t is the gradient of
    E_student[sum_t ell(s_t)] (Czarnecki et al. 2019, theorem 2).
    """
    return torch.where(terminated, 0.0, -ell)
