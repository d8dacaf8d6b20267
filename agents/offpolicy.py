"""The base class of TD3, DDPG and SAC: critics, replay and the order of updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from dpd.agents.base import (
    Answer,
    Batch,
    ExtraLoss,
    Metrics,
    Minibatch,
    State,
    Stateful,
    per_row,
)
from dpd.agents.config import OffPolicyConfig
from dpd.agents.learners import Learners
from dpd.agents.nets import Shapes, StackedNets, Tape, mlp_shapes
from dpd.agents.noise import uniform_from_normal
from dpd.agents.optim import StackedAdam
from dpd.agents.replay import Replay, Transitions
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.rollout import Rollout
from dpd.agents.td_loss import critic_loss

BLOCK = 64  # updates whose random numbers are drawn at once

MethodGradient = Callable[[], tuple[Tensor | None, Metrics]]
"""Returns a method's gradient [N, D] of the policies' parameters (None: none), and metrics [N]."""


class PerLearner:
    """Wraps a component with C rows per learner, so that its state has the shape [N, C, ...]."""

    def __init__(self, part: Stateful, n: int) -> None:
        self.part, self.n = part, n

    def state(self) -> State:
        return {k: x.unflatten(0, (self.n, -1)) for k, x in self.part.state().items()}

    def load_state(self, state: State) -> None:
        self.part.load_state({k: x.flatten(0, 1) for k, x in state.items()})


class OffPolicy(Learners):
    """N learners with a replay and C critics each.

    The critics of learner n are rows nC to nC + C - 1 of one stack.
    """

    config: OffPolicyConfig
    replay: Replay

    def _make(self, seeds: Sequence[Sequence[int]]) -> None:
        config, dtype, device = self.config, self.dtype, self.device
        n, c = self.n_learners, config.n_critics
        init = RowRandom(seeds, Stream.INIT).generators
        self.nets = StackedNets(self._actor_shapes(), n, config.activation, dtype, device)
        self.nets.init_uniform("actor", init)
        shapes = mlp_shapes("critic", [self.obs_dim + self.act_dim, *config.hidden, 1])
        self.critics = StackedNets(shapes, n * c, config.activation, dtype, device)
        self.critics.init_uniform("critic", [g for g in init for _ in range(c)])
        self.target_critics = self.critics.twin()
        self.critic_lr = per_row(config.peer_lr, config.critic_lr or config.lr, seeds)
        self.optimizer = StackedAdam(self.nets.flat, self.lr.tolist())
        self.critic_optimizer = StackedAdam(self.critics.flat, [config.lr] * n * c)
        self.batches = RowRandom(seeds, Stream.BATCH, device)
        sharers = 1 + max(seed[-1] for seed in seeds) if config.share_replay else 1
        self.replay = Replay(config, n, self.obs_dim, self.act_dim, dtype, sharers, device)
        self.n_updates = 0

    @abstractmethod
    def _actor_shapes(self) -> Shapes:
        """Name the policy's layers."""

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on raw obs [N, E, O] with noise [N, E, A] -> [N, E, A] in [-1, 1].

        Actions are uniformly random in the first `learning_starts` steps.
        """
        if self.warming_up:
            return uniform_from_normal(noise)
        return self._explore(self.obs_norm(obs), noise)

    @abstractmethod
    def _explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on normalised obs [N, E, O] with noise [N, E, A] -> [N, E, A] in [-1, 1]."""

    @abstractmethod
    def _draw(self, updates: int) -> Tensor:
        """Draw the noise of a number of updates [N, updates, ...]."""

    @abstractmethod
    def _step(self, sample: Transitions, noise: Tensor, method: MethodGradient) -> Metrics:
        """Run one update on a sample with normalised observations."""

    @property
    def warming_up(self) -> bool:
        """True while actions are uniformly random and no updates take place."""
        return self.replay.total * self.config.n_envs < self.config.learning_starts

    @torch.no_grad()
    def ask(self, obs: Tensor) -> Answer:
        """Return the policy at raw obs [N, B, O] and the least critic's value of its mode."""
        dist = self.dist(self.obs_norm(obs))
        return Answer(dist, self.q(obs, dist.mode()).amin(1))

    @torch.no_grad()
    def q(self, obs: Tensor, act: Tensor) -> Tensor:
        """Return every critic's value of act [N, B, A] at raw obs [N, B, O] -> [N, C, B].

        Values are in raw reward units, since rewards are not scaled.
        """
        return self._judge(self.critics, torch.cat([self.obs_norm(obs), act], -1))[0]

    def _judge(self, critics: StackedNets, obs_act: Tensor) -> tuple[Tensor, Tape]:
        """Run critics on obs_act [N, B, O + A] -> values [N, C, B], and the tape."""
        n, b, size = obs_act.shape
        c = critics.flat.shape[0] // n
        if c > 1:
            obs_act = obs_act.unsqueeze(1).expand(n, c, b, size).reshape(n * c, b, size)
        (q,), tape = critics.run(obs_act, "critic")
        return q.view(n, c, b), tape

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Store a rollout in the replay; return its states for the distillation method."""
        self.replay.push(rollout)
        return Batch(None, rollout.flat_obs(), None, rollout.valid.flatten(1))

    @torch.no_grad()
    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Run an iteration's updates on minibatches of the replay; return metrics [N].

        There are no updates and no metrics in the first `learning_starts` steps. Learning rates
        are constant.
        """
        if self.warming_up or not self.replay.ready:
            return {}
        self._set_rates()
        history: dict[str, list[Tensor]] = {}
        for begin in range(0, self.config.updates, BLOCK):
            for metrics in self._block(min(BLOCK, self.config.updates - begin), extra):
                for name, value in metrics.items():
                    history.setdefault(name, []).append(value)
        return {name: torch.stack(values).mean(0) for name, values in history.items()}

    def _block(self, updates: int, extra: ExtraLoss | None) -> list[Metrics]:
        """Run a number of updates whose random numbers are drawn at once."""
        samples = self.replay.draw(self.batches, updates, self.config.minibatch_size)
        noise = self._draw(updates)
        history = []
        for i in range(updates):
            self.n_updates += 1
            history.append(self._take_one(samples[:, i], noise[:, i], extra))
            if self._moves_policy:
                self._train_policy_alone(extra)
        return history

    @property
    def _moves_policy(self) -> bool:
        """True if the current update includes the policy."""
        return True

    def _take_one(self, samples: Tensor, noise: Tensor, extra: ExtraLoss | None) -> Metrics:
        """Run one update on samples [N, B] of the replay, recorded unless a method adds a loss."""

        def work(samples: Tensor, noise: Tensor) -> Metrics:
            sample, method = self._read(samples, extra)
            return self._step(sample, noise, method)

        if extra is not None:
            return work(samples, noise)
        return self.graphs.run(self._moves_policy, work, samples, noise)

    def _read(self, samples: Tensor, extra: ExtraLoss | None) -> tuple[Transitions, MethodGradient]:
        """Return the transitions at samples [N, B], normalised, and a method's gradient there."""
        raw = self.replay.take(samples, self.gamma)
        raw_obs = raw.obs_act[..., : self.obs_dim]
        return self._normalised(raw), partial(self._method_gradient, raw_obs, extra)

    def _method_gradient(
        self, raw_obs: Tensor, extra: ExtraLoss | None
    ) -> tuple[Tensor | None, Metrics]:
        """Return the gradient of a method's loss at raw_obs [N, B, O], and its metrics."""
        if extra is None:
            return None, {}
        with torch.enable_grad():
            dist = self.dist(self.obs_norm(raw_obs))
            # a replay has no old policy to compare with
            ratio = dist.mean.new_ones(raw_obs.shape[:2])
            loss, metrics = extra(Minibatch(dist, ratio, raw_obs=raw_obs))
            if not loss.requires_grad:
                return None, metrics
            (grad,) = torch.autograd.grad(loss.sum(), self.nets.flat)
        return grad, metrics

    def _train_policy_alone(self, extra: ExtraLoss | None) -> None:
        """Run `extra_policy_updates` policy-only updates."""
        for _ in range(self.config.extra_policy_updates):
            samples = self.replay.draw(self.batches, self.config.minibatch_size)
            sample, method = self._read(samples, extra)
            improved = self._improve(sample.obs_act, self._draw(1)[:, 0])
            self._update_policy(*improved, method)

    @abstractmethod
    def _improve(self, obs_act: Tensor, noise: Tensor) -> tuple[Tape, Tensor, Metrics]:
        """Return a policy update: the tape, the gradient of the actor's output, and metrics."""

    def _normalised(self, sample: Transitions) -> Transitions:
        if not self.obs_norm.enabled:
            return sample
        obs, act = sample.obs_act.split([self.obs_dim, self.act_dim], -1)
        obs_act = torch.cat([self.obs_norm(obs), act], -1)
        return sample._replace(obs_act=obs_act, next_obs=self.obs_norm(sample.next_obs))

    def _set_rates(self) -> None:
        self.optimizer.lr = self.lr.tolist()
        per_critic = self.critic_lr.repeat_interleave(self.config.n_critics)
        self.critic_optimizer.lr = per_critic.tolist()

    def _update_critics(self, sample: Transitions, next_value: Tensor, coef: float) -> Metrics:
        """Take a critic step towards reward + discount * next_value [N, B]."""
        target = torch.addcmul(sample.reward, sample.discount, next_value)
        q, tape = self._judge(self.critics, sample.obs_act)
        _, metrics, (of_q,) = critic_loss(q, target, coef)
        grad, _ = self.critics.gradient(tape, [of_q.view(-1, of_q.shape[2], 1)])
        self.critic_optimizer.step(grad)
        return metrics

    def _update_policy(
        self, tape: Tape, of_output: Tensor, metrics: Metrics, method: MethodGradient
    ) -> Metrics:
        """Take a policy step along its gradient plus a method's."""
        grad, _ = self.nets.gradient(tape, [of_output])
        added, method_metrics = method()
        self.optimizer.step(grad if added is None else grad + added)
        return metrics | method_metrics

    def _follow(self, target: StackedNets, nets: StackedNets) -> None:
        """Move target networks towards the trained ones (Polyak averaging)."""
        target.flat.detach().lerp_(nets.flat.detach(), self.config.tau)

    def _parts(self) -> dict[str, Stateful]:
        n = self.n_learners
        return super()._parts() | {
            "critics": PerLearner(self.critics, n),
            "target_critics": PerLearner(self.target_critics, n),
            "critic_optimizer": PerLearner(self.critic_optimizer, n),
            "batches": self.batches,
        }

    def _own_state(self) -> State:
        updates = torch.full((self.n_learners,), self.n_updates)
        return super()._own_state() | {"critic_lr": self.critic_lr, "n_updates": updates}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.n_updates = int(state["n_updates"][0])

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        super().retry(rows, attempt)
        self.batches.reseed(rows, attempt)
        self.critic_lr[list(rows)] *= 0.5

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        for name, view in self.nets.views.items():
            view[n].copy_(self._imported(name, policy))
        self.obs_norm.start_from(n, policy)

    def _imported(self, name: str, policy: Mapping[str, Tensor]) -> Tensor:
        """Return the named parameter of an exported policy, in this stack's layout."""
        return policy[name]
