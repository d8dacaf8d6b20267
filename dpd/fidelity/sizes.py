"""Comparison of a run's students by size: retained return, fidelity and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from torch import Tensor

from dpd.config import TrainConfig
from dpd.distill.teacher import Returns, Teacher
from dpd.envs.make import check
from dpd.fidelity.audit import NEAR, NOTHING_TO_RETAIN, compare_policies
from dpd.fidelity.policies import ComparedPolicy, Cost, measure_cost, one_thread, with_memories
from dpd.fidelity.states import (
    HELD_OUT,
    AuditSettings,
    frames_needed,
    recurrent_ones,
    visit,
    visit_together,
)
from dpd.files import replacing
from dpd.policies import policyfile
from dpd.policies.playing import Playing
from dpd.report.figures import (
    DASHED,
    GREY,
    INK,
    line_style,
    new_figure,
    save_png,
    set_title,
    style_axes,
    thousands,
)
from dpd.report.report import Report, Section, Table, format_number, json_text, print_report
from dpd.report.stats import CONFIDENCE, Interval, mean_interval
from dpd.run.episodes import EvalResult
from dpd.run.summary import FIDELITY, STUDENTS, title
from dpd.run.teachers import kept_teacher

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_EPISODES, STATES_EACH = 4, 500  # upper limits: a student takes about a second
SIZE_FIGURES = {
    "return": "mean return in the final evaluation",
    "retained": "return above random actions, as a share of the teacher's",
    "agree": f"share of held-out states of the teacher with every action within {NEAR}",
    "own_error": "mean |difference| of actions on the student's states, in half ranges",
    "latency_us": "median microseconds per action for one observation in Python, on one thread",
    "c_latency_us": "the same in C, if there is a C compiler",
}


@dataclass(frozen=True, kw_only=True)
class StudentResult:
    """Measurements of a learner's last policy, averaged over its teachers."""

    name: str
    size: str
    seed: int
    cost: Cost
    figures: dict[str, float | None]
    """By the names of SIZE_FIGURES."""
    memory: bool = False
    """True if it queries a memory of its teacher."""
    history: int = 1
    """Frames that it sees."""

    def as_json(self) -> dict[str, Any]:
        """Return everything but the size."""
        own = {"policy": self.name, "seed": self.seed, "memory": self.memory}
        own |= {"history": self.history} if self.history > 1 else {}
        return own | self.cost._asdict() | self.figures


class SizeGroup(NamedTuple):
    """All students of one algorithm, size and length of history."""

    name: str
    students: list[StudentResult]
    teachers_parameters: int
    """Of all teachers together."""

    @property
    def parameters(self) -> int:
        """Mean over the students, of which some may have a memory."""
        return round(float(np.mean([student.cost.parameters for student in self.students])))

    @property
    def compression(self) -> float:
        """Parameters of all teachers together, divided by those of a student."""
        return self.teachers_parameters / self.parameters

    def cost(self, name: str) -> float:
        """Return the parameters, the frames that students see, or the mean of another cost."""
        if name == "history":
            return self.students[0].history
        return self.parameters if name == "parameters" else self.mean(name) or 0.0

    def per_seed(self, figure: str) -> list[float]:
        """Return a figure for each seed that has it, averaged over the seed's students."""
        seeds: dict[int, list[float]] = {}
        for student in self.students:
            if (value := student.figures[figure]) is not None:
                seeds.setdefault(student.seed, []).append(value)
        return [float(np.mean(values)) for values in seeds.values()]

    def mean(self, figure: str) -> float | None:
        """Return a figure's mean over seeds."""
        return mean_of_known(self.per_seed(figure))

    def interval(self, figure: str) -> Interval | None:
        """Return the t interval of a figure's mean over seeds; None with fewer than two."""
        return mean_interval(self.per_seed(figure))


