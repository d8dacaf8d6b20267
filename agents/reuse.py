"""A learner's own latest rollouts, to learn from again: the control of sharing experience.

Generalised PPO (GePPO: Queeney, Paschalidis & Cassandras 2021, arXiv 2111.00072) learns in every
iteration from the samples of the last M policies. Here they are weighted like a peer's samples
(`sharing.py`), so that only the policy differs that they are from. GePPO itself does not truncate
the weight pi_k / pi_old of an old sample, and clips the ratio pi / pi_old around that weight; its
advantages are V-trace's, as here.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from dpd.agents.base import Rollout, State, Stateful, put_back


class PastRollouts(Stateful):
    """The rollouts of the last iterations, and each action's log-probability when it was taken.

    They are kept in one rollout of as many times more environments, the latest first; samples are
    invalid until there are as many.
    """

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        rollout.valid.fill_(False)
        self.logp = torch.zeros_like(rollout.reward)

    def join(self, latest: Rollout, logp: Tensor) -> tuple[Rollout, Tensor]:
        """Return a rollout [N, T, E] with the past ones behind it [N, T, M E], and all `logp`.

        The latest rollout is then one of the past ones.
        """
        joint = copy(latest)
        for name, x in vars(latest).items():
            setattr(joint, name, torch.cat([x, getattr(self.rollout, name)], 2))
        behaviour = torch.cat([logp, self.logp], 2)
        kept = self.logp.shape[2]
        for name, x in vars(self.rollout).items():
            x.copy_(getattr(joint, name)[:, :, :kept])
        self.logp.copy_(behaviour[:, :, :kept])
        return joint, behaviour

    def state(self) -> State:
        """Return the past rollouts, if any are kept."""
        return vars(self.rollout) | {"logp": self.logp} if self.logp.numel() else {}

    def load_state(self, state: State) -> None:
        put_back(self.state(), state)
