"""Policies to compare: read them, measure their cost, and look up more about them in their runs.

The checkpoint of a policy's step holds the learner's value function or the states that a student
was trained on. A run keeps its latest few checkpoints and the best one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.agents.config import View
from dpd.agents.dist import DiagGaussian
from dpd.agents.learners import Learners
from dpd.agents.student import Student
from dpd.errors import BadInput
from dpd.fidelity.latency import PYTHON, latencies, one_thread, seconds_per_call
from dpd.fidelity.states import draw_rows
from dpd.policies.policyfile import Policy
from dpd.run.checkpoint import JournalFiles, file_of, read
from dpd.run.saved import RunReader, checkpoint_folder, has_actor, saved_learners
from dpd.run.sources import Place, load_together, one_policy, require_place, short_names

if TYPE_CHECKING:
    from dpd.fidelity.config import FidelityConfig

ValueFunction = Callable[[Tensor], Tensor]
"""Raw observations [B, O] -> values [B] in raw reward units."""


class RunLookup(NamedTuple):
    """Data about a policy from a checkpoint of its run."""

    value: ValueFunction | None = None
    """The learner's value function; None for students."""
    states: Tensor | None = None
    """Training states in a student's replay: raw [n, O], or wide ones of a student with a view."""


def look_up_run(file: Path, policy: Policy, read_run: RunReader) -> RunLookup:
    """Return the value function or training states of a policy file, from its run.

    Both are None if the file lies in no run or the checkpoint of its step is gone. Raises BadInput
    or BadFile if the settings or the checkpoint can't be read.
    """
    view = policy.meta.view
    if view is not None and view.has_noise:
        return RunLookup()  # what it learned from was seen with noise, which would come twice
    if policy.meta.memory_dim:
        return RunLookup()  # stored memories are those of the networks of their time
    steps, seed, peer = (policy.meta.provenance.get(k) for k in ("steps", "seed", "peer"))
    above = file.resolve().parents[1:3]  # RUN/policies/, or RUN/policies/history/
    run_dir = next((folder for folder in above if (folder / "config.json").is_file()), None)
    if run_dir is None or not isinstance(steps, int):
        return RunLookup()
    if not any(run_dir.glob(f"checkpoints/**/{file_of(run_dir, steps).name}")):
        return RunLookup()
    config = read_run(run_dir)
    folder, seeds = checkpoint_folder(config.run, run_dir, seed)
    members = [[(s, p) for s in seeds for p in stack.peers] for stack in config.stacks]
    k = next((k for k, who in enumerate(members) if (seed, peer) in who), None)
    checkpoint = file_of(folder, steps)
    if k is None or not checkpoint.is_file():
        return RunLookup()  # the file comes from another run
    stack, who = config.stacks[k], members[k]
    state, facts = read(checkpoint)
    agent = saved_learners(stack, k, who, state, policy)
    n = next(row for row, each in enumerate(who) if each == (seed, peer))
    if not has_actor(agent, n, policy):
        return RunLookup()  # the file was replaced by another policy
    if isinstance(agent, Student):
        journal = JournalFiles(folder, k)
        states = remembered_states(agent, n, journal, facts.replay)
        return RunLookup(states=states if view is None else with_frames(view, states))
    return RunLookup(value=lambda obs: learner_values(agent, n, obs))


def learner_values(agent: Learners, n: int, obs: Tensor) -> Tensor:
    """Return learner n's values of raw observations [B, O] -> [B]."""
    values = agent.ask(obs.expand(agent.n_learners, *obs.shape)).value
    assert values is not None  # only students have none
    return values[n]


def remembered_states(agent: Student, n: int, files: JournalFiles, names: list[str]) -> Tensor:
    """Return the states [n, O] in student n's replay, raw or wide, which the named files hold."""
    begin, segments = files.read(names)
    agent.replay.restart(begin)
    for rows in segments:
        agent.replay.extend(rows)
    back = torch.arange(int(agent.replay.live[n])).unsqueeze(0)
    return agent.replay.states(torch.full_like(back, n), back)[0]


def with_frames(view: View, wide: Tensor) -> Tensor:
    """Turn a replay's wide states, raw with what was seen behind, into those that `seen_at` reads.

    What the view does not show of earlier frames is 0.
    """
    raw, seen = wide[:, : view.obs_dim], wide[:, view.obs_dim : view.obs_dim + view.dim]
    width = view.obs_dim + view.act_dim
    frames = raw.new_zeros(len(raw), view.reach * width)
    frames[:, -width : frames.shape[1] - view.act_dim] = raw  # for a teacher with a view
    frames[:, view.places(view.reach)] = seen
    return torch.cat([raw, frames], 1)


