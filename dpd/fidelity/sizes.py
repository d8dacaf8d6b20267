"""What a run's students came to, by their size: return retained, fidelity, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dpd import policyfile
from dpd.config import TrainConfig
from dpd.distill.teacher import Returns, Teacher
from dpd.evaluate import Outcome
from dpd.fidelity.audit import measured
from dpd.fidelity.measures import NEAR
from dpd.fidelity.states import HELD_OUT, Setting, visit, visit_together
from dpd.fidelity.subjects import Cost, Subject, cost
from dpd.files import replacing
from dpd.intervals import CONFIDENCE, Interval, mean_interval
from dpd.sheets import Sheet, shown

EPISODES, STATES_EACH = 4, 500  # at most, so that a student costs a second
FIGURES = {
    "return": "mean return of the episodes of the final table",
    "retained": "return above random actions, as a share of the teacher's",
    "agree": f"share of held-out states of the teacher with every action within {NEAR}",
    "own_error": "mean |difference| of actions on the student's states, in halves of their range",
    "latency_us": "median microseconds of an action for one observation, on one thread",
}


@dataclass(frozen=True, kw_only=True)
class Student:
    """A learner's last policy, and how closely it follows; with several teachers, their mean."""

    name: str
    size: str
    seed: int
    cost: Cost
    figures: dict[str, float | None]
    """By the names of FIGURES."""
    memory: bool = False
    """Whether it asks a memory of its teacher."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """All students of one algorithm and size."""

    name: str
    parameters: int
    """Their mean: some students may carry a memory, and others of the same size none."""
    compression: float
    """Parameters of all teachers together per parameter of the student."""
    students: list[Student]

    def of(self, figure: str) -> list[float]:
        """Return a figure of every seed, its students' mean, where it is known."""
        seeds: dict[int, list[float]] = {}
        for student in self.students:
            if (value := student.figures[figure]) is not None:
                seeds.setdefault(student.seed, []).append(value)
        return [float(np.mean(values)) for values in seeds.values()]

    def mean(self, figure: str) -> float | None:
        """Return a figure's mean over seeds."""
        found = self.of(figure)
        return float(np.mean(found)) if found else None

    def interval(self, figure: str) -> Interval | None:
        """Return the t interval of a figure's mean over seeds; None for less than two."""
        return mean_interval(self.of(figure))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything found, the smallest students first."""

    env_id: str
    n_states: int
    """In each set that students are compared on."""
    returns: Returns
    costs: list[Cost]
    """Of the teachers."""
    sizes: list[Size]


def by_size(
    config: TrainConfig, teacher: Teacher, files: Sequence[Path], outcomes: Sequence[Outcome]
) -> Sizes:
    """Compare a run's students with their teachers; `outcomes`: the returns they got."""
    run, returns = config.run, teacher.returns
    if returns is None:
        raise ValueError("the teachers' returns are not known; measure them first")
    episodes = min(EPISODES, run.final_episodes)
    setting = Setting(
        env_id=run.env,
        env_kwargs=run.parsed_env_kwargs(),
        episodes=episodes,
        n_states=episodes * STATES_EACH,
        seed=run.seed,
        threads=run.threads,
    )
    teachers = [Subject(name="teacher", policy=policy) for policy in teacher.policies]
    lessons = [
        (t, visit(setting, t.policy.repeatable_mode, setting.n_states, HELD_OUT).obs)
        for t in teachers
    ]
    subjects = [Subject(name=f.stem, policy=policyfile.load(f), file=f) for f in files]
    modes = [s.policy.repeatable_mode for s in subjects]
    visited = visit_together(setting, modes, setting.n_states)
    sizes: dict[str, list[Student]] = {}
    for subject, own, outcome in zip(subjects, visited, outcomes, strict=True):
        got = float(outcome.returns.mean())
        figures = {"return": got, "retained": returns.retained(got)}
        student = examine(subject, lessons, own.obs, figures)
        sizes.setdefault(student.size, []).append(student)
    costs = [cost(t) for t in teachers]
    whole = sum(each.parameters for each in costs)
    found = [sized(name, some, whole) for name, some in sizes.items()]
    found.sort(key=lambda size: size.parameters)
    return Sizes(
        env_id=run.env,
        n_states=setting.n_states,
        returns=returns,
        costs=costs,
        sizes=found,
    )


