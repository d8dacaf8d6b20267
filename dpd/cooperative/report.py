"""What came of cooperation: policies, JSON, TensorBoard's events and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpd import __version__, policyfile
from dpd.cooperative.rounds import Round
from dpd.cooperative.subjects import Subject
from dpd.cooperative.world import Budget, Spent
from dpd.files import replacing
from dpd.intervals import CONFIDENCE, FEW_SEEDS, Interval, bootstrap_interval

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from dpd.cooperative.config import CooperateConfig


@dataclass(kw_only=True)
class Outcome:
    """Everything found so far. Letters: k policies · K episodes."""

    subjects: list[Subject]
    env_id: str
    config: CooperateConfig
    budget: Budget
    rounds: list[Round] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Simulator steps at the end of each round."""
    before: np.ndarray | None = None  # [k, K]
    after: np.ndarray | None = None  # [k, K], the same episodes
    spent: Spent | None = None
    """Why the rounds ended early."""
    stopped: bool = False
    """Whether the user ended them."""

    def add(self, found: Round) -> None:
        """Take in a round that ended."""
        self.rounds.append(found)
        self.steps.append(self.budget.spent)

    def name(self, k: int) -> str:
        """Name a policy."""
        return self.subjects[k].name

    def remarks(self) -> Iterator[str]:
        """Say what was used, and what to know of the figures."""
        done = f"the policies are those of round {len(self.rounds)}"
        if not self.rounds:
            done = "no round ended, and nothing was written"
        if self.stopped:
            yield f"stopped; {done}"
        if self.spent is not None:
            yield f"the budget ended in round {len(self.rounds) + 1}: {self.spent}; {done}"
        used = " · ".join(f"{what} {n:,}" for what, n in self.budget.used.items())
        yield f"simulator steps  {self.budget.spent:,} of {self.budget.total:,}: {used}"
        if self.config.episodes < FEW_SEEDS:
            yield f"note: intervals over fewer than {FEW_SEEDS} episodes mean little"


def write(outcome: Outcome) -> None:
    """Write the policies of the last round, and all figures."""
    out = outcome.config.out
    for k in range(len(outcome.subjects)):
        write_policy(outcome, k, out / "policies" / f"peer{k}.safetensors")
    with replacing(out / "cooperative.json") as draft:
        draft.write_text(as_text(outcome), encoding="utf-8")
    write_events(outcome, out / "tb")


def write_policy(outcome: Outcome, k: int, path: Path) -> None:
    """Write a policy with where it came from."""
    policy, rounds = outcome.rounds[-1].policies[k], len(outcome.rounds)
    config = outcome.config
    provenance = {
        "dpd": __version__,
        "method": "cooperative",
        "control": config.control,
        "rounds": rounds,
        "seed": config.seed,
        "simulator_steps": outcome.budget.spent,
        "eval_return": None if outcome.after is None else float(outcome.after[k].mean()),
        "source": outcome.subjects[k].origin,
        "peers": [s.origin for s in outcome.subjects if s is not outcome.subjects[k]],
    }
    meta = replace(policy.meta, env_id=outcome.env_id, provenance=provenance)
    policyfile.save(path, policy.tensors, meta)


def as_text(outcome: Outcome) -> str:
    """Return the JSON."""
    return json.dumps(as_json(outcome), indent=2, allow_nan=False) + "\n"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return everything measured, raw returns included."""
    settings = {k: v for k, v in asdict(outcome.config).items() if k not in ("paths", "foreign")}
    rounds = zip(outcome.rounds, outcome.steps, strict=True)
    return {
        "env": outcome.env_id,
        "confidence": CONFIDENCE,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
        "steps": {"total": outcome.budget.spent, **outcome.budget.used},
        "ended_early": None if outcome.spent is None else str(outcome.spent),
        "policies": [policy_json(outcome, k) for k in range(len(outcome.subjects))],
        "rounds": [
            {
                "round": r.number,
                "steps": n,
                "pairs": [p._asdict() for p in r.pairs],
                "drift_competent": r.drift,
            }
            for r, n in rounds
        ],
    }


def policy_json(outcome: Outcome, k: int) -> dict[str, Any]:
    """Return a policy's figures and the returns behind them."""
    subject, seed = outcome.subjects[k], outcome.config.seed
    found: dict[str, Any] = {**subject.origin, "file": str(subject.file)}
    for name, returns in (("before", outcome.before), ("after", outcome.after)):
        if returns is not None:
            found[f"return_{name}"] = float(returns[k].mean())
            found[f"interval_{name}"] = interval(returns[k], seed)
            found[f"returns_{name}"] = returns[k].tolist()
    if outcome.before is not None and outcome.after is not None:
        gain = outcome.after[k] - outcome.before[k]
        found |= {"gain": float(gain.mean()), "interval_gain": interval(gain, seed)}
    return found


def interval(returns: np.ndarray, seed: int) -> Interval | None:
    """Return the bootstrap interval of a mean over episodes [K]."""
    return bootstrap_interval(np.mean, [returns.tolist()], seed)


def write_events(outcome: Outcome, folder: Path) -> None:
    """Write TensorBoard's events, in place of those after an earlier round."""
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(folder) as writer:
        for found, steps in zip(outcome.rounds, outcome.steps, strict=True):
            add_figures(writer, round_tags(found), steps)
        add_figures(writer, return_tags(outcome), outcome.steps[-1])


def add_figures(writer: SummaryWriter, figures: dict[str, float | None], steps: int) -> None:
    """Write those figures that there are, as one event."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    from dpd.log import add

    summary = Summary()
    for tag, value in figures.items():
        if value is not None:
            summary.value.add(tag=tag, simple_value=value)
    add(writer, summary, steps)


def round_tags(found: Round) -> dict[str, float | None]:
    """Name a round's figures: coop/<teacher>-><student>/... and coop/<student>/..."""
    tags: dict[str, float | None] = {}
    for pair in found.pairs:
        i, j, *values = pair
        names = pair._fields[2:]
        tags |= {f"coop/{i}->{j}/{k}": v for k, v in zip(names, values, strict=True)}
    return tags | {f"coop/{j}/drift_competent": v for j, v in enumerate(found.drift)}


def return_tags(outcome: Outcome) -> dict[str, float | None]:
    """Name the returns before and after."""
    parts = (("before", outcome.before), ("after", outcome.after))
    return {
        f"coop/{j}/return_{name}": float(returns[j].mean())
        for name, returns in parts
        if returns is not None
        for j in range(len(returns))
    }
