"""Results of `dpd.push` and `dpd.pull`, for Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpd.report.outcome import Outcome, PolicyRow, Rows, make_rows
from dpd.report.report import print_line


@dataclass(frozen=True, kw_only=True)
class HubOutcome(Outcome):
    """Files of a repository, and the lines that the command prints."""

    def show(self, as_json: bool = False) -> None:
        """Print the lines."""
        for line in self.lines:
            print_line(line)

    @property
    def files(self) -> list[str]:
        """Names of the files."""
        return list(self.data["files"])


@dataclass(frozen=True, kw_only=True)
class PushOutcome(HubOutcome):
    """Results of `dpd.push`."""

    card: str
    """The model card, Markdown."""
    url: str | None = None
    """Address of the repository; None after a preview."""
    folder: Path | None = None
    """Directory of the preview, if it was one."""

    @property
    def policies(self) -> Rows[PolicyRow]:
        """A row for each policy, with its returns on the card's episodes."""
        return make_rows(PolicyRow, self.data["policies"])


@dataclass(frozen=True, kw_only=True)
class PullOutcome(HubOutcome):
    """Results of `dpd.pull` with `out`; `notes` name the files that were no policies."""

    path: Path
    """The new directory."""
