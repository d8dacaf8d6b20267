"""Retrieval: a student that mixes its action with those of a teacher in a memory of states.

In its embedding, states with similar teacher actions get similar keys. z are keys and x queries
[N, B, d], of length 1. No state is compared with itself: its similarity to itself would outweigh
all others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import Batch, Metrics, State, Stateful, take
from dpd.agents.dist import DiagGaussian
from dpd.agents.learners import Learners
from dpd.agents.nets import StackedNets
from dpd.agents.optim import StackedAdam
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream
from dpd.distill.method import Context
from dpd.distill.targets import Targets, distance, minibatch, order, samples_at, take_steps
from dpd.distill.teacher import Teacher
from dpd.distill.teaching import Supervised, spread
from dpd.distill.teaching_config import RetrievalConfig
from dpd.policies import memory
from dpd.policies.memory import MemoryMeta, Neighbours
from dpd.policies.metadata import n_features

WEIGHTS = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)
"""Of the student's own action. The first of equals is taken: no memory where it gains nothing."""
CHECKED = 512  # of an iteration's states, on which the weight is chosen


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


class Embedding(Stateful):
    """Each learner's projections: the teacher's gives keys, the student's its queries."""

    STATE = ("rng", "teachers", "optimizer", "students", "student_optimizer")

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


def _projected(nets: StackedNets, features: Tensor) -> Tensor:
    (projection,) = nets(None, "projection")
    return memory.unit(features @ projection)


