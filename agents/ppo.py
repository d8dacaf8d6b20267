"""PPO: the clipped loss, its hand-written gradient (`StackedNets` says why), and the updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpd.agents.base import (
    CPU,
    Answer,
    Batch,
    ClosedTerm,
    ExtraLoss,
    LearnerId,
    Metrics,
    Minibatch,
    Rollout,
    take,
)
from dpd.agents.config import PPOConfig
from dpd.agents.dist import LOG_2PI, DiagGaussian
from dpd.agents.learners import GaussianLearners
from dpd.agents.nets import StackedNets, mlp_shapes
from dpd.agents.norm import ReturnNorm
from dpd.agents.optim import StackedAdam, clip_grad_norm
from dpd.agents.rng import WIDE, RowRandom, Stream
from dpd.agents.sharing import gae, share_weights, shared, shared_rollout


class Samples(NamedTuple):
    """The samples that the loss is computed on, normalised; [N, S, ...]."""

    obs: Tensor
    act: Tensor
    logp: Tensor
    adv: Tensor
    ret: Tensor
    value: Tensor  # before the update
    weight: Tensor | None = None  # [N, S] factor of the normalised advantage; None: 1

    def each(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """Return all fields changed by a function of one."""
        weight = None if self.weight is None else change(self.weight)
        return Samples._make((*map(change, self[:6]), weight))


class Clipped(NamedTuple):
    """The loss [N], its terms, and intermediate values for its gradient."""

    loss: Tensor
    ratio: Tensor  # [N, B] new over old probability of the action taken
    policy: Tensor  # [N]
    value_error: Tensor  # [N]
    inv_std: Tensor
    z: Tensor  # [N, B, A] (act - mean) / std
    gain: Tensor  # [N, B] ratio times advantage
    bounded: Tensor  # [N, B] the same with the ratio clipped
    error: Tensor  # [N, B] return minus value; 0 where the value clip is active

    @property
    def metrics(self) -> Metrics:
        """The metrics to log [N]."""
        return {"loss/policy": self.policy.detach(), "loss/value": self.value_error.detach()}


def clipped_loss(dist: DiagGaussian, value: Tensor, data: Samples, config: PPOConfig) -> Clipped:
    """Return the clipped loss per learner (Schulman et al. 2017, eq. 7 and 9).

    value [N, B]; data [N, B, ...] with normalised advantages, each of which counts times its
    weight. The value error is a mean square without the factor 1/2; with `value_clip` c it is the
    mean of the larger of (R - V)^2 and (R - V_old - clip(V - V_old, -c, c))^2 (OpenAI baselines'
    ppo2). An entropy bonus subtracts the mean entropy.
    """
    inv_std = torch.exp(-dist.log_std)
    z = (data.act - dist.mean) * inv_std
    logp = (z * z).sum(-1) * -0.5 - (dist.log_std.sum(-1) + 0.5 * LOG_2PI * dist.mean.shape[-1])
    ratio = torch.exp(logp - data.logp)
    adv = data.adv if data.weight is None else data.adv * data.weight
    gain = ratio * adv
    if data.weight is not None:  # the ratio of a sample that does not count may be infinite
        gain = gain.masked_fill(data.weight == 0, 0)
    bounded = ratio.clamp(1 - config.clip, 1 + config.clip) * adv
    policy = torch.min(gain, bounded).mean(1).neg_()
    error, square = value_errors(value, data, config.value_clip)
    value_error = square.mean(1)
    loss = torch.add(policy, value_error, alpha=config.value_coef)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * dist.entropy().mean(1)
    return Clipped(loss, ratio, policy, value_error, inv_std, z, gain, bounded, error)


def value_errors(value: Tensor, data: Samples, clip: float | None) -> tuple[Tensor, Tensor]:
    """Return the error in the value's gradient and the squared error, both [N, B]."""
    error = data.ret - value
    square = error * error
    if clip is None:
        return error, square
    moved = value - data.value
    clipped = (data.ret - data.value - moved.clamp(-clip, clip)).square()
    # Within the bound both squares are equal up to rounding, which must not decide.
    counts = (moved.abs() <= clip) | (square >= clipped)
    return torch.where(counts, error, 0.0), torch.where(counts, square, clipped)


