"""What cooperation writes: policies, JSON, a page and TensorBoard's events."""

from __future__ import annotations

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
    """Write TensorBoard's events, in place of those after an earlier round."""
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(folder) as writer:
        for found, steps in zip(outcome.rounds, outcome.steps, strict=True):
            add_figures(writer, round_tags(found), steps)
        add_figures(writer, return_tags(outcome), outcome.steps[-1])


def add_figures(writer: SummaryWriter, figures: dict[str, float | None], steps: int) -> None:
    """Write those figures that there are, as one event."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    from dpd.tblog import add

    summary = Summary()
    for tag, value in figures.items():
        if value is not None:
            summary.value.add(tag=tag, simple_value=value)
    add(writer, summary, steps)


def round_tags(found: Round) -> dict[str, float | None]:
    """Name a round's figures: coop/<teacher>-><student>/... and coop/<student>/..."""
    tags: dict[str, float | None] = {}
    for pair in found.pairs:
        i, j, *values = pair
        names = pair._fields[2:]
        tags |= {f"coop/{i}->{j}/{k}": v for k, v in zip(names, values, strict=True)}
    for j, trial in enumerate(found.trials or ()):
        tags |= {f"coop/{j}/trial_{k}": v for k, v in trial._asdict().items()}
        tags[f"coop/{j}/passed"] = float(trial.passed)
    return tags | {f"coop/{j}/drift_competent": v for j, v in enumerate(found.drift)}


def return_tags(outcome: Outcome) -> dict[str, float | None]:
    """Name the returns before and after."""
    parts = (("before", outcome.before), ("after", outcome.after))
    return {
        f"coop/{j}/return_{name}": float(returns[j].mean())
        for name, returns in parts
        if returns is not None
        for j in range(len(returns))
    }