class Retrieval(Supervised):
    """Supervised distillation with a relational loss; the student is deployed with a memory.

    Its own networks and random numbers leave the students' alone: without the relational loss they
    learn bit for bit as DAgger's.
    """

    STATE = (*Supervised.STATE, "embedding", "weight", "iteration")
    config: RetrievalConfig

    def __init__(self, config: RetrievalConfig, context: Context) -> None:
        super().__init__(config, context)
        if len(self.teacher.policies) > 1:
            raise ValueError("retrieval has the embedding of one teacher; give one --teacher")
        rng = RowRandom(context.ids, Stream.DISTILL, self.agent.device)
        self.embedding = Embedding(config, self.agent, self.teacher, rng)
        fixed = 1.0 if config.student_weight is None else config.student_weight
        self.weight = self._repeat(fixed)
        self.weights = self.weight.new_tensor(WEIGHTS)
        self.iteration = 0
        self.kept: Neighbours | None = None  # what follows from the replay is in no checkpoint

    def on_batch(self, batch: Batch, progress: float) -> None:
        super().on_batch(batch, progress)
        self.kept = None  # made of earlier states

    def _learn(self, obs: Tensor, size: int) -> Metrics:
        """Embed the teacher if that is not done, choose the memory's weight, take the steps."""
        c, metrics = self.config, Metrics()
        if c.keys == "teacher" and self.iteration == 0:
            metrics["distill/loss_contrast"] = self.embedding.fit(obs)
        if (self.iteration + 1) % c.check_every == 0:
            metrics |= self._check()
        self.iteration += 1
        return metrics | (self._relate(obs, size) if c.relates else super()._learn(obs, size))

    def _relate(self, obs: Tensor, size: int) -> Metrics:
        """Take the steps with what is learnt beside the teacher's answers."""
        c, agent = self.config, self.agent
        targets, keys = self._targets(obs), self.embedding.keys(obs)
        idx = order(self.rng, obs.shape[1], size)
        targets, keys, each = samples_at(targets, idx), take(keys, idx), agent.config.minibatch_size
        relation = torch.zeros_like(self.weight)

        def loss_at(i: int) -> Tensor:
            loss, related = self._loss(minibatch(targets, i, each), keys.split(each, 1)[i])
            relation.add_(related / c.steps)
            return loss

        moved = [(agent.nets.flat, agent.optimizer), self.embedding.moved]
        loss = take_steps(loss_at, c.steps, moved, c.max_grad_norm)
        return {"distill/loss": loss, "distill/loss_relation": relation}

    def _loss(self, targets: Targets, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss [N], and of it the relational one, detached."""
        c, nets = self.config, self.agent.nets
        mean, features = nets.with_features(targets.obs, "actor")
        (log_std,) = nets(None, "log_std")
        loss = distance(c.divergence, DiagGaussian(mean, log_std), targets).mean(1)
        query = self.embedding.project(features)
        relation = relational_loss(query, keys, c.tau)
        loss = loss + c.gamma * relation
        if c.eta > 0:
            found = others_answer(query, keys, targets.sample, c.tau)
            mixed = 0.5 * (mean + found)
            loss = loss + c.eta * (mixed - targets.sample).square().mean((1, 2))
        return loss, relation.detach()

    @torch.no_grad()
    def _check(self) -> Metrics:
        """Compare weights at the latest states, which are new to student and memory."""
        assert self.batch is not None
        latest = self.batch.valid.sum(1)
        if int((self._replay.live - latest).min()) < 1:
            return {}
        obs = self.batch.raw_obs
        obs = obs[:, spread(obs, CHECKED)]
        kept, truth = self._remember(latest), self._said(obs)
        own, query = self.agent.mode(obs), self._query(obs)
        found = kept.answer(query)
        ones = torch.ones_like(self.weight)
        error = torch.stack(
            [(memory.mix(own, found, w * ones) - truth).square().mean((1, 2)) for w in WEIGHTS]
        )
        if self.config.student_weight is None:
            self.weight = self.weights[error.argmin(0)]
        mixed = memory.mix(own, found, self.weight)
        gain = error[0] - (mixed - truth).square().mean((1, 2))
        return {
            "distill/student_weight": self.weight.clone(),
            "distill/gain_mse": gain,
            "distill/entries": torch.full_like(ones, kept.keys.shape[1]),
        } | self._describe(kept, obs, query)

    def _describe(self, kept: Neighbours, obs: Tensor, query: Tensor) -> Metrics:
        """Say how well the student looks up, and how many answer."""
        similarity, index = kept.find(query)
        weight = kept.weigh(similarity)
        entropy = torch.special.entr(weight).sum(-1).mean(1)
        if self.config.keys == "obs":
            return {"distill/entropy_w": entropy}
        keys = self.embedding.keys(obs)
        _, nearest = kept.find(keys)
        hits = (index.unsqueeze(-1) == nearest.unsqueeze(-2)).any(-1)
        return {
            "distill/entropy_w": entropy,
            "distill/recall": hits.to(query.dtype).mean((1, 2)),
            "distill/mean_cos": (query * keys).sum(-1).mean(1),
        }

    @property
    def _replay(self) -> Replay:
        assert isinstance(self.agent.replay, Replay)
        return self.agent.replay

    @torch.no_grad()
    def _remember(self, skip: Tensor) -> Neighbours:
        """Return the memories, without each learner's latest skip [N] states."""
        c = self.config
        live = (self._replay.live - skip).unsqueeze(1)
        m = min(c.entries, int(live.min()))
        back = skip.unsqueeze(1) + torch.arange(m, device=skip.device) * live // m
        who = torch.arange(len(skip), device=skip.device).unsqueeze(1).expand(-1, m)
        obs = self._replay.states(who, back)
        actions = self._said(obs)
        if c.control == "shuffled":
            order = torch.randperm(m, generator=torch.Generator().manual_seed(0))
            actions = actions[:, order.to(actions.device, non_blocking=True)]
        keys = self._scaled(obs) if c.keys == "obs" else self.embedding.keys(obs)
        return Neighbours.of(keys, actions, c.k, c.tau)

    def _said(self, obs: Tensor) -> Tensor:
        """Return the teacher's actions without noise at raw obs [N, K, O].

        No new questions: a run that kept the answers it learnt from would know them.
        """
        which = torch.zeros_like(obs[..., 0], dtype=torch.int64)
        return self.teacher.ask(obs, which).mode()

    def _scaled(self, obs: Tensor) -> Tensor:
        return memory.scaled(self.agent.obs_norm(obs))

    @torch.no_grad()
    def _query(self, obs: Tensor) -> Tensor:
        """Return what the students look up at raw obs [N, B, O] -> [N, B, d]."""
        if self.config.keys == "obs":
            return self._scaled(obs)
        _, features = self.agent.nets.with_features(self.agent.obs_norm(obs), "actor")
        return self.embedding.project(features)

    @property
    def _asks_memory(self) -> bool:
        return bool((self.weight < 1).any()) and self.iteration > 0

    @property
    def _memories(self) -> Neighbours:
        if self.kept is None:
            self.kept = self._remember(torch.zeros_like(self._replay.live))
        return self.kept

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        own = self.agent.mode(obs)
        if not self._asks_memory:
            return own
        return memory.mix(own, self._memories.answer(self._query(obs)), self.weight)

    def memory_meta(self, n: int) -> MemoryMeta | None:
        if self.weight[n] == 1 or not self._asks_memory:
            return None
        kept = self._memories
        return MemoryMeta(
            entries=kept.keys.shape[1],
            dim=kept.keys.shape[2],
            query="obs" if self.config.keys == "obs" else "features",
            k=kept.k,
            tau=kept.tau,
            student_weight=float(self.weight[n]),
        )

    def export(self, n: int) -> State:
        meta, policy = self.memory_meta(n), self.agent.export(n)
        if meta is None:
            return policy
        kept = {
            "memory.keys": self._memories.keys[n],
            "memory.actions": self._memories.actions[n],
        }
        if memory.has_projection(meta):
            kept["memory.projection"] = self.embedding.projection(n)
        return policy | kept

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.kept = None
