"""Dual policy distillation: peers that imitate each other where the other is ahead."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import (
    ExtraLoss,
    Metrics,
    Minibatch,
    State,
    Stateful,
    load_parts,
    state_of,
    take,
)
from dpd.agents.dist import DiagGaussian
from dpd.agents.optim import StackedAdam, clip_grad_norm
from dpd.agents.ppo import Batch
from dpd.distill.base import Context
from dpd.distill.divergence import divergence
from dpd.distill.exchange import PeerExchange, States, action_distance, pick
from dpd.distill.peers_config import DPDConfig


class Targets(NamedTuple):
    """What to imitate at each state, all constant; [N, K, ...]."""

    obs: Tensor  # normalised by the student
    mean: Tensor  # of the target policy, clipped to the action box
    log_std: Tensor
    sample: Tensor
    weight: Tensor  # [N, K]

    def at(self, idx: Tensor) -> Targets:
        """Return those at positions idx [N, B]."""
        return Targets(*(take(x, idx) for x in self))

    def batch(self, i: int, size: int) -> Targets:
        """Return the i-th of equal parts of K, without a copy."""
        return Targets(*(x[:, i * size : (i + 1) * size] for x in self))


def gap(value: Tensor, peer_value: Tensor) -> Tensor:
    """Return xi, how much better the peer is [...]; both in raw reward units (paper, Eq. 2)."""
    return peer_value - value


def gate_weight(
    xi: Tensor, scale: Tensor, config: DPDConfig, order: Tensor | None = None
) -> Tensor:
    """Return the weight of each state [N, K] from its gap xi [N, K]; scale [N, 1].

    soft: K softmax_K(alpha xi / scale), the paper's exp(alpha xi) up to a constant and without its
    overflow; hard: 1 where xi > 0, raw. `order` [N, K] is the permutation of the shuffled control.
    """
    if config.control == "reversed":
        xi = -xi
    ahead = (xi > 0).to(xi.dtype)
    exponent = config.alpha * xi / scale
    if config.gate == "hard":
        weight = ahead
    elif config.gate == "uniform":
        weight = torch.ones_like(xi)
        if config.match_dose:
            weight = weight * ahead.mean(1, keepdim=True)
    elif config.weight_clip is not None:
        low, high = config.weight_clip
        weight = exponent.exp().clamp(low, high)
        weight = weight / weight.mean(1, keepdim=True)
    else:
        weight = exponent.softmax(1) * xi.shape[1]
    return weight if order is None else weight.gather(1, order)


def effective_sample_size(weight: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2 as a share of the K states; weight [N, K] -> [N]."""
    total = weight.sum(1).square() / weight.square().sum(1).clamp(min=1e-12)
    return total / weight.shape[1]


def weighted_loss(distance: Tensor, weight: Tensor) -> Tensor:
    """Return mean_B w(s) D(s) per learner: distance, weight [N, B] -> [N] (paper, Eq. 11)."""
    if distance.shape != weight.shape:
        # The 2020 code multiplied (B, 1) by (B,), and its weights cancelled.
        raise ValueError(f"weight {tuple(weight.shape)} for distance {tuple(distance.shape)}")
    return (weight * distance).mean(1)


class Independent:
    """Peers that ignore each other; logs how far apart they are and who is ahead."""

    def __init__(self, context: Context, k: int = 256) -> None:
        self.exchange = PeerExchange(context, "peer", 1.0, 0)
        self.k = k
        self.loss: ExtraLoss | None = None

    def prepare(self, batch: Batch, progress: float) -> None:
        """Keep the iteration's states to measure on."""
        self.exchange.remember(batch.raw_obs)

    def step(self) -> Metrics:
        """Return the peers' distance and gap at each other's states."""
        x = self.exchange
        if x.peers == 1:
            return {}
        states = x.draw(self.k)
        answers, value = x.ask_all(states.obs)
        xi = gap(pick(value, x.own.expand_as(states.source)), pick(value, states.source))
        return {
            "distill/action_distance": action_distance(answers, x.own, states.source),
            "distill/xi_mean": xi.mean(1),
            "distill/peer_ahead": (xi > 0).to(xi.dtype).mean(1),
        }

    def state(self) -> State:
        """Return the exchange's state: nothing else outlives an iteration."""
        return self.exchange.state()

    def load_state(self, state: State) -> None:
        """Put a state back."""
        self.exchange.load_state(state)


