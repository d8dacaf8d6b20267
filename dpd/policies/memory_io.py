"""Inputs and outputs of exported recurrent policies: their names, and one array for all of them.

Names and shapes are those of rsl_rl and of torch's layers: `obs` [B, H, G], `h_in` [1, B, D] and,
of an LSTM, `c_in`; `actions` [B, A], `h_out` and `c_out`. Inside dpd, the input of a recurrent
policy is one array [B, F + S], frames and memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import ArrayPolicy

STATES: dict[str, tuple[str, ...]] = {"gru": ("h",), "lstm": ("h", "c"), "tcn": ()}
"""Parts of a memory, in their order."""


def memory_facts(meta: PolicyMeta) -> dict[str, str]:
    """Return the metadata of an exported recurrent policy; empty for any other policy."""
    encoder = meta.encoder
    if encoder is None or not meta.memory_dim:
        return {}
    states = STATES[encoder.kind]
    return {
        "encoder": encoder.kind,
        "encoder_size": json.dumps(encoder.size),
        # In this order. States are [1, batch, encoder_size], and 0 where an episode begins.
        "inputs": json.dumps(["obs", *(f"{state}_in" for state in states)]),
        "outputs": json.dumps(["actions", *(f"{state}_out" for state in states)]),
    }


def split_inputs(obs: np.ndarray, facts: Mapping[str, str]) -> list[np.ndarray]:
    """Return the inputs of an exported policy that one array [B, F + S] holds, in their order."""
    size, states = json.loads(facts["encoder_size"]), STATES[facts["encoder"]]
    end = obs.shape[1] - size * len(states)
    frames = obs[:, :end].reshape(len(obs), json.loads(facts["history"]), -1)
    return [frames, *(x[None] for x in np.split(obs[:, end:], len(states), 1))]


def joint(
    run: Callable[[list[np.ndarray]], Sequence[np.ndarray]], facts: Mapping[str, str]
) -> ArrayPolicy:
    """Return a step on one array [B, F + S] -> [B, A + S] from that on named inputs."""

    def act(obs: np.ndarray) -> np.ndarray:
        actions, *states = run(split_inputs(obs, facts))
        return np.concatenate([actions, *(state[0] for state in states)], 1)

    return act