def examine(
    subject: Subject,
    lessons: Sequence[tuple[Subject, Tensor]],
    own: Tensor,
    figures: Mapping[str, float | None],
) -> Student:
    """Compare a student with each of its teachers, on held-out states of that and on its own."""
    agree = [measured(t, subject, obs).values[f"agree_{NEAR}"] for t, obs in lessons]
    error = [measured(t, subject, own).values["action_error"] for t, _ in lessons]
    spent, meta = cost(subject), subject.policy.meta
    measures = {"agree": mean(agree), "own_error": mean(error), "latency_us": spent.latency_us}
    return Student(
        name=subject.name,
        size="x".join(map(str, meta.hidden)) + f" {meta.algo}" * (meta.algo != "student"),
        seed=int(meta.provenance["seed"]),
        cost=spent,
        figures={**figures, **measures},
        memory=meta.memory is not None,
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def sized(name: str, students: list[Student], teachers_parameters: int) -> Size:
    """Put students of one size together."""
    own = round(float(np.mean([student.cost.parameters for student in students])))
    smaller = teachers_parameters / own
    return Size(name=name, parameters=own, compression=smaller, students=students)


def sizes_sheet(found: Sizes) -> Sheet:
    """Lay out a row per size, and the teacher."""
    several = any(len(size.of("return")) > 1 for size in found.sizes)
    columns = ["student", "params", "smaller", "µs", "return", "retained"]
    columns += ["95 %"] * several + [f"≤{NEAR}", "own error"]
    whole = sum(each.parameters for each in found.costs)
    took = shown(sum(each.latency_us for each in found.costs))
    row = ["teacher", f"{whole:,}", "1", took, shown(found.returns.teacher), "1"]
    rows = [row + ["-"] * several + ["1", "0"]]
    for size in found.sizes:
        head = [size.name, f"{size.parameters:,}", *map(shown, [size.compression])]
        figures = [size.mean(name) for name in ("latency_us", "return", "retained")]
        interval = [shown(size.interval("retained"))] * several
        fidelity = [shown(size.mean(name)) for name in ("agree", "own_error")]
        rows.append([*head, *map(shown, figures), *interval, *fidelity])
    n_seeds = max(len(size.of("return")) for size in found.sizes)
    seeds = f", means and t intervals of {n_seeds} seeds" if n_seeds > 1 else ""
    title = (
        f"{found.env_id}: students by size{seeds}; ≤{NEAR}: agreement on held-out states of the "
        "teacher; own error: of actions on the student's states"
    )
    return Sheet(title, columns, rows)


def notes(found: Sizes) -> list[str]:
    """Say what weakens the numbers."""
    said = []
    if found.returns.teacher <= found.returns.floor:
        said.append("the teacher is no better than random actions: nothing of it is to be retained")
    students = [student for size in found.sizes for student in size.students]
    if n := sum(student.memory for student in students):
        said.append(
            f"{n} of {len(students)} students ask a memory of their teacher, which is in their "
            "params and µs"
        )
    return said


def as_json(found: Sizes) -> dict[str, Any]:
    """Return everything measured."""
    returns = found.returns
    teachers = [
        {**each._asdict(), "returns": got}
        for each, got in zip(found.costs, returns.teachers, strict=True)
    ]
    return {
        "env": found.env_id,
        "states": found.n_states,
        "confidence": CONFIDENCE,
        "teachers": teachers,
        "random": {"return": returns.floor, "returns": returns.random},
        "sizes": [size_json(size) for size in found.sizes],
        "measures": FIGURES,
        "notes": notes(found),
    }


def size_json(size: Size) -> dict[str, Any]:
    """Return a size's figures, their t intervals over seeds, and those of every student."""
    return {
        "name": size.name,
        "parameters": size.parameters,
        "compression": size.compression,
        **{name: size.mean(name) for name in FIGURES},
        "intervals": {name: size.interval(name) for name in FIGURES},
        "students": [
            {
                "policy": s.name,
                "seed": s.seed,
                "memory": s.memory,
                **s.cost._asdict(),
                **s.figures,
            }
            for s in size.students
        ],
    }


def write_json(found: Sizes, path: Path) -> None:
    """Write everything measured."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(as_json(found), indent=2, allow_nan=False) + "\n")