@dataclass(frozen=True, kw_only=True)
class SizeComparison:
    """Students by size, the smallest first, and their teachers."""

    env_id: str
    n_states: int
    """States in each set on which students are compared."""
    returns: Returns
    costs: list[Cost]
    """Costs of the teachers."""
    sizes: list[SizeGroup]


def compare_sizes(
    config: TrainConfig, teacher: Teacher, files: Sequence[Path], outcomes: Sequence[EvalResult]
) -> SizeComparison:
    """Compare a run's students with their teachers; `outcomes`: their final evaluations."""
    run, returns = config.run, teacher.returns
    if returns is None:
        raise ValueError("the teachers' returns are unknown; measure them first")
    episodes = min(MAX_EPISODES, config.evaluation.final_episodes)
    settings = AuditSettings(
        env_id=run.env,
        env_kwargs=run.parsed_env_kwargs(),
        episodes=episodes,
        n_states=episodes * STATES_EACH,
        seed=run.seed,
        threads=run.threads,
    )
    teachers = [ComparedPolicy(name="teacher", policy=policy) for policy in teacher.policies]
    subjects = [ComparedPolicy(name=f.stem, policy=policyfile.load(f), file=f) for f in files]
    subjects = with_memories(subjects)
    policies = [s.policy for s in subjects]
    settings = replace(settings, frames=frames_needed(policies), recurrent=recurrent_ones(policies))
    lessons = teachers_states(settings, teacher, teachers)
    modes = [Playing(s.policy) for s in subjects]
    visited = visit_together(settings, modes, settings.n_states)
    sizes: dict[str, list[StudentResult]] = {}
    for subject, own, outcome in zip(subjects, visited, outcomes, strict=True):
        got = float(outcome.returns.mean())
        figures = {"return": got, "retained": returns.retained(got)}
        taught = [(t, states_of(teacher, k, own.obs)) for k, t in enumerate(teachers)]
        student = compare_student(subject, lessons, taught, figures)
        sizes.setdefault(student.size, []).append(student)
    costs = [measure_cost(t) for t in teachers]
    whole = sum(cost.parameters for cost in costs)
    groups = [SizeGroup(name, students, whole) for name, students in sizes.items()]
    return SizeComparison(
        env_id=run.env,
        n_states=settings.n_states,
        returns=returns,
        costs=costs,
        sizes=sorted(groups, key=lambda group: group.parameters),
    )


def states_of(teacher: Teacher, k: int, obs: Tensor) -> Tensor:
    """Return those of raw obs [n, O] that teacher k answers; without a route, each answers all."""
    return obs if teacher.route is None else obs[teacher.pick(obs[:, 0], obs) == k]


def teachers_states(
    settings: AuditSettings, teacher: Teacher, teachers: Sequence[ComparedPolicy]
) -> list[tuple[ComparedPolicy, Tensor]]:
    """Play each teacher's held-out episodes; teachers with a route play the same ones together."""
    n = settings.n_states
    if teacher.route is not None:
        obs = visit(settings, teacher.routed_mode, n, HELD_OUT).obs
        return [(t, states_of(teacher, k, obs)) for k, t in enumerate(teachers)]
    return [(t, visit(settings, Playing(t.policy), n, HELD_OUT).obs) for t in teachers]


