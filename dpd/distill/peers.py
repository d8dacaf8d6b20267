"""Gates: how much a state counts, from how far the peer is ahead there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import (
    Batch,
    ExtraLoss,
    Metrics,
    Minibatch,
    State,
    Stateful,
    load_parts,
    put_back,
    state_of,
)
from dpd.agents.config import OffPolicyConfig
from dpd.agents.dist import DiagGaussian, as_target
from dpd.agents.learners import Learners
from dpd.agents.optim import StackedAdam
from dpd.agents.rollout import Rollout
from dpd.distill.config import DPDConfig
from dpd.distill.exchange import PeerExchange, States, action_distance, pick
from dpd.distill.method import Actor, Context, Deployed
from dpd.distill.targets import Targets, descend, imitation_loss, order


def gate_weight(
    xi: Tensor, scale: Tensor, config: DPDConfig, order: Tensor | None = None
) -> Tensor:
    """Return the weight of each state [N, K] from its gap xi [N, K]; scale [N, 1].

    soft: K softmax_K(alpha xi / scale), the paper's exp(alpha xi) up to a constant and without its
    overflow, at most `max_weight`; hard: 1 where xi > 0, raw. `order` [N, K] is the permutation of
    the shuffled control.
    """
    weight = _gate(-xi if config.control == "reversed" else xi, scale, config)
    if config.control == "cancelled":
        # Where every weight multiplies every distance, sum_ij w_i D_j = sum_i w_i sum_j D_j.
        return weight.mean(1, keepdim=True).expand_as(weight)
    return weight if order is None else weight.gather(1, order)


def _gate(xi: Tensor, scale: Tensor, config: DPDConfig) -> Tensor:
    ahead = (xi > 0).to(xi.dtype)
    if config.gate == "hard":
        return ahead
    if config.gate == "uniform":
        weight = torch.ones_like(xi)
        return weight * ahead.mean(1, keepdim=True) if config.match_dose else weight
    exponent = config.alpha * xi / scale
    if config.weight_clip is not None:
        low, high = config.weight_clip
        weight = exponent.exp().clamp(low, high)
        return weight / weight.mean(1, keepdim=True)
    if config.max_weight is None:
        return exponent.softmax(1) * xi.shape[1]
    return bounded_softmax(exponent, config.max_weight)


def bounded_softmax(x: Tensor, most: float) -> Tensor:
    """Return K softmax_K(x) with no weight above `most` and the mean still 1; x [N, K], most > 1.

    The weights are min(most, c exp(x)) with c [N] such that their mean is 1: the closest to the
    softmax within the bound, in KL (Warmuth & Kuzmin 2008, "capping"). Since the mean of w^2 is
    then at most `most`, the effective sample size is at least K / most.
    """
    k = x.shape[1]
    plain = x.softmax(1) * k
    ordered = x.sort(1, descending=True).values
    # If the m largest are at the bound, the others share what is left: log c, for every m.
    left = k - most * torch.arange(k, dtype=x.dtype, device=x.device)
    log_rest = ordered.flip(1).logcumsumexp(1).flip(1)
    log_c = left.clamp(min=1e-9).log() - log_rest
    fits = log_c + ordered <= math.log(most)  # the largest of the others is within the bound
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    bounded = (x + log_c.gather(1, first)).exp().clamp(max=most)
    return torch.where(plain.amax(1, keepdim=True) <= most, plain, bounded)


def effective_sample_size(weight: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2 as a share of the K states; weight [N, K] -> [N]."""
    total = weight.sum(1).square() / weight.square().sum(1).clamp(min=1e-12)
    return total / weight.shape[1]


def gap(value: Tensor, peer_value: Tensor) -> Tensor:
    """Return xi, how much better the peer is [...]; both in raw reward units (paper, Eq. 2)."""
    return peer_value - value


def value_gaps(value: Tensor, own: Tensor) -> Tensor:
    """Compare value functions [N, P, K], V_p - V_own -> [N, P, K] (paper, Eq. 2)."""
    return gap(pick(value, own).unsqueeze(1), value)


def action_gaps(q: Tensor, own: Tensor) -> Tensor:
    """Compare actions by the same critics, Q(s, a_p) - Q(s, a_own) -> [N, P, K].

    Q is the mean over the group of each learner's least critic.
    """
    return value_gaps(q.amin(2).mean(1), own)