class DualDistillation:
    """Each peer imitates the other, weighted by how far the other is ahead."""

    def __init__(self, config: DPDConfig, context: Context) -> None:
        if context.peers < 2:
            raise ValueError("dual policy distillation needs two peers or more: --peers 2")
        self.config, self.agent = config, context.agent
        self.exchange = PeerExchange(context, config.states, config.peer_share, config.memory)
        n = context.agent.n_learners
        self.optimizer = StackedAdam(context.agent.nets.flat, [config.lr] * n)
        students = range(context.peers) if config.students is None else config.students
        if not students or not set(students) <= set(range(context.peers)):
            raise ValueError(
                f"distill.students must name some of the peers 0 to {context.peers - 1}, "
                f"not {config.students}"
            )
        self.is_student = [i % context.peers in students for i in range(n)]
        self.mean_square = torch.zeros(n, 1, dtype=context.agent.dtype)  # running, of xi
        self.iteration = 0
        self.dose = 0.0
        self.batch: Batch | None = None
        self.targets: Targets | None = None
        self.metrics: Metrics = {}

    def prepare(self, batch: Batch, progress: float) -> None:
        """Keep the iteration's states; choose the targets if they go into the learners' loss."""
        c = self.config
        self.exchange.remember(batch.raw_obs)
        self.batch, self.targets, self.metrics = batch, None, {}
        due = progress >= c.warmup and self.iteration % c.every == 0
        falling = (1 - progress) / (1 - c.warmup) if c.warmup < 1 else 0.0
        self.dose = (falling if c.schedule == "linear" else 1.0) if due else 0.0
        self.iteration += 1
        if self.dose and c.dose == "loss":
            self.targets = self._choose()

    @property
    def loss(self) -> ExtraLoss | None:
        """The weighted divergence on each minibatch's share of the states."""
        return None if self.targets is None else self._minibatch_loss

    def _minibatch_loss(self, batch: Minibatch) -> tuple[Tensor, Metrics]:
        if self.targets is None:
            raise RuntimeError("prepare() chose no targets")
        loss = self._distance(self.targets.at(batch.idx))
        return self.config.coef * self.dose * loss, {"distill/loss": loss.detach()}

    def _distance(self, targets: Targets) -> Tensor:
        """Return the weighted divergence of the students from their targets [N]."""
        student = self.agent.dist(targets.obs)
        target = DiagGaussian(targets.mean, targets.log_std, student.squashed)
        distance = divergence(self.config.divergence, student, target, targets.sample)
        return weighted_loss(distance, targets.weight)

    def step(self) -> Metrics:
        """Take the distillation steps of this iteration, if they are the method's own."""
        c = self.config
        if self.dose and c.dose != "loss":
            targets = self._choose()
            before = self.agent.nets.flat.detach().clone()
            self.metrics["distill/loss"] = self._descend(targets)
            moved = torch.linalg.vector_norm(self.agent.nets.flat.detach() - before, dim=1)
            self.metrics["distill/dose"] = moved
        elif self.dose:
            self.metrics["distill/dose"] = torch.full_like(
                self.mean_square[:, 0], c.coef * self.dose
            )
        return self.metrics

    def _descend(self, targets: Targets) -> Tensor:
        """Take the gradient steps; return their mean loss [N]."""
        c = self.config
        optimizer = self.optimizer if c.dose == "step" else self.agent.optimizer
        if c.dose == "step":
            optimizer.lr = [c.lr * self.dose] * len(optimizer.lr)
        size = min(c.batch_size, targets.weight.shape[1])
        drawn = targets.at(self._order(targets.weight.shape[1], c.steps * size))
        # A row whose weights are all zero must not move on by its momentum.
        used = (drawn.weight.unflatten(1, (c.steps, size)).sum(2) > 0).tolist()
        ones = torch.ones(len(self.is_student), dtype=targets.weight.dtype)
        coef = 1.0 if c.dose == "step" else c.coef * self.dose
        losses = []
        for i in range(c.steps):
            loss = self._distance(drawn.batch(i, size))
            (grad,) = torch.autograd.grad(loss * coef, self.agent.nets.flat, ones)
            clip_grad_norm(grad, c.max_grad_norm)
            active = [s and row[i] for s, row in zip(self.is_student, used, strict=True)]
            optimizer.step(grad, active)
            losses.append(loss.detach())
        return torch.stack(losses).mean(0)

    def _order(self, k: int, length: int) -> Tensor:
        """Draw positions [N, length], each pass over all k of them in a new order."""
        passes = -(-length // k)
        order = torch.cat([self.exchange.rng.permutation(k) for _ in range(passes)], 1)
        return order[:, :length]

    @torch.no_grad()
    def _choose(self) -> Targets:
        """Draw states, ask all peers, and fix whom to follow how closely at each."""
        if self.batch is None:
            raise RuntimeError("prepare() comes before the targets")
        c, x = self.config, self.exchange
        k = self.batch.raw_obs.shape[1]
        if c.dose == "shared":
            k = c.steps * c.batch_size
        states = x.draw(k, self.batch.returns if c.ruler == "return" else None)
        answers, value = x.ask_all(states.obs)
        own = x.own.expand_as(states.source)
        xi, who = self._rule(states, value, own)
        scale = self._scale(xi)
        order = x.rng.permutation(k) if c.control == "shuffled" else None
        weight = gate_weight(xi, scale, c, order)
        if c.dose == "loss":
            weight = weight * torch.tensor(self.is_student).unsqueeze(1)
        self.metrics |= self._describe(answers, xi, weight, own, who)
        mean = pick(answers.mean, who)
        target = DiagGaussian(
            mean if answers.squashed else mean.clamp(-1, 1),
            pick(answers.log_std, who),
            answers.squashed,
        )
        obs = self.agent.obs_norm(states.obs)
        return Targets(obs, target.mean, target.log_std, self._sample(target), weight)

    def _rule(self, states: States, value: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gap and the peer to follow at each state, both [N, K]."""
        mine = pick(value, own)
        if states.returns is not None:
            return gap(mine, states.returns), states.source
        others = value.scatter(1, own.unsqueeze(1), -torch.inf)
        best, who = others.max(1)
        return gap(mine, best), who

    def _scale(self, xi: Tensor) -> Tensor:
        """Return the unit of the gap in the soft gate [N, 1]."""
        if self.config.scale == "reward":
            return self.agent.return_norm.scale.to(xi.dtype)
        now = xi.square().mean(1, keepdim=True)
        seen = self.mean_square > 0
        self.mean_square = torch.where(seen, torch.lerp(self.mean_square, now, 0.1), now)
        return self.mean_square.sqrt().clamp(min=1e-8)

    def _sample(self, target: DiagGaussian) -> Tensor:
        """Return what `mse` and `nll` are measured against [N, K, A]."""
        c = self.config
        if c.divergence == "nll" or c.target == "sample":
            k, a = target.mean.shape[1:]
            sample = target.sample(self.exchange.rng.normal(k, a, dtype=target.mean.dtype))
            return sample if c.divergence == "nll" else target.action(sample)
        return target.mode()

    def _describe(
        self, answers: DiagGaussian, xi: Tensor, weight: Tensor, own: Tensor, who: Tensor
    ) -> Metrics:
        low, mid, high = weight.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=weight.dtype), dim=1)
        return {
            "distill/xi_mean": xi.mean(1),
            "distill/peer_ahead": (xi > 0).to(xi.dtype).mean(1),
            "distill/weight_q10": low,
            "distill/weight_q50": mid,
            "distill/weight_q90": high,
            "distill/ess": effective_sample_size(weight),
            "distill/action_distance": action_distance(answers, own, who),
        }

    def _parts(self) -> dict[str, Stateful]:
        return {"optimizer": self.optimizer, "exchange": self.exchange}

    def state(self) -> State:
        """Return what a checkpoint must hold."""
        own = {"mean_square": self.mean_square, "iteration": torch.tensor(self.iteration)}
        return state_of(self._parts()) | own

    def load_state(self, state: State) -> None:
        """Put a state back."""
        load_parts(self._parts(), state)
        self.mean_square = state["mean_square"].clone()
        self.iteration = int(state["iteration"])