def compare_student(
    subject: ComparedPolicy,
    lessons: Sequence[tuple[ComparedPolicy, Tensor]],
    own: Sequence[tuple[ComparedPolicy, Tensor]],
    figures: Mapping[str, float | None],
) -> StudentResult:
    """Compare a student with each teacher, on that teacher's held-out states and on its own."""
    held_out, visited = [[(t, obs) for t, obs in each if len(obs)] for each in (lessons, own)]
    agree = [compare_policies(t, subject, obs).values[f"agree_{NEAR}"] for t, obs in held_out]
    error = [compare_policies(t, subject, obs).values["action_error"] for t, obs in visited]
    cost, meta = measure_cost(subject), subject.policy.meta
    measures = {"agree": mean_of_known(agree), "own_error": mean_of_known(error)}
    history = 1 if meta.view is None else meta.view.history
    return StudentResult(
        name=subject.name,
        size="x".join(map(str, meta.hidden))
        + f" {meta.algo}" * (meta.algo != "student")
        + f", {history} frames" * (history > 1)
        + ("" if meta.encoder is None else f", {meta.encoder.kind} {meta.encoder.size}"),
        seed=int(meta.provenance["seed"]),
        cost=cost,
        figures={
            **figures,
            **measures,
            "latency_us": cost.latency_us,
            "c_latency_us": cost.runtimes_us.get("C"),
        },
        memory=meta.memory is not None,
        history=history,
    )


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def sizes_table(comparison: SizeComparison) -> Table:
    """Tabulate the teacher and one row per size."""
    several = any(len(size.per_seed("return")) > 1 for size in comparison.sizes)
    columns = ["student", "params", "smaller", "µs", "µs in C", "return", "retained"]
    columns += ["95 %"] * several + [f"≤{NEAR}", "own error"]
    whole = sum(each.parameters for each in comparison.costs)
    in_c = [cost.runtimes_us["C"] for cost in comparison.costs if "C" in cost.runtimes_us]
    all_in_c = sum(in_c) if len(in_c) == len(comparison.costs) else None
    took = (sum(each.latency_us for each in comparison.costs), all_in_c, comparison.returns.teacher)
    row = ["teacher", f"{whole:,}", "1", *map(format_number, took), "1"]
    rows = [row + ["-"] * several + ["1", "0"]]
    for size in comparison.sizes:
        head = [size.name, f"{size.parameters:,}", *map(format_number, [size.compression])]
        names = ("latency_us", "c_latency_us", "return", "retained")
        figures = [size.mean(name) for name in names]
        interval = [format_number(size.interval("retained"))] * several
        fidelity = [format_number(size.mean(name)) for name in ("agree", "own_error")]
        rows.append([*head, *map(format_number, figures), *interval, *fidelity])
    n_seeds = max(len(size.per_seed("return")) for size in comparison.sizes)
    seeds = f", means and t intervals of {n_seeds} seeds" if n_seeds > 1 else ""
    title = (
        f"{comparison.env_id}: students by size{seeds}; ≤{NEAR}: agreement on held-out states of "
        "the teacher; own error: mean |difference| of actions on the student's states"
    )
    return Table(title, columns, rows)


def size_notes(comparison: SizeComparison) -> list[str]:
    """Return notes on weak evidence and on memories."""
    lines = []
    if comparison.returns.teacher <= comparison.returns.floor:
        lines.append(NOTHING_TO_RETAIN)
    students = [student for size in comparison.sizes for student in size.students]
    if n := sum(student.memory for student in students):
        lines.append(
            f"{n} of {len(students)} students query a memory of their teacher, which counts in "
            "their params and µs"
        )
    return lines


def sizes_json(comparison: SizeComparison) -> dict[str, Any]:
    """Return everything measured."""
    returns = comparison.returns
    teachers = zip(comparison.costs, returns.teachers, strict=True)
    return {
        "env": comparison.env_id,
        "states": comparison.n_states,
        "confidence": CONFIDENCE,
        "teachers": [{**cost._asdict(), "returns": got} for cost, got in teachers],
        "random": {"return": returns.floor, "returns": returns.random},
        "sizes": [
            {
                "name": size.name,
                "parameters": size.parameters,
                "compression": size.compression,
                **{name: size.mean(name) for name in SIZE_FIGURES},
                "intervals": {name: size.interval(name) for name in SIZE_FIGURES},
                "students": [student.as_json() for student in size.students],
            }
            for size in comparison.sizes
        ],
        "measures": SIZE_FIGURES,
        "notes": size_notes(comparison),
    }


FIGURE_LABELS = {
    "return": "return per episode",
    "agree": f"held-out states with every action within {NEAR}",
}
COST_LABELS = {
    "history": "frames that the student sees",
    "parameters": "parameters",
    "latency_us": "microseconds per action in Python, one thread",
    "c_latency_us": "microseconds per action in C, one thread",
}


