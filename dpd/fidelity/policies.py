"""Policies to compare: read them, measure their cost, and look up more about them in their runs.

The checkpoint of a policy's step holds the learner's value function or the states that a student
was trained on. A run keeps its latest few checkpoints and the best one.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import part
from dpd.agents.learners import Learners
from dpd.agents.rng import with_own_generators
from dpd.agents.student import Student
from dpd.config import RunConfig, TrainConfig
from dpd.errors import BadInput
from dpd.fidelity.measures import PolicyOutputs
from dpd.fidelity.states import draw_rows
from dpd.policies.policyfile import Policy
from dpd.run.checkpoint import JournalFiles, file_of, folder_of, read
from dpd.run.sources import (
    Place,
    is_zip,
    load_any,
    one_policy,
    place_of,
    refuse_shared_statistics,
    require_place,
    short_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpd.config import ForeignConfig
    from dpd.fidelity.config import FidelityConfig

ValueFunction = Callable[[Tensor], Tensor]
"""Raw observations [B, O] -> values [B] in raw reward units."""
RunReader = Callable[[Path], TrainConfig]
"""Reads the settings of the run in a directory; passed in, because the command line owns it."""


class RunLookup(NamedTuple):
    """Data about a policy from a checkpoint of its run."""

    value: ValueFunction | None = None
    """The learner's value function; None for students."""
    states: Tensor | None = None  # [n, O] raw training states in a student's replay


def look_up_run(file: Path, policy: Policy, read_run: RunReader) -> RunLookup:
    """Return the value function or training states of a policy file, from its run.

    Both are None if the file lies in no run or the checkpoint of its step is gone. Raises BadInput
    or BadFile if the settings or the checkpoint can't be read.
    """
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
    agent: Learners = stack.algo.build(policy.meta.obs_dim, policy.meta.act_dim, who)
    state, facts = read(checkpoint)
    # Keep the new generators: nothing is drawn here, and the state of a GPU's would not fit.
    agent.load_state(with_own_generators(part(state, f"training.stack{k}.agent"), agent.state()))
    n = next(row for row, each in enumerate(who) if each == (seed, peer))
    own = {name: x for name, x in agent.export(n).items() if name.startswith("actor.")}
    theirs = policy.tensors
    if not all(name in theirs and torch.equal(x, theirs[name]) for name, x in own.items()):
        return RunLookup()  # the file was replaced by another policy
    if isinstance(agent, Student):
        segments = JournalFiles(folder, k).read(facts.replay)
        return RunLookup(states=remembered_states(agent, n, *segments))
    return RunLookup(value=lambda obs: learner_values(agent, n, obs))


def checkpoint_folder(run: RunConfig, run_dir: Path, seed: object) -> tuple[Path, range]:
    """Return the folder of the checkpoints that hold a seed, and all seeds in them.

    Each of several processes (`--workers` or torchrun) has its own folder.
    """
    if not folder_of(run_dir, 0).is_dir():
        return folder_of(run_dir, None), range(run.seed, run.seed + run.seeds)
    part = next((k for k in range(run.workers) if seed in run.seeds_of(k)), 0)
    return folder_of(run_dir, part), run.seeds_of(part)


def learner_values(agent: Learners, n: int, obs: Tensor) -> Tensor:
    """Return learner n's values of raw observations [B, O] -> [B]."""
    values = agent.ask(obs.unsqueeze(0).expand(agent.n_learners, *obs.shape)).value
    assert values is not None  # only students have none
    return values[n]


def remembered_states(agent: Student, n: int, begin: int, segments: list[Tensor]) -> Tensor:
    """Return the raw states [n, O] in student n's replay, given its stack's segments."""
    agent.replay.restart(begin)
    for rows in segments:
        agent.replay.extend(rows)
    back = torch.arange(int(agent.replay.live[n])).unsqueeze(0)
    return agent.replay.states(torch.full_like(back, n), back)[0]


TIMING_BATCH = 256
SINGLE_CALLS, BATCH_CALLS, WARM_UP = 200, 30, 20


@dataclass(frozen=True, kw_only=True)
class ComparedPolicy:
    """A policy to compare, with its value function and training states if they are known."""

    name: str
    policy: Policy
    file: Path | None = None
    value: Callable[[Tensor], Tensor] | None = None
    """Value function in raw reward units, obs [B, O] -> [B]; None: unknown."""
    train: Tensor | None = None
    """Raw states [n, O] it was distilled on; None: unknown."""
    is_floor: bool = False
    """True for the policy that was trained without this teacher."""

    @torch.no_grad()
    def outputs(self, obs: Tensor) -> PolicyOutputs:
        """Return the policy's outputs on raw states [n, O]."""
        dist = self.policy.dist(obs)
        value = None if self.value is None else self.value(obs)
        return PolicyOutputs(dist.mode(), dist, self.policy.features(obs), value)

    @property
    def origin(self) -> dict[str, Any]:
        """Describe the policy's file and training, for JSON."""
        meta, digest = self.policy.meta, None
        if self.file is not None:
            digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        return {
            "name": self.name,
            "file": None if self.file is None else str(self.file),
            "sha256": digest,
            "algo": meta.algo,
            "env": meta.env_id,
            "hidden": list(meta.hidden),
            "provenance": meta.provenance,
        }


