"""Report of an audit: terminal tables, HTML page, JSON and TensorBoard events."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup
from rich import markup
from rich.progress import Progress

from dpd.fidelity.audit import Audit, StudentAudit, audit
from dpd.fidelity.measures import CLOSE, MEASURES, NEAR
from dpd.fidelity.policies import ComparedPolicy, RunReader, read_teacher_and_students
from dpd.fidelity.states import SETS, audit_settings
from dpd.log.terminal import make_console
from dpd.report.figures import new_figure
from dpd.report.page import (
    INK,
    Section,
    legend,
    page_line_style,
    render_page,
    style_axes,
    svg,
)
from dpd.report.stats import BOOTSTRAP_SEEDS, CONFIDENCE
from dpd.report.tables import (
    Report,
    Table,
    describe_returns,
    format_number,
    require_writable,
    write_report,
)

if TYPE_CHECKING:
    from dpd.fidelity.config import FidelityConfig


def student_label(entry: StudentAudit) -> str:
    """Return a student's name, marked if it is the floor."""
    return f"{entry.subject.name} (floor)" if entry.subject.is_floor else entry.subject.name


def retained_return_table(result: Audit) -> Table:
    """Tabulate returns and the share of the teacher's return that is retained."""
    columns = ["policy", "return", "ratio", "retained", "95 % interval", "held-out ≤0.05"]
    rows = [
        [
            f"{result.teacher.name} (teacher)",
            format_number(float(result.returns.mean())),
            *["-"] * 4,
        ],
        ["random actions", format_number(float(result.random.mean())), *["-"] * 4],
    ]
    for entry in result.entries:
        agree = entry.scores["heldout"].values[f"agree_{CLOSE}"]
        figures = [float(entry.returns.mean()), entry.ratio, entry.retained, entry.interval, agree]
        rows.append([student_label(entry), *map(format_number, figures)])
    title = (
        f"{result.settings.env_id}: returns of {result.settings.episodes} deterministic episodes"
    )
    return Table(title, columns, rows)


def policy_cost_table(result: Audit) -> Table:
    """Tabulate size and speed of all policies."""
    columns = ["policy", "parameters", "× smaller", "bytes", "µs/action", "actions/s"]
    rows = []
    for name, cost, smaller in [
        (f"{result.teacher.name} (teacher)", result.cost, 1.0),
        *((student_label(entry), entry.cost, entry.compression) for entry in result.entries),
    ]:
        figures = [cost.bytes, cost.latency_us, cost.actions_per_s]
        rows.append(
            [name, f"{cost.parameters:,}", format_number(smaller), *map(format_number, figures)]
        )
    return Table("Cost, on one thread; actions/s in batches of 256", columns, rows)


def student_fidelity_table(result: Audit, entry: StudentAudit) -> Table:
    """Tabulate a student's scores on every set of states, and the gap."""
    known = {k for row in entry.scores.values() for k, v in row.values.items() if v is not None}
    names = [name for name in MEASURES if name in known and name != "action_mse"]
    rows = [[s, *(format_number(row.values[n]) for n in names)] for s, row in entry.scores.items()]
    rows.append(["gap", *(format_number(entry.gap.values[n]) for n in names)])
    title = (
        f"{student_label(entry)} compared with {result.teacher.name} on each set of states "
        f"(gap: heldout − {entry.gap.seen})"
    )
    return Table(title, ["states", *(MEASURES[n].title for n in names)], rows)


def r2_table(entry: StudentAudit) -> Table:
    """Tabulate R² of each action dimension on every set of states."""
    n_act = len(next(iter(entry.scores.values())).r2)
    rows = [[s, *map(format_number, row.r2)] for s, row in entry.scores.items()]
    columns = ["states", *(f"action {k}" for k in range(n_act))]
    return Table(f"{student_label(entry)}: R² of each action dimension", columns, rows)


def fidelity_tables(result: Audit) -> Sequence[Table]:
    """Return the tables for the terminal."""
    by_states = [student_fidelity_table(result, entry) for entry in result.entries]
    return [*by_states, retained_return_table(result), policy_cost_table(result)]


MAX_SCATTER_DIMS = 8
MIN_ERROR, MAX_ERROR = 1e-4, 2.0  # |difference| of actions


