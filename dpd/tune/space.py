"""The space of a search: ranges and choices of flags, read from a TOML file; imports no torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpd.errors import BadInput, flag

RANGE_KEYS = {"low", "high", "log", "step"}
Value = Any
"""A float, an int, a string, a bool, or a list of those."""


@dataclass(frozen=True)
class FlagRange:
    """Numbers from `low` to `high`, both included; whole ones if both are whole."""

    low: float
    high: float
    log: bool = False
    """True to draw the logarithm uniformly."""
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """True if values are integers."""
        return all(isinstance(x, int) for x in (self.low, self.high))

    @property
    def ends(self) -> list[Value]:
        """The values that a run must accept."""
        return [self.low, self.high]

    def __str__(self) -> str:
        kind = "whole numbers " if self.is_whole else ""
        step = "" if self.step is None else f" in steps of {self.step:g}"
        return f"{kind}{self.low:g} to {self.high:g}{step}{', log' if self.log else ''}"


@dataclass(frozen=True)
class Choices:
    """Values without an order."""

    values: tuple[Value, ...]

    @property
    def ends(self) -> list[Value]:
        """The values that a run must accept: all of them."""
        return list(self.values)

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Space = Mapping[str, FlagRange | Choices]
"""Ranges and choices by the names of flags, as in distill.alpha."""


def read_space(path: Path, ranges: str | None = None) -> Space:
    """Read a space from a file, or from `ranges`, its contents as JSON.

    Raises BadInput if it is none.
    """
    try:
        tables = tomllib.loads(path.read_text()) if ranges is None else json.loads(ranges)
    except OSError as error:
        raise BadInput(f"cannot read --space {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not TOML: {error}") from error
    space = {name: read_entry(path, name, entry) for name, entry in flattened_tables(tables)}
    if not space:
        raise BadInput(f"{path} names no flag; write for example gamma = [0.98, 0.99]")
    return space


def flattened_tables(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names and entries: distill.alpha is a table in a table."""
    for key, entry in tables.items():
        name = prefix + key.replace("_", "-")
        if isinstance(entry, dict) and not RANGE_KEYS & entry.keys():
            yield from flattened_tables(entry, f"{name}.")
        else:
            yield name, entry


def read_entry(path: Path, name: str, entry: Any) -> FlagRange | Choices:
    """Return the range or the choices of a flag. Raises BadInput if they are none."""
    if isinstance(entry, list) and len(entry) > 1:
        return Choices(tuple(entry))
    if not isinstance(entry, dict):
        raise BadInput(
            f"{path}: {name} needs {{ low = ..., high = ... }} or a list of at least two values, "
            f"not {json.dumps(entry)}; a fixed flag goes after the --"
        )
    if unknown := sorted(entry.keys() - RANGE_KEYS):
        raise BadInput(f"{path}: {name} has no '{unknown[0]}'; known: low, high, log, step")
    try:
        made = FlagRange(**entry)
        fits = 0 < made.low < made.high if made.log else made.low < made.high
        fits = fits and isinstance(made.log, bool) and not (made.log and made.step is not None)
        fits = fits and (made.step is None or made.step > 0)
    except TypeError:
        fits = False
    if not fits:
        raise BadInput(
            f"{path}: {name} needs numbers low < high, above 0 for log = true, and a step above 0 "
            "only without it"
        )
    return made


def words_of(name: str, value: Value) -> list[str]:
    """Return a flag with its value for a command line."""
    if isinstance(value, bool):
        group, dot, own = name.rpartition(".")
        return [flag(f"{group}{dot}{'' if value else 'no-'}{own}")]
    if isinstance(value, list):
        return [flag(name), *map(str, value)]
    return [flag(name), str(value)]


def space_words(values: Mapping[str, Value]) -> list[str]:
    """Return flags with their values."""
    return [word for name, value in values.items() for word in words_of(name, value)]


def text_of(value: Value) -> str:
    """Format a value for a table, floats to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
