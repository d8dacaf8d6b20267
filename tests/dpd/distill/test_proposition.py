"""The proposition behind the gate (paper, Sec. 3.1), on random tabular problems solved exactly.

Following whichever policy has the larger value at each state is nowhere worse than either.
"""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpd.distill.peers_config import DPDConfig
from dpd.distill.rulers import gap, gate_weight

S, A, GAMMA = 6, 3, 0.9
TINY = 1e-9


class Problem:
    """A random Markov decision process with dense transitions."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.transition = rng.dirichlet(np.full(S, 0.3), size=(S, A))  # [S, A, S']
        self.reward = rng.normal(size=(S, A))
        self.policies = rng.dirichlet(np.full(A, 0.5), size=(2, S))  # [2, S, A]

    def value(self, policy: np.ndarray) -> np.ndarray:
        """Solve V = r + gamma P V exactly -> [S]."""
        p = np.einsum("sa,sat->st", policy, self.transition)
        r = (policy * self.reward).sum(1)
        return np.linalg.solve(np.eye(S) - GAMMA * p, r)


def follow(own: np.ndarray, peer: np.ndarray, problem: Problem, config: DPDConfig) -> np.ndarray:
    """Return the value of taking the peer's action wherever the gate is open [S]."""
    v_own, v_peer = (torch.tensor(problem.value(p)).unsqueeze(0) for p in (own, peer))
    weight = gate_weight(gap(v_own, v_peer), torch.ones(1, 1), config)[0].numpy()
    assert set(weight) <= {0.0, 1.0}
    return problem.value(np.where(weight[:, None] == 1, peer, own))


@given(st.integers(0, 10**6))
def test_the_hybrid_policy_is_nowhere_worse_than_either(seed: int) -> None:
    problem = Problem(seed)
    own, peer = problem.policies
    best = np.maximum(problem.value(own), problem.value(peer))
    assert (follow(own, peer, problem, DPDConfig(gate="hard")) >= best - TINY).all()


@given(st.integers(0, 10**6))
def test_a_reversed_gate_is_nowhere_better_than_either(seed: int) -> None:
    # The same proposition for the negated reward: the gate's sign is what carries it.
    problem = Problem(seed)
    own, peer = problem.policies
    worst = np.minimum(problem.value(own), problem.value(peer))
    config = DPDConfig(gate="hard", control="reversed")
    assert (follow(own, peer, problem, config) <= worst + TINY).all()


def test_the_hybrid_is_better_than_both_where_each_is_ahead_somewhere() -> None:
    # Where each is ahead somewhere, it beats both at once in at least one state of these problems.
    both_ahead = 0
    for seed in range(40):
        problem = Problem(seed)
        own, peer = problem.policies
        v_own, v_peer = problem.value(own), problem.value(peer)
        hybrid = follow(own, peer, problem, DPDConfig(gate="hard"))
        if (v_own > v_peer + 1e-3).any() and (v_peer > v_own + 1e-3).any():
            both_ahead += 1
            assert (hybrid > np.maximum(v_own, v_peer) + TINY).any()
    assert both_ahead >= 5
