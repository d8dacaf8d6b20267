"""Scaffolded distillation: a guide censors the states that a small student cannot fit.

In the losses, pi is the student, b a broad density, and g in (0, 1) the guide.

All are given per state [N, B] by their logarithms, so that g may be 0 and nothing overflows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpd.agents.base import Metrics
from dpd.agents.dist import LOG_2PI, STD_FLOOR, DiagGaussian
from dpd.agents.nets import StackedNets, mlp_shapes
from dpd.agents.optim import StackedAdam
from dpd.agents.rng import RowRandom, Stream
from dpd.distill.method import Context
from dpd.distill.targets import minibatch, order, samples_at, take_steps
from dpd.distill.teaching import Supervised
from dpd.distill.teaching_config import ScaffoldConfig

MOST_ERROR = 5.0  # the error that counts at most in the budget (DiSK: max_ce)


def mixture_nll(logp: Tensor, log_broad: Tensor, log_g: Tensor) -> Tensor:
    """Return -log[(pi + g b) / (1 + g)] [N, B]; at g = 0 exactly -log pi.

    The mixture of student and broad density that DiSK's lifted posterior (s + g 1_b) / (1 + K g)
    is for actions. Its gradient is that of -log pi times the student's responsibility.
    """
    return F.softplus(log_g) - torch.logaddexp(logp, log_g + log_broad)


def responsibility(logp: Tensor, log_broad: Tensor, log_g: Tensor) -> Tensor:
    """Return pi / (pi + g b) [N, B], how much of a state's gradient the student still gets."""
    return torch.sigmoid(logp - log_broad - log_g)


def capped(log_g: Tensor, coverage: float) -> Tensor:
    """Scale g down where its mean [N] leaves less than `coverage` of the states.

    The scale is constant to the gradient: otherwise a guide near 1 everywhere could never come
    down, since the cap undoes what all states have in common.
    """
    mean = log_g.detach().logsumexp(1, keepdim=True) - math.log(log_g.shape[1])
    return log_g + (math.log(1 - coverage) - mean).clamp(max=0)


def spent(g: Tensor, distance: Tensor, is_wrong: Tensor) -> Tensor:
    """Return what a guide spends [N]: 1 / n_err sum g min(d, 5) / 5, n_err the student's errors."""
    share = distance.clamp(max=MOST_ERROR) / MOST_ERROR
    return (g * share).sum(1) / is_wrong.sum(1).clamp(min=1)


def student_loss(nll: Tensor, square: Tensor, aux: float) -> Tensor:
    """Return the student's loss [N] from `mixture_nll` and its squared error [N, B]."""
    return nll.mean(1) + aux * square.mean(1)


def guide_loss(nll: Tensor, excess: Tensor, multiplier: Tensor) -> Tensor:
    """Return the guide's loss [N] from `mixture_nll` [N, B] and its excess over the budget [N]."""
    return nll.mean(1) + multiplier * excess.clamp(min=0)


MOST_MULTIPLIER = 50.0


class GuideBatch(NamedTuple):
    """Labels and densities that student and guide learn from; constant, [N, K, ...]."""

    obs: Tensor  # normalised by the student
    mean: Tensor  # the teacher's action without noise
    sample: Tensor  # one with it
    label: Tensor  # which of the two the likelihood is of
    log_broad: Tensor  # [N, K] log b(label)


class StudentFit(NamedTuple):
    """Fit of a student with fixed deviation to the labels of a batch [N, B]."""

    logp: Tensor
    square: Tensor  # |mean - label|^2
    worst: Tensor  # its largest |mean - label|


