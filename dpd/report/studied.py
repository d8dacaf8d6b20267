"""Results of the commands that compare runs, students and policies, for Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpd.report.outcome import DifferenceRow, Outcome, Rows, ends_of, make_rows
from dpd.report.report import print_line, print_report


@dataclass(frozen=True)
class RunRow:
    """Statistics of a run or an arm over its seeds."""

    env: str
    run: str
    """Name of the run, or of the arm of a study."""
    path: str
    mean: float
    iqm: float
    """Interquartile mean."""
    low: float | None
    """Lower end of the 95 % bootstrap interval of the interquartile mean."""
    high: float | None
    worst: float
    best: float
    best_peer: float | None
    """Mean of each seed's best peer in training; None if it is unknown."""
    area: float | None
    """Mean return over the steps of training; only in a study."""
    seconds: float | None
    """Seconds of training."""
    scores: list[float]
    """Mean return over the peers of each seed."""


def run_rows(records: Iterator[tuple[str, dict[str, Any]]]) -> Rows[RunRow]:
    """Make rows from pairs of an environment and a run's JSON."""
    return make_rows(
        RunRow,
        (
            {
                **record,
                "env": env,
                "scores": [seed["score"] for seed in record["seeds"]],
                **ends_of(record["iqm_interval"]),
            }
            for env, record in records
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonOutcome(Outcome):
    """Results of `dpd.compare`."""

    curves: Path | None
    """The picture of the learning curves; None if no run has them."""

    @property
    def runs(self) -> Rows[RunRow]:
        """A row for each run."""
        return run_rows((self.data["env"], record) for record in self.data["runs"])

    @property
    def differences(self) -> Rows[DifferenceRow]:
        """The mean return of every other run minus that of the first."""
        return Rows(
            DifferenceRow.of(d, d["run"], d["minus"], self.data["env"])
            for d in self.data["differences"]
        )


@dataclass(frozen=True)
class PlanRow:
    """The number of seeds that would show an effect in an arm of a study."""

    env: str
    arm: str
    spread: float
    """Standard deviation over seeds of the subject's score minus the arm's."""
    seeds: int
    low: int
    """Seeds at the ends of the spread's 95 % interval."""
    high: int


@dataclass(frozen=True, kw_only=True)
class StudyOutcome(Outcome):
    """Results of `dpd.study`; with `plan`, `plans` only."""

    out: Path
    """The directory of the study, with a run directory ENV/ARM for each arm."""

    def show(self, as_json: bool = False) -> None:
        """Print the results; nothing if the study was stopped, as its runs have said so."""
        if not self.status:
            super().show(as_json)

    @property
    def arms(self) -> Rows[RunRow]:
        """A row for each arm of each task."""
        return run_rows((task["env"], arm) for task in self._tasks for arm in task["arms"].values())

    @property
    def differences(self) -> Rows[DifferenceRow]:
        """The subject's mean return minus that of each other arm, for each task."""
        return Rows(
            DifferenceRow.of(arm["gap"], self.data["subject"], name, task["env"])
            for task in self._tasks
            for name, arm in task["arms"].items()
            if "gap" in arm
        )

    @property
    def plans(self) -> Rows[PlanRow]:
        """With `plan`, a row for each arm of each task."""
        plans = self.data.get("plans", [])
        return make_rows(PlanRow, ({**plan, **ends_of(plan["range"])} for plan in plans))

    @property
    def _tasks(self) -> list[dict[str, Any]]:
        return list(self.data.get("tasks", []))


@dataclass(frozen=True)
class StudentRow:
    """Return, size and speed of a student beside its teacher."""

    name: str
    is_floor: bool
    """True for the policy that was trained without this teacher."""
    mean: float
    """Mean return."""
    retained: float | None
    """Return above random actions, as a share of the teacher's."""
    low: float | None
    """Lower end of the 95 % bootstrap interval over episodes."""
    high: float | None
    parameters: int
    compression: float
    """Parameters of the teacher over the student's."""
    latency_us: float
    """Median microseconds per action for one observation in Python."""
    returns: list[float]


@dataclass(frozen=True)
class ScoreRow:
    """A measure of a student's fidelity on a set of states."""

    student: str
    states: str
    """Set of states, such as heldout or student."""
    n: int
    """States in the set."""
    measure: str
    """Name of the measure; `data["measures"]` explains it."""
    value: float | None


@dataclass(frozen=True, kw_only=True)
class FidelityOutcome(Outcome):
    """Results of `dpd.fidelity`."""

    @property
    def students(self) -> Rows[StudentRow]:
        """A row for each student."""
        return make_rows(
            StudentRow,
            (
                {**record, "mean": record["return"], **ends_of(record["retained_interval"])}
                for record in self.data["students"]
            ),
        )

    @property
    def scores(self) -> Rows[ScoreRow]:
        """A row for each student, set of states and measure."""
        return Rows(
            ScoreRow(record["name"], states, scores["n"], measure, scores[measure])
            for record in self.data["students"]
            for states, scores in record["sets"].items()
            for measure in self.data["measures"]
            if measure in scores
        )


@dataclass(frozen=True)
class VariantRow:
    """A student of a sweep: its variant and its measures."""

    states: int
    augmentation: str
    optimiser: str
    length: int
    capacity: float
    weight: float
    seed: int
    parameters: int
    train_error: float | None
    """Mean |difference| of actions on training states, in units of half their range."""
    heldout_error: float | None
    student_error: float | None
    """The same on the states that the student visits."""
    train_kl: float | None
    heldout_kl: float | None
    mean: float
    """Mean return."""
    retained: float | None


@dataclass(frozen=True, kw_only=True)
class SweepOutcome(Outcome):
    """Results of `dpd.sweep`."""

    @property
    def students(self) -> Rows[VariantRow]:
        """A row for each student; those of one variant differ in their seeds."""
        records = self.data["students"]
        return make_rows(VariantRow, ({**record, "mean": record["return"]} for record in records))

    @property
    def correlations(self) -> dict[str, float | None]:
        """Spearman's correlation of each measure of fidelity with the return, over all students."""
        return dict(self.data["correlation"])


@dataclass(frozen=True)
class GainRow:
    """A policy's mean return before and after a cooperation, in the same episodes."""

    name: str
    path: Path
    """The improved policy's file."""
    before: float
    after: float | None
    gain: float | None
    low: float | None
    """Lower end of the gain's 95 % t interval over episodes."""
    high: float | None
    p: float | None
    p_adjusted: float | None
    verdict: str | None


@dataclass(frozen=True)
class LessonRow:
    """A pair of a teacher and a student in a round of a cooperation."""

    round: int
    teacher: int
    student: int
    n_deficient: int
    """States where the student learns from the teacher."""
    n_counterfactuals: int
    gap_before: float | None
    """The teacher's return minus the student's over the horizon, before the lessons."""
    gap_after: float | None
    proxy_r2: float | None


@dataclass(frozen=True, kw_only=True)
class CooperationOutcome(Outcome):
    """Results of `dpd.cooperate`."""

    out: Path
    """The directory with the improved policies and the report."""

    def show(self, as_json: bool = False) -> None:
        """Print the results, or after a stop only the lines that say how to resume."""
        if not self.status:
            print_report(self.report, as_json)
            if as_json:
                return
        for line in self.lines:
            print_line(line)

    @property
    def policies(self) -> Rows[GainRow]:
        """A row for each policy."""
        return make_rows(
            GainRow,
            (
                {
                    **record,
                    "path": self.out / "policies" / f"peer{k}.safetensors",
                    "before": record.get("return_before"),
                    "after": record.get("return_after"),
                    **ends_of(record.get("interval_gain")),
                }
                for k, record in enumerate(self.data["policies"])
            ),
        )

    @property
    def lessons(self) -> Rows[LessonRow]:
        """A row for each pair in each round."""
        return make_rows(
            LessonRow,
            (
                {**pair, "round": record["round"]}
                for record in self.data["rounds"]
                for pair in record["pairs"]
            ),
        )
