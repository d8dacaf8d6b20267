"""The hybrid policy of a group: in every state, the peer whose action the critics prefer acts.

Every peer proposes its action without noise, and every peer with critics of actions judges all
proposals. The proposal of the largest value acts; the first of several equal ones. The value is the
mean over the judges of each one's least critic, as in the ruler `action` of dual policy
distillation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpd.agents.nets import Shapes, layers, mlp_shapes
from dpd.policies.metadata import PolicyMeta, shapes
from dpd.policies.policyfile import ACTIVATION_MODULES, Policy, probes
from dpd.policies.single import SingleHybrid


@dataclass(frozen=True, kw_only=True)
class HybridMeta:
    """The description of a hybrid policy, stored in its file."""

    peers: tuple[PolicyMeta, ...]
    critics: tuple[int, ...]
    """Number of critics of each peer; 0 for a peer that only proposes."""
    provenance: dict[str, Any]
    """Steps, seed, configuration hash, versions."""

    def as_policy(self) -> PolicyMeta:
        """Describe the hybrid as one policy: its environment, spaces and origin."""
        return replace(self.peers[0], algo="hybrid", provenance=self.provenance)


def critic_shapes(meta: PolicyMeta, n_critics: int) -> Shapes:
    """Return the names and shapes of a peer's critics, which have the widths of its policy."""
    sizes = [meta.obs_dim + meta.act_dim, *meta.hidden, 1]
    named = [mlp_shapes(f"critic{c}", sizes) for c in range(n_critics)]
    return {name: shape for critic in named for name, shape in critic.items()}


def peer_shapes(meta: HybridMeta) -> list[Shapes]:
    """Return the names and shapes of each peer's tensors: its policy and its critics."""
    return [
        shapes(peer) | critic_shapes(peer, n)
        for peer, n in zip(meta.peers, meta.critics, strict=True)
    ]


def prefixed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge values by peer into one dictionary; keys become `peer<k>.<key>`."""
    return {f"peer{k}.{name}": x for k, own in enumerate(parts) for name, x in own.items()}


class Judged(NamedTuple):
    """The peers' proposals at B observations, and their values."""

    acts: Tensor  # [P, B, A] float64 in [-1, 1]
    values: Tensor  # [P, B] float64 in raw reward units

    @property
    def best(self) -> Tensor:
        """The peer that acts [B]."""
        return self.values.argmax(0)

    def chosen(self, who: Tensor) -> Tensor:
        """Return the actions [B, A] of the peers `who` [B]."""
        size = self.acts.shape[-1]
        return self.acts.gather(0, who.view(1, -1, 1).expand(-1, -1, size)).squeeze(0)


class HybridPolicy(Policy):
    """The peers of a group as one policy: raw observations in, actions in the environment's units.

    All arithmetic is in float64. In float32, two runtimes round values differently, and a state
    whose two best values differ by less than that would be given to one peer here and to another
    there. The action is rounded to float32.

    `dist` and `features` are those of a single network: ask one of `peers`.
    """

    def __init__(self, parts: Sequence[Mapping[str, Tensor]], meta: HybridMeta) -> None:
        bounds = {name: parts[0][name] for name in ("act_low", "act_high")}
        super().__init__(prefixed(parts) | bounds, meta.as_policy())
        self.parts, self.hybrid = [dict(part) for part in parts], meta
        self.peers = [
            Policy({name: part[name] for name in shapes(own)}, own)
            for part, own in zip(parts, meta.peers, strict=True)
        ]

    @cached_property
    def network(self) -> HybridNetwork:
        """The policy as a torch module."""
        return HybridNetwork(self.parts, self.hybrid).eval()

    def on(self, device: torch.device) -> HybridPolicy:
        return HybridPolicy(
            [{name: x.to(device) for name, x in part.items()} for part in self.parts], self.hybrid
        )

    def acts_as(self, other: Policy) -> bool:
        if not isinstance(other, HybridPolicy) or self.hybrid.critics != other.hybrid.critics:
            return False
        mine, theirs = ([replace(m, provenance={}) for m in h.hybrid.peers] for h in (self, other))
        return mine == theirs and all(
            torch.equal(x, other.tensors[k]) for k, x in self.tensors.items()
        )

    @torch.no_grad()
    def judge(self, obs: Tensor) -> Judged:
        """Return every peer's action without noise at raw obs [B, O], and its value."""
        return self.network.judge(obs)

    def mode(self, obs: Tensor) -> Tensor:
        judged = self.judge(obs)
        return judged.chosen(judged.best).to(obs.dtype)

    def repeatable_mode(self, obs: Tensor) -> Tensor:
        return self.mode(obs)

    @torch.no_grad()
    def act_flat(self, obs: np.ndarray | Tensor) -> np.ndarray:
        return self.network(torch.as_tensor(np.asarray(obs), dtype=torch.float32)).numpy()

    @cached_property
    def _act_on_one(self) -> SingleHybrid:
        return SingleHybrid(self.parts, self.hybrid.peers, self.hybrid.critics)

    def _run(self, obs: Tensor) -> tuple[Tensor, list[Tensor]]:
        raise ValueError("a hybrid policy is no single network; ask one of its `peers`")


