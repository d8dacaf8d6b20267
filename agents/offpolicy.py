"""The base class of TD3, DDPG and SAC: critics, replay and the order of updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import (
    Answer,
    Batch,
    ClosedTerm,
    ExtraLoss,
    LearnerId,
    Metrics,
    Minibatch,
    ReplayLoss,
    Rollout,
    per_row,
)
from dpd.agents.learners import FusedImitation, Learners
from dpd.agents.nets import Shapes, StackedNets, Tape, mlp_shapes
from dpd.agents.norm import ObsNorm
from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.agents.offpolicy_loss import critic_loss
from dpd.agents.optim import StackedAdam
from dpd.agents.pool import Pool
from dpd.agents.replay import Replay, Transitions
from dpd.agents.rng import RowRandom, Stream, uniform_from_normal
from dpd.agents.turns import HybridTurns, OwnTurns

BLOCK = 64  # updates whose random numbers are drawn at once
TRANSITIONS = 32768  # of all learners, which a call of the kernels reads


class Sample(NamedTuple):
    """A minibatch: raw, as each learner's policy reads it, and as its critics do."""

    raw: Transitions
    own: Transitions
    judged: Transitions


class Ascent(NamedTuple):
    """A policy update before it is taken."""

    tape: Tape
    of_output: Tensor  # gradient of the actor's output
    q: Tensor  # [N, B] values of the policy's actions that it ascends
    metrics: Metrics


