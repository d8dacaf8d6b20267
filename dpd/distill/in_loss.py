"""Distillation as a term in the reinforcement-learning loss."""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import Batch, ClosedTerm, ExtraLoss, Metrics, Minibatch, Rollout, State
from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.distill.in_loss_config import GradientConfig, KickstartConfig, ProximalConfig
from dpd.distill.method import Context
from dpd.distill.targets import Answers, distance
from dpd.distill.teacher import Mixture
from dpd.distill.teaching import TeacherMethod


class InLoss(TeacherMethod):
    """The divergence from the teacher as a term in the loss of reinforcement learning.

    On-policy the teacher labels an iteration's states once, for all epochs. With a replay it labels
    the minibatch of every policy update: the states that the learner's own step uses, each once.
    """

    def __init__(self, config: KickstartConfig, context: Context) -> None:
        super().__init__(config, context)
        self.config = config
        self.has_replay = isinstance(self.agent.config, OffPolicyConfig)
        self.mixture: NotedMixture | None = None
        if config.most_beta > 0:
            self.actor = self.mixture = NotedMixture(self.agent, self.current, self.rng, True)
            self.mixture.beta = config.beta(0.0)
        self.answers: Answers | None = None
        self.coef, self.rl_coef = 0.0, 1.0
        self.asks = False

    def on_rollout(self, rollout: Rollout) -> None:
        """Leave out the teacher's steps where the loss is that of a student's own steps.

        Off-policy learners take them as they are.
        """
        if self.mixture is not None and not self.has_replay:
            rollout.valid &= ~self.mixture.taught

    def on_batch(self, batch: Batch, progress: float) -> None:
        """Label the states of the iteration, while the term has a weight and students learn."""
        self.coef = self._coef(progress)
        self._weigh_rewards(progress)
        super().on_batch(batch, progress)
        self.asks = self.coef > 0 and not self.agent.warming_up
        self.answers = self.ask(batch.raw_obs) if self.asks and not self.has_replay else None

    def _coef(self, progress: float) -> float:
        """Return the weight of the term, before `progress` is stored."""
        return self.config.coef_at(progress)

    def _weigh_rewards(self, progress: float) -> None:
        """Give reinforcement learning its weight in this iteration."""
        self.agent.rl_coef = self.rl_coef = self.config.rl_coef_at(progress)

    @property
    def loss(self) -> ExtraLoss | None:
        if self.answers is None:
            return self._replay_loss if self.asks else None
        weight = self._weight_of(self.answers.mean[..., 0])
        return ClosedTerm(
            self.coef,
            self.divergence,
            *self.answers,
            weight,
            proximal=isinstance(self.config, ProximalConfig),
        )

    def _replay_loss(self, batch: Minibatch) -> tuple[Tensor, Metrics]:
        """Return the loss [N] at the states of a policy update, which the teacher answers."""
        with torch.no_grad():
            answers = self.ask(batch.raw_obs)
        loss = distance(self.divergence, batch.dist, answers).mean(1)
        return self.coef * loss, {"distill/loss": loss.detach()}

    def _weight_of(self, like: Tensor) -> Tensor:
        """Return the weights [N, K] that do not depend on the student."""
        return torch.ones_like(like)

    def step(self) -> Metrics:
        weights = {"distill/coef": self.coef}
        if self.config.rl_coef_points is not None:
            weights["distill/rl_coef"] = self.rl_coef
        if self.mixture is not None:
            weights["distill/beta"] = self.mixture.beta
            self.mixture.beta = self.config.beta(self.progress)
        return self._with_queries(self.metrics | {k: self._repeat(x) for k, x in weights.items()})

    def load_state(self, state: State) -> None:
        super().load_state(state)
        if self.mixture is not None:
            self.mixture.beta = self.config.beta(self.progress)


class NotedMixture(Mixture):
    """A mixture that notes at which steps of an iteration the teacher acts, `taught` [N, T, E]."""

    taught: Tensor

    def noise(self) -> Tensor:
        drawn = super().noise()
        self.taught = drawn[..., -2] < self.beta  # the coin is the last number but one
        return drawn

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        act = super().act(obs, noise)
        # critics know no actions beyond the bounds; a plain Gaussian teacher draws some
        return act if self.agent.replay is None else act.clamp(-1, 1)


class TrueGradient(InLoss):
    """The divergence at each state, and its negative at the next as a reward for going there."""

    config: GradientConfig

    @torch.no_grad()
    def on_rollout(self, rollout: Rollout) -> None:
        """Replace the task's rewards by those of distillation."""
        n, steps, envs, size = rollout.next_obs.shape
        obs = rollout.next_obs.view(n, steps * envs, size)
        answers = self.ask(obs)
        student = self.agent.dist(self.agent.obs_norm(obs))
        ell = distance(self.divergence, student, answers).view_as(rollout.reward)
        corrected = self._coef(0.0) * next_divergence_reward(ell, rollout.terminated)
        self.rl_coef = self.config.rl_coef_at(self.progress)
        rollout.reward.mul_(self.rl_coef).add_(corrected)

    def _weigh_rewards(self, progress: float) -> None:
        """Do nothing: the rewards have their weight already."""

    def _weight_of(self, like: Tensor) -> Tensor:
        """Return the weights [N, K]: the scale of normalised rewards."""
        return self.agent.reward_scale.reciprocal().expand_as(like)

    def _coef(self, progress: float) -> float:
        """Return the weight of both parts: rewards are given before the progress is known."""
        return self.config.coef_at(self.progress)


def next_divergence_reward(ell: Tensor, terminated: Tensor) -> Tensor:
    """Return the reward -ell(s_{t+1}) of each step [...]; 0 if there is no next state.

    With it, sum_t grad ell(s_t) - grad log pi(a_t | s_t) R_t is the gradient of
    E_student[sum_t ell(s_t)] (Czarnecki et al. 2019, theorem 2).
    """
    return torch.where(terminated, 0.0, -ell)
