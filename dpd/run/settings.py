"""Settings from presets, configuration files and flags."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import tyro

from dpd.config import choose, flag
from dpd.distill import METHODS
from dpd.distill.presets import DOSE, LEARNERS
from dpd.errors import BadInput

NESTED = re.compile(r"distill|peer\d+")
"""Names of settings whose values are settings themselves."""


def saved_settings(run_dir: Path) -> dict[str, Any]:
    """Read the settings of the run to resume."""
    if not (run_dir / "config.json").is_file():
        raise BadInput(f"{run_dir} contains no run to resume: it has no config.json")
    return read_config(run_dir / "config.json")


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file: a JSON object of settings, in which `distill` is nested."""
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("distill", {}), dict):
        raise BadInput(f"{path} must hold a JSON object of settings, with `distill` an object")
    return settings


def preset_settings(names: str, method: str, algo: str) -> dict[str, Any]:
    """Return the settings of one or several presets, of a method and of its learners.

    With several names, as in paper,large, later presets override earlier ones. `algo` may be
    several names as well, as in ppo,sac.
    """
    merged: dict[str, Any] = {}
    for name in names.split(","):
        preset = _one_preset(name, method, algo)
        nested = {k: merged[k] | v for k, v in preset.items() if isinstance(merged.get(k), dict)}
        merged |= preset | nested
    distill = merged.get("distill", {})
    # A preset's settings of the dose `step` apply only if no later preset changes the dose.
    if method == "dpd" and distill.get("dose", "step") == "step":
        for name in names.split(","):
            distill = DOSE.get(name, {}) | distill
    return merged | ({"distill": distill} if distill else {})


def _one_preset(name: str, method: str, algo: str) -> dict[str, Any]:
    key, peers = "unlike" if "," in algo else algo, algo.split(",")
    of_method = {k: v[key] for k, v in METHODS[method].PRESETS.items() if key in v}
    of_learners = {k: v for k, v in LEARNERS.items() if all(peer in v for peer in peers)}
    if not of_method and name not in of_learners:
        others = f"; known: {', '.join(of_learners)}" if of_learners else ""
        raise BadInput(f"method {method} has no presets for {algo}; leave --preset out{others}")
    if name in METHODS[method].PRESETS and name not in of_method:
        raise BadInput(f"preset {name} is not for {algo}; give --preset {' or '.join(of_method)}")
    if name not in of_learners:
        return choose(f"preset of method {method} for {algo}", name, of_method | of_learners)
    settings = [LEARNERS[name][peer] for peer in peers]
    return settings[0] if len(settings) == 1 else {f"peer{k}": s for k, s in enumerate(settings)}


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Return the command-line words that set these settings."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = NESTED.fullmatch(name) and isinstance(value, dict)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if inner else {name: value}
    # Lists come first, then at least one plain flag: ENV, which follows, would join the last list.
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


def parse(kind: Any, argv: Sequence[str], prog: str, default: Any = None) -> Any:
    """Parse flags with tyro. Raises BadInput with one line in place of tyro's error box."""
    box = io.StringIO()
    kwargs = {} if default is None else {"default": default}
    try:
        with redirect_stderr(box):
            return tyro.cli(kind, prog=prog, args=list(argv), **kwargs)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise BadInput(one_line(box.getvalue(), prog)) from None


def one_line(box: str, prog: str) -> str:
    """Return the text of an error box without its frame, title and advice."""
    frame = r"[│╭╮╰╯─]+|^[|+]|[|+]$|-{3,}"  # tyro uses ASCII if the terminal has no box characters
    lines = [re.sub(frame, " ", x).strip() for x in box.splitlines()[1:]]
    kept: list[str] = []
    for line in lines:
        if line.startswith("For full helptext"):
            break
        if line:
            kept.append(line)
    text = re.sub(r"\s+", " ", " ".join(kept))
    # The prefix of an error that one of our dataclasses raised; keep the peer's name, if there is
    # one, because every peer may have its own settings.
    text = re.sub(r"^Error parsing (?:(peer\d+: )|\w+: )", r"\1", text)
    return f"{text}; see {prog} --help"
