"""Collection of rollouts, and statistics of the training episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import CPU, Rollout, State, put_back
from dpd.agents.views import Frames
from dpd.distill.method import Actor
from dpd.envs.base import Env


def collect(
    env: Env, actor: Actor, obs: Tensor, rollout: Rollout, frames: Frames | None = None
) -> Tensor:
    """Fill a rollout, starting from raw obs [N, E, O]; return the obs after its last step.

    Actions are stored as sampled; the environment clips them to its bounds, as Stable-Baselines3
    does. `frames` are there if the learners have views; all observations are then wide.
    """
    n, steps, n_envs = rollout.reward.shape
    # Views of all steps, made at once: indexing tensors step by step takes longer than the copies.
    names = ("obs", "act", "next_obs", "reward", "terminated", "truncated", "valid")
    views = [getattr(rollout, name).unbind(1) for name in names]
    seen_noise = [None] * steps if frames is None else frames.draw(steps)
    for noise, of_obs, at_obs, at_act, at_next, *at_others in zip(
        actor.noise().unbind(1), seen_noise, *views, strict=True
    ):
        act = actor.act(obs, noise)
        at_obs.copy_(obs)
        at_act.copy_(act)
        step = env.step(act.view(n * n_envs, -1))
        next_obs, obs = (x.view(n, n_envs, -1) for x in (step.next_obs, step.obs))
        if frames is not None:
            over = (step.terminated | step.truncated | ~step.valid).view(n, n_envs)
            next_obs, obs = frames.advance(next_obs, obs, act, over, of_obs)
        at_next.copy_(next_obs)
        others = (step.reward, step.terminated, step.truncated, step.valid)
        for at, x in zip(at_others, others, strict=True):
            at.copy_(x.view(n, n_envs))
    return obs


class EpisodeStatistics:
    """Mean return and length of each learner's most recent training episodes.

    The window is at least 20 episodes, and at least one per environment: if only a time limit ends
    episodes, all environments end theirs at the same step. Episodes that were running when
    `skip_running` was called do not count.
    """

    def __init__(self, n: int, n_envs: int, device: torch.device = CPU, window: int = 20) -> None:
        self.ret = torch.zeros(n, n_envs, dtype=torch.float64, device=device)  # of running episodes
        self.length = torch.zeros_like(self.ret, dtype=torch.int64)
        window = max(window, n_envs)
        self.returns = self.ret.new_full((n, window), torch.nan)  # of completed ones
        self.lengths = torch.full_like(self.returns, torch.nan)
        self.ended = torch.zeros(n, dtype=torch.int64, device=device)
        # True: do not count the running episode
        self.skipped = torch.zeros_like(self.ret, dtype=torch.bool)

    def add(self, rollout: Rollout) -> None:
        """Add a rollout, without synchronizing with the device."""
        done = rollout.done
        reward = rollout.reward.double().masked_fill(~rollout.valid, 0.0)
        ret, self.ret = _episode_sums(reward, self.ret, done)
        length, self.length = _episode_sums(rollout.valid.long(), self.length, done)
        first = done & (done.cumsum(1) == 1)
        counted = done & ~(first & self.skipped.unsqueeze(1))
        self.skipped &= ~done.any(1)
        # Write to the ring in the order of ending; if more ended than fit, keep the last ones.
        done = counted.flatten(1)
        place = self.ended.unsqueeze(1) + done.cumsum(1) - 1
        self.ended += done.sum(1)
        window = self.returns.shape[1]
        kept = done & (place >= self.ended.unsqueeze(1) - window)
        spare = torch.where(kept, place % window, window)  # extra column for the others
        self.returns = _put(self.returns, spare, ret.flatten(1))
        self.lengths = _put(self.lengths, spare, length.flatten(1).double())

    def restart(self) -> None:
        """Discard the running episodes, because new ones begin."""
        self.ret.zero_()
        self.length.zero_()
        self.skipped.fill_(False)

    def skip_running(self) -> None:
        """Exclude the running episodes, because they are shortened."""
        self.skipped.fill_(True)

    def metrics(self) -> dict[str, Tensor]:
        """Return mean return and length [N]; NaN for a learner without a completed episode."""
        return {
            "train/return": self.returns.nanmean(1),
            "train/length": self.lengths.nanmean(1),
        }

    def state(self) -> State:
        """Return all statistics as live tensors."""
        return dict(vars(self))

    def load_state(self, state: State) -> None:
        """Restore the statistics."""
        put_back(self.state(), state)


def _episode_sums(x: Tensor, before: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
    """Sum x [N, T, E] within episodes that `done` [N, T, E] ends, starting from before [N, E].

    Returns the sums up to every step [N, T, E], and those of episodes still running [N, E].
    """
    total = x.cumsum(1) + before.unsqueeze(1)
    steps = torch.arange(1, x.shape[1] + 1, device=x.device).view(1, -1, 1)
    last = torch.where(done, steps, 0).cummax(1).values  # last end so far, counted from 1; 0: none
    ended = torch.cat([torch.zeros_like(total[:, :1]), total], 1)  # [N, T + 1, E]
    since = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], 1)
    running = total[:, -1:] - ended.gather(1, last[:, -1:])
    return total - ended.gather(1, since), running.squeeze(1)


def _put(ring: Tensor, place: Tensor, x: Tensor) -> Tensor:
    """Return a ring [N, W] with x [N, K] written at place [N, K]; place W discards a value."""
    room = torch.cat([ring, ring[:, :1]], 1)
    return room.scatter(1, place, x)[:, :-1]
