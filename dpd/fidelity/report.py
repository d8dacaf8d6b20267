"""`dpd fidelity`: audit students, and report on them in tables, a page, JSON and TensorBoard."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich import markup
from rich.progress import Progress

from dpd.fidelity.aliasing import MAX_STATES, NEIGHBOURS
from dpd.fidelity.audit import CLOSE, MEASURES, NEAR, Audit, StudentAudit, audit
from dpd.fidelity.policies import ComparedPolicy, RunReader, read_teacher_and_students
from dpd.fidelity.states import SETS, audit_settings
from dpd.log.terminal import make_console
from dpd.report.figures import DASHED, INK, add_legend, line_style, new_figure, style_axes
from dpd.report.report import (
    Report,
    Section,
    Table,
    describe_returns,
    format_number,
    require_writable,
    save_report,
    table_row,
    write_events,
)
from dpd.report.stats import BOOTSTRAP_SEEDS, CONFIDENCE
from dpd.report.studied import FidelityOutcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dpd.fidelity.config import FidelityConfig

MAX_SCATTER_DIMS = 8
MIN_ERROR, MAX_ERROR = 1e-4, 2.0  # |difference| of actions
OTHER_MEANINGS = {
    "retained": "return above random actions, as a share of the teacher's; 95 % bootstrap interval "
    f"over episodes, paired by seed; too narrow with fewer than {BOOTSTRAP_SEEDS} episodes",
    "ratio": "mean return divided by the teacher's; misleading if returns are negative",
    "gap": "held-out states minus states seen in training; if the latter are known, the gap "
    "separates too little data from poor optimisation",
    "× smaller": "parameters of the teacher over the student's, normalisers excluded",
    "µs/action": "median time per action for one observation in Python; µs in ...: in another "
    "runtime that is installed, C with the compiler's -O3 -march=native",
    "missed": "the student's squared error as a share of the variance of the teacher's action",
    "aliasing": "share of the variance of the teacher's action among states that look alike to the "
    f"student, the {NEIGHBOURS} nearest of other episodes in its standardised view (up to "
    f"{MAX_STATES:,} states): an error that no student with this view undercuts",
    "teacher's aliasing": "the same in the teacher's own view, in truth 0: so much does the "
    "estimate overstate, since neighbours are not quite alike",
    "own aliasing": "the same of the student's own action in its own view, in truth 0 too: larger "
    "in many columns, and where small differences between frames decide",
    "floor": "a policy trained without this teacher: agreement that arises by chance",
}


def fidelity_paths(config: FidelityConfig, read_run: RunReader) -> FidelityOutcome:
    """Audit all students and write the report."""
    require_writable(config.out)
    teacher, students, place = read_teacher_and_students(config, read_run)
    others = [student.policy for student in students]
    settings = audit_settings(config, teacher.policy, place, others)
    with Progress(console=make_console(stderr=True, highlight=False), transient=True) as progress:
        task = progress.add_task("", total=1 + len(students))

        def tell(name: str) -> None:
            progress.update(task, description=f"playing {markup.escape(name)}", advance=1)

        result = audit(teacher, students, settings, tell)
    report = fidelity_report(result)
    page = save_report(report, config.out, "fidelity")
    for entry in result.entries:
        run = "fidelity-" + re.sub(r"[^\w.-]+", "-", entry.subject.name)
        steps = entry.subject.policy.meta.provenance.get("steps")
        step = steps if isinstance(steps, int) else 0
        write_events(config.out / "tb", {run: [(step, student_tags(result, entry))]})
    return FidelityOutcome(report=report, page=page, lines=[f"report  {page}"])


def fidelity_report(result: Audit) -> Report:
    """Report on returns and cost of all policies, then on each student."""
    settings = result.settings
    settings_text = (
        f"{settings.env_id} `{json.dumps(settings.env_kwargs)}`, {settings.episodes} episodes per "
        f"policy, {settings.n_states:,} states in each set, seed {settings.seed}."
    )
    subjects = [result.teacher, *(entry.subject for entry in result.entries)]
    by_states = [partial(draw_agreement, result), partial(draw_error_histogram, result)]
    sections = [
        Section(tables=[returns_table(result), cost_table(result)]),
        Section(heading="By set of states", figures=by_states),
        *(student_section(result, entry, k) for k, entry in enumerate(result.entries)),
        Section(
            heading="What the numbers mean",
            terms=[
                *((m.title, m.meaning) for m in MEASURES.values()),
                *OTHER_MEANINGS.items(),
                *((f"states: {name}", meaning) for name, meaning in SETS.items()),
            ],
        ),
        Section(
            heading="Settings and files",
            prose=[settings_text],
            terms=[(s.name, origin_text(s)) for s in subjects],
        ),
    ]
    return Report(
        title=f"Fidelity to {result.teacher.name} in {settings.env_id}",
        sections=sections,
        data=fidelity_json(result),
        notes=result.notes,
        summary_last=True,
    )


def student_label(entry: StudentAudit) -> str:
    """Return a student's name, marked if it is the floor."""
    return f"{entry.subject.name} (floor)" if entry.subject.is_floor else entry.subject.name


