"""A memory beside a policy: keys, a teacher's actions there, and what the nearest of them say."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpd.agents.nets import Shapes

QUERIES = ("features", "obs")
AT_ONCE = 2**24  # similarities held at once: queries come in parts of so many
MAX_SIZE = 2**24  # of entries, or numbers of a key
LEAST_TAU = 1e-6  # a softmax divides by it
LARGEST = 1e6  # of an observation in a key: the squares of larger ones leave nothing to compare


@dataclass(frozen=True, kw_only=True)
class MemoryMeta:
    """What a policy file says of its memory, beside the tensors."""

    entries: int
    dim: int
    """Numbers of a key."""
    query: str
    """What is looked up: `features` is the actor's last hidden layer times `memory.projection`, of
    length 1; `obs` the normalised observation over the root of its size."""
    k: int
    """Neighbours that answer."""
    tau: float
    """Temperature of their weights."""
    student_weight: float
    """Weight of the policy's own action beside the neighbours'; 1 asks none."""


class Neighbours(NamedTuple):
    """The memories of N learners."""

    keys: Tensor  # [N, M, d]
    actions: Tensor  # [N, M, A] in [-1, 1]
    half_norms: Tensor  # [N, 1, M] |key|^2 / 2
    k: int
    tau: float

    @classmethod
    def of(cls, keys: Tensor, actions: Tensor, k: int, tau: float) -> Neighbours:
        """Return the memories of these keys; of fewer than k entries, all answer."""
        half_norms = keys.square().sum(-1).div(2).unsqueeze(1)
        return cls(keys, actions, half_norms, min(k, keys.shape[1]), tau)

    def find(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest entries' similarities and positions [N, B, k] for query [N, B, d].

        The similarity is -|query - key|^2 / 2 but for a constant of the query: between vectors of
        length 1 it ranks and weighs as their cosine does.
        """
        size = max(1, AT_ONCE // self.half_norms.numel())
        parts = [
            torch.baddbmm(self.half_norms, part, self.keys.mT, beta=-1).topk(self.k)
            for part in query.split(size, dim=1)
        ]
        return torch.cat([x.values for x in parts], 1), torch.cat([x.indices for x in parts], 1)

    def weigh(self, similarity: Tensor) -> Tensor:
        """Return the weights of the nearest [N, B, k]."""
        return (similarity / self.tau).softmax(-1)

    def answer(self, query: Tensor) -> Tensor:
        """Return the weighted mean of the nearest actions [N, B, A] for query [N, B, d]."""
        similarity, index = self.find(query)
        who = torch.arange(len(index), device=index.device).view(-1, 1, 1)
        return (self.weigh(similarity).unsqueeze(-1) * self.actions[who, index]).sum(2)


def unit(x: Tensor) -> Tensor:
    """Return vectors [..., d] at length 1."""
    return F.normalize(x, dim=-1)


def scaled(obs: Tensor) -> Tensor:
    """Return normalised obs [..., O] over the root of O, so that tau fits tasks of any size."""
    return obs * obs.shape[-1] ** -0.5


def mix(own: Tensor, found: Tensor, weight: Tensor) -> Tensor:
    """Return weight * own + (1 - weight) * found [N, B, A]; where weight [N] is 1, own itself."""
    w = weight.view(-1, 1, 1)
    return torch.where(w == 1, own, w * own + (1 - w) * found)


def shapes(meta: MemoryMeta | None, n_features: int, act_dim: int) -> Shapes:
    """Return the tensors of a memory of this description."""
    if meta is None:
        return {}
    kept: Shapes = {
        "memory.keys": (meta.entries, meta.dim),
        "memory.actions": (meta.entries, act_dim),
    }
    return kept | ({"memory.projection": (n_features, meta.dim)} if has_projection(meta) else {})


def has_projection(meta: MemoryMeta) -> bool:
    """Whether what is looked up is a projection of features."""
    return meta.query == "features"


def described(said: Any, obs_dim: int) -> MemoryMeta | None:
    """Return what a file says of its memory. Raises ValueError that names what makes no sense."""
    if said is None:
        return None
    names = {f.name for f in fields(MemoryMeta)}
    if not isinstance(said, dict) or said.keys() != names:
        raise ValueError("memory")
    is_good = {
        **{k: type(said[k]) is int and 1 <= said[k] <= MAX_SIZE for k in ("entries", "dim", "k")},
        "query": said["query"] in QUERIES if isinstance(said["query"], str) else False,
        "tau": _is_number(said["tau"], LEAST_TAU, 1 / LEAST_TAU),
        "student_weight": _is_number(said["student_weight"], 0, 1),
    }
    for name in (name for name, good in is_good.items() if not good):
        raise ValueError(f"memory.{name}")
    if said["k"] > said["entries"]:
        raise ValueError("memory.k")
    if said["query"] == "obs" and said["dim"] != obs_dim:
        raise ValueError("memory.dim")
    return MemoryMeta(**said)


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high  # a NaN is neither


def refuse_values(meta: MemoryMeta, keys: Tensor, actions: Tensor) -> None:
    """Raise ValueError that names what would give no action, or one outside of the box."""
    reach = 1.001 if has_projection(meta) else LARGEST
    if bool((keys.abs() > reach).any()):
        raise ValueError(f"memory.keys exceeds {reach:g}")
    if bool((actions.abs() > 1).any()):
        raise ValueError("memory.actions leaves [-1, 1]")
