"""Settings as files and as flags: presets, configuration files, the settings of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpd.config import BadInput, choose, flag
from dpd.distill import METHODS

NESTED = re.compile(r"distill|peer\d+")
"""Settings that have settings."""


def saved_settings(run_dir: Path) -> dict[str, Any]:
    """Read the settings of a run, to go on with it."""
    if not (run_dir / "config.json").is_file():
        raise BadInput(f"{run_dir} holds no run to resume: it has no config.json")
    return read_config(run_dir / "config.json")


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file: a JSON object of settings, `distill` nested."""
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("distill", {}), dict):
        raise BadInput(f"{path} must hold a JSON object of settings, with `distill` an object")
    return settings


def preset_settings(name: str, method: str, algo: str) -> dict[str, Any]:
    """Return a preset of a method as settings for an algorithm, or for several."""
    kind = "unlike" if "," in algo else algo
    presets = {k: v[kind] for k, v in METHODS[method].PRESETS.items() if kind in v}
    if not presets:
        raise BadInput(f"method {method} has no presets for {algo}; leave --preset out")
    if name in METHODS[method].PRESETS and name not in presets:
        raise BadInput(f"preset {name} is not for {algo}; give --preset {' or '.join(presets)}")
    return choose(f"preset of method {method}", name, presets)


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as the command-line flags that set them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = NESTED.fullmatch(name) and isinstance(value, dict)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if inner else {name: value}
    # Lists first and a plain flag behind them, or an ENV that follows would join the last list.
    lists = {k: v for k, v in flat.items() if isinstance(v, list)}
    plain = {"seed": 0} | {k: v for k, v in flat.items() if k not in lists}
    return [word for k, v in (lists | plain).items() for word in _as_flag(k, v)]


def _as_flag(name: str, value: object) -> list[str]:
    group, _, key = name.rpartition(".")
    prefix = f"{group}." if group else ""
    if isinstance(value, bool):
        return [flag(prefix + ("" if value else "no-") + key)]
    if isinstance(value, list):
        return [flag(name), *map(str, value)]
    return [flag(name), json.dumps(value) if isinstance(value, dict) else str(value)]
