"""Settings of `dpd report`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dpd.agents.config import require
from dpd.errors import BadInput, flag


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one page about a run, or about all runs in a directory, such as a study."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A run directory, finished or not, or a directory of runs: RUN or ENV/RUN inside it."""
    out: Path | None = None
    """HTML file to write. None: report.html in PATH."""
    videos: int = 2
    """Policies with the best evaluations to show in a video, for each environment."""
    video_seconds: float = 8.0
    """Length of a video, or of its episode if that is shorter."""

    def __post_init__(self) -> None:
        require(self, "not be negative", "videos", called=flag)
        require(self, "be positive", "video_seconds", called=flag)
        if self.out is not None and self.out.suffix != ".html":
            raise BadInput(f"--out writes an .html file, not '{self.out.name}'")
