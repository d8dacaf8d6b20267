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
from dpd.agents.rng import with_own_generators
from dpd.agents.student import Student
from dpd.checkpoint import file_of, folder_of, read
from dpd.config import TrainConfig
from dpd.journal import JournalFiles
from dpd.policyfile import Policy
from dpd.run_config import RunConfig

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
    if not any(run_dir.glob(f"checkpoints/**/{file_of(run_dir, steps).name}")):
        return Known()
    config = read_run(run_dir)
    folder, seeds = share_of(config.run, run_dir, seed)
    members = [[(s, p) for s in seeds for p in stack.peers] for stack in config.stacks]
    k = next((k for k, who in enumerate(members) if (seed, peer) in who), None)
    checkpoint = file_of(folder, steps)
    if k is None or not checkpoint.is_file():
        return Known()  # of another run
    stack, who = config.stacks[k], members[k]
    agent: Learners = stack.algo.build(policy.meta.obs_dim, policy.meta.act_dim, who)
    state, facts = read(checkpoint)
    # Nothing is drawn here, and a GPU's generators would not fit.
    agent.load_state(with_own_generators(part(state, f"training.stack{k}.agent"), agent.state()))
    n = next(row for row, each in enumerate(who) if each == (seed, peer))
    own = {name: x for name, x in agent.export(n).items() if name.startswith("actor.")}
    theirs = policy.tensors
    if not all(name in theirs and torch.equal(x, theirs[name]) for name, x in own.items()):
        return Known()  # another policy has taken the file's place
    if isinstance(agent, Student):
        segments = JournalFiles(folder, k).read(facts.replay)
        return Known(states=remembered(agent, n, *segments))
    return Known(value=lambda obs: value(agent, n, obs))


def share_of(run: RunConfig, run_dir: Path, seed: object) -> tuple[Path, range]:
    """Return where the checkpoints with a seed lie, and all the seeds that are in them.

    A process of several (`--workers`, or torchrun) has a folder of its own.
    """
    if not folder_of(run_dir, 0).is_dir():
        return folder_of(run_dir, None), range(run.seed, run.seed + run.seeds)
    part = next((k for k in range(run.workers) if seed in run.seeds_of(k)), 0)
    return folder_of(run_dir, part), run.seeds_of(part)


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
