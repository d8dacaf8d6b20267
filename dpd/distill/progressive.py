"""Progressive distillation: a teacher's checkpoints in turn, then the teacher itself.

The functions that choose checkpoints take the returns [M] and steps [M] of the checkpoints, oldest
first, the last one being the teacher; they return positions in rising order, without the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dpd.agents.base import Batch, Metrics, State
from dpd.distill.method import Context
from dpd.distill.teacher import Teacher, number_of
from dpd.distill.teaching import Supervised
from dpd.distill.teaching_config import ProgressiveConfig
from dpd.policies.policyfile import Policy

WINDOW = 5  # iterations over which the switch `saturate` compares a stage's losses


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


def has_settled(losses: Sequence[float], gain: float = 0.01) -> bool:
    """Say whether the last loss is less than `gain` of the first below it; NaN: not known yet."""
    return bool(losses[0] - losses[-1] < gain * abs(losses[0]))


def _rising(positions: Sequence[int], n_checkpoints: int) -> list[int]:
    """Leave out repetitions, steps back and the last checkpoint."""
    rising: list[int] = []
    for k in positions:
        if k < n_checkpoints - 1 and (not rising or k > rising[-1]):
            rising.append(k)
    return rising


class Progressive(Supervised):
    """Supervised distillation whose teacher is one checkpoint after the other."""

    STATE = (*Supervised.STATE, "stage", "losses")
    config: ProgressiveConfig

    def __init__(self, config: ProgressiveConfig, context: Context) -> None:
        super().__init__(config, context)
        chosen = choose_checkpoints(config, self.teacher.history, int(context.ids[0][0]))
        self.stages = [self.teacher.history[k] for k in chosen] + [self.teacher.policies[0]]
        self._enter(0)

    def _enter(self, stage: int) -> None:
        self.stage = stage
        self.losses = torch.full((WINDOW + 1,), torch.nan, dtype=torch.float64)  # of this stage
        asked = self.current.n_queries
        self.current = self.mixture.teacher = Teacher([self.stages[stage]])
        self.current.n_queries = asked

    def on_batch(self, batch: Batch, progress: float) -> None:
        super().on_batch(batch, progress)
        last = len(self.stages) - 1
        due = stage_at(progress, last, self.config.final_share)
        if self.config.switch == "saturate" and due < last:
            due = min(self.stage + has_settled(self.losses.tolist()), last)
        if due > self.stage:
            self._enter(due)

    def step(self) -> Metrics:
        metrics = super().step()
        loss = metrics["distill/loss"]
        if self.config.switch == "saturate":  # reading a loss waits for the device
            self.losses = torch.cat([self.losses[1:], loss.mean().double().view(1).cpu()])
        numbers = {
            "stage": self.stage,
            "stage_return": number_of(self.stages[self.stage], "eval_return"),
        }
        known = {k: v for k, v in numbers.items() if v is not None}
        return metrics | {f"distill/{k}": torch.full_like(loss, v) for k, v in known.items()}

    def load_state(self, state: State) -> None:
        self._enter(int(state["stage"]))
        super().load_state(state)


def choose_checkpoints(
    config: ProgressiveConfig, history: Sequence[Policy], seed: int
) -> list[int]:
    """Return which checkpoints to follow. Raises ValueError where they say too little."""
    found = [(number_of(p, "eval_return"), number_of(p, "steps")) for p in history]
    returns = [value for value, _ in found if value is not None]
    steps = [value for _, value in found if value is not None]
    if not history or len(returns) < len(history) or len(steps) < len(history):
        raise ValueError(
            "progressive distillation needs a history with the return of every checkpoint: train "
            "the teacher with dpd train --keep-checkpoints"
        )
    chosen = _spaced(config, returns, steps, seed)
    if not chosen and config.spacing != "one-shot":
        raise ValueError(
            f"none of the teacher's {len(history)} checkpoints can come before it; train it with "
            "more --evals, or give --distill.spacing one-shot"
        )
    return chosen


def _spaced(
    config: ProgressiveConfig, returns: Sequence[float], steps: Sequence[float], seed: int
) -> list[int]:
    match config.spacing:
        case "return":
            return equal_return(returns, config.stages)
        case "steps":
            return equal_steps(steps, config.stages)
        case "two-shot":
            return steepest(returns, steps)
        case "random":
            return at_random(len(returns), config.stages, seed)
        case "shuffled":
            return shuffled(equal_return(returns, config.stages), seed)
        case "one-shot":
            return []