TIMING_BATCH = 256
BATCH_CALLS = 30


class PolicyOutputs(NamedTuple):
    """Outputs of a policy on n states."""

    act: Tensor  # [n, A] without noise, in [-1, 1]
    dist: DiagGaussian  # mean [n, A]
    features: Tensor  # [n, H], the last hidden layer
    value: Tensor | None = None  # [n]


@dataclass(frozen=True, kw_only=True)
class ComparedPolicy:
    """A policy to compare, with its value function and training states if they are known."""

    name: str
    policy: Policy
    file: Path | None = None
    value: ValueFunction | None = None
    """None: unknown."""
    train: Tensor | None = None
    """States it was distilled on, raw [n, O] or with frames behind; None: unknown."""
    is_floor: bool = False
    """True for the policy that was trained without this teacher."""
    memory_at: int | None = None
    """Column of wide states at which a recurrent policy's memory begins."""

    @torch.no_grad()
    def outputs(self, obs: Tensor) -> PolicyOutputs:
        """Return the policy's outputs on raw states [n, O], or on wide ones."""
        raw, seen = obs[:, : self.policy.meta.obs_dim], self.sees(obs)
        dist = self.policy.dist(seen)
        known = raw if self.policy.meta.view is None else torch.cat([raw, seen.flatten(1)], 1)
        value = None if self.value is None else self.value(known)  # learners store wide states
        return PolicyOutputs(dist.mode(), dist, self.policy.features(seen), value)

    def sees(self, obs: Tensor) -> Tensor:
        """Return what the policy reads in raw states [n, O] or in wide ones, as `Policy.dist` says.

        Observations are in raw units.
        """
        meta = self.policy.meta
        if meta.view is None:
            return obs[:, : meta.obs_dim]
        seen = seen_at(self.policy, obs)
        if not meta.memory_dim:
            return seen
        assert self.memory_at is not None
        memory = obs[:, self.memory_at : self.memory_at + meta.memory_dim]
        return torch.cat([seen.flatten(1), memory], 1)

    @property
    def origin(self) -> dict[str, Any]:
        """Describe the policy's file and training, for JSON."""
        meta, file = self.policy.meta, self.file
        return {
            "name": self.name,
            "file": file and str(file),
            "sha256": file and hashlib.sha256(file.read_bytes()).hexdigest(),
            "algo": meta.algo,
            "env": meta.env_id,
            "hidden": list(meta.hidden),
            "provenance": meta.provenance,
        }


def with_memories(compared: Sequence[ComparedPolicy]) -> list[ComparedPolicy]:
    """Return policies that know the places of their memories in states of `visit_together`."""
    placed, column = [], compared[0].policy.meta.obs_dim
    for subject in compared:
        size = subject.policy.meta.memory_dim
        placed.append(replace(subject, memory_at=column) if size else subject)
        column += size
    return placed


def seen_at(policy: Policy, obs: Tensor) -> Tensor:
    """Return the stacks [n, H, G] that a policy with a view sees at wide states, with its noise.

    The last columns of a state are the last frames of its episode (`visit_together`). They may be
    missing if the view needs no more than the observation.
    """
    view = policy.meta.view
    assert view is not None
    if view.is_memoryless and obs.shape[1] == view.obs_dim:
        obs = torch.cat([obs, obs, obs.new_zeros(len(obs), view.act_dim)], 1)
    width = view.obs_dim + view.act_dim
    frames = obs[:, -view.reach * width :].unflatten(1, (-1, width))
    seen = policy.seen_in(frames)
    if view.has_noise:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(*seen.shape[:2], len(view.noise), generator=generator)
        seen[..., : len(view.noise)] += noise * torch.tensor(view.noise)
    return seen


class Cost(NamedTuple):
    """Size and speed of a policy."""

    parameters: int
    bytes: int | None
    latency_us: float
    """Median microseconds per action for one observation in Python, on one thread."""
    actions_per_s: float
    """Actions per second in batches of 256, on one thread."""
    runtimes_us: dict[str, float]
    """The same in every runtime that is installed: ONNX Runtime, TorchScript, C."""


