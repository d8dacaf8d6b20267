"""Settings of a command from keyword arguments, which are named as its flags; torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

from dpd.config import TrainConfig
from dpd.cooperate.config import CooperateConfig, require_saved_settings, saved_config
from dpd.errors import BadInput, flag, near
from dpd.policies.config import ForeignConfig
from dpd.run.flags import parse_run
from dpd.run.settings import converted
from dpd.study.engine_config import EngineConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Chosen = TypeVar("Chosen", bound="DataclassInstance")
LISTS = ("algo", "preset", "student_sizes", "history")
"""Settings whose flags take a text of names or numbers between commas; keywords take lists too."""
APART: dict[str, type[DataclassInstance]] = {"foreign": ForeignConfig, "where": EngineConfig}
"""Settings of commands that are a dataclass of their own, whose flags have no prefix."""


def run_settings(command: str, keywords: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of `dpd train` or `dpd distill`.

    Raises BadInput for an unknown keyword, with similar names, and for everything that the command
    line refuses.
    """
    given = {name: json_value(value) for name, value in keywords.items()}
    given |= {name: comma_text(given[name]) for name in LISTS if name in given}
    return parse_run((), command, given)


def command_settings(kind: type[Chosen], keywords: Mapping[str, Any]) -> Chosen:
    """Return the settings of another command. Raises BadInput as `run_settings` does."""
    given = {name: json_value(value) for name, value in keywords.items()}
    groups = {name: setting_names(kind) for name, kind in groups_apart(kind).items()}
    own = setting_names(kind) - {"json", *groups}
    known = own.union(*groups.values())
    for name in given:
        if name not in known:
            raise BadInput(f"unknown setting {flag(name)}{near(name, sorted(known))}")
    values = converted(kind, {k: v for k, v in given.items() if k in own})
    for group, names in groups.items():
        if named := {k: v for k, v in given.items() if k in names}:
            values[group] = APART[group](**converted(APART[group], named))
    return kind(**values)


def setting_names(kind: type[DataclassInstance]) -> set[str]:
    """Return the names of a dataclass's fields."""
    return {f.name for f in fields(kind)}


def groups_apart(kind: type[DataclassInstance]) -> dict[str, type[DataclassInstance]]:
    """Return the groups of APART that a command has, by name."""
    return {name: group for name, group in APART.items() if name in setting_names(kind)}


def cooperation_settings(keywords: Mapping[str, Any]) -> CooperateConfig:
    """Return the settings of `dpd cooperate`; with `resume`, the saved ones are the defaults."""
    config = command_settings(CooperateConfig, keywords)
    if config.resume is None:
        return config
    saved = saved_config(config.resume)
    given = {k: getattr(config, k) for k in keywords if k in {f.name for f in fields(config)}}
    resumed = replace(saved, **given, foreign=config.foreign)
    require_saved_settings(resumed, saved)
    return resumed


def json_value(value: Any) -> Any:
    """Return a value as JSON has it: lists, dictionaries, paths as text, Python's own numbers."""
    if isinstance(value, Mapping):
        return {str(name): json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [json_value(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def comma_text(value: Any) -> Any:
    """Join a list by commas, and the layers of a size inside it by x: [[64, 64], 32]."""
    if isinstance(value, list):
        sizes = ("x".join(map(str, v)) if isinstance(v, list) else str(v) for v in value)
        return ",".join(sizes)
    return str(value) if isinstance(value, int) else value
