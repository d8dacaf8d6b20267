"""Learners of a run, read back from its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dpd.agents.base import LearnerId, State, part
from dpd.agents.learners import Learners
from dpd.agents.rng import with_own_generators
from dpd.config import StackConfig, TrainConfig
from dpd.distill.views import critic_columns
from dpd.envs.make import check
from dpd.policies.policyfile import Policy
from dpd.run.checkpoint import folder_of
from dpd.run.config import RunConfig

RunReader = Callable[[Path], TrainConfig]
"""Reads the settings of the run in a directory; passed in, because the command line owns it."""


def checkpoint_folder(run: RunConfig, run_dir: Path, seed: object) -> tuple[Path, range]:
    """Return the folder of the checkpoints that hold a seed, and all seeds in them.

    Each of several processes (`--workers` or torchrun) has its own folder.
    """
    if not folder_of(run_dir, 0).is_dir():
        return folder_of(run_dir, None), range(run.seed, run.seed + run.seeds)
    part = next((k for k in range(run.workers) if seed in run.seeds_of(k)), 0)
    return folder_of(run_dir, part), run.seeds_of(part)


def saved_learners(
    stack: StackConfig, k: int, ids: Sequence[LearnerId], state: State, policy: Policy
) -> Learners:
    """Return the learners of stack k in a checkpoint's state; `policy` is that of any of them."""
    meta, view = policy.meta, policy.meta.view
    # Learners of a stack differ in history alone.
    each = [] if view is None else [replace(view, history=h) for h in stack.histories]
    views = each * (len(ids) // len(stack.peers))
    seen: list[int] = []
    if (text := getattr(stack.algo, "critic_obs", "actor")) not in ("actor", "all"):
        seen = critic_columns(text, check(meta.env_id, env_kwargs=meta.env_kwargs))
    sizes = meta.obs_dim, meta.act_dim
    agent: Learners = stack.algo.build(*sizes, ids, views=views, critic_columns=seen)
    # Keep the new generators: nothing is drawn here, and the state of a GPU's would not fit.
    agent.load_state(with_own_generators(part(state, f"training.stack{k}.agent"), agent.state()))
    return agent


def has_actor(agent: Learners, n: int, policy: Policy) -> bool:
    """Return True if learner n's network is that of a policy file."""
    parts = ("encoder.", "actor.")
    own = {name: x for name, x in agent.export(n).items() if name.startswith(parts)}
    theirs = policy.tensors
    return all(name in theirs and torch.equal(x, theirs[name]) for name, x in own.items())