LABELLED = {"history": 2, "parameters": 10}
"""Costs on a logarithmic axis, by its base, where every size has a label."""


def draw_sizes(comparison: SizeComparison, out_png: Path, title: str) -> None:
    """Draw return and agreement of every size over its parameters and latency.

    If students differ in history, the number of frames takes the place of the parameters.
    """
    in_c = all(size.mean("c_latency_us") is not None for size in comparison.sizes)
    by_history = len({size.cost("history") for size in comparison.sizes}) > 1
    costs = ["history" if by_history else "parameters", "c_latency_us" if in_c else "latency_us"]
    figure = new_figure(10.4, 6.8, 200, gap=0.05)
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, (name, text) in enumerate(FIGURE_LABELS.items()):
        for column, cost in enumerate(costs):
            draw_panel(panels[row, column], comparison, name, cost)
        panels[row, 0].set_ylabel(text, color=INK, fontsize=10)
    for axes, cost in zip(panels[1], costs, strict=True):
        axes.set_xlabel(COST_LABELS[cost], color=INK, fontsize=10)
    seeds = max(len(size.per_seed("return")) for size in comparison.sizes)
    means = f"means of {seeds} seeds, faint: single seeds; " if seeds > 1 else ""
    set_title(panels[0, 0], title, f"{means}dashed: the teacher")
    save_png(figure, out_png)


def draw_panel(axes: Axes, comparison: SizeComparison, figure: str, cost: str) -> None:
    """Draw one figure of every size over one of its costs."""
    for k, size in enumerate(comparison.sizes):
        value, colour = size.mean(figure), line_style(k)["color"]
        if value is None:
            continue
        seeds, x = size.per_seed(figure), size.cost(cost)
        faint: dict[str, Any] = {"color": colour, "s": 14, "alpha": 0.35, "linewidths": 0}
        axes.scatter([x] * len(seeds), seeds, **faint)
        axes.scatter([x], [value], color=colour, s=46, zorder=3)
        if cost in LABELLED:  # latencies are too close for labels, and the colours are the same
            look: dict[str, Any] = {"fontsize": 8.5, "color": colour, "textcoords": "offset points"}
            label = size.name if cost == "parameters" else f"{x:.0f}"
            axes.annotate(label, (x, value), xytext=(6, 5), **look)
    level = comparison.returns.teacher if figure == "return" else 1.0
    axes.axhline(level, color=GREY, linewidth=0.9, linestyle=DASHED, zorder=1)
    style_axes(axes)
    axes.margins(x=0.15)
    if cost in LABELLED:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_xscale("log", base=LABELLED[cost])
        axes.xaxis.set_major_locator(
            LogLocator(base=LABELLED[cost], subs=(1, 2, 5) if cost == "parameters" else (1,))
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(thousands)
    else:
        axes.set_xlim(0, 1.15 * axes.dataLim.x1)


def report_students(
    config: TrainConfig, run_dir: Path, last: Mapping[Path, EvalResult], console: Console
) -> None:
    """Compare students with their teacher by size; write a table, fidelity.json and a figure.

    `last` maps the files of the students' last policies to their final evaluations.
    """
    with console.status("comparing the students with their teacher"), one_thread():
        run = config.run
        spec = check(run.env, run.evaluation_backend, run.parsed_env_kwargs())
        by = None if config.teachers is None else config.teachers.teacher_by
        teacher = kept_teacher(run_dir, by, spec)
        comparison = compare_sizes(config, teacher, list(last), list(last.values()))
    report = Report(
        sections=[Section(tables=[sizes_table(comparison)])],
        data=sizes_json(comparison),
        notes=size_notes(comparison),
    )
    print_report(report, console=console)
    with replacing(run_dir / FIDELITY) as draft:
        draft.write_text(json_text(report))
    if len(comparison.sizes) > 1:
        draw_sizes(comparison, run_dir / STUDENTS, title(config))
