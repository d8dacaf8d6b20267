"""PPO: samples with advantages from rollouts, and the updates on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dpd.agents.base import (
    CPU,
    Answer,
    Batch,
    ClosedTerm,
    ExtraLoss,
    LearnerId,
    Metrics,
    Rollout,
    take,
)
from dpd.agents.dist import DiagGaussian
from dpd.agents.learners import GaussianLearners
from dpd.agents.nets import Shapes, StackedNets, Tape, mlp_shapes
from dpd.agents.norm import ReturnNorm
from dpd.agents.optim import StackedAdam, clip_grad_norm
from dpd.agents.ppo_config import Critic, PPOConfig
from dpd.agents.ppo_loss import (
    Samples,
    TermPart,
    clipped_gradient,
    clipped_loss,
    mean_kl,
    normalise_minibatches,
    ppo_loss,
    proximal_weight,
    term_loss,
    variance,
)
from dpd.agents.reuse import PastRollouts
from dpd.agents.rng import WIDE, RowRandom, Stream
from dpd.agents.sharing import (
    gae,
    group_mean,
    peer_samples,
    share_weights,
    shared,
    shared_rollout,
)


def valid_positions(valid: Tensor, pick: Tensor) -> Tensor:
    """Map random integers pick [N, ...] to positions where valid [N, S]; to some if none is."""
    order = valid.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    choice = pick.flatten(1) % valid.sum(1, keepdim=True).clamp(min=1)
    return order.gather(1, choice).view_as(pick)


StepWork = Callable[..., tuple[Metrics, Tensor]]
"""A gradient step on tensors: -> its metrics and ratios [N, B]."""
OUTPUTS = ("actor", "log_std", "critic")


class PPO(GaussianLearners):
    """N learners that train by proximal policy optimization (Schulman et al. 2017)."""

    STATE = (*GaussianLearners.STATE, "batches", "return_norm", "past", "frozen")
    config: PPOConfig

    def _make(self, ids: Sequence[LearnerId]) -> None:
        config, n, dtype, device = self.config, self.n_learners, self.dtype, self.device
        rows = [self._shapes(config.hidden_of(peer)) for _, peer in ids]
        self.nets = StackedNets.padded(rows, config.activation, dtype, device)
        init = RowRandom(ids, Stream.INIT)
        self._initialise("actor", 0.01, init)
        self._initialise("critic", 1.0, init)
        self.optimizer = StackedAdam(self.nets.flat, [config.lr] * n, eps=config.adam_eps)
        self.batches = RowRandom(ids, Stream.BATCH, device)
        self.return_norm = ReturnNorm(n, config.n_envs, self.gamma, config.norm_reward)
        self.lam = self.gamma.new_tensor(config.lam)
        self._ones = torch.ones(n, dtype=dtype, device=device)
        self.peers = len({peer for _, peer in ids})
        past_envs = (config.reuse_iterations - 1) * config.n_envs
        sizes = n, config.n_steps, past_envs, self.obs_dim, self.act_dim
        self.past = PastRollouts(Rollout(*sizes, dtype, device))
        self.frozen = config.critic_warmup
        """Iterations left in which the policies stay as they are."""
        of_value = self.nets.twin()
        for name, view in of_value.views.items():
            view.fill_(name.startswith("critic."))
        self._of_value = of_value.flat.detach()[:1]  # 1 for a value function's parameters

    def _shapes(self, hidden: Sequence[int]) -> Shapes:
        critic = mlp_shapes("critic", [self.in_dim, *hidden, 1])
        return self._policy_shapes(hidden, self.in_dim) | critic

    @property
    def sources(self) -> int:
        """Number of rollouts in a learner's batch: of its peers, or of its last iterations."""
        return self.peers if self.config.share_experience else self.config.reuse_iterations

    @property
    def loss_config(self) -> PPOConfig:
        """The settings of the loss: with the entropy's weight times that of all of it."""
        c = self.config
        if self.rl_coef == 1 or c.entropy_coef == 0:
            return c
        return replace(c, entropy_coef=self.rl_coef * c.entropy_coef)

    def inputs(self, obs: Tensor) -> Tensor:
        """Return what policy and value function read of stored obs [N, B, O], normalised."""
        return self.obs_norm(obs)

    def value(self, obs: Tensor) -> Tensor:
        """Return values at normalised obs [N, B, O] -> [N, B], in scaled reward units."""
        return self.nets(obs, "critic")[0].squeeze(-1)

    @property
    def reward_scale(self) -> Tensor:
        return self.return_norm.scale.to(self.dtype)

    @torch.no_grad()
    def ask(self, obs: Tensor) -> Answer:
        x = self.inputs(obs)
        return Answer(self.dist(x), self.value(x) * self.reward_scale)

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Return a rollout's samples with log-probabilities, advantages and returns.

        With `share_experience`, the samples are also those of the peers of a group (`sharing.py`),
        with `reuse_iterations` those of the learner's last iterations (`reuse.py`).
        """
        own, behaviour = rollout, None
        if self.sources > 1:
            rollout, behaviour = self._join(own)
        shape = rollout.reward.shape
        obs = self.inputs(rollout.flat_obs())
        act = rollout.act.flatten(1, 2)
        logp = self.dist(obs).logp(act)
        weight, valid, metrics = None, rollout.valid, None
        if behaviour is not None:
            least = self.config.share_min_ess
            counted = share_weights(logp.view(shape), behaviour, valid, self.sources, least)
            weight, valid, metrics = counted
        value = self.value(obs).view(shape)
        judged = self._joined(value, self.config.share_value)
        adv = self._advantages(rollout, judged, weight, self.config.share_value)
        ret = (adv if weight is None else weight * adv) + judged
        of_each = None if weight is None else weight.flatten(1)
        data = Samples(obs, act, logp, adv.flatten(1), ret.flatten(1), value.flatten(1), of_each)
        returns = ret[:, :, : own.reward.shape[2]].flatten(1) * self.reward_scale
        return Batch(data, own.flat_obs(), returns, valid.flatten(1), metrics)

    def _join(self, own: Rollout) -> tuple[Rollout, Tensor]:
        """Return own and further rollouts [N, T, M E], and the log-probability of each action.

        These are of the policy that took it.
        """
        acted = self.dist(self.obs_norm(own.flat_obs())).logp(own.act.flatten(1, 2))
        acted = acted.view_as(own.reward)
        if self.config.share_experience:
            return shared_rollout(own, self.peers), shared(acted, self.peers)
        return self.past.join(own, acted)

    @torch.no_grad()
    def judge_play(self, rollout: Rollout, critic: Critic) -> Tensor:
        """Return the advantages of what each peer of a group played [N, P, S], in raw rewards.

        Learner n's own play comes first, and its peers' in turn. They are GAE's by the learner's
        own value function, reward scale and discount, or by the mean of all peers' values. Without
        importance weights: the sum of A_n along the peer's play is the peer's value minus the
        learner's (Kakade & Langford 2002, lemma 6.1), over a horizon of 1 / (1 - gamma lambda);
        weights would leave the advantage of one action before the learner's own play. An offset of
        the value function counts only (1 - gamma) / (1 - gamma lambda) times, a sixth by default.
        """
        joint = shared_rollout(rollout, self.peers)
        value = self.value(self.inputs(joint.flat_obs())).view_as(joint.reward)
        adv = self._advantages(joint, self._joined(value, critic), None, critic)
        return peer_samples(adv * self.reward_scale.unsqueeze(-1), self.peers, first=0)

    def _advantages(
        self, rollout: Rollout, value: Tensor, weight: Tensor | None, critic: Critic
    ) -> Tensor:
        """Return the advantages [N, T, E] of samples with these values and weights [N, T, E]."""
        next_obs = self.inputs(rollout.next_obs.flatten(1, 2))
        next_value = self._joined(self.value(next_obs).view_as(value), critic)
        # no transition took place: zero error, and no bootstrapping across it
        void = ~rollout.valid
        return gae(
            torch.where(void, value, self.return_norm(rollout.reward)),
            value,
            next_value.masked_fill(void, 0),
            rollout.terminated | void,
            rollout.done | void,
            self.gamma.unsqueeze(-1),
            self.lam,
            weight,
        )

    def _joined(self, value: Tensor, critic: Critic) -> Tensor:
        """Return the values that advantages are made of, from the learner's own [N, T, P E]."""
        if critic == "own":
            return value
        scale = self.reward_scale.unsqueeze(-1)
        return group_mean(value * scale, self.peers) / scale

    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Run `epochs` passes over the batch; `progress` in [0, 1] anneals the learning rate."""
        assert extra is None or isinstance(extra, ClosedTerm), "a function is for a replay"
        c = self.config
        scale = 1 - progress if c.lr_schedule == "linear" else 1.0
        self.optimizer.lr = (self.lr * scale).tolist()
        active = [True] * self.n_learners
        history: list[Metrics] = []
        fused = self.kernels is not None and not self.frozen
        at_once = c.epochs if fused and c.target_kl is None else 1
        for epoch in range(0, c.epochs, at_once):
            if fused:
                steps, ratio, weight = self._fused_epochs(
                    batch, range(epoch, epoch + at_once), active, extra
                )
            else:
                steps, ratio, weight = self._epoch(batch, epoch, active, extra)
            history += steps
            if c.target_kl is not None:
                over = (mean_kl(ratio, weight) > 1.5 * c.target_kl).tolist()
                active = [a and not o for a, o in zip(active, over, strict=True)]
                if not any(active):
                    break
        if self.frozen:
            self._count_down()
        metrics = {k: torch.stack([m[k] for m in history]).mean(0) for k in history[0]}
        return metrics | self._diagnose(batch, ratio, weight) | (batch.metrics or {})

    def _count_down(self) -> None:
        """Count an iteration with frozen policies; after the last one, begin to train them."""
        self.frozen -= 1
        if not self.frozen:
            # Adam divides by the mean of squared gradients. After many of 0 that mean lags behind
            # the mean of gradients, and the first steps are several learning rates long.
            self.optimizer.restart()
            self.graphs.forget()

    def _fused_epochs(
        self, batch: Batch, epochs: range, active: list[bool], extra: ClosedTerm | None
    ) -> tuple[list[Metrics], Tensor, Tensor | None]:
        """Run passes by the kernels; return mean metrics, and as `_epoch` of the last pass."""
        assert self.kernels is not None
        order = torch.stack([self._shuffle(batch) for _ in epochs], 1)
        first = epochs.start * (order.shape[2] // self.config.minibatch_size)
        metrics, ratio = self.kernels.ppo_epochs(self, batch.data, order, active, extra, first)
        weight = batch.data.weight
        if weight is not None:
            weight = take(weight, order[:, -1]).view_as(ratio)
        return [metrics], ratio, weight

    def _epoch(
        self, batch: Batch, epoch: int, active: list[bool], extra: ClosedTerm | None
    ) -> tuple[list[Metrics], Tensor, Tensor | None]:
        """Run one pass over the samples; return every step's metrics.

        Also returns the ratios of all samples, and their weights [N, M, B], if they have any.
        """
        idx = self._shuffle(batch)
        parts = (idx.shape[0], -1, self.config.minibatch_size)
        samples: Samples = batch.data
        shuffled = samples.each(lambda x: take(x, idx).unflatten(1, parts[1:]))
        if self.config.norm_adv:
            shuffled = shuffled._replace(adv=normalise_minibatches(shuffled.adv))
        if self.rl_coef != 1:
            shuffled = shuffled._replace(adv=shuffled.adv * self.rl_coef)
        history, ratios = [], []
        minibatches = idx.view(parts).unbind(1)
        for i, at in enumerate(minibatches):
            minibatch = shuffled.each(partial(torch.select, dim=1, index=i))
            number = epoch * len(minibatches) + i
            metrics, ratio = self._step(minibatch, at, number, active, extra)
            history.append(metrics)
            ratios.append(ratio)
        return history, torch.stack(ratios, 1), shuffled.weight

    def _shuffle(self, batch: Batch) -> Tensor:
        """Draw an order of the samples [N, S]; random valid ones replace those that are not."""
        valid, s = batch.valid, batch.valid.shape[1]
        idx = self.batches.permutation(s)
        # On a GPU, reading the mask would stall. Among samples of peers it is often false: then a
        # learner's random numbers must not depend on whether another learner dropped a peer.
        if self.device == CPU and batch.data.weight is None and bool(valid.all()):
            return idx
        stand_in = valid_positions(valid, self.batches.integers(WIDE, s))
        return torch.where(valid.gather(1, idx), idx, stand_in)

    def _step(
        self,
        batch: Samples,
        idx: Tensor,
        number: int,
        active: list[bool],
        extra: ClosedTerm | None,
    ) -> tuple[Metrics, Tensor]:
        """Take gradient step `number` of the iteration; return its metrics and ratios [N, B]."""
        fields = [x for x in batch if x is not None]
        if extra is None:
            return self._run_step("step", partial(self._own_step, active), active, *fields)
        kind = extra.kind, extra.proximal, len(fields)
        work = partial(self._term_step, active, *kind)
        return self._run_step(kind, work, active, *fields, *extra.part(idx, number))

    def _run_step(
        self, key: Hashable, work: StepWork, active: list[bool], *given: Tensor
    ) -> tuple[Metrics, Tensor]:
        """Run a step, recorded if it is the same in every iteration."""
        recorded = all(active) and self.rl_coef == 1
        return self.graphs.run(key, work, *given) if recorded else work(*given)

    @torch.no_grad()
    def _own_step(self, active: list[bool], *fields: Tensor) -> tuple[Metrics, Tensor]:
        """Take a step of PPO's loss alone, without autograd; `fields` are those of `Samples`."""
        batch = Samples(*fields)
        (mean, log_std, value), tape = self._run(batch.obs)
        dist = DiagGaussian(mean, log_std)
        loss = clipped_loss(dist, value.squeeze(-1), batch, self.loss_config)
        of_mean, of_log_std, of_value = clipped_gradient(loss, self.loss_config, self._ones)
        grad, _ = self.nets.gradient(tape, (of_mean, of_log_std, of_value.unsqueeze(-1)))
        return loss.metrics | self._descend(grad, active), loss.ratio

    def _term_step(
        self, active: list[bool], kind: str, proximal: bool, n_fields: int, *given: Tensor
    ) -> tuple[Metrics, Tensor]:
        """Take a step of PPO's loss and a method's term; `given`: `Samples`, then `TermPart`."""
        batch, part = Samples(*given[:n_fields]), TermPart(*given[n_fields:])
        dist, value = self._judged(batch.obs)
        loss = ppo_loss(dist, value, batch, self.loss_config)
        student = dist if part.obs is None else self.dist(part.obs)
        weight = proximal_weight(loss.ratio, self.config.clip) if proximal else part.weight
        term, metrics = term_loss(kind, student, part, weight)
        (grad,) = torch.autograd.grad(loss.loss + term, self.nets.flat, self._ones)
        moved = loss.metrics | metrics | self._descend(grad, active)
        return moved, loss.ratio.detach()

    def _run(self, obs: Tensor) -> tuple[tuple[Tensor, ...], Tape]:
        """Return all outputs at normalised obs, and the tape for their gradient."""
        return self.nets.run(obs, *OUTPUTS)

    def _descend(self, grad: Tensor, active: list[bool]) -> Metrics:
        """Clip a gradient [N, D] and take an optimizer step; return its norm before clipping."""
        if self.frozen:
            grad = grad * self._of_value
        norm = clip_grad_norm(grad, self.config.max_grad_norm)
        self.optimizer.step(grad, active)
        return {"train/grad_norm": norm}

    def _judged(self, obs: Tensor) -> tuple[DiagGaussian, Tensor]:
        """Return the policy and the values [N, B] at normalised obs, differentiably."""
        mean, log_std, value = self.nets(obs, *OUTPUTS)
        return DiagGaussian(mean, log_std), value.squeeze(-1)

    def _diagnose(self, batch: Batch, ratio: Tensor, weight: Tensor | None) -> Metrics:
        clipped = (ratio - 1).abs() > self.config.clip
        data: Samples = batch.data
        if data.weight is None:
            residual = data.adv.var(1) / data.ret.var(1).clamp(min=1e-8)
        else:
            error, ret = (variance(x, batch.valid) for x in (data.adv * data.weight, data.ret))
            residual = error / ret.clamp(min=1e-8)
        return {
            "train/kl": mean_kl(ratio, weight),
            "train/clip_fraction": clipped.to(self.dtype).mean((1, 2)),
            "train/explained_variance": 1 - residual,
            "train/std": self.nets.views["log_std"].exp().mean((1, 2)),
            "norm/return_std": self.return_norm.scale.squeeze(1),
        }

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        super().start_from(n, policy)
        if self.config.init_std is not None:
            self.nets.own(n, "log_std").fill_(math.log(self.config.init_std))

    def observe(self, rollout: Rollout) -> None:
        if not self.frozen:  # statistics are part of the policy
            super().observe(rollout)
        self.return_norm.update(rollout.reward, rollout.done, rollout.valid)

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        super().retry(rows, attempt)
        self.batches.reseed(rows, attempt)