def agreement_bars(result: Audit) -> str:
    """Draw agreement and action error of every student on every set of states."""
    figure = new_figure(8.4, 4.6)
    names = list(dict.fromkeys(s for entry in result.entries for s in entry.scores))
    for row, (measure, title) in enumerate(
        [
            (f"agree_{CLOSE}", f"share of states with every action within {CLOSE}"),
            ("action_error", "mean |difference| of actions, in units of half their range"),
        ]
    ):
        axes = figure.add_subplot(2, 1, row + 1)
        width = 0.8 / len(result.entries)
        for k, entry in enumerate(result.entries):
            heights = [
                (entry.scores[s].values[measure] or 0) if s in entry.scores else np.nan
                for s in names
            ]
            at = np.arange(len(names)) + (k + 0.5) * width - 0.4
            axes.bar(
                at,
                heights,
                0.94 * width,
                color=page_line_style(k)["color"],
                label=student_label(entry),
            )
        axes.set_xticks(range(len(names)), names)
        style_axes(axes, title)
        if measure.startswith("agree"):
            axes.set_ylim(0, 1)
    legend(figure)
    return svg(figure, "bars")


def error_histogram(result: Audit) -> str:
    """Draw the distribution of the largest action error of a held-out state."""
    figure = new_figure(8.4, 2.9)
    axes = figure.add_subplot()
    edges = np.geomspace(MIN_ERROR, MAX_ERROR, 61).tolist()
    for k, entry in enumerate(result.entries):
        teacher, student = entry.acts
        worst = (student - teacher).abs().amax(-1).clamp(MIN_ERROR, MAX_ERROR).numpy()
        share = np.full(len(worst), 1 / len(worst))
        axes.hist(
            worst,
            edges,
            weights=share,
            histtype="step",
            linewidth=1.8,
            **page_line_style(k),
            label=student_label(entry),
        )
    for within in (CLOSE, NEAR):
        axes.axvline(within, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xlim(MIN_ERROR * 0.9, MAX_ERROR)
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["≤0.0001", "0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    style_axes(
        axes, "held-out states by their largest |difference| of an action; dashed: 0.05 and 0.1"
    )
    legend(figure)
    return svg(figure, "histogram")


def worst_dims(entry: StudentAudit) -> Sequence[int]:
    """Return the action dimensions to draw: all, or those with the largest error."""
    teacher, student = entry.acts
    error = (student - teacher).double().square().mean(0)
    return sorted(torch.topk(error, min(MAX_SCATTER_DIMS, len(error))).indices.tolist())


def axis_limits(*acts: np.ndarray) -> tuple[float, float]:
    """Return the limits of an axis that shows all actions, with a margin."""
    low, high = min(a.min() for a in acts), max(a.max() for a in acts)
    margin = 0.05 * (high - low) or 0.05
    return float(low - margin), float(high + margin)


def action_scatter(entry: StudentAudit, k: int) -> str:
    """Draw student k's actions over its teacher's, one panel per dimension."""
    dims = worst_dims(entry)
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    figure = new_figure(2.1 * max(columns, 2), 2.2 * rows)
    teacher, student = (x.numpy() for x in entry.acts)
    for place, a in enumerate(dims):
        axes = figure.add_subplot(rows, columns, place + 1)
        low, high = axis_limits(teacher[:, a], student[:, a])
        axes.plot([low, high], [low, high], color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        # one embedded image instead of a thousand SVG elements
        dots: dict[str, Any] = {"s": 4, "alpha": 0.5, "linewidths": 0, "rasterized": True}
        axes.scatter(teacher[:, a], student[:, a], color=page_line_style(k)["color"], **dots)
        style_axes(axes, f"action {a}, R² {format_number(entry.scores['heldout'].r2[a])}")
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.locator_params(nbins=2)
    return svg(figure, f"scatter{k}")


OTHER_MEANINGS = {
    "retained": "return above random actions, as a share of the teacher's; 95 % bootstrap interval "
    f"over episodes, paired by seed; too narrow with fewer than {BOOTSTRAP_SEEDS} episodes",
    "ratio": "mean return divided by the teacher's; misleading if returns are negative",
    "gap": "held-out states minus states seen in training; if the latter are known, the gap "
    "separates too little data from poor optimisation",
    "× smaller": "parameters of the teacher over the student's, normalisers excluded",
    "µs/action": "median time per action for one observation",
    "floor": "a policy trained without this teacher: agreement that arises by chance",
}


def fidelity_page(result: Audit) -> str:
    """Return the HTML page."""
    title = f"Fidelity to {result.teacher.name} in {result.settings.env_id}"
    subjects = [result.teacher, *(entry.subject for entry in result.entries)]
    sections = [
        Section("", [retained_return_table(result), policy_cost_table(result)]),
        Section("By set of states", [agreement_bars(result), error_histogram(result)]),
        *(student_section(result, entry, k) for k, entry in enumerate(result.entries)),
        Section("What the numbers mean", [fidelity_definitions().items()]),
        Section("Settings and files", [settings_text(result), map(origin_definition, subjects)]),
    ]
    return render_page(title, sections, result.notes)


def student_section(result: Audit, entry: StudentAudit, k: int) -> Section:
    """Return one student's tables and the figure of its actions over the teacher's."""
    n_act = entry.acts[0].shape[1]
    which = (
        f"; the {MAX_SCATTER_DIMS} of {n_act} with the largest error"
        if n_act > MAX_SCATTER_DIMS
        else ""
    )
    text = (
        f"Student's action (vertical) against the teacher's (horizontal) on held-out states{which}."
    )
    tables = [student_fidelity_table(result, entry), r2_table(entry)]
    return Section(student_label(entry), [*tables, text, action_scatter(entry, k)])


def fidelity_definitions() -> dict[str, str]:
    """Define the numbers and the sets of states, one line each."""
    lines = {m.title: m.meaning for m in MEASURES.values()} | OTHER_MEANINGS
    return lines | {f"states: {name}": meaning for name, meaning in SETS.items()}


def settings_text(result: Audit) -> str:
    """Return the settings as a sentence."""
    settings = result.settings
    return (
        f"{settings.env_id} {json.dumps(settings.env_kwargs)}, {settings.episodes} episodes per "
        f"policy, {settings.n_states:,} states in each set, seed {settings.seed}."
    )


def origin_definition(subject: ComparedPolicy) -> tuple[str, Markup]:
    """Return a policy's name and its origin, for a list of definitions."""
    origin = {k: v for k, v in subject.origin.items() if k != "name" and v is not None}
    lines = (Markup("{} <code>{}</code>").format(k, json.dumps(v)) for k, v in origin.items())
    return subject.name, Markup("<br>").join(lines)


def fidelity_paths(config: FidelityConfig, read_run: RunReader) -> int:
    """Audit all students; print tables or JSON, and write the report."""
    require_writable(config.out)
    teacher, students, place = read_teacher_and_students(config, read_run)
    settings = audit_settings(config, teacher.policy, place)
    with Progress(console=make_console(stderr=True, highlight=False), transient=True) as progress:
        task = progress.add_task("", total=1 + len(students))

        def tell(name: str) -> None:
            progress.update(task, description=f"playing {markup.escape(name)}", advance=1)

        result = audit(teacher, students, settings, tell)
    report = Report(
        "fidelity",
        fidelity_json(result),
        fidelity_page(result),
        fidelity_tables(result),
        result.notes,
    )
    write_report(report, config.out, config.json)
    for entry in result.entries:
        write_student_events(result, entry, config.out / "tb")
    return 0


def fidelity_json(result: Audit) -> dict[str, Any]:
    """Return everything measured, raw returns included."""
    settings = result.settings
    return {
        "env": settings.env_id,
        "env_kwargs": settings.env_kwargs,
        "episodes": settings.episodes,
        "states": settings.n_states,
        "seed": settings.seed,
        "confidence": CONFIDENCE,
        "teacher": {
            **result.teacher.origin,
            **result.cost._asdict(),
            **describe_returns(result.returns),
        },
        "random": describe_returns(result.random),
        "students": [student_audit_json(entry) for entry in result.entries],
        "measures": {name: m.meaning for name, m in MEASURES.items()},
        "notes": result.notes,
    }


def student_audit_json(entry: StudentAudit) -> dict[str, Any]:
    """Return a student's measurements, raw returns included."""
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
        "gap": {
            "seen": entry.gap.seen,
            **entry.gap.values,
            "unfitted": entry.gap.unfitted,
            "ungeneralised": entry.gap.ungeneralised,
        },
    }


def write_student_events(result: Audit, entry: StudentAudit, folder: Path) -> None:
    """Write a student's measurements as one TensorBoard run; an earlier audit's are replaced."""
    from torch.utils.tensorboard import SummaryWriter

    from dpd.log.log import add_scalars

    run = folder / ("fidelity-" + re.sub(r"[^\w.-]+", "-", entry.subject.name))
    for old in run.glob("events.out.tfevents.*"):
        old.unlink()
    steps = entry.subject.policy.meta.provenance.get("steps")
    with SummaryWriter(run) as writer:
        add_scalars(writer, student_tags(result, entry), steps if isinstance(steps, int) else 0)


def student_tags(result: Audit, entry: StudentAudit) -> dict[str, float | None]:
    """Return a student's measurements by TensorBoard tag."""
    return {
        **{
            f"fidelity/{s}/{k}": v for s, row in entry.scores.items() for k, v in row.values.items()
        },
        **{f"fidelity/gap/{k}": v for k, v in entry.gap.values.items()},
        "eval/student_return": float(entry.returns.mean()),
        "eval/teacher_return": float(result.returns.mean()),
        "eval/random_return": float(result.random.mean()),
        "eval/retained": entry.retained,
        "model/params_student": entry.cost.parameters,
        "model/params_teacher": result.cost.parameters,
        "model/compression": entry.compression,
        "model/latency_us": entry.cost.latency_us,
    }
