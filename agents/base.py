"""Types that all learners share: rollouts, answers, batches, metrics and checkpoint state.

Notation in every file:
N learners = G groups x P peers · E environments per learner · T steps · S = T x E samples
B batch · O observation · A action · C critics of a learner · D parameters of one learner.
Row n is peer n % P of group n // P.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dpd.agents.dist import DiagGaussian

CPU = torch.device("cpu")

LearnerId = tuple[int, int]
"""The seed of a learner's group, and its peer number; its random numbers derive from both."""

Metrics = dict[str, Tensor]
"""Named values per learner [N], detached; they stay on the device until the logger reads them."""


class Rollout:
    """T steps of N learners in E environments each; raw observations, unclipped actions."""

    def __init__(
        self,
        n: int,
        n_steps: int,
        n_envs: int,
        obs_dim: int,
        act_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        shape = (n, n_steps, n_envs)
        self.obs = torch.zeros(*shape, obs_dim, dtype=dtype, device=device)
        self.next_obs = torch.zeros_like(self.obs)
        self.act = torch.zeros(*shape, act_dim, dtype=dtype, device=device)
        self.reward = torch.zeros(shape, dtype=dtype, device=device)
        self.terminated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.truncated = torch.zeros_like(self.terminated)
        self.valid = torch.ones_like(self.terminated)

    @property
    def done(self) -> Tensor:
        """Mask of the steps that ended an episode, by termination or truncation [N, T, E]."""
        return self.terminated | self.truncated

    def flat_obs(self) -> Tensor:
        """Return the observations as samples [N, S, O]."""
        return self.obs.flatten(1, 2)


class Answer(NamedTuple):
    """A learner's policy and values at given states; values in raw reward units."""

    dist: DiagGaussian  # mean, log_std [N, B, A]
    value: Tensor | None  # [N, B]


class Batch(NamedTuple):
    """An iteration's samples: `data` for the learners, the rest for the distillation method.

    `data` may hold samples of peers too; `raw_obs` and `returns` are the learner's own.
    """

    data: Any
    raw_obs: Tensor  # [N, S, O]
    returns: Tensor | None  # [N, S] lambda-returns in raw reward units; on-policy only
    valid: Tensor  # of every sample in `data`
    metrics: Metrics | None = None  # of its making


class Minibatch(NamedTuple):
    """The states of a policy update from a replay, as passed to a method's loss."""

    dist: DiagGaussian  # differentiable
    raw_obs: Tensor  # [N, B, O]
    q: Tensor  # [N, B] values that the learner's own loss ascends

    @property
    def mean_value(self) -> Tensor:
        """Mean size of the values that the learner's loss ascends [N], constant."""
        return self.q.detach().abs().mean(1)


ReplayLoss = Callable[[Minibatch], tuple[Tensor, Metrics]]
"""A method's loss for learners with a replay: minibatch -> (loss [N], metrics)."""


@dataclass(frozen=True)
class ClosedTerm:
    """A method's loss for PPO: coef * mean(weight * divergence from the targets).

    Targets [N, K, ...] are at the iteration's samples or, with `obs`, at states of their own, part
    i of which goes to minibatch i. If `proximal`, the weight is the sample's probability ratio, at
    least 1 - clip. See `dpd.agents.ppo_loss.term_loss`.
    """

    coef: float | Tensor  # of all learners, or of each [N]
    kind: str  # a divergence
    mean: Tensor
    log_std: Tensor
    sample: Tensor
    weight: Tensor  # [N, K]
    obs: Tensor | None = None  # normalised
    proximal: bool = False

    def part(self, idx: Tensor, number: int) -> tuple[Tensor, ...]:
        """Return the coefficients [N] and the targets [N, B, ...] of a minibatch.

        These are mean, log_std, sample and weight, and the states if they are the term's own. The
        minibatch holds the samples idx [N, B], and is the one of this number in the iteration.
        """
        given, (n, size) = (self.mean, self.log_std, self.sample, self.weight), idx.shape
        coef = self.coef if isinstance(self.coef, Tensor) else self.weight.new_full((n,), self.coef)
        if self.obs is None:
            return coef, *(take(x, idx) for x in given)
        begin = number % (self.weight.shape[1] // size) * size
        return coef, *(x[:, begin : begin + size] for x in (*given, self.obs))


ExtraLoss = ClosedTerm | ReplayLoss
"""A method's loss, added to the learner's own."""
State = dict[str, Tensor]
"""A component's checkpoint state: named tensors."""


class Stateful:
    """A component that is saved in checkpoints: its future depends on the attributes in `STATE`.

    An attribute is a tensor, a number, or another component, whose state is stored as `name.key`.
    """

    STATE: ClassVar[tuple[str, ...]] = ()

    def state(self) -> State:
        """Return the component's state; its tensors are live."""
        state: State = {}
        for name in self.STATE:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                state |= nest(**{name: value.state()})
            elif isinstance(value, Tensor):
                state[name] = value.detach()
            else:
                dtype = torch.float64 if isinstance(value, float) else None
                state[name] = torch.tensor(value, dtype=dtype)
        return state

    def load_state(self, state: State) -> None:
        """Restore a state. Raises ValueError if names, shapes or dtypes differ.

        A component changes nothing of its own before it has checked all of it.
        """
        own = {name: x for name, x in self.state().items() if name in self.STATE}
        put_back(own, {name: x for name, x in state.items() if "." not in name})
        for name in self.STATE:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                value.load_state(part(state, name))
            elif not isinstance(value, Tensor):
                setattr(self, name, type(value)(state[name].item()))


def nest(**states: State) -> State:
    """Merge states into one; keys become `name.key`."""
    return {f"{name}.{key}": x for name, state in states.items() for key, x in state.items()}


def part(state: State, name: str) -> State:
    """Return the state that `nest` merged under a name."""
    return {k.removeprefix(f"{name}."): x for k, x in state.items() if k.startswith(f"{name}.")}


def put_back(live: State, saved: State) -> None:
    """Copy a saved state into live tensors, in place.

    Raises ValueError, before any tensor is changed, unless names, shapes and dtypes agree.
    """
    if live.keys() != saved.keys():
        raise ValueError(f"a state of {sorted(saved)} does not fit {sorted(live)}")
    for name, x in live.items():
        y = saved[name]
        if (y.shape, y.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"the saved {name} is {y.dtype} {tuple(y.shape)}, not {x.dtype} {tuple(x.shape)}"
            )
    for name, x in live.items():
        x.copy_(saved[name])


def per_row(values: Sequence[float], default: float, ids: Sequence[LearnerId]) -> Tensor:
    """Return a setting of every learner [N], float64: `values` by peer number, else `default`."""
    chosen = [values[peer] if values else default for _, peer in ids]
    return torch.tensor(chosen, dtype=torch.float64)


def take(rows: Tensor, idx: Tensor) -> Tensor:
    """Gather samples row by row: rows [N, S, ...], idx [N, K] -> [N, K, ...]."""
    n, s = rows.shape[:2]
    offset = torch.arange(n, device=rows.device).mul_(s).unsqueeze(1)
    flat = rows.reshape(n * s, *rows.shape[2:]).index_select(0, (idx + offset).flatten())
    return flat.view(*idx.shape, *rows.shape[2:])
