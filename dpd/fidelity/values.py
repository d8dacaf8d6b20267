"""Value functions of saved policies: a run's checkpoint of the same step still holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dpd.agents.base import part
from dpd.agents.learners import Learners
from dpd.checkpoint import read
from dpd.config import TrainConfig
from dpd.policyfile import Policy

Value = Callable[[Tensor], Tensor]
"""Raw observations [B, O] -> values [B] in raw reward units."""
ReadRun = Callable[[Path], TrainConfig]
"""Reads the settings of the run in a directory."""


def value_of(file: Path, policy: Policy, read_run: ReadRun) -> Value | None:
    """Return the value function that was learnt beside a policy file, if it is still there.

    None for a file that lies in no run, for students, which learn no values, and where the
    checkpoint of its step is gone: a run keeps the latest few, and the best. Raises BadInput or
    BadFile where settings or checkpoint can't be read.
    """
    said = policy.meta.provenance
    above = file.resolve().parents[1:3]  # RUN/policies/, or RUN/policies/history/
    run_dir = next((folder for folder in above if (folder / "config.json").is_file()), None)
    if run_dir is None or policy.meta.algo == "student":
        return None
    checkpoint = run_dir / "checkpoints" / f"step-{said.get('steps') or 0:012}.safetensors"
    if not checkpoint.is_file():
        return None
    config = read_run(run_dir)
    k, stack = next((k, s) for k, s in enumerate(config.stacks) if said["peer"] in s.peers)
    seeds = range(config.run.seed, config.run.seed + config.run.seeds)
    who = [(seed, peer) for seed in seeds for peer in stack.peers]
    agent: Learners = stack.algo.build(policy.meta.obs_dim, policy.meta.act_dim, who)
    state, _ = read(checkpoint)
    agent.load_state(part(state, f"training.stack{k}.agent"))
    n = who.index((said["seed"], said["peer"]))
    own = {k: x for k, x in agent.export(n).items() if k.startswith("actor.")}
    if not all(torch.equal(x, policy.tensors[name]) for name, x in own.items()):
        return None  # another policy has taken the file's place

    def value(obs: Tensor) -> Tensor:
        found = agent.ask(obs.unsqueeze(0).expand(len(who), *obs.shape)).value
        assert found is not None  # only students know none
        return found[n]

    return value
