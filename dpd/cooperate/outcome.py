"""State and results of a cooperation, written to JSON and read again to resume it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpd.cooperate.config import NOT_SAVED, CooperateConfig, cooperation_file
from dpd.cooperate.policies import CooperatingPolicy, require_fit_task
from dpd.cooperate.rounds import Pair, Round, Trial
from dpd.cooperate.simulator import PURPOSES, Budget, BudgetExceeded
from dpd.policies.policyfile import Policy, load
from dpd.report.stats import (
    CONFIDENCE,
    Difference,
    family,
    least_seeds,
    mean_interval,
    paired_difference,
)


@dataclass(kw_only=True)
class Cooperation:
    """State of a cooperation so far. Letters: k policies · K episodes."""

    subjects: list[CooperatingPolicy]
    env_id: str
    config: CooperateConfig
    budget: Budget
    rounds: list[Round] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Simulator steps at the end of each round."""
    before: np.ndarray | None = None  # [k, K]
    after: np.ndarray | None = None  # [k, K], the same episodes
    ended_by: BudgetExceeded | None = None
    """Step that exceeded the budget, if the rounds ended early."""
    stopped: bool = False
    """True if the user interrupted the rounds."""
    is_finished: bool = False
    """True if a saved cooperation includes the evaluation after its last round."""

    def add(self, finished: Round) -> None:
        """Add a completed round."""
        self.rounds.append(finished)
        self.steps.append(self.budget.spent)

    @property
    def policies(self) -> list[Policy]:
        """The current policies."""
        return self.rounds[-1].policies if self.rounds else [s.policy for s in self.subjects]

    def name(self, k: int) -> str:
        """Return the name of policy k."""
        return self.subjects[k].name

    @property
    def gains(self) -> list[Difference]:
        """Gains of all policies over the same episodes, as one family; empty before the end."""
        if self.before is None or self.after is None:
            return []
        gaps = (self.after - self.before).tolist()
        return list(family({str(k): paired_difference([g]) for k, g in enumerate(gaps)}).values())

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as stored in cooperative.json."""
        saved = {k: v for k, v in asdict(self.config).items() if k not in NOT_SAVED}
        return {k: str(v) if isinstance(v, Path) else v for k, v in saved.items()}

    def remarks(self) -> Iterator[str]:
        """Yield notes on the steps used, an early end and weak evidence."""
        done = f"the policies are those of round {len(self.rounds)}"
        if not self.rounds:
            done = "no round was completed, and nothing was written"
        resume = f"; resume with: dpd cooperate --resume {shlex.quote(str(self.config.out))}"
        if self.stopped:
            yield f"stopped; {done}{resume if self.rounds else ''}"
        if self.ended_by is not None:
            yield f"the budget ended in round {len(self.rounds) + 1}: {self.ended_by}; {done}"
        used = " · ".join(f"{what} {n:,}" for what, n in self.budget.used.items())
        yield f"simulator steps  {self.budget.spent:,} of {self.budget.total:,}: {used}"
        least = least_seeds(len(self.subjects))
        if self.config.episodes < least:
            yield (
                f"note: fewer than {least} episodes cannot decide the gains of "
                f"{len(self.subjects)} policies"
            )


def cooperation_json(outcome: Cooperation) -> dict[str, Any]:
    """Return everything measured, raw returns included."""
    rounds = zip(outcome.rounds, outcome.steps, strict=True)
    return {
        "env": outcome.env_id,
        "confidence": CONFIDENCE,
        "settings": outcome.settings,
        "steps": {"total": outcome.budget.spent, **outcome.budget.used},
        "ended_early": None if outcome.ended_by is None else str(outcome.ended_by),
        "policies": policies_json(outcome),
        "rounds": [
            {
                "round": r.number,
                "steps": n,
                "pairs": [p._asdict() for p in r.pairs],
                "trials": r.trials and [{**t._asdict(), "passed": t.passed} for t in r.trials],
                "drift_competent": r.drift,
            }
            for r, n in rounds
        ],
    }


def policies_json(outcome: Cooperation) -> list[dict[str, Any]]:
    """Return the figures of every policy, raw returns included."""
    records: list[dict[str, Any]] = []
    for k, subject in enumerate(outcome.subjects):
        records.append({**subject.origin, "file": str(subject.file)})
        for name, returns in (("before", outcome.before), ("after", outcome.after)):
            if returns is not None:
                records[k][f"return_{name}"] = float(returns[k].mean())
                records[k][f"interval_{name}"] = mean_interval(returns[k])
                records[k][f"returns_{name}"] = returns[k].tolist()
    for policy, gain in zip(records, outcome.gains, strict=False):
        policy |= gain_json(gain)
    return records


def gain_json(gain: Difference) -> dict[str, Any]:
    """Return the figures of a policy's gain."""
    return {
        "gain": gain.mean,
        "interval_gain": gain.interval,
        "p": gain.p,
        "p_adjusted": gain.p_adjusted,
        "verdict": gain_verdict(gain),
    }


def gain_verdict(gain: Difference) -> str:
    """Return the verdict on a gain, in terms of episodes: they are its replicates."""
    return gain.verdict.replace("seeds", "episodes")


def read_cooperation(config: CooperateConfig) -> Cooperation:
    """Read the cooperation in `config.out` as of its last completed round.

    Resuming it gives bit for bit what the uninterrupted run would have given. Raises BadInput if
    the folder holds no cooperation.
    """
    with cooperation_file(config.out) as saved:
        subjects = [saved_policy(record, config, k) for k, record in enumerate(saved["policies"])]
        require_fit_task(saved["env"], subjects)
        budget = Budget(config.total_steps)
        budget.used = {purpose: int(saved["steps"][purpose]) for purpose in PURPOSES}
        rounds = [saved_round(record) for record in saved["rounds"]]
        if rounds:  # only the policies of the last round are in files
            rounds[-1].policies.extend(subject.policy for subject in subjects)
        return Cooperation(
            subjects=subjects,
            env_id=saved["env"],
            config=config,
            budget=budget,
            rounds=rounds,
            steps=[int(record["steps"]) for record in saved["rounds"]],
            before=np.array([p["returns_before"] for p in saved["policies"]], dtype=float),
            is_finished="returns_after" in saved["policies"][0],
        )


def saved_policy(record: dict[str, Any], config: CooperateConfig, k: int) -> CooperatingPolicy:
    """Return the current policy k with the origin of the original one."""
    origin = {name: record[name] for name in ("name", "sha256", "algo", "steps")}
    now = load(config.out / "policies" / f"peer{k}.safetensors")
    return CooperatingPolicy(
        name=record["name"], file=Path(record["file"]), origin=origin, policy=now
    )


def saved_round(record: dict[str, Any]) -> Round:
    """Return a round from its JSON, without policies."""
    trials = record["trials"]
    return Round(
        number=record["round"],
        policies=[],
        trials=None if trials is None else [Trial(t["before"], t["after"]) for t in trials],
        pairs=[Pair(**pair) for pair in record["pairs"]],
        drift=record["drift_competent"],
    )
