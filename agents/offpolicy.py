"""A method's loss inside the updates of learners with a replay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

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
from dpd.agents.learners import Learners, Stacked
from dpd.agents.nets import Shapes, StackedNets, Tape, mlp_shapes
from dpd.agents.optim import StackedAdam
from dpd.agents.replay import Replay, Transitions
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.rollout import Rollout
from dpd.agents.td_loss import critic_loss


class Imitation:
    """A method's loss on one minibatch: the states that the learner's own gradient step uses.

    `raw_obs` [N, B, O] are those states; `extra` None stands for no method.
    """

    def __init__(self, learners: Learners, raw_obs: Tensor, extra: ExtraLoss | None) -> None:
        self.learners, self.raw_obs, self.extra = learners, raw_obs, extra

    def gradient(self) -> tuple[Tensor | None, Metrics]:
        """Return the gradient [N, D] of the policies' parameters, or None, and metrics [N]."""
        if self.extra is None:
            return None, {}
        nets, norm = self.learners.nets, self.learners.obs_norm
        with torch.enable_grad():
            dist = self.learners.dist(norm(self.raw_obs))
            ratio = dist.mean.new_ones(self.raw_obs.shape[:2])
            loss, metrics = self.extra(Minibatch(dist, ratio, raw_obs=self.raw_obs))
            if not loss.requires_grad:
                return None, metrics
            (grad,) = torch.autograd.grad(loss.sum(), nets.flat)
        return grad, metrics


BLOCK = 64  # updates whose random numbers are drawn at once

Config = TypeVar("Config", bound=OffPolicyConfig)


class PerLearner:
    """A part with C rows per learner, whose state has one: [N, C, ...]."""

    def __init__(self, part: Stateful, n: int) -> None:
        self.part, self.n = part, n

    def state(self) -> State:
        """Return the part's state, as live tensors."""
        return {k: x.unflatten(0, (self.n, -1)) for k, x in self.part.state().items()}

    def load_state(self, state: State) -> None:
        """Put a state back."""
        self.part.load_state({k: x.flatten(0, 1) for k, x in state.items()})


