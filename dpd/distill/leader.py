"""The better half leads: each learner follows only peers that are ahead of it in return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpd.agents.base import State, Stateful, put_back
from dpd.distill.method import Context


class Leaders(Stateful):
    """Remembers which peers lead each learner, by the returns of their latest training episodes."""

    def __init__(self, context: Context, by_return: bool) -> None:
        device, numbers = context.agent.device, context.peer_numbers
        students = context.agent.n_learners // context.groups
        self.by_return, self.groups = by_return, context.groups
        self.own = torch.tensor(numbers, device=device).unsqueeze(1)  # [N, 1]
        self.group = torch.arange(len(numbers), device=device) // students  # [N]
        order = [peer for stack in context.peer_stacks for peer in stack.peers]
        self.order = torch.tensor(order, device=device).argsort()
        self.ahead = self.own.new_full((len(numbers), context.peers), not by_return) > 0  # [N, P]

    def update(self, returns: Sequence[Tensor]) -> None:
        """Let peers lead or stop leading, by the returns [rows, W] of every stack; NaN: none yet.

        A peer begins to lead when its mean is ahead by a standard error of the difference, and
        stops when it is no longer ahead: otherwise two equal peers would take turns by chance.
        """
        if not self.by_return:
            return
        stacks = zip(*map(mean_and_error, returns), strict=True)
        mean, error = (self._of_group(each) for each in stacks)
        off, noise = mean - mean.gather(1, self.own), error + error.gather(1, self.own)
        self.ahead = off > torch.where(self.ahead, 0.0, noise.sqrt())

    def _of_group(self, stacks: Sequence[Tensor]) -> Tensor:
        """Give every student the numbers of its group's peers: of each stack [rows] -> [N, P]."""
        peers = torch.cat([x.view(self.groups, -1) for x in stacks], 1)
        return peers[:, self.order][self.group]

    def among(self, gaps: Tensor) -> Tensor:
        """Return gaps [N, P, K] with those of other peers minus infinity, where a peer leads."""
        led = self.follows.view(-1, 1, 1)
        return gaps.masked_fill(led & ~self.ahead.unsqueeze(-1), -torch.inf)

    def leads(self, peer: Tensor) -> Tensor:
        """Return whether the peer at each state [N, K] leads the learner [N, K]."""
        return self.ahead.gather(1, peer)

    @property
    def follows(self) -> Tensor:
        """True for learners that have a leader [N]."""
        return self.ahead.any(1)

    def state(self) -> State:
        """Return who leads, if that depends on returns."""
        return {"ahead": self.ahead} if self.by_return else {}

    def load_state(self, state: State) -> None:
        put_back(self.state(), state)


def mean_and_error(returns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of returns [N, W] without NaN, and its squared standard error, both [N].

    They are NaN for fewer than two returns, which compares as not ahead.
    """
    n = (~returns.isnan()).sum(1)
    mean = returns.nanmean(1)
    variance = (returns - mean.unsqueeze(1)).square().nansum(1) / (n - 1)
    return mean, variance / n
