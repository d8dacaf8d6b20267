"""What a run still knows of a policy it saved: its value function, the states it was trained on.

Both lie in the checkpoint of the policy's step, of which a run keeps the latest few, and the best.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import part
from dpd.agents.learners import Learners
from dpd.agents.student import Student
from dpd.checkpoint import read
from dpd.config import TrainConfig
from dpd.journal import JournalFiles
from dpd.policyfile import Policy

Value = Callable[[Tensor], Tensor]
"""Raw observations [B, O] -> values [B] in raw reward units."""
ReadRun = Callable[[Path], TrainConfig]
"""Reads the settings of the run in a directory."""


class Known(NamedTuple):
    """What is known of a policy beyond its file."""

    value: Value | None = None
    """Its value function; students have none."""
    states: Tensor | None = None  # [n, O] raw; what a student remembers, and learnt from


def known_of(file: Path, policy: Policy, read_run: ReadRun) -> Known:
    """Return what the run that a policy file lies in knows of it.

    Nothing for a file that lies in no run, and where the checkpoint of its step is gone. Raises
    BadInput or BadFile where settings or checkpoint can't be read.
    """
    steps, seed, peer = (policy.meta.provenance.get(k) for k in ("steps", "seed", "peer"))
    above = file.resolve().parents[1:3]  # RUN/policies/, or RUN/policies/history/
    run_dir = next((folder for folder in above if (folder / "config.json").is_file()), None)
    if run_dir is None or not isinstance(steps, int):
        return Known()
    checkpoint = run_dir / "checkpoints" / f"step-{steps:012}.safetensors"
    if not checkpoint.is_file():
        return Known()
    config = read_run(run_dir)
    seeds = range(config.run.seed, config.run.seed + config.run.seeds)
    members = [[(s, p) for s in seeds for p in stack.peers] for stack in config.stacks]
    k = next((k for k, who in enumerate(members) if (seed, peer) in who), None)
    if k is None:
        return Known()  # of another run
    stack, who = config.stacks[k], members[k]
    agent: Learners = stack.algo.build(policy.meta.obs_dim, policy.meta.act_dim, who)
    state, facts = read(checkpoint)
    agent.load_state(part(state, f"training.stack{k}.agent"))
    n = next(row for row, each in enumerate(who) if each == (seed, peer))
    own = {name: x for name, x in agent.export(n).items() if name.startswith("actor.")}
    theirs = policy.tensors
    if not all(name in theirs and torch.equal(x, theirs[name]) for name, x in own.items()):
        return Known()  # another policy has taken the file's place
    if isinstance(agent, Student):
        segments = JournalFiles(checkpoint.parent, k).read(facts.replay)
        return Known(states=remembered(agent, n, *segments))
    return Known(value=lambda obs: value(agent, n, obs))


def value(agent: Learners, n: int, obs: Tensor) -> Tensor:
    """Ask learner n for its values of raw observations [B, O] -> [B]."""
    found = agent.ask(obs.unsqueeze(0).expand(agent.n_learners, *obs.shape)).value
    assert found is not None  # only students know none
    return found[n]


def remembered(agent: Student, n: int, begin: int, segments: list[Tensor]) -> Tensor:
    """Return the raw states [n, O] that student n remembered, given its stack's replay."""
    agent.replay.restart(begin)
    for rows in segments:
        agent.replay.extend(rows)
    back = torch.arange(int(agent.replay.live[n])).unsqueeze(0)
    return agent.replay.states(torch.full_like(back, n), back)[0]
