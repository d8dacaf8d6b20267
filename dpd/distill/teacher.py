"""Teachers: saved policies that label raw observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dpd.agents.base import CPU, State, Stateful
from dpd.agents.dist import DiagGaussian, as_target
from dpd.agents.learners import Learners
from dpd.agents.rng import RowRandom
from dpd.errors import BadInput
from dpd.policies.policyfile import Policy


def number_of(policy: Policy, name: str) -> float | None:
    """Return what a policy's provenance, which may hold anything, says of a number."""
    value = policy.meta.provenance.get(name)
    return value if isinstance(value, int | float) else None


Number = TypeVar("Number", float, Tensor)


class Returns(NamedTuple):
    """Returns of the teachers without noise, and of uniform actions in the same episodes."""

    teachers: list[list[float]]  # [K][episodes]
    random: list[float]

    @property
    def teacher(self) -> float:
        """The mean return of all teachers."""
        return sum(map(sum, self.teachers)) / sum(map(len, self.teachers))

    @property
    def floor(self) -> float:
        """The mean return of random actions."""
        return sum(self.random) / len(self.random)

    def retained(self, returns: Number) -> Number | None:
        """Return (R_S - R_random) / (R_T - R_random); nothing is retained of a bad teacher."""
        ahead = self.teacher - self.floor
        return (returns - self.floor) / ahead if ahead > 0 else None


class Route(NamedTuple):
    """The column of a raw observation that holds the number of the teacher."""

    column: int
    name: str
    """The column's name for the user, as --teacher-by has it."""
    first: int = 0
    """The number of the first teacher."""


class Teacher(Stateful):
    """One or more saved policies with one action space; of several, each state gets one's answer.

    `route`: the column that chooses it; None: chance does. `history`: the checkpoints of the only
    one, oldest first. `n_queries` counts the states they were asked about. `returns` is there once
    it is measured.
    """

    STATE = ("n_queries",)

    def __init__(
        self,
        policies: Sequence[Policy],
        history: Sequence[Policy] = (),
        route: Route | None = None,
    ) -> None:
        self.policies, self.history, self.route = policies, history, route
        device = next(iter(policies[0].tensors.values())).device
        self.has_strayed = torch.zeros((), dtype=torch.bool, device=device)
        self.returns: Returns | None = None
        self.n_queries = 0

    def on(self, device: torch.device) -> Teacher:
        """Return the same teachers on a device."""
        policies = [policy.on(device) for policy in self.policies]
        return Teacher(policies, [policy.on(device) for policy in self.history], self.route)

    def pick(self, uniform: Tensor, obs: Tensor) -> Tensor:
        """Return which teacher answers at raw obs [..., O], by the route or uniform numbers [...].

        The numbers lie in [0, 1). Raises BadInput if a state's value is no teacher's number; on a
        GPU, where asking would stall every step, `state` does.
        """
        if self.route is None:
            return (uniform * len(self.policies)).long()
        value = obs[..., self.route.column] - self.route.first
        which = value.clamp(0, len(self.policies) - 1).round()
        self.has_strayed |= (which != value).any()
        if obs.device == CPU:
            self._refuse_strays()
        return which.long()

    def state(self) -> State:
        """Return the state. Raises BadInput if the route led to no teacher."""
        if self.has_strayed.device.type != "meta":
            self._refuse_strays()
        return super().state()

    def _refuse_strays(self) -> None:
        if self.route is not None and self.has_strayed:
            n, (_, name, first) = len(self.policies), self.route
            raise BadInput(
                f"--teacher-by {name}: {name} is not {first} to {first + n - 1} in every state, "
                f"and there are {n} teachers; give a --teacher for each of its values, counted "
                f"from {first}"
            )

    def routed_mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [B, O] as the teacher that the route picks -> [B, A]."""
        which = self.pick(obs[..., 0], obs)
        acts = torch.stack([policy.repeatable_mode(obs) for policy in self.policies])
        return acts[which, torch.arange(len(obs), device=obs.device)]

    @torch.no_grad()
    def ask(self, obs: Tensor, which: Tensor) -> DiagGaussian:
        """Let teacher which[n, b] answer on raw obs [N, B, O] -> mean, log_std [N, B, A]."""
        self.n_queries += which.numel()
        found = [self._answer(policy, obs) for policy in self.policies]
        mean, log_std = found[0].mean, found[0].log_std
        for k, dist in enumerate(found[1:], 1):
            here = (which == k).unsqueeze(-1)
            mean = torch.where(here, dist.mean, mean)
            log_std = torch.where(here, dist.log_std, log_std)
        return DiagGaussian(mean, log_std, found[0].squashed)

    @torch.no_grad()
    def features(self, obs: Tensor) -> Tensor:
        """Return the only teacher's last hidden layer at raw obs [N, B, O] -> [N, B, H]."""
        (policy,) = self.policies
        return (
            policy.features(full_part(policy, obs).flatten(0, 1).float())
            .unflatten(0, obs.shape[:2])
            .to(obs.dtype)
        )

    def _answer(self, policy: Policy, obs: Tensor) -> DiagGaussian:
        """Return a teacher's answer at raw obs [N, B, O], as a target."""
        mean, log_std, squashed = as_target(
            policy.dist(full_part(policy, obs).flatten(0, 1).float())
        )
        shape = (*obs.shape[:2], mean.shape[-1])
        return DiagGaussian(
            mean.view(shape).to(obs.dtype), log_std.reshape(shape).to(obs.dtype), squashed
        )


def full_part(policy: Policy, obs: Tensor) -> Tensor:
    """Return the raw observations in front of wide ones, or raw ones as they are [..., O]."""
    return obs[..., : policy.meta.obs_dim]


class Mixture(Stateful):
    """At every step the teacher acts with probability `beta`, otherwise the student (DAgger).

    The student explores, or acts without noise; the teacher draws from its policy.
    """

    STATE = ("beta",)

    def __init__(self, agent: Learners, teacher: Teacher, rng: RowRandom, explores: bool) -> None:
        self.agent, self.teacher, self.rng, self.explores = agent, teacher, rng, explores
        self.beta = 1.0

    def noise(self) -> Tensor:
        """Draw a student's noise, a teacher's, a coin, and which teacher [N, T, E, ...]."""
        own = self.agent.noise()
        steps, envs, a = own.shape[1], own.shape[2], self.agent.act_dim
        theirs = self.rng.normal(steps, envs, a, dtype=own.dtype)
        coins = self.rng.uniform(steps, envs, 2, dtype=own.dtype)
        return torch.cat([own, theirs, coins], -1)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on raw obs [N, E, O] -> [N, E, A]."""
        a = self.agent.act_dim
        own, theirs, coin, which = noise.split([noise.shape[-1] - a - 2, a, 1, 1], -1)
        if self.beta == 0:
            return self._student(obs, own)
        asked = self.teacher.ask(obs, self.teacher.pick(which.squeeze(-1), obs))
        act = asked.action(asked.sample(theirs))
        return (
            act if self.beta == 1 else torch.where(coin < self.beta, act, self._student(obs, own))
        )

    def _student(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.agent.act(obs, noise) if self.explores else self.agent.mode(obs)
