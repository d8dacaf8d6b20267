"""Check that a policy fits an environment, and that an exported copy acts like the original."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from dpd.envs.base import EnvSpec
from dpd.errors import BadInput
from dpd.policies.policyfile import Policy

ACTIVATION_MODULES: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
"""torch's own modules, for the formats that other programs run."""
N_PROBES = 512

ArrayPolicy = Callable[[np.ndarray], np.ndarray]
"""Raw flattened obs [B, O] float32 -> flattened actions [B, A] in the environment's bounds."""


def require_fit(policy: Policy, spec: EnvSpec, name: str = "the policy") -> None:
    """Raise BadInput unless the environment has the policy's numbers of inputs and outputs."""
    require_dims(policy.meta.obs_dim, policy.meta.act_dim, spec, name)


def require_dims(obs_dim: int, act_dim: int, spec: EnvSpec, name: str) -> None:
    """Raise BadInput unless the environment has these numbers of observations and actions."""
    if (spec.obs_dim, spec.act_dim) != (obs_dim, act_dim):
        raise BadInput(
            f"{name} reads {obs_dim} observations and gives {act_dim} actions; "
            f"{spec.env_id} has {spec.obs_dim} and {spec.act_dim}"
        )


def require_bounds(policy: Policy, spec: EnvSpec, name: str = "the policy") -> None:
    """Raise BadInput unless the policy acts within the environment's action bounds."""
    for key, bound in (("act_low", spec.act_low), ("act_high", spec.act_high)):
        if not np.allclose(policy.tensors[key].numpy(), bound, rtol=1e-6):
            raise BadInput(
                f"{name} acts within other bounds than {spec.env_id}: {key} is "
                f"{policy.tensors[key].tolist()}, not {bound.tolist()}"
            )


def probes(policy: Policy, clipped: bool = True) -> np.ndarray:
    """Return random raw obs [B, O] as in training.

    `clipped`: every second one is so far out that the clip of normalised observations counts.
    """
    obs = np.random.default_rng(0).standard_normal((N_PROBES, policy.meta.obs_dim))
    if clipped:
        obs[1::2] *= 30
    mean, scale = policy.tensors["obs_mean"].numpy(), policy.tensors["obs_scale"].numpy()
    return (mean + obs / scale).astype(np.float32)


def require_same_actions(
    policy: Policy, act: ArrayPolicy, obs: np.ndarray, tolerance: float
) -> float:
    """Return the largest difference between two forms of a policy on obs [B, O].

    It is measured in halves of an action's range. Raises ValueError if it exceeds `tolerance`.
    """
    half = (0.5 * (policy.tensors["act_high"] - policy.tensors["act_low"])).numpy()
    difference = float((np.abs(act(obs) - policy.act_flat(obs)) / half).max())
    if not difference <= tolerance:  # rejects NaN as well
        raise ValueError(
            "not written: the exported actions would differ from the policy's by "
            f"{difference:.1e} of half their range, more than {tolerance:.1e}"
        )
    return difference
