"""What a run's students came to, by their size: return retained, fidelity, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from torch import Tensor

from dpd.config import TrainConfig
from dpd.distill.teacher import Returns, Teacher
from dpd.fidelity.audit import measured
from dpd.fidelity.measures import NEAR
from dpd.fidelity.policies import Cost, Subject, cost, one_thread
from dpd.fidelity.states import HELD_OUT, Setting, visit, visit_together
from dpd.files import replacing
from dpd.policies import policyfile
from dpd.report.figures import COLOURS, GREY, INK, head, unframe
from dpd.report.stats import CONFIDENCE, Interval, mean_interval
from dpd.report.tables import Sheet, print_sheets, shown
from dpd.run.episodes import EvalResult
from dpd.run.summary import FIDELITY, STUDENTS, title
from dpd.run.teachers import kept_teacher

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    config: TrainConfig, teacher: Teacher, files: Sequence[Path], outcomes: Sequence[EvalResult]
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


RETURN, AGREE = "return", "agree"
TITLES = {
    RETURN: "return per episode",
    AGREE: f"held-out states with every action within {NEAR}",
}
LABELS = {"parameters": "parameters", "latency_us": "microseconds per action, one thread"}


def draw_sizes(found: Sizes, out_png: Path, title: str) -> None:
    """Draw return and agreement of every size, its seeds faintly, and the teacher's."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.09, wspace=0.04, hspace=0.05)
    figure = Figure(figsize=(10.4, 6.8), dpi=200, layout=layout)
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, figure_name in enumerate(TITLES):
        for column, axis in enumerate(LABELS):
            draw(panels[row, column], found, figure_name, axis)
    for column, label in enumerate(LABELS.values()):
        panels[1, column].set_xlabel(label, color=INK, fontsize=10)
    for row, text in enumerate(TITLES.values()):
        panels[row, 0].set_ylabel(text, color=INK, fontsize=10)
    seeds = max(len(size.of(RETURN)) for size in found.sizes)
    means = f"means of {seeds} seeds, faint: each seed; " if seeds > 1 else ""
    head(panels[0, 0], title, f"{means}dashed: the teacher")
    with replacing(out_png) as draft:
        figure.savefig(draft, format="png")


def draw(axes: Axes, found: Sizes, figure: str, cost: str) -> None:
    """Draw one figure of every size over one of its costs."""
    for k, size in enumerate(found.sizes):
        value, colour = size.mean(figure), COLOURS[k % (len(COLOURS) - 1)]
        if value is None:
            continue
        seeds = size.of(figure)
        faint = {"color": colour, "s": 14, "alpha": 0.35, "linewidths": 0}
        axes.scatter([place(size, cost)] * len(seeds), seeds, **faint)  # type: ignore[arg-type]
        axes.scatter([place(size, cost)], [value], color=colour, s=46, zorder=3)
        if cost == "parameters":  # latencies lie too close; the colour says which it is
            place_of = (size.parameters, value)
            look = {"fontsize": 8.5, "color": colour, "textcoords": "offset points"}
            axes.annotate(size.name, place_of, xytext=(6, 5), **look)  # type: ignore[arg-type]
    axes.axhline(
        found.returns.teacher if figure == RETURN else 1.0,
        color=GREY,
        linewidth=0.9,
        linestyle=(0, (4, 3)),
        zorder=1,
    )
    finish(axes, cost)


def place(size: Size, cost: str) -> float:
    """Return where a size stands on an axis of costs."""
    return size.parameters if cost == "parameters" else size.mean(cost) or 0.0


def finish(axes: Axes, cost: str) -> None:
    """Take away the frame, and spread parameters by their logarithm."""
    unframe(axes)
    axes.margins(x=0.15)
    if cost == "parameters":
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_xlim(0, 1.15 * axes.dataLim.x1)


def report_students(
    config: TrainConfig, run_dir: Path, last: Mapping[Path, EvalResult], console: Console
) -> None:
    """Compare students with their teacher by size: a table, fidelity.json, and a picture.

    `last` are the outcomes of the students' last policies.
    """
    with console.status("comparing the students with their teacher"), one_thread():
        found = by_size(config, kept_teacher(run_dir), list(last), list(last.values()))
    print_sheets([sizes_sheet(found)], notes(found), console)
    write_json(found, run_dir / FIDELITY)
    if len(found.sizes) > 1:
        draw_sizes(found, run_dir / STUDENTS, title(config))
