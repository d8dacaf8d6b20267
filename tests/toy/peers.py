"""Stacks of learners, with an iteration's samples and a method, for the tests of distillation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dpd.agents.base import Batch, ClosedTerm, Metrics, Minibatch
from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.ppo_loss import TermPart, term_loss
from dpd.agents.sac import SAC
from dpd.agents.td3 import TD3
from dpd.distill.method import Context
from dpd.distill.peers import DualDistillation
from dpd.distill.peers_config import DPDConfig
from dpd.distill.targets import Targets, samples_at

O, A, S = 4, 2, 64  # noqa: E741
ALGO = PPOConfig(n_envs=4, n_steps=16, minibatch_size=16, epochs=2, hidden=(16, 16))
SIZES: dict[str, Any] = {
    "n_envs": 4,
    "n_steps": 16,
    "minibatch_size": 16,
    "updates_per_step": 0.125,
    "capacity": 400,
    "learning_starts": 0,
    "hidden": (16, 16),
    "norm_obs": True,
}
REPLAYED: dict[str, OffPolicyConfig] = {
    "td3": TD3Config(**SIZES),
    "ddpg": DDPGConfig(**SIZES),
    "sac": SACConfig(**SIZES),
}
KINDS: dict[type, Any] = {PPOConfig: PPO, TD3Config: TD3, DDPGConfig: TD3, SACConfig: SAC}
F64 = torch.float64


def f64(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=F64)


STEP = DPDConfig(lr=1e-3, steps=4, batch_size=32)
SHARED = DPDConfig(dose="shared", steps=4, batch_size=32)
LOSS = DPDConfig(dose="loss", coef=0.5)
DIVERGENCES = ("mse", "huber", "kl_forward", "kl_reverse", "nll")


def vary(config: DPDConfig, **changes: Any) -> DPDConfig:
    """Return a configuration with some settings changed, and those reset that then do nothing."""
    dose = changes.get("dose", config.dose)
    idle = {"step": (), "shared": ("lr",), "loss": ("lr", "steps", "batch_size")}[dose]
    return replace(config, **{name: getattr(DPDConfig, name) for name in idle}, **changes)


class Setup:
    """A stack of `groups` x `peers` learners, an iteration's samples, and a method."""

    def __init__(
        self,
        config: DPDConfig,
        groups: int = 1,
        peers: int = 2,
        first_group: int = 0,
        algo: str | PPOConfig | OffPolicyConfig = "ppo",
    ) -> None:
        self.rows = [(first_group + g, p) for g in range(groups) for p in range(peers)]
        self.peers = peers
        if isinstance(algo, str):
            algo = REPLAYED.get(algo, ALGO)
        self.agent = KINDS[type(algo)](algo, O, A, self.rows, F64)
        # Untrained policies all answer about zero; these answer differently, well inside the box.
        self.agent.nets.views["actor.2.weight"].mul_(20 if isinstance(algo, PPOConfig) else 3)
        self.batch = self.iterate()
        self.context = Context(self.agent, groups, peers, self.rows)
        self.method = DualDistillation(config, self.context)

    def iterate(self, number: int = 0) -> Batch:
        """Fill a rollout, normalise by it, and return it ready for learning."""
        agent = self.agent
        rollout = agent.new_rollout()
        for n, (group, peer) in enumerate(self.rows):
            g = torch.Generator().manual_seed(10_000 * number + 100 * group + peer)
            rollout.obs[n].normal_(generator=g)
            rollout.obs[n, ..., 1].mul_(5)
            rollout.next_obs[n].normal_(generator=g)
            rollout.reward[n].normal_(generator=g).mul_(4)
            rollout.terminated[n] = torch.rand(rollout.reward[n].shape, generator=g) < 0.2
        noise = agent.noise()
        for t in range(rollout.reward.shape[1]):
            rollout.act[:, t] = agent.act(rollout.obs[:, t], noise[:, t])
        agent.observe(rollout)
        self.rollout = rollout
        return agent.prepare(rollout)

    def put_ahead(self, *values: float) -> None:
        """Let row n's value be values[n] raw units at every state."""
        self.agent.nets.views["critic.2.weight"].zero_()
        bias = torch.tensor(values, dtype=F64).view(-1, 1, 1)
        bias = bias / self.agent.return_norm.scale.unsqueeze(-1)
        self.agent.nets.views["critic.2.bias"].copy_(bias)

    def choose(self) -> Targets:
        """Return the targets and weights of this iteration."""
        method = self.method
        method.on_rollout(self.rollout)
        method.on_batch(self.batch, 0.0)
        if method.config.dose != "loss":
            targets, method.metrics = method.choose_for_steps()
            return targets
        if method.targets is None:
            targets, method.metrics = self.choose_beside(self.batch.raw_obs)
            return targets
        return method.targets

    def choose_beside(self, raw_obs: Tensor) -> tuple[Targets, Metrics]:
        """Return the targets of a policy update at raw_obs [N, B, O], and metrics."""
        return self.method.choose(self.method.exchange.draw_beside(raw_obs))

    def term(self, q: Tensor | None = None) -> tuple[Tensor, Metrics]:
        """Return the loss that the method adds at all of the iteration's samples, and metrics.

        q [N, S] are the values that a policy update ascends (None: 1).
        """
        loss, shape = self.method.loss, (len(self.rows), S)
        assert loss is not None
        if isinstance(loss, ClosedTerm):
            part = TermPart(*loss.part(torch.arange(S).expand(shape), 0))
            assert part.obs is not None
            return term_loss(loss.kind, self.agent.dist(part.obs), part, part.weight)
        dist = self.agent.dist(self.agent.obs_norm(self.batch.raw_obs))
        q = torch.ones(shape, dtype=F64) if q is None else q
        return loss(Minibatch(dist, self.batch.raw_obs, q))

    def loss(self, targets: Targets) -> Tensor:
        """Return the weighted divergence [N] over all states."""
        idx = torch.arange(targets.weight.shape[1]).expand(targets.weight.shape)
        return self.method.distillation_loss(samples_at(targets, idx))

    def distil(self, progress: float = 0.0) -> Tensor:
        """Run one iteration of the method alone; return how all parameters moved [N, D]."""
        before = self.flat.clone()
        self.method.on_batch(self.batch, progress)
        self.method.step()
        return self.flat - before

    def extra_grad(self, progress: float = 0.0) -> Tensor:
        """Return the gradient that the method adds to the learners' own [N, D]."""
        self.method.on_batch(self.batch, progress)
        loss, metrics = self.term()
        self.method.metrics |= metrics
        (grad,) = torch.autograd.grad(loss.sum(), self.agent.nets.flat)
        return grad

    @property
    def flat(self) -> Tensor:
        return self.agent.nets.flat.detach()

    @property
    def state(self) -> list[Tensor]:
        """Parameters, both optimizers' moments and step counts, by row."""
        optimizers = (self.agent.optimizer, self.method.optimizer)
        parts = [x for o in optimizers for x in (o.exp_avg, o.exp_avg_sq, o.steps)]
        return [x.clone() for x in (self.flat, *parts)]
