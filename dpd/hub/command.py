"""The command that made a run, written from its settings."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpd.config import TrainConfig
from dpd.errors import flag
from dpd.log.config import WandbConfig
from dpd.run.settings import with_default_preset

ParseRun = Callable[[Sequence[str], str], TrainConfig]
"""Parses the flags of `dpd train` or `dpd distill`."""


def published(config: TrainConfig) -> TrainConfig:
    """Return settings that say nothing of a machine: files by name, and without W&B's account.

    The files are the teachers, their statistics, and those that learners start from.
    """
    run = replace(config.run, init_from=names_of(config.run.init_from))
    teachers = config.teachers
    if teachers is not None:
        teachers = replace(
            teachers,
            teacher=names_of(teachers.teacher),
            teacher_vecnormalize=names_of(teachers.teacher_vecnormalize),
        )
    return replace(config, run=run, teachers=teachers, wandb=WandbConfig())


def names_of(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the last parts of paths."""
    return tuple(Path(path.name) for path in paths)


def training_command(config: TrainConfig, parse: ParseRun) -> str:
    """Return the shell command that makes a run with these settings.

    It names what differs from the defaults; if flags cannot, it reads the settings' file.
    """
    command, settings = config.command, config.as_json()
    words = [config.run.env, *teacher_words(config)]
    try:
        for names in (("algo", "method"), ("history",), None):
            given = {k: v for k, v in settings.items() if names is None or k in names}
            default = parse(words, command).as_json()
            words += flag_words(given, default)
            if names == ("algo", "method"):
                words += preset_words(config)
        if parse(words, command).as_json() == settings:
            return shlex.join(["dpd", command, *words])
    except ValueError:  # such as a student of several sizes, which no flags of one size describe
        pass
    return f"dpd {command} --config config.json"


def teacher_words(config: TrainConfig) -> list[str]:
    """Return the flags without which `dpd distill` has no defaults."""
    teachers = config.teachers
    return [] if teachers is None else ["--teacher", *map(str, teachers.teacher)]


def preset_words(config: TrainConfig) -> list[str]:
    """Return the flag of a run's presets, unless they are the default of its learners."""
    recorded = config.as_json().get("preset")
    if recorded in (None, with_default_preset(None, config.method, config.algo_name)):
        return []
    return ["--preset", recorded]


def flag_words(settings: Mapping[str, Any], default: Mapping[str, Any]) -> list[str]:
    """Return the flags of settings that differ from the default ones."""
    return [
        word for name in settings for word in words_for(name, settings[name], default.get(name))
    ]


def words_for(name: str, value: Any, default: Any) -> Iterator[str]:
    """Yield the flag of a setting and its values; nothing if it has its default value."""
    if isinstance(value, dict):
        for inner, each in value.items():
            other = default.get(inner) if isinstance(default, dict) else None
            yield from words_for(f"{name}.{inner}", each, other)
    elif value != default:
        if isinstance(value, bool):
            head, _, tail = name.rpartition(".")
            yes = "" if value else "no-"
            yield flag(f"{head}.{yes}{tail}" if head else f"{yes}{tail}")
        else:
            yield flag(name)
            yield from map(str, value if isinstance(value, list) else [value])