class OffPolicy(Stacked[Config]):
    """N learners that collect, update and answer as one stack.

    The C critics of learner n are rows nC to nC + C - 1 of one stack.
    """

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

    @abstractmethod
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on raw obs [N, E, O] with noise [N, E, A] -> [N, E, A] in [-1, 1].

        Uniformly at random, by the noise alone, in the first `learning_starts` steps.
        """

    @abstractmethod
    def _draw(self, updates: int) -> Tensor:
        """Draw the noise of so many updates [N, updates, ...]."""

    @abstractmethod
    def _step(self, sample: Transitions, noise: Tensor, imitation: Imitation) -> Metrics:
        """Take one update on a sample with normalised observations."""

    @property
    def warming_up(self) -> bool:
        """Whether actions are still random, and nothing is learnt."""
        return self.replay.total * self.config.n_envs < self.config.learning_starts

    @torch.no_grad()
    def ask(self, obs: Tensor) -> Answer:
        """Answer on raw obs [N, B, O]; a value is the least critic's of the action without noise.

        Rewards are not scaled, so values are in raw reward units.
        """
        dist = self.dist(self.obs_norm(obs))
        return Answer(dist, self.q(obs, dist.mode()).amin(1))

    @torch.no_grad()
    def q(self, obs: Tensor, act: Tensor) -> Tensor:
        """Return what every critic says of act [N, B, A] at raw obs [N, B, O] -> [N, C, B].

        In raw reward units.
        """
        return self._judge(self.critics, torch.cat([self.obs_norm(obs), act], -1))[0]

    def _judge(self, critics: StackedNets, obs_act: Tensor) -> tuple[Tensor, Tape]:
        """Run critics on obs_act [N, B, O + A] -> [N, C, B], and what their gradient needs."""
        n, b, size = obs_act.shape
        c = critics.flat.shape[0] // n
        if c > 1:
            obs_act = obs_act.unsqueeze(1).expand(n, c, b, size).reshape(n * c, b, size)
        (q,), tape = critics.run(obs_act, "critic")
        return q.view(n, c, b), tape

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Remember a rollout; return its states for whoever distils."""
        self.replay.push(rollout)
        return Batch(None, rollout.flat_obs(), None, rollout.valid.flatten(1))

    @torch.no_grad()
    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Take an iteration's updates on minibatches of the replay; return metrics [N].

        `extra` adds a loss to every update of the policy, on the same minibatch. Learning rates
        are constant, whatever the `progress`. Nothing happens, and no metrics come back, in the
        first `learning_starts` steps.
        """
        if self.warming_up or not self.replay.ready:
            return {}
        self._set_rates()
        found: dict[str, list[Tensor]] = {}
        for begin in range(0, self.config.updates, BLOCK):
            for metrics in self._block(min(BLOCK, self.config.updates - begin), extra):
                for name, value in metrics.items():
                    found.setdefault(name, []).append(value)
        return {name: torch.stack(values).mean(0) for name, values in found.items()}

    def _block(self, updates: int, extra: ExtraLoss | None) -> list[Metrics]:
        """Take some updates, with random numbers drawn at once."""
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
        """Whether the update under way is one of the policy too."""
        return True

    def _take_one(self, samples: Tensor, noise: Tensor, extra: ExtraLoss | None) -> Metrics:
        """Take one update on samples [N, B] of the replay, recorded if no method adds to it."""

        def work(samples: Tensor, noise: Tensor) -> Metrics:
            sample, imitation = self._read(samples, extra)
            return self._step(sample, noise, imitation)

        if extra is not None:
            return work(samples, noise)
        return self.graphs.run(self._moves_policy, work, samples, noise)

    def _read(self, samples: Tensor, extra: ExtraLoss | None) -> tuple[Transitions, Imitation]:
        """Return the transitions at samples [N, B], normalised, and a method's loss on them."""
        raw = self.replay.take(samples, self.gamma)
        imitation = Imitation(self, raw.obs_act[..., : self.obs_dim], extra)
        return self._normalised(raw), imitation

    def _train_policy_alone(self, extra: ExtraLoss | None) -> None:
        """Take the further updates of the policy that follow one of its own."""
        for _ in range(self.config.extra_policy_updates):
            samples = self.replay.draw(self.batches, self.config.minibatch_size)
            sample, imitation = self._read(samples, extra)
            improved = self._improve(sample.obs_act, self._draw(1)[:, 0])
            self._update_policy(*improved, imitation)

    @abstractmethod
    def _improve(self, obs_act: Tensor, noise: Tensor) -> tuple[Tape, Tensor, Metrics]:
        """Return a policy update's tape, the gradient of the actor's output, and metrics."""

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
        """Move the critics towards reward + discount * next_value [N, B]."""
        target = torch.addcmul(sample.reward, sample.discount, next_value)
        q, tape = self._judge(self.critics, sample.obs_act)
        _, metrics, (of_q,) = critic_loss(q, target, coef)
        grad, _ = self.critics.gradient(tape, [of_q.view(-1, of_q.shape[2], 1)])
        self.critic_optimizer.step(grad)
        return metrics

    def _update_policy(
        self, tape: Tape, of_output: Tensor, metrics: Metrics, imitation: Imitation
    ) -> Metrics:
        """Move the policy along the gradient of its output, and a method's."""
        grad, _ = self.nets.gradient(tape, [of_output])
        added, found = imitation.gradient()
        self.optimizer.step(grad if added is None else grad + added)
        return metrics | found

    def _follow(self, target: StackedNets, nets: StackedNets) -> None:
        """Move target networks towards theirs (Polyak averaging)."""
        target.flat.detach().lerp_(nets.flat.detach(), self.config.tau)

    @property
    def journal(self) -> Replay:
        """The replay, which is no part of `state`: a checkpoint writes what is new of it."""
        return self.replay

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
        """Put a state back. Raises ValueError where it is of other learners."""
        super().load_state(state)
        self.n_updates = int(state["n_updates"][0])
        self.graphs.forget()

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        """Give rows new random numbers and half the learning rates, after they diverged."""
        super().retry(rows, attempt)
        self.batches.reseed(rows, attempt)
        self.critic_lr[list(rows)] *= 0.5
        self.graphs.forget()  # rows of equal rates are recorded as one

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        """Give learner n a policy and its normaliser, as `export` returns them.

        The critics stay as they were made.
        """
        for name, view in self.nets.views.items():
            view[n].copy_(self._imported(name, policy))
        self.obs_norm.start_from(n, policy)

    def _imported(self, name: str, policy: Mapping[str, Tensor]) -> Tensor:
        """Return what `export` made of a parameter."""
        return policy[name]

    @abstractmethod
    def export(self, n: int) -> dict[str, Tensor]:
        """Return learner n's policy and normaliser, as a policy file holds them."""