def sequential(params: Sequence[tuple[Tensor, Tensor]], activation: str) -> nn.Sequential:
    """Return an MLP of weights [in, out] and biases [1, out] made of torch's own modules."""
    parts: list[nn.Module] = []
    for weight, bias in params:
        n_in, n_out = weight.shape
        linear = nn.Linear(n_in, n_out, dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias[0])
        parts += [linear, ACTIVATION_MODULES[activation]()]
    return nn.Sequential(*parts[:-1])


class PeerNetwork(nn.Module):
    """One peer of a hybrid: its normaliser, policy and critics, in float64."""

    obs_mean: Tensor
    obs_scale: Tensor

    def __init__(self, part: Mapping[str, Tensor], meta: PolicyMeta, n_critics: int) -> None:
        super().__init__()
        wide = {name: x.double() for name, x in part.items()}
        self.register_buffer("obs_mean", wide["obs_mean"])
        self.register_buffer("obs_scale", wide["obs_scale"])
        self.norm_obs, self.clip_obs = meta.norm_obs, meta.clip_obs
        self.is_bounded = meta.squashed or meta.tanh_mean
        self.actor = sequential(layers(wide, "actor"), meta.activation)
        self.critics = nn.ModuleList(
            sequential(layers(wide, f"critic{c}"), meta.activation) for c in range(n_critics)
        )

    def normalised(self, obs: Tensor) -> Tensor:
        """Return obs [B, O] as the peer's networks read them."""
        if not self.norm_obs:
            return obs
        return ((obs - self.obs_mean) * self.obs_scale).clamp(-self.clip_obs, self.clip_obs)

    def propose(self, x: Tensor) -> Tensor:
        """Act without noise on normalised obs [B, O] -> [B, A] in [-1, 1]."""
        mean = self.actor(x)
        return torch.tanh(mean) if self.is_bounded else torch.clamp(mean, -1.0, 1.0)

    def value(self, x: Tensor, act: Tensor) -> Tensor:
        """Return the least critic's value of act [B, A] at normalised obs [B, O] -> [B]."""
        x = torch.cat([x, act], 1)
        return torch.cat([critic(x) for critic in self.critics], 1).amin(1)


