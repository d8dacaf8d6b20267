"""Retrieval: a student that mixes its action with those of a teacher in a memory of states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import Batch, Metrics, State, nest, part, put_back, take
from dpd.agents.dist import DiagGaussian
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream
from dpd.distill.config import RetrievalConfig
from dpd.distill.embedding import Embedding, others_answer, relational_loss
from dpd.distill.method import Context, DeployedPolicy
from dpd.distill.supervised import Supervised
from dpd.distill.targets import Targets, distance, order, take_steps
from dpd.distill.teaching import spread
from dpd.policies import memory
from dpd.policies.memory import MemoryMeta, Neighbours

WEIGHTS = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)
"""Of the student's own action. The first of equals is taken: no memory where it gains nothing."""
CHECKED = 512  # of an iteration's states, on which the weight is chosen


class RetrievalBatch(NamedTuple):
    """Targets and keys that the student learns from."""

    targets: Targets
    keys: Tensor  # [N, K, d] the teacher's


class Retrieval(Supervised):
    """Supervised distillation with a relational loss; the student is deployed with a memory.

    Its own networks and random numbers leave the students' alone: without the relational loss they
    learn bit for bit as DAgger's.
    """

    config: RetrievalConfig

    def __init__(self, config: RetrievalConfig, context: Context) -> None:
        super().__init__(config, context)
        if len(self.teacher.policies) > 1:
            raise ValueError("retrieval has the embedding of one teacher; give one --teacher")
        rng = RowRandom(context.seeds, Stream.DISTILL, self.agent.device)
        self.embedding = Embedding(config, self.agent, self.teacher, rng)
        fixed = 1.0 if config.student_weight is None else config.student_weight
        self.weight = self._repeat(fixed)
        self.weights = self.weight.new_tensor(WEIGHTS)
        self.iteration = 0
        self.kept: Neighbours | None = None  # what follows from the replay is in no checkpoint

    def on_batch(self, batch: Batch, progress: float) -> None:
        """Keep the iteration's states; what was remembered of earlier ones is out of date."""
        super().on_batch(batch, progress)
        self.kept = None

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
        lesson, each = RetrievalBatch(targets.at(idx), take(keys, idx)), agent.config.minibatch_size
        relation = torch.zeros_like(self.weight)

        def loss_at(i: int) -> Tensor:
            loss, related = self._loss(lesson.targets.batch(i, each), lesson.keys.split(each, 1)[i])
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
        assert isinstance(self.agent.journal, Replay)
        return self.agent.journal

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
    def policy(self) -> DeployedPolicy | None:
        """The students with their memories, if the memories have any weight."""
        return self if bool((self.weight < 1).any()) and self.iteration > 0 else None

    @property
    def _memories(self) -> Neighbours:
        if self.kept is None:
            self.kept = self._remember(torch.zeros_like(self._replay.live))
        return self.kept

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [N, B, O] -> [N, B, A] in [-1, 1]."""
        return memory.mix(
            self.agent.mode(obs), self._memories.answer(self._query(obs)), self.weight
        )

    def memory_meta(self, n: int) -> MemoryMeta | None:
        """Describe learner n's memory, if its policy asks it."""
        if self.weight[n] == 1:
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
        """Return learner n's policy as a policy file holds it, and its memory."""
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

    def state(self) -> State:
        """Return what a checkpoint must hold."""
        own = {"weight": self.weight, "iteration": torch.tensor(self.iteration)}
        return super().state() | own | nest(embedding=self.embedding.state())

    def load_state(self, state: State) -> None:
        """Restore a state."""
        super().load_state(state)
        put_back({"weight": self.weight}, {"weight": state["weight"]})
        self.embedding.load_state(part(state, "embedding"))
        self.iteration, self.kept = int(state["iteration"]), None
