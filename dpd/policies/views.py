"""Views of policies: descriptions, refusals, and the plain policy that equals a simple one."""

from __future__ import annotations

from dataclasses import replace

import torch

from dpd.agents.config import View
from dpd.policies.policyfile import Policy


def refuse_view(policy: Policy, target: str) -> None:
    """Raise ValueError for a policy that does not see the observations as they are."""
    if policy.meta.view is not None:
        raise ValueError(f"the policy {describe_sight(policy)}, which {target} does not support")


def describe_view(view: View) -> str:
    """Describe a view in a few words for messages and tables."""
    parts = [", ".join(view.groups) or f"{len(view.columns)} columns"]
    parts += [f"{view.history} frames"] * (view.history > 1)
    parts += [f"{view.delay} steps late"] * (view.delay > 0) + ["with noise"] * view.has_noise
    return "; ".join(parts)


def describe_sight(policy: Policy) -> str:
    """Say what a policy with a view sees, and what it remembers."""
    view, encoder = policy.meta.view, policy.meta.encoder
    assert view is not None
    seen = f"sees {describe_view(view)}"
    if encoder is None:
        return seen
    if policy.meta.memory_dim:
        return f"{seen}, and remembers its episode ({encoder})"
    return f"{seen}, through a {encoder}"


def without_view(policy: Policy, target: str) -> Policy:
    """Return a policy of whole observations that acts as one with a view does.

    Weights of what it does not see are 0. Raises ValueError for a view with a history, a delay,
    noise or previous actions, and for a recurrent policy, which need more than `target` has.
    """
    meta, view = policy.meta, policy.meta.view
    if view is None:
        return policy
    if meta.needs_episode or view.has_noise:
        raise ValueError(
            f"the policy {describe_sight(policy)}; {target} has no place for more than columns "
            "of the present observation: give --format onnx, torchscript or dpd"
        )
    columns, tensors = list(view.columns), dict(policy.tensors)
    for name, filler in (("obs_mean", 0.0), ("obs_scale", 1.0)):
        whole = torch.full((1, meta.obs_dim), filler)
        whole[:, columns] = tensors[name]
        tensors[name] = whole
    weight = tensors["actor.0.weight"]
    whole = weight.new_zeros(meta.obs_dim, weight.shape[1])
    whole[columns] = weight
    tensors["actor.0.weight"] = whole
    return Policy(tensors, replace(meta, view=None))