def origin_text(subject: ComparedPolicy) -> str:
    """Return a policy's origin, a line for each of its records."""
    known = {k: v for k, v in subject.origin.items() if k != "name" and v is not None}
    return "\n".join(f"{k} `{json.dumps(v)}`" for k, v in known.items())


def returns_table(result: Audit) -> Table:
    """Tabulate returns and the share of the teacher's return that is retained."""
    teacher, random = float(result.returns.mean()), float(result.random.mean())
    rows = [
        table_row(f"{result.teacher.name} (teacher)", teacher, *[None] * 4),
        table_row("random actions", random, *[None] * 4),
    ]
    for e in result.entries:
        agree = e.scores["heldout"].values[f"agree_{CLOSE}"]
        figures = (float(e.returns.mean()), e.ratio, e.retained, e.interval, agree)
        rows.append(table_row(student_label(e), *figures))
    settings = result.settings
    return Table(
        f"{settings.env_id}: returns of {settings.episodes} deterministic episodes",
        ["policy", "return", "ratio", "retained", "95 % interval", "held-out ≤0.05"],
        rows,
    )


def cost_table(result: Audit) -> Table:
    """Tabulate size and speed of all policies."""
    costs = [(f"{result.teacher.name} (teacher)", result.cost, 1.0)]
    costs += [(student_label(entry), entry.cost, entry.compression) for entry in result.entries]
    runtimes = list(dict.fromkeys(name for _, cost, _ in costs for name in cost.runtimes_us))
    rows = []
    for name, cost, smaller in costs:
        speeds = [cost.latency_us, *(cost.runtimes_us.get(runtime) for runtime in runtimes)]
        figures = (smaller, cost.bytes, cost.actions_per_s, *speeds)
        rows.append([name, f"{cost.parameters:,}", *map(format_number, figures)])
    columns = ["policy", "parameters", "× smaller", "bytes", "actions/s", "µs/action"]
    title = "Cost, on one thread; actions/s in batches of 256"
    return Table(title, columns + [f"µs in {runtime}" for runtime in runtimes], rows)


def student_section(result: Audit, entry: StudentAudit, k: int) -> Section:
    """Report on a student's scores on every set of states, and on its actions."""
    label, n_act = student_label(entry), entry.acts[0].shape[1]
    known = {k for row in entry.scores.values() for k, v in row.values.items() if v is not None}
    names = [name for name in MEASURES if name in known and name != "action_mse"]
    sets = {s: row.values for s, row in entry.scores.items()} | {"gap": entry.gap.values}
    by_states = Table(
        f"{label} compared with {result.teacher.name} on each set of states "
        f"(gap: heldout − {entry.gap.seen})",
        ["states", *(MEASURES[name].title for name in names)],
        [table_row(s, *(values[name] for name in names)) for s, values in sets.items()],
    )
    r2 = Table(
        f"{label}: R² of each action dimension",
        ["states", *(f"action {a}" for a in range(n_act))],
        [table_row(s, *row.r2) for s, row in entry.scores.items()],
        detail=True,
    )
    text = "Student's action (vertical) against the teacher's (horizontal) on held-out states"
    if n_act > MAX_SCATTER_DIMS:
        text += f"; the {MAX_SCATTER_DIMS} of {n_act} with the largest error"
    scatter = [partial(draw_actions, entry, k)]
    tables = [by_states, *aliasing_tables(entry), r2]
    return Section(heading=label, prose=[f"{text}."], figures=scatter, tables=tables)


def aliasing_tables(entry: StudentAudit) -> list[Table]:
    """Tabulate a student's error beside what its view leaves open, where that is defined."""
    if not entry.aliasing:
        return []
    title = f"{student_label(entry)}: shares of the variance of the teacher's action"
    rows = [table_row(name, *scores) for name, scores in entry.aliasing.items()]
    return [
        Table(title, ["states", "missed", "aliasing", "teacher's aliasing", "own aliasing"], rows)
    ]


def fidelity_json(result: Audit) -> dict[str, Any]:
    """Return everything measured, raw returns included."""
    settings = result.settings
    teacher = {**result.teacher.origin, **result.cost._asdict(), **describe_returns(result.returns)}
    return {
        "env": settings.env_id,
        "env_kwargs": settings.env_kwargs,
        "episodes": settings.episodes,
        "states": settings.n_states,
        "seed": settings.seed,
        "confidence": CONFIDENCE,
        "teacher": teacher,
        "random": describe_returns(result.random),
        "students": [student_audit_json(entry) for entry in result.entries],
        "measures": {name: m.meaning for name, m in MEASURES.items()},
        "notes": result.notes,
    }


