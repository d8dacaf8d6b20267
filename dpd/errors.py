"""Errors that the command line prints as one line."""

from __future__ import annotations

from pathlib import Path


class BadInput(ValueError):
    """Wrong input from the user; the message names the error and the remedy."""


class Diverged(RuntimeError):
    """The numbers of a learner became NaN or infinite, which ended its run."""


class OtherVersion(BadInput):
    """A run was written by another version of dpd, and this version cannot resume it."""

    def __init__(self, path: Path, difference: str) -> None:
        super().__init__(
            f"{path} was written by another version of dpd ({difference}); resume the run with "
            "that version, or start a new one with --out, and give --init-from to begin with its "
            "policies"
        )