class Cost(NamedTuple):
    """Size and speed of a policy."""

    parameters: int
    bytes: int | None
    latency_us: float
    """Median microseconds per action for one observation, on one thread."""
    actions_per_s: float
    """Actions per second in batches of 256, on one thread."""


def measure_cost(subject: ComparedPolicy) -> Cost:
    """Measure a policy's parameters, file size and speed."""
    n_bytes = None if subject.file is None else subject.file.stat().st_size
    obs = np.zeros((TIMING_BATCH, subject.policy.meta.obs_dim), np.float32)
    with one_thread():
        single = median_seconds(subject.policy, obs[:1], SINGLE_CALLS)
        batch = median_seconds(subject.policy, obs, BATCH_CALLS)
    return Cost(n_parameters(subject.policy), n_bytes, 1e6 * single, TIMING_BATCH / batch)


def n_parameters(policy: Policy) -> int:
    """Count a policy's parameters: network, deviation and memory, not normaliser or bounds."""
    learned = ("actor.", "log_std", "memory.")
    return sum(t.numel() for name, t in policy.tensors.items() if name.startswith(learned))


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def median_seconds(policy: Policy, obs: np.ndarray, calls: int) -> float:
    """Time `policy.act_flat`; the median resists disturbance by other programs."""
    times = []
    for _ in range(WARM_UP + calls):
        start = time.perf_counter()
        policy.act_flat(obs)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


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
    refuse_shared_statistics(files, config.foreign)
    names = short_policy_names(paths, len(config.students))
    policies, place = load_where_teacher_acts(names, files, config.foreign)
    compared = []
    for k, (name, file, policy) in enumerate(zip(names, files, policies, strict=True)):
        value, states = look_up_run(file, policy, read_run)
        is_floor = k > len(config.students)
        if states is not None:
            generator = torch.Generator().manual_seed(config.seed)
            states = None if is_floor else draw_rows(states, config.states, generator)
        compared.append(
            ComparedPolicy(
                name=name, policy=policy, file=file, value=value, train=states, is_floor=is_floor
            )
        )
    teacher, *students = compared
    if config.train_states:
        train = read_states(config.train_states, teacher)
        students = [s if s.is_floor else replace(s, train=train) for s in students]
    for student in students:
        require_same_spaces(teacher, student)
    return teacher, students, place


def load_where_teacher_acts(
    names: Sequence[str], files: Sequence[Path], foreign: ForeignConfig
) -> tuple[list[Policy], Place]:
    """Load the teacher, then its students, and return the teacher's environment.

    Raises BadInput if a student was trained elsewhere, unless `foreign` gives the arguments.
    """
    has_kwargs, has_zip = foreign.env_kwargs is not None, any(map(is_zip, files))
    policies: list[Policy] = []
    for name, file in zip(names, files, strict=True):
        policy = load_any(file, foreign if is_zip(file) or not has_zip else foreign.without_zip)
        if not policies:
            place = place_of(name, policy, foreign)
            # a zip does not name its environment; use the teacher's
            kwargs = json.dumps(place.env_kwargs)
            foreign = replace(foreign, env=place.env_id, env_kwargs=kwargs)
        elif not has_kwargs:
            require_place(name, policy, place, f"{names[0]}, its teacher, acts in")
        policies.append(policy)
    return policies, place


def short_policy_names(paths: Sequence[Path], n_students: int) -> list[str]:
    """Return short names; the teacher may be its own student, but no student is given twice."""
    short_names(paths[1 : 1 + n_students])  # refuses a student that is given twice
    once = list({path.resolve(): path for path in paths}.values())
    names = dict(zip((p.resolve() for p in once), short_names(once), strict=True))
    return [names[path.resolve()] for path in paths]


def read_states(path: Path, teacher: ComparedPolicy) -> Tensor:
    """Read raw observations [n, O] from an .npy. Raises BadInput if it holds anything else."""
    n_obs = teacher.policy.meta.obs_dim
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


def require_same_spaces(teacher: ComparedPolicy, student: ComparedPolicy) -> None:
    """Raise BadInput unless a student has the teacher's observations and actions."""
    t, s = teacher.policy.meta, student.policy.meta
    if (t.obs_dim, t.act_dim) != (s.obs_dim, s.act_dim):
        raise BadInput(
            f"{student.name} reads {s.obs_dim} observations and gives {s.act_dim} actions; "
            f"its teacher {teacher.name} reads {t.obs_dim} and gives {t.act_dim}"
        )
    for name in ("act_low", "act_high"):
        if not torch.allclose(teacher.policy.tensors[name], student.policy.tensors[name]):
            raise BadInput(f"{student.name} has different action bounds than {teacher.name}")
