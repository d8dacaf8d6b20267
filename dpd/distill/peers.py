"""Dual policy distillation: each peer imitates the other where the other is ahead.

Lai, Zha, Li, Hu: Dual Policy Distillation, IJCAI 2020 (arXiv 2006.04061). This file follows one
iteration of student i and its peer j, in this order:

1. draw   states s that peer j visited                        PeerExchange.draw
2. ask    every peer: pi_j(.|s) and V_j(s)                    PeerExchange.ask
3. gap    xi(s) = V_j(s) - V_i(s)                             Eq. 2, `rulers.py`
4. gate   w(s) = exp(alpha xi(s)), normalised                 `rulers.py`, `gate_weight`
5. loss   L_i = E_s [ w(s) D(pi_i(.|s), pi_j(.|s)) ]          Eq. 11, `dpd_loss`
6. step   gradient steps on L_i, or L_i inside the RL loss    `DualDistillation.step`, `.loss`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import Batch, ExtraLoss, Metrics, Minibatch, Rollout
from dpd.agents.dist import DiagGaussian, as_target
from dpd.agents.learners import Learners
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.optim import StackedAdam
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.distill.exchange import DrawnStates, PeerExchange, action_distance, kl_to, pick
from dpd.distill.leader import Leaders
from dpd.distill.method import Context, Method
from dpd.distill.peers_config import DPDConfig
from dpd.distill.rulers import (
    action_gaps,
    best_other,
    centred_gaps,
    critic_gaps,
    effective_sample_size,
    every_critic,
    gap,
    gap_metrics,
    gate_weight,
    lcb_gaps,
    least_each,
    played_gaps,
    value_gaps,
)
from dpd.distill.targets import (
    Targets,
    adapted_coef,
    descend,
    distance,
    order,
    samples_at,
)


class DualDistillation(Method):
    """Each peer imitates the other, weighted by how far the other is ahead.

    Targets and weights are chosen once per iteration. For learners with a replay whose loss holds
    the term (dose `loss`), they are chosen for the minibatch of every policy update.
    """

    STATE = ("optimizer", "exchange", "mean_square", "iteration", "coef", "leaders")

    def __init__(self, config: DPDConfig, context: Context) -> None:
        super().__init__(context)
        if context.peers < 2:
            raise ValueError("dual policy distillation needs two peers or more: --peers 2")
        config.refuse_unfit(*(stack.agent.config for stack in context.peer_stacks))
        self.config = config
        self.has_replay = isinstance(self.agent, OffPolicy)
        self.dose = dose_of(config, self.agent)
        self.exchange = PeerExchange(context, config.states, config.peer_share, config.memory)
        self.optimizer = StackedAdam(self.agent.nets.flat, [self.dose.lr] * self.agent.n_learners)
        self.is_student = torch.tensor(students(config, context), device=self.agent.device)  # [N]
        self.leaders = Leaders(context, by_return=config.leader == "return")
        self.levels = self.agent.gamma.new_tensor([0.1, 0.5, 0.9])
        self.mean_square = torch.zeros_like(self.agent.gamma)  # of xi, running [N, 1]
        self.coef = torch.full_like(self.mean_square[:, 0], config.coef)  # of the loss; a leash's
        self.iteration = 0
        self.strength = 0.0  # of the dose in this iteration, in [0, 1]
        self.targets: Targets | None = None
        self.rollout: Rollout | None = None  # of this iteration, for rulers of what was played
        self.metrics: Metrics = {}

    def on_rollout(self, rollout: Rollout) -> None:
        """Keep the rollout until the next one; the learners' buffer is not copied."""
        self.rollout = rollout

    def on_returns(self, returns: Sequence[Tensor]) -> None:
        """Let peers lead that are ahead in return."""
        self.leaders.update(returns)

    def on_batch(self, batch: Batch, progress: float) -> None:
        """Store the states of the iteration; choose targets if they go into the learners' loss."""
        c = self.config
        self.exchange.remember(self.agent, batch)
        self.targets, self.metrics = None, {}
        due = progress >= c.warmup and self.iteration % c.every == 0 and self.exchange.ready
        falling = (1 - progress) / (1 - c.warmup) if c.warmup < 1 else 0.0
        self.strength = (falling if c.schedule == "linear" else 1.0) if due else 0.0
        self.iteration += 1
        if self._is_in_loss and not self.has_replay:
            self.targets, self.metrics = self.choose(self._states_for_loss(batch))
            if c.target_kl is not None:
                coef = adapted_coef(self.coef, self.metrics["distill/kl"], c.target_kl, c.coef)
                self.coef = torch.where(self._imitates, coef, self.coef)
            self.metrics["distill/coef"] = self.coef

    def _states_for_loss(self, batch: Batch) -> DrawnStates:
        """Return the states of an iteration for PPO's loss: drawn ones, or those of its samples."""
        algo = self.agent.config
        if self.config.states == "samples" and isinstance(algo, PPOConfig):
            return self.exchange.at_samples(batch.raw_obs, algo.n_steps, algo.share_experience)
        return self.exchange.draw(algo.samples)

    def on_peer_batch(self, agent: Learners, batch: Batch) -> None:
        """Store the states of peers in another stack."""
        self.exchange.remember(agent, batch)

    @torch.no_grad()
    def choose(self, states: DrawnStates) -> tuple[Targets, Metrics]:
        """Choose the policy to imitate and the weight at every state [N, K]."""
        c, x = self.config, self.exchange
        policies, values = x.ask(states.obs)  # [N, P, K, A], [N, P, K]
        student = x.student.expand_as(states.source)  # [N, K], the student's number in its group
        xi, peer = self._gap(states, policies, values, student)
        k = xi.shape[1]
        shuffle = x.rng.permutation(k) if c.control == "shuffled" else None
        weight = gate_weight(xi, self._gap_unit(xi), c, shuffle) * self.leaders.leads(peer)
        if c.dose == "loss":
            weight = weight * self.is_student.unsqueeze(1)
        metrics = self._describe(policies, xi, weight, student, peer)
        if c.leader == "return":
            metrics["distill/student"] = self._imitates.to(xi.dtype)
        mean, log_std = pick(policies.mean, peer), pick(policies.log_std, peer)
        target = as_target(policies._replace(mean=mean, log_std=log_std))
        obs = self.agent.obs_norm(states.obs)
        return Targets(obs, target.mean, target.log_std, self._sample(target), weight), metrics

    def _gap(
        self, states: DrawnStates, policies: DiagGaussian, values: Tensor, student: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return xi [N, K] by the ruler, and the peer to imitate [N, K]."""
        c = self.config
        if c.ruler == "return":
            if states.returns is None:
                raise ValueError("these learners know no returns; choose another distill.ruler")
            return gap(pick(values, student), states.returns), states.source
        match c.ruler:
            case "value":
                return self._best(value_gaps(values, student), student)
            case "centred":
                return self._best(centred_gaps(values, student), student)
            case "advantage" | "common":
                return self._played_gap(states, student), states.source
        judged = self.exchange.judge(states.obs, policies.mode())
        match c.ruler:
            case "action":
                return self._best(action_gaps(least_each(judged), student), student)
            case "lcb":
                return self._best(lcb_gaps(every_critic(judged), student, c.lcb_k), student)
            case "critics":
                return self._best(critic_gaps(judged[0], student), student)

    def _best(self, gaps: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest gap to another peer, one that leads if any does, and the peer."""
        return best_other(self.leaders.among(gaps), student)

    @property
    def _imitates(self) -> Tensor:
        """True for learners that imitate in this iteration [N]."""
        return self.is_student & self.leaders.follows

    def _played_gap(self, states: DrawnStates, student: Tensor) -> Tensor:
        """Return how much better the source's play was than a critic of the student expects."""
        agent, rollout = self.agent, self.rollout
        if not isinstance(agent, PPO) or rollout is None or states.position is None:
            raise ValueError("only PPO's peers in one stack know what they played")
        adv = agent.judge_play(rollout, "mean" if self.config.ruler == "common" else "own")
        return played_gaps(adv, student, states.source, states.position)

    def _gap_unit(self, xi: Tensor) -> Tensor:
        """Return the unit of xi in the soft gate [N, 1]: its running RMS over about ten choices."""
        if self.config.scale == "reward":
            return self.agent.reward_scale
        now = xi.square().mean(1, keepdim=True)
        seen = self.mean_square > 0
        self.mean_square = torch.where(seen, torch.lerp(self.mean_square, now, 0.1), now)
        return self.mean_square.sqrt().clamp(min=1e-8)

    def _sample(self, target: DiagGaussian) -> Tensor:
        """Return the actions that all divergences but KL compare with [N, K, A]."""
        c = self.config
        if c.divergence == "nll" or c.target == "sample":
            k, a = target.mean.shape[1:]
            sample = target.sample(self.exchange.rng.normal(k, a, dtype=target.mean.dtype))
            return sample if c.divergence == "nll" else target.action(sample)
        return target.mode()

    def distillation_loss(self, targets: Targets) -> Tensor:
        """Return L_i of every student [N] (paper, Eq. 11)."""
        student = self.agent.dist(targets.obs)
        return dpd_loss(distance(self.config.divergence, student, targets), targets.weight)

    @property
    def _coef(self) -> float | Tensor:
        """The weight of the loss in this iteration, of all learners or of each [N]."""
        coef = self.config.coef if self.config.target_kl is None else self.coef
        return coef * self.strength

    @property
    def _is_in_loss(self) -> bool:
        return self.strength > 0 and self.config.dose == "loss"

    @property
    def loss(self) -> ExtraLoss | None:
        if not self._is_in_loss:
            return None
        if self.targets is None:
            return self._loss_in_update
        at_samples = self.config.states == "samples"
        return self.targets.as_term(self._coef, self.config.divergence, at_samples)

    def _loss_in_update(self, batch: Minibatch) -> tuple[Tensor, Metrics]:
        """Return the loss [N] of a policy update from the replay, and metrics of its targets."""
        targets, metrics = self.choose(self.exchange.draw_beside(batch.raw_obs))
        loss = self.distillation_loss(targets)
        unit = batch.mean_value if self.config.coef_unit == "value" else 1.0
        return self._coef * unit * loss, metrics | {"distill/loss": loss.detach()}

    def step(self) -> Metrics:
        """Take the gradient steps of the doses `step` and `shared`; return metrics [N]."""
        c = self.config
        if self.strength and c.dose != "loss":
            targets, self.metrics = self.choose_for_steps()
            before = self.agent.nets.flat.detach().clone()
            self.metrics["distill/loss"] = self._descend(targets)
            moved = torch.linalg.vector_norm(self.agent.nets.flat.detach() - before, dim=1)
            self.metrics["distill/dose"] = moved
        elif self.strength:
            self.metrics["distill/dose"] = torch.zeros_like(self.coef) + self._coef
        return self.metrics

    def choose_for_steps(self) -> tuple[Targets, Metrics]:
        """Choose the targets of the gradient steps of an iteration."""
        k = min(self.dose.steps * self.dose.batch_size, self.exchange.size)
        return self.choose(self.exchange.draw(k))

    def _descend(self, targets: Targets) -> Tensor:
        """Take gradient steps on the distillation loss; return its mean [N]."""
        c, dose = self.config, self.dose
        optimizer, coef = self.agent.optimizer, c.coef * self.strength
        if c.dose == "step":  # Adam cancels a coefficient, so that the rate carries the strength
            optimizer, coef = self.optimizer, 1.0
            optimizer.lr = [dose.lr * self.strength] * len(optimizer.lr)
        k = targets.weight.shape[1]
        idx = order(self.exchange.rng, k, dose.steps * min(dose.batch_size, k))
        leaf, drawn = (self.agent.nets.flat, optimizer), samples_at(targets, idx)
        loss, bound = self.distillation_loss, dose.max_grad_norm
        fused = self.agent.fused_imitation(c.divergence, optimizer)
        return descend(leaf, loss, drawn, dose.steps, bound, coef, self.is_student, fused)

    def _describe(
        self, policies: DiagGaussian, xi: Tensor, weight: Tensor, student: Tensor, peer: Tensor
    ) -> Metrics:
        low, mid, high = weight.quantile(self.levels, dim=1)
        metrics = gap_metrics(xi) | {
            "distill/weight_q10": low,
            "distill/weight_q50": mid,
            "distill/weight_q90": high,
            "distill/weight_max": weight.amax(1),
            "distill/ess": effective_sample_size(weight),
            "distill/action_distance": action_distance(policies, student, peer),
        }
        c = self.config
        if c.ruler == "centred":
            metrics["distill/xi_rms"] = xi.square().mean(1).sqrt()
        if not self.has_replay and c.dose == "loss" and c.divergence.startswith("kl"):
            metrics["distill/kl"] = kl_to(policies, student, peer)
        return metrics


def dpd_loss(distance: Tensor, weight: Tensor) -> Tensor:
    """Return mean_B w(s) D(s) per student: distance, weight [N, B] -> [N] (paper, Eq. 11)."""
    if distance.shape != weight.shape:
        # The 2020 code multiplied (B, 1) by (B,), and its weights cancelled.
        raise ValueError(f"weight {tuple(weight.shape)} for distance {tuple(distance.shape)}")
    return (weight * distance).mean(1)


def students(config: DPDConfig, context: Context) -> list[bool]:
    """Say of every learner whether it imitates its peers. Raises ValueError for unknown peers."""
    chosen = range(context.peers) if config.students is None else config.students
    if not chosen or not set(chosen) <= set(range(context.peers)):
        raise ValueError(
            f"distill.students must name some of the peers 0 to {context.peers - 1}, "
            f"not {config.students}"
        )
    return [peer in chosen for peer in context.peer_numbers]


class Dose(NamedTuple):
    """Gradient steps of the distillation loss in an iteration."""

    lr: float
    steps: int
    batch_size: int
    max_grad_norm: float


def dose_of(config: DPDConfig, agent: Learners) -> Dose:
    """Return the dose of the settings; the paper's where they leave it open.

    Off-policy: one distillation step per RL step, its gradient unbounded (paper and 2020 code).
    On-policy the paper gives no number: 40 steps of 256 out of 2,048 states are five passes over
    the peer's states, next to PPO's ten over its own.
    """
    updates = agent.updates if isinstance(agent, OffPolicy) else None
    paper = Dose(1e-5, 40, 256, 0.5) if updates is None else Dose(1e-4, updates, 64, math.inf)
    named = {name: getattr(config, name) for name in Dose._fields}
    return paper._replace(**{k: v for k, v in named.items() if v is not None})