def student_audit_json(entry: StudentAudit) -> dict[str, Any]:
    """Return a student's measurements, raw returns included."""
    gap = entry.gap
    return {
        **entry.subject.origin,
        "is_floor": entry.subject.is_floor,
        **entry.cost._asdict(),
        "compression": entry.compression,
        **describe_returns(entry.returns),
        "ratio": entry.ratio,
        "retained": entry.retained,
        "retained_interval": entry.interval,
        "sets": {name: {"n": s.n, **s.values, "r2": s.r2} for name, s in entry.scores.items()},
        "aliasing": {name: scores._asdict() for name, scores in entry.aliasing.items()},
        "gap": {
            "seen": gap.seen,
            **gap.values,
            "unfitted": gap.unfitted,
            "ungeneralised": gap.ungeneralised,
        },
    }


def student_tags(result: Audit, entry: StudentAudit) -> Mapping[str, float | None]:
    """Return a student's measurements by TensorBoard tag."""
    sets = {s: row.values for s, row in entry.scores.items()} | {"gap": entry.gap.values}
    return {
        **{f"fidelity/{s}/{k}": v for s, values in sets.items() for k, v in values.items()},
        **{
            f"fidelity/{s}/{k}": v
            for s, scores in entry.aliasing.items()
            for k, v in scores._asdict().items()
        },
        "eval/student_return": float(entry.returns.mean()),
        "eval/teacher_return": float(result.returns.mean()),
        "eval/random_return": float(result.random.mean()),
        "eval/retained": entry.retained,
        "model/params_student": entry.cost.parameters,
        "model/params_teacher": result.cost.parameters,
        "model/compression": entry.compression,
        "model/latency_us": entry.cost.latency_us,
    }


def draw_agreement(result: Audit) -> Figure:
    """Draw agreement and action error of every student on every set of states."""
    figure = new_figure(8.4, 4.6)
    names = list(dict.fromkeys(s for entry in result.entries for s in entry.scores))
    titles = {
        f"agree_{CLOSE}": f"share of states with every action within {CLOSE}",
        "action_error": "mean |difference| of actions, in units of half their range",
    }
    width = 0.8 / len(result.entries)
    for row, (measure, title) in enumerate(titles.items(), 1):
        axes = figure.add_subplot(2, 1, row)
        for k, entry in enumerate(result.entries):
            at = [names.index(s) + (k + 0.5) * width - 0.4 for s in entry.scores]
            heights = [scores.values[measure] or 0 for scores in entry.scores.values()]
            colour, label = line_style(k)["color"], student_label(entry)
            axes.bar(at, heights, 0.94 * width, color=colour, label=label)
        axes.set_xticks(range(len(names)), names)
        style_axes(axes, title)
    figure.axes[0].set_ylim(0, 1)
    add_legend(figure)
    return figure


def draw_error_histogram(result: Audit) -> Figure:
    """Draw the distribution of the largest action error of a held-out state."""
    figure = new_figure(8.4, 2.9)
    axes = figure.add_subplot()
    edges = np.geomspace(MIN_ERROR, MAX_ERROR, 61).tolist()
    for k, entry in enumerate(result.entries):
        teacher, student = entry.acts
        worst = (student - teacher).abs().amax(-1).clamp(MIN_ERROR, MAX_ERROR).numpy()
        style = line_style(k) | {"linewidth": 1.8, "label": student_label(entry)}
        share = np.full(len(worst), 1 / len(worst))
        axes.hist(worst, edges, weights=share, histtype="step", **style)
    for within in (CLOSE, NEAR):
        axes.axvline(within, color=INK, linewidth=0.8, linestyle=DASHED)
    axes.set_xscale("log")
    axes.set_xlim(MIN_ERROR * 0.9, MAX_ERROR)
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["≤0.0001", "0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    style_axes(
        axes, "held-out states by their largest |difference| of an action; dashed: 0.05 and 0.1"
    )
    add_legend(figure)
    return figure


def draw_actions(entry: StudentAudit, k: int) -> Figure:
    """Draw student k's actions over its teacher's, in the dimensions with the largest error."""
    error = (entry.acts[1] - entry.acts[0]).double().square().mean(0)
    dims = sorted(torch.topk(error, min(MAX_SCATTER_DIMS, len(error))).indices.tolist())
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    figure = new_figure(2.1 * max(columns, 2), 2.2 * rows)
    for place, a in enumerate(dims, 1):
        axes = figure.add_subplot(rows, columns, place)
        teacher, student = (x[:, a].numpy() for x in entry.acts)
        low, high = min(teacher.min(), student.min()), max(teacher.max(), student.max())
        margin = 0.05 * (high - low) or 0.05
        ends = (float(low - margin), float(high + margin))
        axes.plot(ends, ends, color=INK, linewidth=0.7, linestyle=DASHED)
        # one embedded image instead of a thousand SVG elements
        dots: dict[str, Any] = {"s": 4, "alpha": 0.5, "linewidths": 0, "rasterized": True}
        axes.scatter(teacher, student, color=line_style(k)["color"], **dots)
        style_axes(axes, f"action {a}, R² {format_number(entry.scores['heldout'].r2[a])}")
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.locator_params(nbins=2)
    return figure
