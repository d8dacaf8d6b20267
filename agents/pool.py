"""Critics that judge as one pool, over a learner's own or over those of all peers of its group.

With K critics in learner i's pool, of which M are drawn at random for every update (REDQ, Chen et
al. 2021, arXiv 2101.05982, algorithm 1; there K is N):

    y   = r + gamma (1 - d) [min_{m in M} Q'_m(s', a'_i) - alpha_i log pi_i(a'_i|s')]
    L_i = E[alpha_i log pi_i(a_i|s) - mean_{m <= K} Q_m(s, a_i)]

a'_i is a sample of SAC's policy, or the noisy action of TD3's target policy. TD3 has no alpha.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import Metrics
from dpd.agents.nets import StackedNets, Tape
from dpd.agents.norm import ObsNorm
from dpd.agents.rng import RowRandom
from dpd.agents.sharing import to_group


class Pool:
    """K = `peers` x `n_critics` critics that judge for each of N learners.

    Successive learners form groups of `peers`; with one peer, a learner's own critics are its pool.
    Each critic sees observations as the learner that it belongs to normalises them.
    """

    def __init__(self, n: int, peers: int, n_critics: int, norm: ObsNorm) -> None:
        self.peers, self.n_critics, self.norm = peers, n_critics, norm
        rows = torch.arange(n, device=norm.mean.device)
        self.first = (rows // peers * peers * n_critics).unsqueeze(1)
        """Row of the first critic in each learner's pool [N, 1]."""
        owner = torch.arange(self.size, device=rows.device) // n_critics
        self.is_own = owner == (rows % peers).unsqueeze(1)
        """True at the critics of the learner itself [N, K]."""

    @property
    def size(self) -> int:
        """Number of critics in a learner's pool."""
        return self.peers * self.n_critics

    def draw(self, rng: RowRandom, updates: int, count: int) -> Tensor:
        """Draw different critics for every update by each learner's generator [N, updates, M]."""
        return rng.uniform(updates, self.size).argsort(-1)[..., :count].contiguous()

    def least(self, critics: StackedNets, obs: Tensor, act: Tensor, drawn: Tensor) -> Tensor:
        """Return the least value that the drawn critics [N, M] give to act [N, B, A] -> [N, B].

        obs [N, B, O] is raw.
        """
        (n, m), b = drawn.shape, obs.shape[1]
        rows = (self.first + drawn).flatten()
        seen, act = (x.unsqueeze(1).expand(-1, m, -1, -1).flatten(0, 1) for x in (obs, act))
        x = torch.cat([self.norm(seen, rows // self.n_critics), act], -1)
        (q,), _ = critics.at(rows).run(x, "critic")
        return q.view(n, m, b).amin(1)

    def values(self, critics: StackedNets, obs: Tensor, act: Tensor) -> tuple[Tensor, Tape]:
        """Return all critics' values of act [N, B, A] at raw obs -> [N, K, B], and the tape.

        Each critic runs once, on the joint minibatches of its group.
        """
        n, b = obs.shape[:2]
        obs, act = (to_group(x, self.peers) for x in (obs, act))  # [N, P B, ...]
        x = torch.cat([self.norm(obs), act], -1).repeat_interleave(self.n_critics, 0)
        (q,), tape = critics.run(x, "critic")
        q = q.view(-1, self.size, self.peers, b)  # [G, K, P, B]
        return q.transpose(1, 2).reshape(n, self.size, b), tape

    def ascent(self, critics: StackedNets, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of all critics' values of act [N, B], and the gradient of -mean_B of it.

        The gradient is by act [N, B, A]; obs [N, B, O] is raw. No critic gets a gradient.
        """
        q, tape = self.values(critics, obs, act)
        n, k, b = q.shape
        of_q = q.new_full((n * self.n_critics, self.peers * b, 1), -1 / (k * b))
        of_act = critics.input_gradient(tape, of_q, self.norm.mean.shape[-1])
        of_act = of_act.reshape(-1, k, self.peers, b, act.shape[-1]).sum(1)
        return q.mean(1), of_act.flatten(0, 1)

    def bias(self, critics: StackedNets, obs: Tensor, act: Tensor) -> Metrics:
        """Return the mean value of act [N, B, A] by the learner's own and by its peers' critics.

        obs [N, B, O] is raw. Peers' critics know little of actions that their policies never take.
        """
        q = self.values(critics, obs, act)[0].mean(2)  # [N, K]
        own = (q * self.is_own).sum(1)
        others = q.sum(1) - own
        return {
            "share/q_own": own / self.n_critics,
            "share/q_peers": others / (self.size - self.n_critics),
        }
