"""The embedding of retrieval: states with similar teacher actions get similar keys.

z are keys and x queries [N, B, d], of length 1. No state is compared with itself: its similarity
to itself would outweigh all others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import State, Stateful, load_parts, state_of, take
from dpd.agents.learners import Learners
from dpd.agents.nets import StackedNets
from dpd.agents.optim import StackedAdam
from dpd.agents.rng import RowRandom
from dpd.distill.config import RetrievalConfig
from dpd.distill.targets import take_steps
from dpd.distill.teacher import Teacher
from dpd.policies import memory
from dpd.policies.metadata import n_features


def contrastive_loss(z: Tensor, actions: Tensor, bandwidth: Tensor, tau: float) -> Tensor:
    """Return -sum_j w_ij log softmax_j(z_i z_j / tau) [N], the mean over i.

    Supervised contrastive learning (Khosla et al. 2020) with the kernel of actions [N, B, A],
    w_ij ~ exp(-|a_i - a_j|^2 / 2 h^2), in the place of equal labels; bandwidth h [N].
    """
    alike = torch.cdist(actions, actions).square() / (-2 * bandwidth.view(-1, 1, 1).square())
    weight = _softmax(alike)
    logp = (z @ z.mT / tau).masked_fill(_own(z), -torch.inf).log_softmax(-1)
    return -(weight * logp.masked_fill(_own(z), 0)).sum(-1).mean(1)


def relational_loss(x: Tensor, z: Tensor, tau: float) -> Tensor:
    """Return KL between softmax_j(z_i z_j / tau) and softmax_j(x_i z_j / tau) [N], z constant."""
    z = z.detach()
    p = (z @ z.mT / tau).masked_fill(_own(z), -torch.inf).log_softmax(-1)
    q = (x @ z.mT / tau).masked_fill(_own(z), -torch.inf).log_softmax(-1)
    difference = (p - q).masked_fill(_own(z), 0)  # -inf less -inf
    return (p.exp() * difference).sum(-1).mean(1)


def others_answer(x: Tensor, z: Tensor, actions: Tensor, tau: float) -> Tensor:
    """Return what the other states of a batch say at each [N, B, A], weighted by similarity."""
    return _softmax(x @ z.detach().mT / tau) @ actions


def _softmax(logits: Tensor) -> Tensor:
    """Return weights of all others [N, B, B]: the diagonal is 0."""
    return logits.masked_fill(_own(logits), -torch.inf).softmax(-1)


def _own(like: Tensor) -> Tensor:
    """Return where a state meets itself [B, B]."""
    return torch.eye(like.shape[1], dtype=torch.bool, device=like.device)


MEDIAN_OF = 512  # actions, for the median of their distances


class Embedding:
    """Each learner's projections: the teacher's gives keys, the student's its queries."""

    def __init__(
        self, config: RetrievalConfig, agent: Learners, teacher: Teacher, rng: RowRandom
    ) -> None:
        self.config, self.agent, self.teacher, self.rng = config, agent, teacher, rng
        (policy,) = teacher.policies
        theirs, own = n_features(policy.meta), agent.nets.layers["actor"][-1][0].shape[1]
        self.teachers, self.students = self._drawn(theirs), self._drawn(own)
        n = agent.n_learners
        for row in range(n):  # or units that it lacks would get a gradient, and come to life
            self.students.views["projection"][row, self._width(row) :] = 0
        self.optimizer = StackedAdam(self.teachers.flat, [config.embed_lr] * n)
        self.student_optimizer = StackedAdam(self.students.flat, agent.optimizer.lr)

    def _drawn(self, width: int) -> StackedNets:
        """Return random projections [N, width, d]."""
        shape, n = (width, self.config.dim), self.agent.n_learners
        nets = StackedNets({"projection": shape}, n, "tanh", self.agent.dtype, self.agent.device)
        drawn = self.rng.normal(*shape, dtype=self.agent.dtype)
        nets.views["projection"].copy_(drawn * width**-0.5)
        return nets

    @property
    def moved(self) -> tuple[Tensor, StackedAdam]:
        """Parameters that are trained with the students, and their optimizer."""
        return self.students.flat, self.student_optimizer

    def project(self, features: Tensor) -> Tensor:
        """Return the students' queries [N, B, d] of their last hidden layer [N, B, H]."""
        return _projected(self.students, features)

    @torch.no_grad()
    def keys(self, obs: Tensor) -> Tensor:
        """Return the teacher's keys at raw obs [N, B, O] -> [N, B, d]."""
        return _projected(self.teachers, self.teacher.features(obs))

    def projection(self, n: int) -> Tensor:
        """Return student n's own projection [H, d], without the widths it lacks."""
        return self.students.views["projection"][n, : self._width(n)]

    def _width(self, n: int) -> int:
        """Return the width of student n's last hidden layer."""
        last = len(self.agent.nets.layers["actor"]) - 1
        return self.agent.nets.rows[n][f"actor.{last}.weight"][0]

    def fit(self, obs: Tensor) -> Tensor:
        """Bring keys of alike actions together at raw obs [N, K, O]; return the last loss [N]."""
        c, size = self.config, self.agent.config.minibatch_size
        features = self.teacher.features(obs)
        actions = self.teacher.ask(obs, torch.zeros_like(obs[..., 0], dtype=torch.int64)).mode()
        bandwidth = self._bandwidth(actions)
        last = obs.new_zeros(len(obs))

        def loss_at(i: int) -> Tensor:
            idx = self.rng.integers(obs.shape[1], size)
            z = _projected(self.teachers, take(features, idx))
            loss = contrastive_loss(z, take(actions, idx), bandwidth, c.tau)
            last.copy_(loss.detach())
            return loss

        take_steps(loss_at, c.embed_steps, [(self.teachers.flat, self.optimizer)], c.max_grad_norm)
        return last

    def _bandwidth(self, actions: Tensor) -> Tensor:
        """Return the distance of alike actions [N]."""
        if self.config.bandwidth is not None:
            return torch.full_like(actions[:, 0, 0], self.config.bandwidth)
        some = actions[:, :MEDIAN_OF]
        median = torch.cdist(some, some).flatten(1).median(1).values
        return 0.25 * median.clamp(min=1e-3)  # a teacher may do the same everywhere

    def _parts(self) -> dict[str, Stateful]:
        return {
            "rng": self.rng,
            "teachers": self.teachers,
            "optimizer": self.optimizer,
            "students": self.students,
            "student_optimizer": self.student_optimizer,
        }

    def state(self) -> State:
        """Return what a checkpoint must hold."""
        return state_of(self._parts())

    def load_state(self, state: State) -> None:
        """Restore a state."""
        load_parts(self._parts(), state)


def _projected(nets: StackedNets, features: Tensor) -> Tensor:
    (projection,) = nets(None, "projection")
    return memory.unit(features @ projection)