def least_each(judged: Sequence[Tensor]) -> Tensor:
    """Join what several stacks' critics [N, J, C, P, K] say, each learner's least one alone."""
    if len(judged) == 1:
        return judged[0]
    return torch.cat([q.amin(2, keepdim=True) for q in judged], 1)


def every_critic(judged: Sequence[Tensor]) -> Tensor:
    """Join what several stacks' critics [N, J, C, P, K] say -> [N, 1, all critics, P, K]."""
    return torch.cat([q.flatten(1, 2) for q in judged], 1).unsqueeze(1)


def lcb_gaps(q: Tensor, own: Tensor, k: float) -> Tensor:
    """Compare actions as surely as the critics agree -> [N, P, K].

    mean_c delta_c - k std_c delta_c with delta_c = Q_c(s, a_p) - Q_c(s, a_own), over all critics of
    the group; the deviation is the population's.
    """
    q = q.flatten(1, 2)  # [N, P C, P, K]
    delta = q - q.gather(2, own[:, None, None].expand(-1, q.shape[1], -1, -1))
    return delta.mean(1) - k * delta.std(1, correction=0)


def critic_gaps(q: Tensor, own: Tensor) -> Tensor:
    """Compare critics on the peer's action, Q_p(s, a_p) - Q_own(s, a_p) -> [N, P, K].

    What the 2020 code does for DDPG: it says how far two critics disagree, not whose action is
    better. Each learner's least critic speaks for it.
    """
    least = q.amin(2)  # [N, judging, acting, K]
    theirs = least.diagonal(dim1=1, dim2=2).transpose(1, 2)
    mine = least.gather(1, own[:, None, None].expand(-1, 1, least.shape[2], -1)).squeeze(1)
    return gap(mine, theirs)


