"""Run directories as they are on disk, finished or not: settings, metrics and policies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpd.errors import BadInput
from dpd.files import run_folders
from dpd.log.naming import display_names, parse_policy_name
from dpd.policies.policyfile import Policy, load
from dpd.report.figures import Curve, read_curves
from dpd.run.settings import read_config
from dpd.run.sources import find_policies, is_best


class StoredPolicy(NamedTuple):
    """A policy file of a run, and what it says of itself."""

    file: Path
    policy: Policy

    @property
    def evaluation(self) -> float | None:
        """The return of its evaluation in training."""
        value = self.policy.meta.provenance.get("eval_return")
        return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True)
class StoredRun:
    """A run directory: settings, metrics and policies."""

    path: Path
    name: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Contents of config.json."""
        return read_config(self.path / "config.json")

    @cached_property
    def _curves(self) -> tuple[dict[str, dict[int, Curve]], int]:
        return read_curves(self.path / "metrics.csv")

    @property
    def curves(self) -> dict[str, dict[int, Curve]]:
        """Metrics as name -> peer -> step -> values over seeds."""
        return self._curves[0]

    @property
    def n_seeds(self) -> int:
        """Seeds that have recorded something."""
        return self._curves[1]

    @property
    def steps(self) -> int:
        """Environment steps of the last record, per seed."""
        curves = [c for peers in self.curves.values() for c in peers.values()]
        return max((max(curve) for curve in curves if curve), default=0)

    @cached_property
    def policies(self) -> list[StoredPolicy]:
        """All policies, if the run has saved any."""
        if not (self.path / "policies").is_dir():
            return []
        return [StoredPolicy(file, load(file)) for file in find_policies(self.path)]

    @property
    def peer_names(self) -> dict[int, str]:
        """Names of the peers by their number."""
        names = {
            p.policy.meta.provenance.get("peer"): parse_policy_name(p.file.stem).learner
            for p in self.policies
        }
        short = {k: v.partition("-")[2] or v for k, v in names.items() if isinstance(k, int)}
        peers = range(self.settings.get("peers", 1))
        shown = display_names([short.get(peer, f"peer{peer}") for peer in peers])
        return dict(zip(peers, shown, strict=True))

    @cached_property
    def best(self) -> list[StoredPolicy]:
        """The best policy of each learner with an evaluation, the highest evaluation first."""
        known = [p for p in self.policies if p.evaluation is not None and is_best(p.file)]
        return sorted(known, key=lambda p: -(p.evaluation or 0.0))

    @property
    def last_evaluation(self) -> float | None:
        """Mean return of all learners in the last evaluation."""
        evaluated = self.curves.get("eval/return", {})
        last = [np.mean(curve[max(curve)]) for curve in evaluated.values() if curve]
        return float(np.mean(last)) if last else None

    def mean_curve(self, metric: str) -> Curve:
        """Return a metric averaged over the peers, at the steps at which all of them have it."""
        peers = list(self.curves.get(metric, {}).values())
        if not peers:
            return {}
        steps = sorted(set.intersection(*(set(curve) for curve in peers)))
        return {
            step: [float(np.mean(v)) for v in zip(*(c[step] for c in peers), strict=False)]
            for step in steps
        }


def find_runs(path: Path) -> list[StoredRun]:
    """Return the run in a directory, or those in it and in its folders."""
    if not path.is_dir():
        raise BadInput(f"{path} does not exist, or is a file; give the directory of a run or study")
    found = run_folders(path)
    if found == [path]:
        return [StoredRun(path, path.resolve().name)]
    folders = [folder for folder in found if (folder / "metrics.csv").is_file()]
    if not folders:
        raise BadInput(
            f"{path} holds no run with a config.json; give a run directory, or a directory of runs "
            "such as that of dpd study"
        )
    return [StoredRun(folder, "/".join(folder.relative_to(path).parts)) for folder in folders]