def clipped_gradient(
    c: Clipped, config: PPOConfig, of_loss: Tensor, of_ratio: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of mean, log_std and value from those of loss [N] and ratio [N, B]."""
    per_sample = (of_loss / -c.ratio.shape[1]).unsqueeze(1)
    # where the clipped term is the smaller one, it is constant: no gradient
    of_logp = torch.where(c.gain <= c.bounded, c.gain, 0.0) * per_sample
    if of_ratio is not None:
        of_logp = of_logp + of_ratio * c.ratio
    of_z = of_logp.unsqueeze(-1) * c.z  # d logp / d mean = z / std; d logp / d log_std = z^2 - 1
    of_log_std = (of_z * c.z).sum(1, keepdim=True) - of_logp.sum(1).view(-1, 1, 1)
    if config.entropy_coef:
        of_log_std = of_log_std - config.entropy_coef * of_loss.view(-1, 1, 1)  # d entropy = 1
    return of_z * c.inv_std, of_log_std, c.error * (2 * config.value_coef * per_sample)


class _ClippedLoss(torch.autograd.Function):
    """`clipped_loss` as one node of autograd's graph.

    A step with a method's loss takes two learners 0.87 ms with it, and 0.93 ms with plain autograd.
    """

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, log_std: Tensor, value: Tensor, data: Samples, config: PPOConfig
    ) -> tuple[Tensor, ...]:
        c = clipped_loss(DiagGaussian(mean, log_std), value, data, config)
        ctx.save_for_backward(*c)
        ctx.config = config
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*c[2:])
        return tuple(c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        c = Clipped(*ctx.saved_tensors)
        of_loss = c.loss.new_zeros(c.loss.shape) if grads[0] is None else grads[0]
        return *clipped_gradient(c, ctx.config, of_loss, grads[1]), None, None


def ppo_loss(dist: DiagGaussian, value: Tensor, data: Samples, config: PPOConfig) -> Clipped:
    """Return `clipped_loss`, with loss and ratio differentiable by mean, log_std and value."""
    return Clipped(*_ClippedLoss.apply(dist.mean, dist.log_std, value, data, config))


def valid_positions(valid: Tensor, pick: Tensor) -> Tensor:
    """Map random integers pick [N, ...] to positions where valid [N, S]; to some if none is."""
    order = valid.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    choice = pick.flatten(1) % valid.sum(1, keepdim=True).clamp(min=1)
    return order.gather(1, choice).view_as(pick)


OUTPUTS = ("actor", "log_std", "critic")


def normalise_minibatches(adv: Tensor) -> Tensor:
    """Centre and scale advantages [N, M, B] within each minibatch (ddof 1, 1e-8: as SB3)."""
    return (adv - adv.mean(-1, keepdim=True)) / (adv.std(-1, keepdim=True) + 1e-8)


class PPO(GaussianLearners):
    """N learners that train by proximal policy optimization (Schulman et al. 2017)."""

    STATE = (*GaussianLearners.STATE, "batches", "return_norm")
    config: PPOConfig

    def _make(self, ids: Sequence[LearnerId]) -> None:
        config, n, dtype, device = self.config, self.n_learners, self.dtype, self.device
        critic = mlp_shapes("critic", [self.in_dim, *config.hidden, 1])
        shapes = self._policy_shapes(config.hidden, self.in_dim) | critic
        self.nets = StackedNets(shapes, n, config.activation, dtype, device)
        init = RowRandom(ids, Stream.INIT)
        self._initialise("actor", 0.01, init)
        self._initialise("critic", 1.0, init)
        self.optimizer = StackedAdam(self.nets.flat, [config.lr] * n, eps=config.adam_eps)
        self.batches = RowRandom(ids, Stream.BATCH, device)
        self.return_norm = ReturnNorm(n, config.n_envs, self.gamma, config.norm_reward)
        self.lam = self.gamma.new_tensor(config.lam)
        self._ones = torch.ones(n, dtype=dtype, device=device)
        self.peers = len({peer for _, peer in ids})

    def value(self, obs: Tensor) -> Tensor:
        """Return values at normalised obs [N, B, O] -> [N, B], in scaled reward units."""
        return self.nets(obs, "critic")[0].squeeze(-1)

    @property
    def reward_scale(self) -> Tensor:
        return self.return_norm.scale.to(self.dtype)

    @torch.no_grad()
    def ask(self, obs: Tensor) -> Answer:
        x = self.obs_norm(obs)
        return Answer(self.dist(x), self.value(x) * self.reward_scale)

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Return a rollout's samples with log-probabilities, advantages and returns.

        With `share_experience`, the samples are also those of the peers of a group (`sharing.py`).
        """
        own, weight, metrics = rollout, None, None
        if self.config.share_experience:
            rollout = shared_rollout(own, self.peers)
        shape = rollout.reward.shape
        obs = self.obs_norm(rollout.flat_obs())
        act = rollout.act.flatten(1, 2)
        logp = self.dist(obs).logp(act)
        if self.config.share_experience:
            weight, metrics = self._share(own, logp.view(shape), rollout.valid)
        value = self.value(obs).view(shape)
        adv = self._advantages(rollout, value, weight)
        ret = (adv if weight is None else weight * adv) + value
        of_each = None if weight is None else weight.flatten(1)
        data = Samples(obs, act, logp, adv.flatten(1), ret.flatten(1), value.flatten(1), of_each)
        returns = ret[:, :, : own.reward.shape[2]].flatten(1) * self.reward_scale
        return Batch(data, own.flat_obs(), returns, rollout.valid.flatten(1), metrics)

    def _advantages(self, rollout: Rollout, value: Tensor, weight: Tensor | None) -> Tensor:
        """Return the advantages [N, T, E] of samples with these values and weights [N, T, E]."""
        next_value = self.value(self.obs_norm(rollout.next_obs.flatten(1, 2)))
        # no transition took place: zero error, and no bootstrapping across it
        void = ~rollout.valid
        return gae(
            torch.where(void, value, self.return_norm(rollout.reward)),
            value,
            next_value.view_as(value).masked_fill(void, 0),
            rollout.terminated | void,
            rollout.done | void,
            self.gamma.unsqueeze(-1),
            self.lam,
            weight,
        )

    def _share(self, own: Rollout, logp: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
        """Return the weights of joint samples with `logp` and `valid` [N, T, P E], and metrics."""
        acted = self.dist(self.obs_norm(own.flat_obs())).logp(own.act.flatten(1, 2))
        behaviour = shared(acted.view_as(own.reward), self.peers)
        return share_weights(logp, behaviour, valid, self.peers, self.config.share_min_ess)

    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Run `epochs` passes over the batch; `progress` in [0, 1] anneals the learning rate."""
        c = self.config
        scale = 1 - progress if c.lr_schedule == "linear" else 1.0
        self.optimizer.lr = (self.lr * scale).tolist()
        active = [True] * self.n_learners
        history: list[Metrics] = []
        at_once = c.epochs if self._is_fused(extra) and c.target_kl is None else 1
        for epoch in range(0, c.epochs, at_once):
            if self._is_fused(extra):
                steps, ratio, weight = self._fused_epochs(
                    batch, range(epoch, epoch + at_once), active, extra
                )
            else:
                steps, ratio, weight = self._epoch(batch, active, extra)
            history += steps
            if c.target_kl is not None:
                over = (mean_kl(ratio, weight) > 1.5 * c.target_kl).tolist()
                active = [a and not o for a, o in zip(active, over, strict=True)]
                if not any(active):
                    break
        metrics = {k: torch.stack([m[k] for m in history]).mean(0) for k in history[0]}
        return metrics | self._diagnose(batch.data, ratio, weight) | (batch.metrics or {})

    def _is_fused(self, extra: ExtraLoss | None) -> bool:
        return self.kernels is not None and (extra is None or isinstance(extra, ClosedTerm))

    def _fused_epochs(
        self, batch: Batch, epochs: range, active: list[bool], extra: ExtraLoss | None
    ) -> tuple[list[Metrics], Tensor, Tensor | None]:
        """Run passes by the kernels; return mean metrics, and as `_epoch` of the last pass."""
        assert self.kernels is not None and (extra is None or isinstance(extra, ClosedTerm))
        order = torch.stack([self._shuffle(batch.valid) for _ in epochs], 1)
        first = epochs.start * (order.shape[2] // self.config.minibatch_size)
        metrics, ratio = self.kernels.ppo_epochs(self, batch.data, order, active, extra, first)
        weight = batch.data.weight
        if weight is not None:
            weight = take(weight, order[:, -1]).view_as(ratio)
        return [metrics], ratio, weight

    def _epoch(
        self, batch: Batch, active: list[bool], extra: ExtraLoss | None
    ) -> tuple[list[Metrics], Tensor, Tensor | None]:
        """Run one pass over the samples; return every step's metrics.

        Also returns the ratios of all samples, and their weights [N, M, B], if they have any.
        """
        idx = self._shuffle(batch.valid)
        parts = (idx.shape[0], -1, self.config.minibatch_size)
        samples: Samples = batch.data
        shuffled = samples.each(lambda x: take(x, idx).unflatten(1, parts[1:]))
        if self.config.norm_adv:
            shuffled = shuffled._replace(adv=normalise_minibatches(shuffled.adv))
        history, ratios = [], []
        for i, at in enumerate(idx.view(parts).unbind(1)):
            minibatch = shuffled.each(partial(torch.select, dim=1, index=i))
            metrics, ratio = self._step(minibatch, at, active, extra)
            history.append(metrics)
            ratios.append(ratio)
        return history, torch.stack(ratios, 1), shuffled.weight

    def _shuffle(self, valid: Tensor) -> Tensor:
        """Draw an order of the samples [N, S]; random valid ones replace those that are not."""
        s = valid.shape[1]
        idx = self.batches.permutation(s)
        if self.device == CPU and bool(valid.all()):  # on a GPU, reading this would stall
            return idx
        stand_in = valid_positions(valid, self.batches.integers(WIDE, s))
        return torch.where(valid.gather(1, idx), idx, stand_in)

    def _step(
        self, batch: Samples, idx: Tensor, active: list[bool], extra: ExtraLoss | None
    ) -> tuple[Metrics, Tensor]:
        """Take one gradient step; return its metrics and ratios [N, B]."""
        if extra is not None:
            grad, metrics, ratio = self._joint_gradient(batch, idx, extra)
            return metrics | self._descend(grad, active), ratio
        work = partial(self._own_step, active)
        fields = [x for x in batch if x is not None]
        return self.graphs.run("step", work, *fields) if all(active) else work(*fields)

    @torch.no_grad()
    def _own_step(self, active: list[bool], *fields: Tensor) -> tuple[Metrics, Tensor]:
        """Take a step of PPO's loss alone, without autograd; `fields` are those of `Samples`."""
        batch = Samples(*fields)
        (mean, log_std, value), tape = self.nets.run(batch.obs, *OUTPUTS)
        dist = DiagGaussian(mean, log_std)
        loss = clipped_loss(dist, value.squeeze(-1), batch, self.config)
        of_mean, of_log_std, of_value = clipped_gradient(loss, self.config, self._ones)
        grad, _ = self.nets.gradient(tape, (of_mean, of_log_std, of_value.unsqueeze(-1)))
        return loss.metrics | self._descend(grad, active), loss.ratio

    def _descend(self, grad: Tensor, active: list[bool]) -> Metrics:
        """Clip a gradient [N, D] and take an optimizer step; return its norm before clipping."""
        norm = clip_grad_norm(grad, self.config.max_grad_norm)
        self.optimizer.step(grad, active)
        return {"train/grad_norm": norm}

    def _joint_gradient(
        self, batch: Samples, idx: Tensor, extra: ExtraLoss
    ) -> tuple[Tensor, Metrics, Tensor]:
        """Return the gradient of PPO's loss plus a method's, its metrics, and ratios [N, B]."""
        mean, log_std, value = self.nets(batch.obs, *OUTPUTS)
        dist = DiagGaussian(mean, log_std)
        loss = ppo_loss(dist, value.squeeze(-1), batch, self.config)
        added, metrics = extra(Minibatch(dist, loss.ratio, idx))
        (grad,) = torch.autograd.grad(loss.loss + added, self.nets.flat, self._ones)
        return grad, loss.metrics | metrics, loss.ratio.detach()

    def _diagnose(self, data: Samples, ratio: Tensor, weight: Tensor | None) -> Metrics:
        clipped = (ratio - 1).abs() > self.config.clip
        error = data.adv if data.weight is None else data.adv * data.weight
        residual = error.var(1) / data.ret.var(1).clamp(min=1e-8)
        return {
            "train/kl": mean_kl(ratio, weight),
            "train/clip_fraction": clipped.to(self.dtype).mean((1, 2)),
            "train/explained_variance": 1 - residual,
            "train/std": self.nets.views["log_std"].exp().mean((1, 2)),
            "norm/return_std": self.return_norm.scale.squeeze(1),
        }

    def observe(self, rollout: Rollout) -> None:
        super().observe(rollout)
        self.return_norm.update(rollout.reward, rollout.done, rollout.valid)

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        super().retry(rows, attempt)
        self.batches.reseed(rows, attempt)


def mean_kl(ratio: Tensor, weight: Tensor | None = None) -> Tensor:
    """Estimate KL(old || new) per learner from ratios [N, M, B] -> [N] (Schulman 2020, k3).

    A weight of each sample [N, M, B] stands for the old policy's samples among a peer's.
    """
    k3 = (ratio - 1) - ratio.log()
    if weight is None:
        return k3.mean((1, 2))
    return (k3.masked_fill(weight == 0, 0) * weight).sum((1, 2)) / weight.sum((1, 2))