class HybridNetwork(nn.Module):
    """A hybrid policy as a network: raw obs [B, O] -> actions [B, A] in the environment's bounds.

    Observations and actions are float32, everything between is float64.
    """

    act_low: Tensor
    act_high: Tensor
    act_half: Tensor

    def __init__(self, parts: Sequence[Mapping[str, Tensor]], meta: HybridMeta) -> None:
        super().__init__()
        self.peers = nn.ModuleList(
            PeerNetwork(*row) for row in zip(parts, meta.peers, meta.critics, strict=True)
        )
        self.judges = [k for k, n in enumerate(meta.critics) if n]
        low, high = (parts[0][name].double() for name in ("act_low", "act_high"))
        self.register_buffer("act_low", low)
        self.register_buffer("act_high", high)
        self.register_buffer("act_half", 0.5 * (high - low))

    def judge(self, obs: Tensor) -> Judged:
        """Return every peer's action without noise at raw obs [B, O], and its value."""
        peers: list[Any] = list(self.peers)
        inputs = [peer.normalised(obs.double()) for peer in peers]
        acts = [peer.propose(x) for peer, x in zip(peers, inputs, strict=True)]
        values = [
            torch.stack([peers[k].value(inputs[k], act) for k in self.judges]).mean(0)
            for act in acts
        ]
        return Judged(torch.stack(acts), torch.stack(values))

    def forward(self, obs: Tensor) -> Tensor:
        """Act on raw obs [B, O]."""
        judged = self.judge(obs)
        scaled = self.act_low + (judged.chosen(judged.best) + 1.0) * self.act_half
        return torch.clamp(scaled, self.act_low, self.act_high).float()


def make_hybrid(
    peers: Sequence[Policy],
    critics: Sequence[Sequence[Mapping[str, Tensor]]],
    provenance: Mapping[str, Any],
) -> HybridPolicy:
    """Return the hybrid of policies; the critics of each have tensors `critic.<i>.weight`, `.bias`.

    Raises ValueError unless there are at least two peers of equal spaces, bounds and environment,
    none with a memory, and at least one with critics of the widths of its policy.
    """
    meta = HybridMeta(
        peers=tuple(peer.meta for peer in peers),
        critics=tuple(map(len, critics)),
        provenance=dict(provenance),
    )
    parts = []
    for peer, own in zip(peers, critics, strict=True):
        judged = {
            f"critic{c}{name.removeprefix('critic')}": x
            for c, critic in enumerate(own)
            for name, x in critic.items()
        }
        parts.append({**peer.tensors, **judged})
    if defect := hybrid_defect(meta, parts):
        raise ValueError(f"these policies make no hybrid: {defect}")
    expected = peer_shapes(meta)
    if [{name: tuple(x.shape) for name, x in part.items()} for part in parts] != expected:
        raise ValueError("these policies make no hybrid: critics have the widths of other policies")
    return HybridPolicy(parts, meta)


def hybrid_defect(meta: HybridMeta, parts: Sequence[Mapping[str, Tensor]] = ()) -> str | None:
    """Return why peers make no hybrid, if they do not."""
    if len(meta.peers) < 2:
        return "there is only one peer"
    if not any(meta.critics):
        return "no peer has critics of actions"
    if any(peer.memory is not None for peer in meta.peers):
        return "a peer has a memory"
    for name in ("obs_dim", "act_dim", "obs_shape", "act_shape", "env_id", "env_kwargs"):
        if any(getattr(peer, name) != getattr(meta.peers[0], name) for peer in meta.peers):
            return f"the peers differ in {name}"
    for name in ("act_low", "act_high"):
        if any(not torch.equal(part[name], parts[0][name]) for part in parts):
            return f"the peers differ in {name}"
    return None


def redescribed(policy: Policy, changes: Mapping[str, Any]) -> Policy:
    """Return the same policy, or hybrid of policies, with changes in its description."""
    if not isinstance(policy, HybridPolicy):
        return Policy(policy.tensors, replace(policy.meta, **changes))
    peers = tuple(replace(peer, **changes) for peer in policy.hybrid.peers)
    return HybridPolicy(policy.parts, replace(policy.hybrid, peers=peers))


def probes_of(policy: Policy) -> np.ndarray:
    """Return random raw obs [B, O] as in training of a policy, or of every peer of a hybrid."""
    if isinstance(policy, HybridPolicy):
        return np.concatenate([probes(peer) for peer in policy.peers])
    return probes(policy)


def refuse_hybrid(policy: Policy, target: str) -> None:
    """Raise ValueError for a hybrid policy, which formats of one network cannot store."""
    if isinstance(policy, HybridPolicy):
        raise ValueError(
            f"the policy is the hybrid of {len(policy.peers)} peers and their critics, which "
            f"{target} cannot hold; give --format onnx, torchscript or dpd, or export one peer"
        )