class OffPolicy(Learners):
    """N learners with a replay and C critics each.

    The critics of learner n are rows nC to nC + C - 1 of one stack.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        *Learners.STATE,
        "critics",
        "target_critics",
        "critic_optimizer",
        "critic_lr",
        "batches",
        "n_updates",
        "turns",
        "frozen",
    )
    config: OffPolicyConfig
    replay: Replay
    critic_norm: ObsNorm
    """What the critics read of stored observations; by default what the policy reads."""

    def _make(self, ids: Sequence[LearnerId]) -> None:
        config, dtype, device = self.config, self.dtype, self.device
        n, c = self.n_learners, config.n_critics
        init = RowRandom(ids, Stream.INIT).generators
        self.nets = StackedNets(self._actor_shapes(), n, config.activation, dtype, device)
        self.nets.init_uniform("actor", init)
        self.critic_norm = self._make_critic_norm()
        self.critic_dim = self.critic_norm.mean.shape[-1]
        shapes = mlp_shapes("critic", [self.critic_dim + self.act_dim, *config.hidden, 1])
        self.critics = StackedNets(shapes, n * c, config.activation, dtype, device)
        self.critics.init_uniform("critic", [g for g in init for _ in range(c)])
        self.target_critics = self.critics.twin()
        self.critic_lr = per_row(config.peer_lr, config.critic_lr or config.lr, ids)
        self.optimizer = StackedAdam(self.nets.flat, self.lr.tolist())
        self.critic_optimizer = StackedAdam(self.critics.flat, [config.lr] * n * c)
        self.batches = RowRandom(ids, Stream.BATCH, device)
        pools = config.share_experience
        sharers = 1 + max(peer for _, peer in ids) if pools or config.share_replay else 1
        sizes = n, self.obs_dim, self.act_dim
        self.replay = Replay(config, *sizes, dtype, sharers, device, half_own=pools)
        own, self.all_critics = (Pool(n, peers, c, self.critic_norm) for peers in (1, sharers))
        self.target_pool = self.all_critics if config.pools_targets else own
        self.policy_pool = self.all_critics if config.pools_policy else own
        self.n_updates = 0
        self.frozen = config.critic_warmup
        """Iterations with updates left in which the policies stay as they are."""
        self.turns = OwnTurns()
        if config.act == "hybrid":
            self.turns = HybridTurns(ids, config.n_envs, config.act_every, device)

    @abstractmethod
    def _actor_shapes(self) -> Shapes:
        """Name the policy's layers."""

    def _make_critic_norm(self) -> ObsNorm:
        """Return what normalises the critics' observations."""
        return self.obs_norm

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on raw obs [N, E, O] with noise [N, E, A] -> [N, E, A] in [-1, 1].

        Actions are uniformly random in the first `learning_starts` steps, unless critics warm up.
        """
        if self.acts_at_random:
            return uniform_from_normal(noise)
        return self.turns.act(obs, noise, self._explore, self.mode, self.q)

    @abstractmethod
    def _explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on raw obs [N, E, O] with noise [N, E, A] -> [N, E, A] in [-1, 1]."""

    def _output(self, obs: Tensor) -> Tensor:
        """Return the actors' output at raw obs [N, E, O], without a gradient."""
        if self.kernels is not None:
            return self.kernels.output(self.nets, self.obs_norm, self.obs_norm.select(obs))
        return self.nets.run(self.obs_norm(obs), "actor")[0][0]

    @abstractmethod
    def _draw(self, updates: int) -> Tensor:
        """Draw the noise of a number of updates [N, updates, ...]."""

    @abstractmethod
    def _step(self, sample: Sample, noise: Tensor, judges: Tensor) -> tuple[Metrics, Ascent | None]:
        """Update the critics on a sample; return the policy's update if it is due.

        `judges` [N, M] are the critics drawn for the targets; M is 0 where none are drawn.
        """

    @abstractmethod
    def _improve(self, sample: Sample, noise: Tensor) -> Ascent:
        """Return a policy update at the states of a sample."""

    @abstractmethod
    def _ascend_own(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Return the algorithm's own objective Q of act [N, B, A] at the critics' obs [N, B, O].

        Returns its values [N, B], and the gradient of -mean_B Q by act.
        """

    @property
    def warming_up(self) -> bool:
        """True while no updates take place.

        The steps of all peers that draw from each other's replays count.
        """
        replay, c = self.replay, self.config
        return replay.total * c.n_envs * replay.sharers < c.learning_starts

    @property
    def acts_at_random(self) -> bool:
        """True while actions are uniformly random."""
        return self.warming_up and not self.frozen

    @property
    def updates(self) -> int:
        """Gradient steps of every learner per iteration."""
        of_all = self.replay.sharers if self.config.share_experience else 1
        return self.config.updates * of_all

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
        return self._judge(self.critics, torch.cat([self.critic_norm(obs), act], -1))[0]

    def _judge(self, critics: StackedNets, obs_act: Tensor) -> tuple[Tensor, Tape]:
        """Run critics on obs_act [N, B, O + A] -> values [N, C, B], and the tape."""
        n, b, size = obs_act.shape
        c = critics.flat.shape[0] // n
        if c > 1:
            obs_act = obs_act.unsqueeze(1).expand(n, c, b, size).reshape(n * c, b, size)
        (q,), tape = critics.run(obs_act, "critic")
        return q.view(n, c, b), tape

    def _least(self, sample: Sample, act: Tensor, judges: Tensor) -> Tensor:
        """Return the least value of act [N, B, A] at next_obs by the target critics [N, B]."""
        if self.config.drawn_critics is None:
            obs_act = torch.cat([sample.judged.next_obs, act], -1)
            return self._judge(self.target_critics, obs_act)[0].amin(1)
        return self.target_pool.least(self.target_critics, sample.raw.next_obs, act, judges)

    def _ascend(self, sample: Sample, act: Tensor) -> tuple[Tensor, Tensor]:
        """Return the policy's objective at act [N, B, A]: `_ascend_own`, or the mean of a pool."""
        if self.config.drawn_critics is None:
            return self._ascend_own(sample.judged.obs_act[..., : self.critic_dim], act)
        return self.policy_pool.ascent(self.critics, sample.raw.obs_act[..., : self.obs_dim], act)

    @torch.no_grad()
    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Run an iteration's updates on minibatches of the replay; return metrics [N].

        There are no updates and no metrics in the first `learning_starts` steps. Learning rates
        are constant.
        """
        assert not isinstance(extra, ClosedTerm), "which is for PPO"
        if self.warming_up or not self.replay.ready:
            return {}
        self._set_rates()
        history: dict[str, list[Tensor]] = {}
        for begin in range(0, self.updates, BLOCK):
            for metrics in self._block(min(BLOCK, self.updates - begin), extra):
                for name, value in metrics.items():
                    history.setdefault(name, []).append(value)
        self.frozen = max(0, self.frozen - 1)
        means = {name: torch.stack(values).mean(0) for name, values in history.items()}
        return means | self.turns.metrics()

    def _block(self, updates: int, extra: ReplayLoss | None) -> list[Metrics]:
        """Run a number of updates whose random numbers are drawn at once."""
        samples = self.replay.draw(self.batches, updates, self.config.minibatch_size)
        noise, judges = self._draw(updates), self._draw_judges(updates)
        if self._fused(extra):
            history = self._fused_block(samples, noise, judges)
        else:
            history = []
            for i in range(updates):
                self.n_updates += 1
                drawn = samples[:, i], noise[:, i], judges[:, i]
                history.append(self._take_one(drawn, extra))
                if self._moves_policy:
                    self._train_policy_alone(extra)
        return [*history, self._bias_of_pool(samples[:, -1])]

    def _draw_judges(self, updates: int) -> Tensor:
        """Draw the critics that judge in targets [N, updates, M]; M is 0 where none are drawn."""
        if (drawn := self.config.drawn_critics) is None:
            none = self.n_learners, updates, 0
            return torch.empty(none, dtype=torch.int64, device=self.device)
        return self.target_pool.draw(self.batches, updates, drawn)

    def _bias_of_pool(self, samples: Tensor) -> Metrics:
        """Return what own and peers' critics say of own actions at samples [N, B], if they pool."""
        if not self.config.share_experience:
            return {}
        obs = self.replay.take(samples, self.gamma).obs_act[..., : self.obs_dim]
        return self.all_critics.bias(self.critics, obs, self.mode(obs))

    def _fused(self, extra: ReplayLoss | None) -> bool:
        """True if kernels compute the updates: none changes the loss, or moves one net alone.

        Nor do they make a learner's observations what its peers' critics read.
        """
        c = self.config
        unlike = extra is not None or self.rl_coef != 1 or self.frozen > 0
        unlike = unlike or c.extra_policy_updates > 0
        unlike = unlike or (c.share_experience and not self.obs_norm.changes_nothing)
        return self.kernels is not None and not unlike

    def fused_imitation(self, kind: str, optimizer: StackedAdam) -> FusedImitation | None:
        """Return None: there is no kernel for policies behind a tanh."""
        return None

    def _fused_block(self, samples: Tensor, noise: Tensor, judges: Tensor) -> list[Metrics]:
        """Run updates on samples [N, U, B] of the replay by the kernels."""
        assert self.kernels is not None
        n, updates, size = samples.shape
        history = []
        step = max(1, TRANSITIONS // (n * size))
        for begin in range(0, updates, step):
            part = slice(begin, min(begin + step, updates))
            raw = self.replay.take(samples[:, part].flatten(1), self.gamma)
            self.n_updates += part.stop - begin
            drawn = noise[:, part], judges[:, part]
            history += self.kernels.replay_updates(self, self._read(raw), *drawn)
        return history

    @property
    def _is_complete(self) -> bool:
        """True if the current update moves the target networks, and the policy unless frozen."""
        return True

    @property
    def _moves_policy(self) -> bool:
        """True if the current update includes the policy."""
        return self._is_complete and not self.frozen

    def _take_one(self, drawn: tuple[Tensor, ...], extra: ReplayLoss | None) -> Metrics:
        """Run one update, recorded unless a method changes the loss.

        `drawn`: samples of the replay [N, B], noise, and the critics that judge in targets [N, M].
        """

        def work(samples: Tensor, noise: Tensor, judges: Tensor) -> Metrics:
            return self._learn(self.replay.take(samples, self.gamma), noise, judges, extra)

        if extra is not None or self.rl_coef != 1:
            return work(*drawn)
        return self.graphs.run((self._moves_policy, self._is_complete), work, *drawn)

    def _learn(
        self, raw: Transitions, noise: Tensor, judges: Tensor, extra: ReplayLoss | None
    ) -> Metrics:
        """Run one update on a minibatch of raw transitions."""
        metrics, ascent = self._step(self._read(raw), noise, judges)
        if ascent is not None:
            metrics |= self._update_policy(ascent, raw.obs_act, extra)
        if self._is_complete:
            self._follow()
        return metrics

    def _train_policy_alone(self, extra: ReplayLoss | None) -> None:
        """Run `extra_policy_updates` policy-only updates."""
        for _ in range(self.config.extra_policy_updates):
            samples = self.replay.draw(self.batches, self.config.minibatch_size)
            raw = self.replay.take(samples, self.gamma)
            ascent = self._improve(self._read(raw), self._draw(1)[:, 0])
            self._update_policy(ascent, raw.obs_act, extra)

    def _read(self, raw: Transitions) -> Sample:
        """Return a minibatch as policies and critics read it."""
        own, norm = self._normalised(raw, self.obs_norm), self.critic_norm
        return Sample(raw, own, own if norm is self.obs_norm else self._normalised(raw, norm))

    def _normalised(self, sample: Transitions, norm: ObsNorm) -> Transitions:
        if norm.changes_nothing:
            return sample
        obs, act = sample.obs_act.split([self.obs_dim, self.act_dim], -1)
        obs_act = torch.cat([norm(obs), act], -1)
        return sample._replace(obs_act=obs_act, next_obs=norm(sample.next_obs))

    def _set_rates(self) -> None:
        self.optimizer.lr = self.lr.tolist()
        self.critic_optimizer.lr = self.critic_lr.repeat_interleave(self.config.n_critics).tolist()

    def _update_critics(self, sample: Transitions, next_value: Tensor, coef: float) -> Metrics:
        """Take a critic step towards reward + discount * next_value [N, B]."""
        target = torch.addcmul(sample.reward, sample.discount, next_value)
        q, tape = self._judge(self.critics, sample.obs_act)
        _, metrics, (of_q,) = critic_loss(q, target, coef)
        grad, _ = self.critics.gradient(tape, [of_q.view(-1, of_q.shape[2], 1)])
        self.critic_optimizer.step(grad)
        return metrics

    def _update_policy(
        self, ascent: Ascent, raw_obs_act: Tensor, extra: ReplayLoss | None
    ) -> Metrics:
        """Take a policy step along its gradient plus that of a method's loss."""
        grad, _ = self.nets.gradient(ascent.tape, [ascent.of_output])
        if self.rl_coef != 1:
            grad = grad * self.rl_coef
        if extra is None:
            self.optimizer.step(grad)
            return ascent.metrics
        raw_obs = raw_obs_act[..., : self.obs_dim]
        with torch.enable_grad():
            dist = self.dist(self.obs_norm(raw_obs))
            loss, metrics = extra(Minibatch(dist, raw_obs, ascent.q))
            if loss.requires_grad:
                grad += torch.autograd.grad(loss.sum(), self.nets.flat)[0]
        self.optimizer.step(grad)
        return ascent.metrics | metrics

    def _follow(self) -> None:
        """Move target networks towards the trained ones (Polyak averaging)."""
        self.target_critics.flat.detach().lerp_(self.critics.flat.detach(), self.config.tau)

    def observe(self, rollout: Rollout) -> None:
        if not self.frozen:  # statistics are part of the policy
            super().observe(rollout)

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        super().retry(rows, attempt)
        self.batches.reseed(rows, attempt)
        self.turns.retry(rows, attempt)
        self.critic_lr[list(rows)] *= 0.5

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        for name, view in self.nets.views.items():
            view[n].copy_(self._imported(name, policy))
        self.obs_norm.start_from(n, policy)

    def _imported(self, name: str, policy: Mapping[str, Tensor]) -> Tensor:
        """Return the named parameter of an exported policy, in this stack's layout."""
        return policy[name]
