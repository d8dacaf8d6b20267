"""Settings of `dpd watch`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dpd.agents.config import require
from dpd.errors import BadInput, flag
from dpd.policies.config import Paths


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Show the progress, the returns and the exchange of running or finished runs.

    Reads the files that a run writes, so it works for runs of other processes, also on a file
    system that several machines share. Ctrl-C ends the view and leaves the runs alone.
    """

    paths: Paths
    """Run directories, or directories that contain runs, such as that of a study."""
    every: float = 2.0
    """Seconds between two frames."""
    once: bool = False
    """Print one frame and end, as is done anyway without a terminal."""

    def __post_init__(self) -> None:
        require(self, "be positive", "every", called=flag)
        if not self.paths:
            raise BadInput("dpd watch needs a PATH: a run directory, or one that contains runs")