def best_other(gaps: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest gap to another peer and which peer that is, both [N, K]."""
    best, who = gaps.scatter(1, own.unsqueeze(1), -torch.inf).max(1)
    return best, who


class Dose(NamedTuple):
    """Gradient steps of an iteration."""

    lr: float
    steps: int
    batch_size: int
    max_grad_norm: float


def paper_dose(agent: Learners) -> Dose:
    """Return the paper's dose for a family of learners.

    Off-policy one distillation step follows each of reinforcement, with no bound on its gradient
    (paper and 2020 code). On-policy the paper names no number of steps: 40 of 256 out of 2048
    states are five passes over the peer's states beside PPO's ten over the own.
    """
    if isinstance(agent.config, OffPolicyConfig):
        return Dose(1e-4, agent.config.updates, 64, math.inf)
    return Dose(1e-5, 40, 256, 0.5)


def dose_of(config: DPDConfig, agent: Learners) -> Dose:
    """Return the dose that the settings name, the paper's where they leave it open."""
    named = {name: getattr(config, name) for name in Dose._fields}
    return paper_dose(agent)._replace(**{k: v for k, v in named.items() if v is not None})


class Independent:
    """Peers that ignore each other; logs how far apart they are and who is ahead."""

    def __init__(self, context: Context, k: int = 256) -> None:
        self.actor: Actor = context.agent
        self.exchange = PeerExchange(context, "peer", 1.0, None)
        self.k = k
        self.loss: ExtraLoss | None = None

    @property
    def policy(self) -> Deployed | None:
        """What is evaluated and saved: the peers themselves."""
        return None

    def see(self, rollout: Rollout) -> None:
        """Look at nothing: what was collected is the learners'."""

    def prepare(self, batch: Batch, progress: float) -> None:
        """Keep the iteration's states to measure on."""
        self.exchange.remember(batch)

    def step(self) -> Metrics:
        """Return the peers' distance and gap at each other's states."""
        x = self.exchange
        if x.peers == 1 or not x.ready:
            return {}
        states = x.draw(self.k)
        answers, value = x.ask_all(states.obs)
        metrics = {"distill/action_distance": action_distance(answers, x.own, states.source)}
        if len(x.members) > 1:  # values of unlike learners are not of the same thing
            return metrics
        xi = gap(pick(value, x.own.expand_as(states.source)), pick(value, states.source))
        ahead = (xi > 0).to(xi.dtype).mean(1)
        return metrics | {"distill/xi_mean": xi.mean(1), "distill/peer_ahead": ahead}

    def state(self) -> State:
        """Return the exchange's state: nothing else outlives an iteration."""
        return self.exchange.state()

    def load_state(self, state: State) -> None:
        """Put a state back."""
        self.exchange.load_state(state)


class DualDistillation:
    """Each peer imitates the other, weighted by how far the other is ahead.

    Targets and weights are chosen once per iteration; for the dose `loss` of learners with a
    replay they are chosen anew for the minibatch of every policy update.
    """

    def __init__(self, config: DPDConfig, context: Context) -> None:
        if context.peers < 2:
            raise ValueError("dual policy distillation needs two peers or more: --peers 2")
        config.refuse_unfit(*(each.agent.config for each in context.members))
        self.config, self.agent = config, context.agent
        self.actor: Actor = context.agent
        self.has_replay = isinstance(self.agent.config, OffPolicyConfig)
        self.dose = dose_of(config, context.agent)
        self.exchange = PeerExchange(context, config.states, config.peer_share, config.memory)
        n = context.agent.n_learners
        self.optimizer = StackedAdam(context.agent.nets.flat, [self.dose.lr] * n)
        students = range(context.peers) if config.students is None else config.students
        if not students or not set(students) <= set(range(context.peers)):
            raise ValueError(
                f"distill.students must name some of the peers 0 to {context.peers - 1}, "
                f"not {config.students}"
            )
        taught = [seed[-1] in students for seed in context.seeds]
        self.is_student = torch.tensor(taught, device=context.agent.device)
        self.levels = context.agent.gamma.new_tensor([0.1, 0.5, 0.9])
        self.mean_square = torch.zeros_like(context.agent.gamma)  # running, of xi
        self.iteration = 0
        self.strength = 0.0  # of this iteration's dose, in [0, 1]
        self.cursor = 0  # minibatches of targets that the learners' loss has used
        self.targets: Targets | None = None
        self.metrics: Metrics = {}

    @property
    def policy(self) -> Deployed | None:
        """What is evaluated and saved: the peers themselves."""
        return None

    def see(self, rollout: Rollout) -> None:
        """Look at nothing: what was collected is the learners'."""

    def prepare(self, batch: Batch, progress: float) -> None:
        """Keep the iteration's states; choose the targets if they go into the learners' loss."""
        c = self.config
        self.exchange.remember(batch)
        self.targets, self.metrics, self.cursor = None, {}, 0
        due = progress >= c.warmup and self.iteration % c.every == 0 and self.exchange.ready
        falling = (1 - progress) / (1 - c.warmup) if c.warmup < 1 else 0.0
        self.strength = (falling if c.schedule == "linear" else 1.0) if due else 0.0
        self.iteration += 1
        if self._is_in_loss and not self.has_replay:
            self.targets, self.metrics = self._choose(self.exchange.draw(self.agent.config.samples))

    @property
    def _is_in_loss(self) -> bool:
        """Whether this iteration's dose is a term in the learners' loss."""
        return self.strength > 0 and self.config.dose == "loss"

    @property
    def loss(self) -> ExtraLoss | None:
        """The weighted divergence, on other states at every call; None where there is no term."""
        return self._minibatch_loss if self._is_in_loss else None

    def _minibatch_loss(self, batch: Minibatch) -> tuple[Tensor, Metrics]:
        targets, metrics = self._next_targets(batch)
        loss = imitation_loss(self.agent, self.config.divergence, targets)
        metrics = metrics | {"distill/loss": loss.detach()}
        return self.config.coef * self.strength * loss, metrics

    def _next_targets(self, batch: Minibatch) -> tuple[Targets, Metrics]:
        """Return the targets for a minibatch of the learners, and metrics of a new choice."""
        if batch.raw_obs is not None:
            return self._choose(self.exchange.draw_beside(batch.raw_obs))
        if self.targets is None:
            raise RuntimeError("prepare() chose no targets")
        size = self.agent.config.minibatch_size
        parts = self.targets.weight.shape[1] // size
        part = self.targets.batch(self.cursor % parts, size)
        self.cursor += 1
        return part, {}

    def step(self) -> Metrics:
        """Take the distillation steps of this iteration, if they are the method's own."""
        c = self.config
        if self.strength and c.dose != "loss":
            targets, self.metrics = self._choose_for_steps()
            before = self.agent.nets.flat.detach().clone()
            self.metrics["distill/loss"] = self._descend(targets)
            moved = torch.linalg.vector_norm(self.agent.nets.flat.detach() - before, dim=1)
            self.metrics["distill/dose"] = moved
        elif self.strength:
            coef = c.coef * self.strength
            self.metrics["distill/dose"] = torch.full_like(self.mean_square[:, 0], coef)
        return self.metrics

    def _descend(self, targets: Targets) -> Tensor:
        """Take the gradient steps; return their mean loss [N]."""
        c, dose = self.config, self.dose
        optimizer = self.optimizer if c.dose == "step" else self.agent.optimizer
        if c.dose == "step":
            optimizer.lr = [dose.lr * self.strength] * len(optimizer.lr)
        k = targets.weight.shape[1]
        drawn = targets.at(order(self.exchange.rng, k, dose.steps * min(dose.batch_size, k)))
        coef = 1.0 if c.dose == "step" else c.coef * self.strength
        return descend(
            self.agent,
            optimizer,
            c.divergence,
            drawn,
            dose.steps,
            coef,
            dose.max_grad_norm,
            self.is_student,
        )

    def _choose_for_steps(self) -> tuple[Targets, Metrics]:
        """Choose the targets of an iteration's own gradient steps."""
        k = min(self.dose.steps * self.dose.batch_size, self.exchange.held)
        return self._choose(self.exchange.draw(k))

    @torch.no_grad()
    def _choose(self, states: States) -> tuple[Targets, Metrics]:
        """Ask all peers about states, and fix whom to follow how closely at each."""
        c, x = self.config, self.exchange
        k = states.source.shape[1]
        answers, value = x.ask_all(states.obs)
        own = x.own.expand_as(states.source)
        xi, who = self._rule(states, answers, value, own)
        scale = self._scale(xi)
        shuffle = x.rng.permutation(k) if c.control == "shuffled" else None
        weight = gate_weight(xi, scale, c, shuffle)
        if c.dose == "loss":
            weight = weight * self.is_student.unsqueeze(1)
        metrics = self._describe(answers, xi, weight, own, who)
        target = as_target(
            answers._replace(mean=pick(answers.mean, who), log_std=pick(answers.log_std, who))
        )
        obs = self.agent.obs_norm(states.obs)
        sample = self._sample(target)
        return Targets(obs, target.mean, target.log_std, sample, weight), metrics

    def _rule(
        self, states: States, answers: DiagGaussian, value: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gap and the peer to follow at each state, both [N, K]."""
        c = self.config
        if c.ruler == "return":
            if states.returns is None:
                raise ValueError("these learners know no returns; choose another distill.ruler")
            return gap(pick(value, own), states.returns), states.source
        if c.ruler == "value":
            return best_other(value_gaps(value, own), own)
        judged = self.exchange.judge_all(states.obs, answers.mode())
        match c.ruler:
            case "action":
                return best_other(action_gaps(least_each(judged), own), own)
            case "lcb":
                return best_other(lcb_gaps(every_critic(judged), own, c.lcb_k), own)
            case "critics":
                return best_other(critic_gaps(judged[0], own), own)

    def _scale(self, xi: Tensor) -> Tensor:
        """Return the unit of the gap in the soft gate [N, 1]; `rms` is over about ten choices."""
        if self.config.scale == "reward":
            return self.agent.reward_scale
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
        low, mid, high = weight.quantile(self.levels, dim=1)
        return {
            "distill/xi_mean": xi.mean(1),
            "distill/peer_ahead": (xi > 0).to(xi.dtype).mean(1),
            "distill/weight_q10": low,
            "distill/weight_q50": mid,
            "distill/weight_q90": high,
            "distill/weight_max": weight.amax(1),
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
        put_back({"mean_square": self.mean_square}, {"mean_square": state["mean_square"]})
        self.iteration = int(state["iteration"])
