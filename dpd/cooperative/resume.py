"""Going on with a cooperation: after Ctrl-C, where the budget ended, or for more rounds."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpd.config import BadInput, flag
from dpd.cooperative.config import CooperateConfig
from dpd.cooperative.outcome import NOT_SAVED, Outcome
from dpd.cooperative.rounds import Pair, Round, Trial
from dpd.cooperative.subjects import Subject, require_fit_task
from dpd.cooperative.world import PURPOSES, Budget
from dpd.policyfile import load

CHANGEABLE = ("total_steps", "rounds", "threads")


def read_outcome(config: CooperateConfig) -> Outcome:
    """Return what the directory of --resume holds, after the last round that ended.

    What follows is bit for bit what would have followed there. Raises BadInput where it holds no
    such run, or settings are given that are the run's own.
    """
    folder = config.resume
    assert folder is not None
    path = folder / "cooperative.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return outcome_of(saved, changed(config, saved["settings"], folder))
    except FileNotFoundError as error:
        raise BadInput(f"{folder} is no run of dpd cooperate: it holds no {path.name}") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not what dpd cooperate wrote: {error!r}") from error


def changed(config: CooperateConfig, saved: dict[str, Any], folder: Path) -> CooperateConfig:
    """Return a run's own settings with those that may be given anew."""
    given = {
        f.name: getattr(config, f.name)
        for f in fields(config)
        if f.name not in ("paths", "resume", "json") and getattr(config, f.name) != f.default
    }
    for name in given.keys() - set(CHANGEABLE):
        raise BadInput(f"--resume goes on with the run's own settings; leave {flag(name)} out")
    own = replace(config, **{k: v for k, v in saved.items() if k not in NOT_SAVED})
    return replace(own, **given, out=folder)


def outcome_of(saved: dict[str, Any], config: CooperateConfig) -> Outcome:
    """Return an outcome from its JSON and the policies beside it."""
    subjects = [subject(said, config, k) for k, said in enumerate(saved["policies"])]
    require_fit_task(saved["env"], subjects)
    budget = Budget(config.total_steps)
    budget.used = {purpose: int(saved["steps"][purpose]) for purpose in PURPOSES}
    last = len(saved["rounds"]) - 1
    policies = [s.policy for s in subjects]
    return Outcome(
        subjects=subjects,
        env_id=saved["env"],
        config=config,
        budget=budget,
        rounds=[round_of(r, policies if k == last else []) for k, r in enumerate(saved["rounds"])],
        steps=[int(r["steps"]) for r in saved["rounds"]],
        before=np.array([p["returns_before"] for p in saved["policies"]], dtype=float),
        is_finished="returns_after" in saved["policies"][0],
    )


def subject(said: dict[str, Any], config: CooperateConfig, k: int) -> Subject:
    """Return a policy as it is now, with where it came from."""
    origin = {name: said[name] for name in ("name", "sha256", "algo", "steps")}
    now = load(config.out / "policies" / f"peer{k}.safetensors")
    return Subject(name=said["name"], file=Path(said["file"]), origin=origin, policy=now)


def round_of(said: dict[str, Any], policies: list[Any]) -> Round:
    """Return a round's figures."""
    trials = said["trials"]
    return Round(
        number=said["round"],
        policies=policies,
        trials=None if trials is None else [Trial(t["before"], t["after"]) for t in trials],
        pairs=[Pair(**pair) for pair in said["pairs"]],
        drift=said["drift_competent"],
    )
