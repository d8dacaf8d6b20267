"""A memory stored with a policy: a teacher's actions, averaged over the nearest states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpd.agents.nets import Shapes

QUERIES = ("features", "obs")
MAX_SIMILARITIES = 2**24  # held in memory at once; longer batches of queries are split
MAX_SIZE = 2**24  # entries, or numbers per key
MIN_TAU = 1e-6  # a softmax divides by it
MAX_KEY = 1e6  # of an observation; squares of larger numbers lose all differences in float32


@dataclass(frozen=True, kw_only=True)
class MemoryMeta:
    """The description of a memory in a policy file; its tensors are stored next to it."""

    entries: int
    dim: int
    """Numbers per key."""
    query: str
    """The vector that is looked up. `features`: the actor's last hidden layer times
    `memory.projection`, at length 1. `obs`: the normalised observation over the root of its
    size."""
    k: int
    """Number of nearest entries that are averaged."""
    tau: float
    """Temperature of the softmax over their similarities."""
    student_weight: float
    """Weight of the policy's own action in the mix; 1 ignores the memory."""


class Neighbours(NamedTuple):
    """The memories of N learners."""

    keys: Tensor  # [N, M, d]
    actions: Tensor  # [N, M, A] in [-1, 1]
    half_norms: Tensor  # [N, 1, M] |key|^2 / 2
    k: int
    tau: float

    @classmethod
    def of(cls, keys: Tensor, actions: Tensor, k: int, tau: float) -> Neighbours:
        """Return the memories with these keys; k is at most the number of entries."""
        half_norms = keys.square().sum(-1).div(2).unsqueeze(1)
        return cls(keys, actions, half_norms, min(k, keys.shape[1]), tau)

    def find(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return similarities and indices [N, B, k] of the entries nearest to query [N, B, d].

        The similarity is -|query - key|^2 / 2 up to a constant per query, so between vectors of
        length 1 it gives the same ranking and weights as their cosine.
        """
        size = max(1, MAX_SIMILARITIES // self.half_norms.numel())
        parts = [
            torch.baddbmm(self.half_norms, part, self.keys.mT, beta=-1).topk(self.k)
            for part in query.split(size, dim=1)
        ]
        return torch.cat([x.values for x in parts], 1), torch.cat([x.indices for x in parts], 1)

    def weigh(self, similarity: Tensor) -> Tensor:
        """Turn similarities [N, B, k] into weights that sum to 1."""
        return (similarity / self.tau).softmax(-1)

    def answer(self, query: Tensor) -> Tensor:
        """Return the weighted mean of the nearest actions [N, B, A] for query [N, B, d]."""
        similarity, index = self.find(query)
        learner = torch.arange(len(index), device=index.device).view(-1, 1, 1)
        return (self.weigh(similarity).unsqueeze(-1) * self.actions[learner, index]).sum(2)


def unit(x: Tensor) -> Tensor:
    """Scale vectors [..., d] to length 1."""
    return F.normalize(x, dim=-1)


def scaled(obs: Tensor) -> Tensor:
    """Divide normalised obs [..., O] by the root of O, so that one tau fits tasks of any size."""
    return obs * obs.shape[-1] ** -0.5


def mix(own: Tensor, recalled: Tensor, weight: Tensor) -> Tensor:
    """Return weight * own + (1 - weight) * recalled, both [N, B, A]; weight [N]."""
    w = weight.view(-1, 1, 1)
    # The case 1 is exact: 0 * recalled would be NaN if recalled holds NaN.
    return torch.where(w == 1, own, w * own + (1 - w) * recalled)


def memory_shapes(meta: MemoryMeta | None, n_features: int, act_dim: int) -> Shapes:
    """Return the names and shapes of a memory's tensors."""
    if meta is None:
        return {}
    shapes: Shapes = {
        "memory.keys": (meta.entries, meta.dim),
        "memory.actions": (meta.entries, act_dim),
    }
    return shapes | ({"memory.projection": (n_features, meta.dim)} if has_projection(meta) else {})


def has_projection(meta: MemoryMeta) -> bool:
    """Return True if queries are projected features rather than observations."""
    return meta.query == "features"
