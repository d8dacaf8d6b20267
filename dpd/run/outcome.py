"""Results of `dpd.train` and `dpd.distill`: the files of a run directory, read when asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpd.errors import BadInput
from dpd.log.csv import read_rows
from dpd.policies.policyfile import Policy, load
from dpd.report.outcome import PolicyRow, Rows, make_rows
from dpd.run.sources import find_policies, is_best, one_policy
from dpd.run.summary import EVALUATION, FIDELITY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STOPPED_BY_CALLBACK = 128
"""Exit status of a run that a callback stopped: 128 + the number of the signal, which is none."""


@dataclass(frozen=True)
class MetricRow:
    """A recorded number of a learner, or of all learners (then seed and peer are None)."""

    step: int
    seed: int | None
    peer: int | None
    metric: str
    value: float


@dataclass(frozen=True)
class SizeRow:
    """Return, fidelity and cost of the students of one size."""

    name: str
    parameters: int
    compression: float
    """Parameters of all teachers together over the student's."""
    mean: float
    """Mean return."""
    retained: float | None
    """Return above random actions, as a share of the teacher's."""
    agree: float | None
    """Share of the teacher's states with every action within 0.1."""
    own_error: float | None
    """Mean |difference| of actions on the student's states, in half ranges."""
    latency_us: float
    """Median microseconds per action in Python."""


@dataclass(frozen=True)
class TrainOutcome:
    """A run: its directory, policies, returns, metrics and figures."""

    path: Path
    """The run directory; `dpd.train(resume=path)` continues a run that was stopped."""
    status: int = 0
    """0 if all steps are done, or STOPPED_BY_CALLBACK."""

    @property
    def is_stopped(self) -> bool:
        """True if a callback stopped the run before its end; it can be resumed."""
        return self.status == STOPPED_BY_CALLBACK

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, as `dpd.train(**settings)` reads them for a new run."""
        settings: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        return settings

    @property
    def policy_files(self) -> list[Path]:
        """Files of all policies: each learner's last, and its best (-best)."""
        return find_policies(self.path)

    @property
    def last_policies(self) -> list[Path]:
        """Files of the learners' last policies."""
        return [file for file in self.policy_files if not is_best(file)]

    @property
    def best_policy(self) -> Path:
        """File of the policy with the best evaluation in training."""
        return one_policy(self.path)

    def load(self) -> Policy:
        """Load the policy with the best evaluation in training."""
        return load(self.best_policy)

    @property
    def policies(self) -> Rows[PolicyRow]:
        """Returns of all policies in fresh episodes at the end of the run; empty before it."""
        file = self.path / EVALUATION
        return make_rows(PolicyRow, json.loads(file.read_text()) if file.is_file() else [])

    @property
    def sizes(self) -> Rows[SizeRow]:
        """Students by size, the smallest first; only after `dpd.distill`."""
        file = self.path / FIDELITY
        records = json.loads(file.read_text())["sizes"] if file.is_file() else []
        return make_rows(SizeRow, ({**record, "mean": record["return"]} for record in records))

    @cached_property
    def metrics(self) -> Rows[MetricRow]:
        """Everything that was recorded, in the order of metrics.csv."""
        return Rows(
            MetricRow(
                int(row["step"]),
                int(row["seed"]) if row["seed"] else None,
                int(row["peer"]) if row["peer"] else None,
                row["metric"],
                float(row["value"]),
            )
            for row in read_rows(self.path / "metrics.csv")
        )

    def curve(self, metric: str, seed: int, peer: int = 0) -> tuple[list[int], list[float]]:
        """Return the steps and values of a learner's metric. Raises BadInput if it has none."""
        rows = [r for r in self.metrics if (r.metric, r.seed, r.peer) == (metric, seed, peer)]
        if not rows:
            names = sorted({r.metric for r in self.metrics if r.seed == seed and r.peer == peer})
            known = ", ".join(names) or "none"
            raise BadInput(f"seed {seed}'s peer {peer} has no metric '{metric}'; known: {known}")
        return [r.step for r in rows], [r.value for r in rows]

    @property
    def figures(self) -> list[Figure]:
        """Figures of the run's page: the returns, then what else was recorded."""
        from dpd.report.outcome import Outcome
        from dpd.run.dashboard import run_report

        return Outcome(report=run_report(self.path)).figures
