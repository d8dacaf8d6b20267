"""Progressive distillation: the student follows a teacher's checkpoints, then the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dpd.agents.base import Batch, Metrics, State
from dpd.distill import stages
from dpd.distill.base import Context
from dpd.distill.teacher import Teacher, number_of
from dpd.distill.teaching import Supervised
from dpd.distill.teaching_config import ProgressiveConfig
from dpd.policyfile import Policy


class Progressive(Supervised):
    """Supervised distillation whose teacher is one checkpoint after the other."""

    config: ProgressiveConfig

    def __init__(self, config: ProgressiveConfig, context: Context) -> None:
        super().__init__(config, context)
        chosen = choose(config, self.teacher.history, int(context.seeds[0][0]))
        self.stages = [self.teacher.history[k] for k in chosen] + [self.teacher.policies[0]]
        self.losses: list[float] = []  # of the current stage, for the switch `saturate`
        self._enter(0)

    def _enter(self, stage: int) -> None:
        self.stage, self.losses = stage, []
        asked = self.current.n_queries
        self.current = self.mixture.teacher = Teacher([self.stages[stage]])
        self.current.n_queries = asked

    def prepare(self, batch: Batch, progress: float) -> None:
        """Keep the iteration's states."""
        super().prepare(batch, progress)
        last = len(self.stages) - 1
        due = stages.stage_at(progress, last, self.config.final_share)
        if self.config.switch == "saturate" and due < last:
            due = min(self.stage + stages.has_settled(self.losses), last)
        if due > self.stage:
            self._enter(due)

    def step(self) -> Metrics:
        """Take the iteration's gradient steps towards the current checkpoint."""
        metrics = super().step()
        loss = metrics["distill/loss"]
        if self.config.switch == "saturate":  # reading a loss waits for the device
            self.losses.append(float(loss.mean()))
        numbers = {
            "stage": self.stage,
            "stage_return": number_of(self.stages[self.stage], "eval_return"),
        }
        known = {k: v for k, v in numbers.items() if v is not None}
        return metrics | {f"distill/{k}": torch.full_like(loss, v) for k, v in known.items()}

    def state(self) -> State:
        """Return what a checkpoint must hold."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return super().state() | {"stage": torch.tensor(self.stage), "losses": losses}

    def load_state(self, state: State) -> None:
        """Put a state back."""
        self._enter(int(state["stage"]))
        super().load_state(state)
        self.losses = state["losses"].tolist()


def choose(config: ProgressiveConfig, history: Sequence[Policy], seed: int) -> list[int]:
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
            return stages.equal_return(returns, config.stages)
        case "steps":
            return stages.equal_steps(steps, config.stages)
        case "two-shot":
            return stages.steepest(returns, steps)
        case "random":
            return stages.at_random(len(returns), config.stages, seed)
        case "shuffled":
            return stages.shuffled(stages.equal_return(returns, config.stages), seed)
        case "one-shot":
            return []
