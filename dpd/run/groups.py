"""`dpd groups`: the named groups of an environment's observation."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpd.envs.base import Env
from dpd.envs.groups import EVERYTHING, span
from dpd.envs.make import make
from dpd.report.outcome import GroupsOutcome
from dpd.report.report import Report, Section, Table, format_number
from dpd.run.sources import Place

if TYPE_CHECKING:
    from dpd.policies.config import GroupsConfig

EXAMPLE_ENVS, EXAMPLE_STEPS = 4, 100
"""Environments and steps of uniform actions from which the example ranges come."""


def list_groups(config: GroupsConfig) -> GroupsOutcome:
    """Return the groups of an environment's observation."""
    place = Place(config.env, config.parsed_env_kwargs())
    seeds = range(EXAMPLE_ENVS)
    env = make(place.env_id, EXAMPLE_ENVS, seeds, "auto", place.env_kwargs, threads=1)
    with closing(env):
        return GroupsOutcome(report=groups_report(place, env))


def groups_report(place: Place, env: Env) -> Report:
    """Return a report with a row for each group, and one for all columns."""
    spec = env.spec
    low, high = observed_range(env)
    rows: dict[str, dict[str, Any]] = {}
    for name, columns in {**spec.groups, EVERYTHING: range(spec.obs_dim)}.items():
        ends = float(low[columns].min()), float(high[columns].max())
        finite = [x if np.isfinite(x) else None for x in ends]
        size = len(columns)
        rows[name] = {"columns": span(columns), "size": size, "low": finite[0], "high": finite[1]}
    cells = [
        [name, row["columns"], str(row["size"]), *(format_number(row[k]) for k in ("low", "high"))]
        for name, row in rows.items()
    ]
    table = Table(str(place), ["group", "columns", "size", "low", "high"], cells)
    data = {"env": place.env_id, "env_kwargs": place.env_kwargs, "obs_dim": spec.obs_dim}
    notes = [f"low and high are those of {EXAMPLE_ENVS} x {EXAMPLE_STEPS} steps of uniform actions"]
    if not spec.groups:
        notes.append(f"no group has a name: choose columns, for example 0:{spec.obs_dim}")
    everything = rows.pop(EVERYTHING)
    return Report(
        sections=[Section(tables=[table])],
        data={**data, "groups": rows, EVERYTHING: everything},
        notes=notes,
    )


def observed_range(env: Env) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest value of each column under uniform actions [O]."""
    generator = torch.Generator().manual_seed(0)
    seen = [env.reset()]
    for _ in range(EXAMPLE_STEPS):
        act = torch.rand(env.n_envs, env.spec.act_dim, generator=generator) * 2 - 1
        seen.append(env.step(act).next_obs)
    values = torch.cat(seen).numpy()
    return values.min(0), values.max(0)