def measure_cost(subject: ComparedPolicy) -> Cost:
    """Measure a policy's parameters, file size and speed."""
    n_bytes = None if subject.file is None else subject.file.stat().st_size
    obs = np.zeros((TIMING_BATCH, *subject.policy.meta.input_shape), np.float32)
    with one_thread():
        batch = seconds_per_call(lambda: subject.policy.act_flat(obs), BATCH_CALLS)
    speeds = latencies(subject.policy)
    python = speeds.pop(PYTHON)
    return Cost(n_parameters(subject.policy), n_bytes, python, TIMING_BATCH / batch, speeds)


def n_parameters(policy: Policy) -> int:
    """Count a policy's parameters: network, deviation and memory, not normaliser or bounds."""
    learned = ("encoder.", "actor.", "log_std", "memory.")
    return sum(t.numel() for name, t in policy.tensors.items() if name.startswith(learned))


def read_teacher_and_students(
    config: FidelityConfig, read_run: RunReader
) -> tuple[ComparedPolicy, list[ComparedPolicy], Place]:
    """Return the teacher, its students with the floor last, and the environment they act in.

    Raises BadInput or NotAPolicy if a policy can't be read or does not fit the teacher's
    environment.
    """
    floor = () if config.floor is None else (config.floor,)
    paths = (config.teacher, *config.students, *floor)
    files = [one_policy(path) for path in paths]
    names = short_policy_names(paths, len(config.students))
    policies, place = load_together(names, files, config.foreign)
    given = read_states(config.train_states, policies[0]) if config.train_states else None
    compared = []
    for k, (name, file, policy) in enumerate(zip(names, files, policies, strict=True)):
        if k and config.foreign.env_kwargs is None:
            require_place(name, policy, place, f"{names[0]}, its teacher, acts in")
        require_same_spaces(names[0], policies[0], name, policy)
        if k and given is not None:
            require_no_memory(name, policy)
        value, train = look_up_run(file, policy, read_run)
        if train is not None:
            train = draw_rows(train, config.states, torch.Generator().manual_seed(config.seed))
        is_floor = k > len(config.students)
        train = None if is_floor else train if given is None else given
        subject = ComparedPolicy(
            name=name, policy=policy, file=file, value=value, train=train, is_floor=is_floor
        )
        compared.append(subject)
    teacher, *students = with_memories(compared)
    return teacher, students, place


def short_policy_names(paths: Sequence[Path], n_students: int) -> list[str]:
    """Return short names; the teacher may be its own student, but no student is given twice."""
    short_names(paths[1 : 1 + n_students])  # refuses a student that is given twice
    once = list({path.resolve(): path for path in paths}.values())
    names = dict(zip((p.resolve() for p in once), short_names(once), strict=True))
    return [names[path.resolve()] for path in paths]


def read_states(path: Path, policy: Policy) -> Tensor:
    """Read raw observations [n, O] from an .npy. Raises BadInput if it holds anything else."""
    n_obs = policy.meta.obs_dim
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path} is not an .npy file of states: {error}") from error
    is_good = isinstance(array, np.ndarray) and array.dtype.kind in "fiu"
    if not is_good or array.ndim != 2 or array.shape[1] != n_obs or len(array) < 2:
        raise BadInput(f"{path} must hold numbers [states, {n_obs}], at least two states")
    states = torch.as_tensor(array.astype(np.float32))
    if not states.isfinite().all():
        raise BadInput(f"{path} holds NaN or infinity")
    return states


def require_no_memory(name: str, policy: Policy) -> None:
    """Raise BadInput if single observations do not tell what a student sees."""
    if policy.meta.needs_episode:
        raise BadInput(
            f"{name} sees more than one observation (a history, a delay or its last action), which "
            "--train-states does not hold: leave it out, or audit this student apart"
        )


def require_same_spaces(teacher: str, other: Policy, student: str, policy: Policy) -> None:
    """Raise BadInput unless a student has its teacher's (`other`) observations and actions."""
    t, s = other.meta, policy.meta
    if (t.obs_dim, t.act_dim) != (s.obs_dim, s.act_dim):
        raise BadInput(
            f"{student} reads {s.obs_dim} observations and gives {s.act_dim} actions; "
            f"its teacher {teacher} reads {t.obs_dim} and gives {t.act_dim}"
        )
    for name in ("act_low", "act_high"):
        if not torch.allclose(other.tensors[name], policy.tensors[name]):
            raise BadInput(f"{student} has different action bounds than {teacher}")
