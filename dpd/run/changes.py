"""Settings that a resumed run may change, and those that it may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dpd.config import TrainConfig
from dpd.errors import BadInput, flag
from dpd.log.config import WandbConfig

MAY_CHANGE = {
    "preset",
    "total_steps",
    "evals",
    "eval_episodes",
    "final_episodes",
    "threads",
    "record_updates",
    "kernels",
    "records",
    "checkpoint_every",
    "keep",
    "on_nan",
    *(f.name for f in fields(WandbConfig)),
}
"""Settings that a resumed run may change, because they do not affect what was learned.

`preset` is a name for settings, which are compared themselves.
`device` may change too, from one GPU to another."""


def changed_settings(saved: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return the current values of settings that affect learning and differ from a saved run's."""
    now, device = config.as_json(), str(saved.get("device"))
    changed = {k: v for k, v in now.items() if k not in MAY_CHANGE and v != saved.get(k)}
    if config.run.device.partition(":")[0] == device.partition(":")[0]:  # cuda:1 for cuda:0
        changed.pop("device", None)
    return changed


def refuse_changes(saved: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise BadInput if settings that affect learning differ from those of the saved run."""
    if changed := changed_settings(saved, config):
        name, value = next(iter(changed.items()))
        raise BadInput(
            f"--resume uses the run's saved settings, but {flag(name)} would change from "
            f"{saved.get(name)} to {value}; start a new run with --out, and give --init-from to "
            "begin with this run's policies"
        )
