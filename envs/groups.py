"""Named groups of an observation's columns, and the words by which a user chooses among them.

Native tasks name their fields (`qpos`, `qvel`), Dict spaces their keys (`a.b` if they are nested).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Groups = dict[str, range]
"""Columns of each named group, in the order of the flat observation; empty if none has a name."""
EVERYTHING = "all"
"""The word for all columns of an observation."""
_COLUMNS = re.compile(r"(\d+)|(\d*):(\d*)")


class UnknownColumns(ValueError):
    """The words name no columns of the observation; the message lists the groups."""


def consecutive(sizes: Mapping[str, int]) -> Groups:
    """Return the columns of groups that follow each other; those of size 0 are left out."""
    groups, first = {}, 0
    for name, size in sizes.items():
        if size:
            groups[name] = range(first, first + size)
            first += size
    return groups


def flat_dict(obs: Mapping[str, Any]) -> np.ndarray:
    """Return an environment's Dict observation as its policies take it -> [O] float32.

    Keys are in sorted order, in nested Dicts too, and arrays flattened in C order.
    """
    parts = [np.asarray(value, np.float32).reshape(-1) for value in _leaves_of(obs)]
    return np.concatenate(parts)


def _leaves_of(obs: Mapping[str, Any]) -> Iterator[Any]:
    for _, value in sorted(obs.items()):
        if isinstance(value, Mapping):
            yield from _leaves_of(value)
        else:
            yield value


def is_choosable(name: str) -> bool:
    """Return True if `columns_of` can find a group by this name."""
    is_word = bool(name) and name == name.strip() and "," not in name
    return is_word and name != EVERYTHING and _COLUMNS.fullmatch(name) is None


def columns_of(text: str, groups: Groups, obs_dim: int) -> list[int]:
    """Return the columns that `text` chooses, ascending.

    Separated by commas, `text` has names of groups, columns (`3`) and ranges of columns with their
    end excluded (`0:8`, `:8`, `8:`); `all` is every column. In nested groups, `a` is all of `a.b`.
    Raises UnknownColumns, also if two words choose the same column, or there is no word.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UnknownColumns(f"no columns are chosen; {describe_groups(groups, obs_dim)}")
    owners: dict[int, str] = {}
    for word in words:
        for column in _columns_of_word(word, groups, obs_dim):
            if (other := owners.setdefault(column, word)) is not word:
                raise UnknownColumns(f"'{other}' and '{word}' both choose column {column}")
    return sorted(owners)


def describe_groups(groups: Groups, obs_dim: int) -> str:
    """Return the sentence that lists what `columns_of` accepts."""
    named = [f"{name} ({span(columns)})" for name, columns in groups.items()]
    known = f"groups are {', '.join(named)}" if named else "no group has a name"
    return f"{known}; columns are 0 to {obs_dim - 1}, for example 0:{obs_dim}"


def span(columns: range) -> str:
    """Write a range of columns as `columns_of` reads it."""
    return f"{columns.start}:{columns.stop}" if len(columns) > 1 else str(columns.start)


def _columns_of_word(word: str, groups: Groups, obs_dim: int) -> list[int]:
    if word == EVERYTHING:
        return list(range(obs_dim))
    inner = [columns for name, columns in groups.items() if name.startswith(f"{word}.")]
    if word in groups or inner:
        return [k for columns in ([groups[word]] if word in groups else inner) for k in columns]
    known = describe_groups(groups, obs_dim)
    match = _COLUMNS.fullmatch(word)
    if match is None:
        near = difflib.get_close_matches(word, groups, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise UnknownColumns(f"no group is called '{word}'{hint}; {known}")
    one, low, high = match.groups()
    first = int(one or low or 0)
    last = first + 1 if one else int(high or obs_dim)
    if not first < last <= obs_dim:
        raise UnknownColumns(f"'{word}' is not within the {obs_dim} columns; {known}")
    return list(range(first, last))
