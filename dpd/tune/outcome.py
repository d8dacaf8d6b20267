"""Results of `dpd.tune`, for Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpd.report.outcome import Outcome, Rows, make_rows

BEST_FILE = "best.json"


@dataclass(frozen=True)
class TrialRow:
    """A trial of a search."""

    trial: int
    """Its number, and the name of its run directory in `trials/`."""
    state: str
    """complete, pruned (stopped at an evaluation), failed, or running."""
    mean: float | None
    """Return of its last evaluation, which is its score; None before the first."""
    evaluations: list[float]
    values: dict[str, Any]
    """Its values by flag."""
    reason: str
    """Last line of its log, if it failed."""


@dataclass(frozen=True, kw_only=True)
class TuneOutcome(Outcome):
    """Results of `dpd.tune`."""

    out: Path
    """The directory of the search."""
    flags: Sequence[str]
    """Flags of `dpd train` that make the best trial, for `dpd.study(env, flags=search.flags)`."""

    def show(self, as_json: bool = False) -> None:
        """Print the results; nothing if the search was stopped, as it has said so."""
        if not self.status:
            super().show(as_json)

    @property
    def trials(self) -> Rows[TrialRow]:
        """A row for each trial: the complete ones by return, the others behind them."""
        records = self.data["trials"]
        return make_rows(TrialRow, ({**record, "mean": record["return"]} for record in records))

    @property
    def best(self) -> Path:
        """File of the best trial's settings, for `dpd.train(config=search.best)`."""
        return self.out / BEST_FILE

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the best trial, without seeds and budget: `dpd.train(**search.settings)`."""
        settings: dict[str, Any] = json.loads(self.best.read_text())
        return settings
