"""What a stack of learners is to the rest of the suite.

Legend, used in every file:
N learners = G groups x P peers · E environments per learner · T steps · S = T x E samples
B batch · O observation · A action · C critics of a learner · D parameters of one learner.
Row n is peer n % P of group n // P.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dpd.agents.dist import DiagGaussian

CPU = torch.device("cpu")

Metrics = dict[str, Tensor]
"""Detached, one value per learner [N], until the logger reads them."""


class Answer(NamedTuple):
    """What a learner says about states it is asked about; values in raw reward units."""

    dist: DiagGaussian  # mean, log_std [N, B, A]
    value: Tensor | None  # [N, B]


class Batch(NamedTuple):
    """An iteration's samples, for the learners (`data`) and for whoever distils."""

    data: Any
    raw_obs: Tensor  # [N, S, O]
    returns: Tensor | None  # [N, S] lambda-returns in raw reward units, of who learns on-policy
    valid: Tensor  # [N, S]


class Minibatch(NamedTuple):
    """The samples of one gradient step, as a loss added to the learner's own may use them.

    They are known by `idx` on-policy, and by `raw_obs` where they come from a replay.
    """

    dist: DiagGaussian  # differentiable
    ratio: Tensor  # [N, B] new over old probability of the action taken; 1 with a replay
    idx: Tensor | None = None  # [N, B] positions in the flattened rollout [N, S]
    raw_obs: Tensor | None = None  # [N, B, O]


ExtraLoss = Callable[[Minibatch], tuple[Tensor, Metrics]]
"""A method's loss inside the learner's own: minibatch -> (loss [N], metrics)."""


State = dict[str, Tensor]
"""All that a part's future depends on; rows first, as everywhere."""


class Stateful(Protocol):
    """Something a checkpoint holds."""

    def state(self) -> State:
        """Return all that its future depends on; may be live tensors."""
        ...

    def load_state(self, state: State) -> None:
        """Put a state back. Raises ValueError where it is not one of the same shape."""
        ...


def nest(**states: State) -> State:
    """Join states under dotted names."""
    return {f"{name}.{key}": x for name, state in states.items() for key, x in state.items()}


def part(state: State, name: str) -> State:
    """Return what `nest` put under a name."""
    return {k.removeprefix(f"{name}."): x for k, x in state.items() if k.startswith(f"{name}.")}


def state_of(parts: Mapping[str, Stateful]) -> State:
    """Return the states of parts under their names."""
    return nest(**{name: each.state() for name, each in parts.items()})


def load_parts(parts: Mapping[str, Stateful], state: State) -> None:
    """Put the states of parts back."""
    for name, each in parts.items():
        each.load_state(part(state, name))


def put_back(live: State, saved: State) -> None:
    """Copy a saved state into the tensors it was taken from, in place.

    Raises ValueError, before any is changed, unless names, shapes and dtypes agree.
    """
    if live.keys() != saved.keys():
        raise ValueError(f"a state of {sorted(saved)} does not fit {sorted(live)}")
    for name, x in live.items():
        kept = saved[name]
        if (kept.shape, kept.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"the saved {name} is {kept.dtype} {tuple(kept.shape)}, "
                f"not {x.dtype} {tuple(x.shape)}"
            )
    for name, x in live.items():
        x.copy_(saved[name])


def per_row(values: Sequence[float], default: float, seeds: Sequence[Sequence[int]]) -> Tensor:
    """Return every learner's setting [N], float64: its peer's own where there are any.

    The last of a learner's seeds is which peer of its group it is.
    """
    chosen = [values[seed[-1]] if values else default for seed in seeds]
    return torch.tensor(chosen, dtype=torch.float64)


def take(rows: Tensor, idx: Tensor) -> Tensor:
    """Gather samples row by row: rows [N, S, ...], idx [N, K] -> [N, K, ...]."""
    n, s = rows.shape[:2]
    offset = torch.arange(n, device=rows.device).mul_(s).unsqueeze(1)
    flat = rows.reshape(n * s, *rows.shape[2:]).index_select(0, (idx + offset).flatten())
    return flat.view(*idx.shape, *rows.shape[2:])