class Scaffold(Supervised):
    """Supervised distillation by a mixture likelihood; student and guide learn in turn."""

    STATE = (*Supervised.STATE, "guide", "guide_optimizer", "multiplier")
    config: ScaffoldConfig

    def __init__(self, config: ScaffoldConfig, context: Context) -> None:
        super().__init__(config, context)
        agent, n = self.agent, self.agent.n_learners
        sizes = [agent.in_dim + agent.act_dim, *config.guide_hidden, 1]
        self.guide = StackedNets(mlp_shapes("guide", sizes), n, "elu", agent.dtype, agent.device)
        self.guide.init_uniform("guide", RowRandom(context.ids, Stream.DISTILL).generators)
        self.guide_optimizer = StackedAdam(self.guide.flat, [config.guide_lr] * n)
        self.multiplier = self._repeat(config.multiplier)

    def _learn(self, obs: Tensor, size: int) -> Metrics:
        """Take the student's steps, then the guide's, on the same states."""
        c, batch_size = self.config, self.agent.config.minibatch_size
        lesson = samples_at(self._lesson(obs), order(self.rng, obs.shape[1], size))
        is_warm = self.progress < c.warm_up
        loss = take_steps(
            lambda i: self._student_loss(minibatch(lesson, i, batch_size), is_warm),
            c.steps,
            [(self.agent.nets.flat, self.agent.optimizer)],
            c.max_grad_norm,
        )
        metrics = {"distill/loss": loss}
        if not is_warm:
            metrics["distill/loss_guide"] = take_steps(
                lambda i: self._guide_loss(minibatch(lesson, i, batch_size)),
                c.guide_steps,
                [(self.guide.flat, self.guide_optimizer)],
                c.max_grad_norm,
            )
        last = minibatch(lesson, c.steps - 1, batch_size)
        g = self._log_g(last, is_warm).detach().exp()
        self._fit_deviation(last, 1 - g)
        return metrics | self._describe(last, g)

    @torch.no_grad()
    def _lesson(self, obs: Tensor) -> GuideBatch:
        """Label raw states [N, K, O]."""
        c, said = self.config, self.ask(obs)
        mean = DiagGaussian(said.mean, said.log_std, self.teacher_squashes).mode()
        label = mean if c.label == "mean" else said.sample
        if c.broad == "box":
            log_broad = torch.full_like(label[..., 0], -math.log(2) * label.shape[-1])
        else:
            wide = torch.full_like(mean[:, :1], math.log(c.kappa * c.std))
            log_broad = DiagGaussian(mean, wide).logp(label)
        return GuideBatch(self.agent.obs_norm(obs), mean, said.sample, label, log_broad)

    @property
    def teacher_squashes(self) -> bool:
        """True if the teacher's action is the tanh of its sample."""
        return any(policy.meta.squashed for policy in self.current.policies)

    def _tell(self, lesson: GuideBatch) -> StudentFit:
        """Return the student's likelihood of a lesson's labels."""
        mean = self.agent.dist(lesson.obs).mean
        off = mean - lesson.label
        square = off.square().sum(-1)
        std, a = self.config.std, mean.shape[-1]
        logp = -0.5 * square / std**2 - a * (math.log(std) + 0.5 * LOG_2PI)
        return StudentFit(logp, square, off.detach().abs().amax(-1))

    def _log_g(self, lesson: GuideBatch, is_warm: bool = False) -> Tensor:
        """Return log g [N, B], under the cap; g = 0 while the student warms up."""
        if is_warm:
            return torch.full_like(lesson.log_broad, -torch.inf)
        (logit,) = self.guide(torch.cat([lesson.obs, lesson.mean], -1), "guide")
        return capped(F.logsigmoid(logit.squeeze(-1)), self.config.coverage)

    def _student_loss(self, lesson: GuideBatch, is_warm: bool) -> Tensor:
        with torch.no_grad():
            log_g = self._log_g(lesson, is_warm)
        told = self._tell(lesson)
        nll = mixture_nll(told.logp, lesson.log_broad, log_g)
        return student_loss(nll, told.square, self.config.aux)

    def _guide_loss(self, lesson: GuideBatch) -> Tensor:
        """Return the guide's loss [N], then raise the price of what exceeds its budget."""
        c = self.config
        with torch.no_grad():
            told = self._tell(lesson)
        log_g = self._log_g(lesson)
        excess = self._spent(told, log_g.exp()) - c.delta(self.progress)
        nll = mixture_nll(told.logp, lesson.log_broad, log_g)
        loss = guide_loss(nll, excess, self.multiplier)
        step = c.multiplier_lr * excess.detach()
        self.multiplier = (self.multiplier + step).clamp(0, MOST_MULTIPLIER)
        return loss

    def _spent(self, told: StudentFit, g: Tensor) -> Tensor:
        distance = 0.5 * told.square / self.config.std**2
        return spent(g, distance, told.worst > self.config.tolerance)

    @torch.no_grad()
    def _fit_deviation(self, lesson: GuideBatch, kept: Tensor) -> None:
        """Give the students the deviation that best explains the teacher's samples, weighted.

        In closed form, behind the mean, which it must not move.
        """
        off = (lesson.sample - self.agent.dist(lesson.obs).mean).square()
        weight = kept.unsqueeze(-1)
        var = (off * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-6)
        self.agent.nets.views["log_std"].copy_(0.5 * var.clamp(min=STD_FLOOR**2).log())

    @torch.no_grad()
    def _describe(self, lesson: GuideBatch, g: Tensor) -> Metrics:
        told, c = self._tell(lesson), self.config
        return {
            "distill/g_mean": g.mean(1),
            "distill/g_p90": g.quantile(0.9, dim=1),
            "distill/coverage": (g < 0.5).to(g.dtype).mean(1),
            "distill/responsibility": responsibility(told.logp, lesson.log_broad, g.log()).mean(1),
            "distill/budget": self._spent(told, g),
            "distill/lambda": self.multiplier.clone(),
            "distill/delta": torch.full_like(self.multiplier, c.delta(self.progress)),
            "distill/mse_kept": _weighted_mean(told.square, 1 - g),
            "distill/mse_censored": _weighted_mean(told.square, g),
        }


def _weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Return a weighted mean over the states [N]; 0 where nothing weighs."""
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
