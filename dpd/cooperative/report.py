"""What cooperation writes: policies, JSON, a page and TensorBoard's events."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpd import __version__, policyfile
from dpd.cooperative.outcome import Outcome, as_text
from dpd.cooperative.page import page
from dpd.cooperative.rounds import Round
from dpd.files import replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def write(outcome: Outcome) -> None:
    """Write the policies of the last round, and all figures."""
    out = outcome.config.out
    for k in range(len(outcome.subjects)):
        write_policy(outcome, k, out / "policies" / f"peer{k}.safetensors")
    for name, text in (("json", as_text(outcome)), ("html", page(outcome))):
        with replacing(out / f"cooperative.{name}") as draft:
            draft.write_text(text, encoding="utf-8")
    write_events(outcome, out / "tb")


def write_policy(outcome: Outcome, k: int, path: Path) -> None:
    """Write a policy with where it came from."""
    policy, rounds = outcome.rounds[-1].policies[k], len(outcome.rounds)
    config = outcome.config
    provenance = {
        "dpd": __version__,
        "method": "cooperative",
        "control": config.control,
        "rounds": rounds,
        "seed": config.seed,
        "simulator_steps": outcome.budget.spent,
        "eval_return": None if outcome.after is None else float(outcome.after[k].mean()),
        "source": outcome.subjects[k].origin,
        "peers": [s.origin for s in outcome.subjects if s is not outcome.subjects[k]],
    }
    meta = replace(policy.meta, env_id=outcome.env_id, provenance=provenance)
    policyfile.save(path, policy.tensors, meta)


def write_events(outcome: Outcome, folder: Path) -> None:
    """Write TensorBoard's events, in place of those after an earlier round.

    One run per policy and one per pair of them, with the same tags: they share charts.
    """
    from torch.utils.tensorboard import SummaryWriter

    from dpd.tblog import add_scalars

    for within in ("", "peer*/"):
        for old in folder.glob(f"{within}events.out.tfevents.*"):
            old.unlink()
    records = [
        *zip(map(round_tags, outcome.rounds), outcome.steps, strict=True),
        (return_tags(outcome), outcome.steps[-1]),
    ]
    with ExitStack() as opened:
        writers: dict[str, SummaryWriter] = {}
        for runs, steps in records:
            for run, values in runs.items():
                if run not in writers:
                    writers[run] = opened.enter_context(SummaryWriter(folder / run))
                add_scalars(writers[run], values, steps)


Runs = dict[str, dict[str, float | None]]
"""Figures by TensorBoard run and tag."""


def round_tags(found: Round) -> Runs:
    """Name a round's figures: of pairs in the runs peer<teacher>-to-peer<student>, else peer<k>."""
    runs: Runs = {}
    for pair in found.pairs:
        i, j, *values = pair
        tags = {f"coop/{k}": v for k, v in zip(pair._fields[2:], values, strict=True)}
        runs[f"peer{i}-to-peer{j}"] = tags
    for j, trial in enumerate(found.trials or ()):
        own = runs.setdefault(f"peer{j}", {})
        own |= {f"coop/trial_{k}": v for k, v in trial._asdict().items()}
        own["coop/passed"] = float(trial.passed)
    for j, drift in enumerate(found.drift):
        runs.setdefault(f"peer{j}", {})["coop/drift_competent"] = drift
    return runs


def return_tags(outcome: Outcome) -> Runs:
    """Name the returns before and after."""
    runs: Runs = {}
    for name, returns in (("before", outcome.before), ("after", outcome.after)):
        for j, mine in enumerate(() if returns is None else returns):
            runs.setdefault(f"peer{j}", {})[f"coop/return_{name}"] = float(mine.mean())
    return runs
