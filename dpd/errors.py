"""Errors that the command line prints as one line, and the words of such lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar


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


def flag(name: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + name.replace("_", "-")


T = TypeVar("T")


def one_of(names: Iterable[str]) -> str:
    """Return the choices of a flag as help texts show them: {a,b,c}."""
    return f"{{{','.join(names)}}}"


def near(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return a hint for an unknown name: similar known names, or else all of them."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look a name up in a table. Raises BadInput with similar names if it is missing."""
    if name not in table:
        raise BadInput(f"unknown {kind} '{name}'{near(name, table)}")
    return table[name]
