"""Which checkpoints of a teacher a student follows, one after the other, before the teacher.

Each function gets the returns [M] and steps [M] of the checkpoints, oldest first, the last being
the teacher, and gives positions among them in rising order, without the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def equal_return(returns: Sequence[float], n: int) -> list[int]:
    """Return the first checkpoints at or above n returns, equally spaced below the teacher's.

    Levels R_0 + m / (n + 1) (R_M - R_0); one that a checkpoint skips over is left out.
    """
    r = np.asarray(returns)
    levels = r[0] + np.arange(1, n + 1) / (n + 1) * (r[-1] - r[0])
    return _rising([int(np.argmax(r >= level)) for level in levels], len(r))


def equal_steps(steps: Sequence[float], n: int) -> list[int]:
    """Return the checkpoints nearest to n equally spaced steps."""
    s = np.asarray(steps)
    levels = np.arange(1, n + 1) / (n + 1) * s[-1]
    return _rising([int(np.abs(s - level).argmin()) for level in levels], len(s))


def steepest(returns: Sequence[float], steps: Sequence[float]) -> list[int]:
    """Return the checkpoint at the end of the steepest rise, the last to the teacher apart."""
    if len(returns) < 3:
        return []
    rise = np.diff(returns) / np.diff(steps)
    return [int(rise[:-1].argmax()) + 1]


def at_random(n_checkpoints: int, n: int, seed: int) -> list[int]:
    """Return n checkpoints drawn without replacement."""
    order = np.random.default_rng(seed).permutation(n_checkpoints - 1)[:n]
    return sorted(int(k) for k in order)


def shuffled(chosen: Sequence[int], seed: int) -> list[int]:
    """Return the same checkpoints in a random order."""
    return [int(k) for k in np.random.default_rng(seed).permutation(np.asarray(chosen, int))]


def stage_at(progress: float, n: int, final_share: float) -> int:
    """Return which of n checkpoints is due, or n for the teacher, at `progress` in [0, 1]."""
    early = 1 - final_share
    if progress >= early or n == 0:
        return n
    return int(progress / early * n)


def has_settled(losses: Sequence[float], window: int = 5, gain: float = 0.01) -> bool:
    """Say whether a stage's loss fell by less than `gain` of itself over the last `window`."""
    if len(losses) <= window:
        return False
    return bool(losses[-1 - window] - losses[-1] < gain * abs(losses[-1 - window]))


def _rising(positions: Sequence[int], n_checkpoints: int) -> list[int]:
    """Leave out repetitions, steps back and the last checkpoint."""
    rising: list[int] = []
    for k in positions:
        if k < n_checkpoints - 1 and (not rising or k > rising[-1]):
            rising.append(k)
    return rising
