"""Settings as files and as flags: presets, configuration files, the settings of a run."""

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


def preset_settings(names: str, method: str, algo: str) -> dict[str, Any]:
    """Return presets of a method and of learners as settings for an algorithm, or for several.

    Of several, as in paper,large, the later ones count.
    """
    found: dict[str, Any] = {}
    for name in names.split(","):
        given = _one_preset(name, method, algo)
        nested = {k: found[k] | v for k, v in given.items() if isinstance(found.get(k), dict)}
        found |= given | nested
    distill = found.get("distill", {})
    if method == "dpd" and distill.get("dose", "step") == "step":
        for name in names.split(","):
            distill = DOSE.get(name, {}) | distill
    return found | ({"distill": distill} if distill else {})


def _one_preset(name: str, method: str, algo: str) -> dict[str, Any]:
    kind, peers = "unlike" if "," in algo else algo, algo.split(",")
    of_method = {k: v[kind] for k, v in METHODS[method].PRESETS.items() if kind in v}
    of_learners = {k: v for k, v in LEARNERS.items() if all(peer in v for peer in peers)}
    if not of_method and name not in of_learners:
        others = f"; known: {', '.join(of_learners)}" if of_learners else ""
        raise BadInput(f"method {method} has no presets for {algo}; leave --preset out{others}")
    if name in METHODS[method].PRESETS and name not in of_method:
        raise BadInput(f"preset {name} is not for {algo}; give --preset {' or '.join(of_method)}")
    if name not in of_learners:
        return choose(f"preset of method {method} for {algo}", name, of_method | of_learners)
    each = [LEARNERS[name][peer] for peer in peers]
    return each[0] if len(each) == 1 else {f"peer{k}": given for k, given in enumerate(each)}


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


def parse(kind: Any, argv: Sequence[str], prog: str, default: Any = None) -> Any:
    """Let tyro parse; its error boxes become one line of BadInput."""
    said = io.StringIO()
    kwargs = {} if default is None else {"default": default}
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=list(argv), **kwargs)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise BadInput(one_line(said.getvalue(), prog)) from None


def one_line(box: str, prog: str) -> str:
    """Return the text of an error box without frame, title and advice."""
    frame = r"[│╭╮╰╯─]+|^[|+]|[|+]$|-{3,}"  # in ASCII where the terminal has no more
    lines = [re.sub(frame, " ", x).strip() for x in box.splitlines()[1:]]
    kept: list[str] = []
    for line in lines:
        if line.startswith("For full helptext"):
            break
        if line:
            kept.append(line)
    text = re.sub(r"\s+", " ", " ".join(kept))
    # Of settings that do not fit each other; whose they are matters where each peer has its own.
    text = re.sub(r"^Error parsing (?:(peer\d+: )|\w+: )", r"\1", text)
    return f"{text}; see {prog} --help"
