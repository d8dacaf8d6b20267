"""What the terminal and the page lay out as tables."""

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

from dpd.fidelity.audit import Audit, Finding, audit
from dpd.fidelity.measures import CLOSE, MEASURES, NEAR
from dpd.fidelity.policies import ReadRun, Subject, read_subjects
from dpd.fidelity.states import SETS, setting_of
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


def label(f: Finding) -> str:
    """Name a student; the floor is called so."""
    return f"{f.subject.name} (floor)" if f.subject.is_floor else f.subject.name


def returns_sheet(found: Audit) -> Table:
    """Lay out what is left of the teacher's return."""
    columns = ["policy", "return", "ratio", "retained", "95 % interval", "held-out ≤0.05"]
    rows = [
        [f"{found.teacher.name} (teacher)", format_number(float(found.returns.mean())), *["-"] * 4],
        ["random actions", format_number(float(found.random.mean())), *["-"] * 4],
    ]
    for f in found.findings:
        agree = f.scores["heldout"].values[f"agree_{CLOSE}"]
        figures = [float(f.returns.mean()), f.ratio, f.retained, f.interval, agree]
        rows.append([label(f), *map(format_number, figures)])
    title = f"{found.setting.env_id}: returns of {found.setting.episodes} deterministic episodes"
    return Table(title, columns, rows)


def costs_sheet(found: Audit) -> Table:
    """Lay out what the policies cost."""
    columns = ["policy", "parameters", "× smaller", "bytes", "µs/action", "actions/s"]
    rows = []
    for name, cost, smaller in [
        (f"{found.teacher.name} (teacher)", found.cost, 1.0),
        *((label(f), f.cost, f.compression) for f in found.findings),
    ]:
        figures = [cost.bytes, cost.latency_us, cost.actions_per_s]
        rows.append(
            [name, f"{cost.parameters:,}", format_number(smaller), *map(format_number, figures)]
        )
    return Table("Cost, on one thread; actions/s in batches of 256", columns, rows)


def fidelity_sheet(found: Audit, f: Finding) -> Table:
    """Lay out how closely a student follows on every set of states, and the gap."""
    known = {k for row in f.scores.values() for k, v in row.values.items() if v is not None}
    names = [name for name in MEASURES if name in known and name != "action_mse"]
    rows = [[s, *(format_number(row.values[n]) for n in names)] for s, row in f.scores.items()]
    rows.append(["gap", *(format_number(f.gap.values[n]) for n in names)])
    title = f"{label(f)} against {found.teacher.name}, on states of (gap: heldout − {f.gap.seen})"
    return Table(title, ["states", *(MEASURES[n].title for n in names)], rows)


def r2_sheet(f: Finding) -> Table:
    """Lay out R² of each action dimension."""
    n_act = len(next(iter(f.scores.values())).r2)
    rows = [[s, *map(format_number, row.r2)] for s, row in f.scores.items()]
    columns = ["states", *(f"action {k}" for k in range(n_act))]
    return Table(f"{label(f)}: R² of each action dimension", columns, rows)


def sheets(found: Audit) -> Sequence[Table]:
    """Return the terminal's tables."""
    by_states = [fidelity_sheet(found, f) for f in found.findings]
    return [*by_states, returns_sheet(found), costs_sheet(found)]


MAX_DIMS = 8
LEAST, MOST = 1e-4, 2.0  # |difference| of actions


def bars(found: Audit) -> str:
    """Draw agreement and action error of every student on every set of states."""
    figure = new_figure(8.4, 4.6)
    names = list(dict.fromkeys(s for f in found.findings for s in f.scores))
    for row, (measure, title) in enumerate(
        [
            (f"agree_{CLOSE}", f"share of states with every action within {CLOSE}"),
            ("action_error", "mean |difference| of actions, in halves of their range"),
        ]
    ):
        axes = figure.add_subplot(2, 1, row + 1)
        width = 0.8 / len(found.findings)
        for k, f in enumerate(found.findings):
            heights = [
                (f.scores[s].values[measure] or 0) if s in f.scores else np.nan for s in names
            ]
            at = np.arange(len(names)) + (k + 0.5) * width - 0.4
            axes.bar(at, heights, 0.94 * width, color=page_line_style(k)["color"], label=label(f))
        axes.set_xticks(range(len(names)), names)
        style_axes(axes, title)
        if measure.startswith("agree"):
            axes.set_ylim(0, 1)
    legend(figure)
    return svg(figure, "bars")


def histogram(found: Audit) -> str:
    """Draw how far the worst action of a held-out state is off."""
    figure = new_figure(8.4, 2.9)
    axes = figure.add_subplot()
    edges = np.geomspace(LEAST, MOST, 61).tolist()
    for k, f in enumerate(found.findings):
        teacher, student = f.acts
        worst = (student - teacher).abs().amax(-1).clamp(LEAST, MOST).numpy()
        share = np.full(len(worst), 1 / len(worst))
        axes.hist(
            worst,
            edges,
            weights=share,
            histtype="step",
            linewidth=1.8,
            **page_line_style(k),
            label=label(f),
        )
    for within in (CLOSE, NEAR):
        axes.axvline(within, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xlim(LEAST * 0.9, MOST)
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["≤0.0001", "0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    style_axes(axes, "held-out states by their worst action's |difference|; dashed: 0.05 and 0.1")
    legend(figure)
    return svg(figure, "histogram")


def worst_dims(f: Finding) -> Sequence[int]:
    """Return the action dimensions to draw: all, or those with the largest error."""
    teacher, student = f.acts
    error = (student - teacher).double().square().mean(0)
    return sorted(torch.topk(error, min(MAX_DIMS, len(error))).indices.tolist())


def ends(*acts: np.ndarray) -> tuple[float, float]:
    """Return the ends of an axis that shows all actions."""
    low, high = min(a.min() for a in acts), max(a.max() for a in acts)
    margin = 0.05 * (high - low) or 0.05
    return float(low - margin), float(high + margin)


def scatter(f: Finding, k: int) -> str:
    """Draw a student's actions over its teacher's, a panel per dimension; k: its place."""
    dims = worst_dims(f)
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    figure = new_figure(2.1 * max(columns, 2), 2.2 * rows)
    teacher, student = (x.numpy() for x in f.acts)
    for place, a in enumerate(dims):
        axes = figure.add_subplot(rows, columns, place + 1)
        low, high = ends(teacher[:, a], student[:, a])
        axes.plot([low, high], [low, high], color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        # one image instead of a thousand elements
        dots: dict[str, Any] = {"s": 4, "alpha": 0.5, "linewidths": 0, "rasterized": True}
        axes.scatter(teacher[:, a], student[:, a], color=page_line_style(k)["color"], **dots)
        style_axes(axes, f"action {a}, R² {format_number(f.scores['heldout'].r2[a])}")
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.locator_params(nbins=2)
    return svg(figure, f"scatter{k}")


MORE = {
    "retained": "return above random actions, as a share of the teacher's; 95 % bootstrap interval "
    f"over episodes, paired by their seed; too narrow for fewer than {BOOTSTRAP_SEEDS} episodes",
    "ratio": "mean return over the teacher's; it misleads where returns are negative",
    "gap": "how much worse or better held-out states are than those seen in training; where these "
    "are known, it separates too little data from poor optimisation",
    "× smaller": "parameters of the teacher per parameter of the student, normaliser not counted",
    "µs/action": "median time of one action for one observation",
    "floor": "a policy trained without this teacher: so much agreement comes by itself",
}


def page(found: Audit) -> str:
    """Return the page."""
    title = f"Fidelity to {found.teacher.name} in {found.setting.env_id}"
    line, origins = provenance(found)
    sections = [
        Section("", [returns_sheet(found), costs_sheet(found)]),
        Section("By set of states", [bars(found), histogram(found)]),
        *(student(found, f, k) for k, f in enumerate(found.findings)),
        Section("What the numbers mean", [meanings().items()]),
        Section("Where it comes from", [line, origins]),
    ]
    return render_page(title, sections, found.notes)


def student(found: Audit, f: Finding, k: int) -> Section:
    """Lay out one student's tables, and its actions over the teacher's."""
    n_act = f.acts[0].shape[1]
    which = f"; the {MAX_DIMS} of {n_act} with the largest error" if n_act > MAX_DIMS else ""
    text = f"The student's action (up) over the teacher's (right) on held-out states{which}."
    return Section(label(f), [fidelity_sheet(found, f), r2_sheet(f), text, scatter(f, k)])


def meanings() -> dict[str, str]:
    """Say in a line each what the numbers and the sets of states are."""
    lines = {m.title: m.meaning for m in MEASURES.values()} | MORE
    return lines | {f"states: {name}": meaning for name, meaning in SETS.items()}


def provenance(found: Audit) -> tuple[str, list[tuple[str, Markup]]]:
    """Name the files with their digests, and the settings."""
    subjects = [found.teacher, *(f.subject for f in found.findings)]
    setting = found.setting
    line = (
        f"{setting.env_id} {json.dumps(setting.env_kwargs)}, {setting.episodes} episodes each, "
        f"{setting.n_states:,} states in each set, seed {setting.seed}."
    )
    return line, [origin(subject) for subject in subjects]


def origin(subject: Subject) -> tuple[str, Markup]:
    """Say where a policy comes from."""
    said = {k: v for k, v in subject.origin.items() if k != "name" and v is not None}
    lines = (Markup("{} <code>{}</code>").format(k, json.dumps(v)) for k, v in said.items())
    return subject.name, Markup("<br>").join(lines)


def fidelity_paths(config: FidelityConfig, read_run: ReadRun) -> int:
    """Audit all students; print tables or JSON, and write what is kept."""
    require_writable(config.out)
    teacher, students, place = read_subjects(config, read_run)
    setting = setting_of(config, teacher.policy, place)
    with Progress(console=make_console(stderr=True, highlight=False), transient=True) as progress:
        task = progress.add_task("", total=1 + len(students))

        def tell(name: str) -> None:
            progress.update(task, description=f"playing {markup.escape(name)}", advance=1)

        found = audit(teacher, students, setting, tell)
    report = Report("fidelity", as_json(found), page(found), sheets(found), found.notes)
    write_report(report, config.out, config.json)
    for finding in found.findings:
        write_events(found, finding, config.out / "tb")
    return 0


def as_json(found: Audit) -> dict[str, Any]:
    """Return everything measured, raw returns included."""
    setting = found.setting
    return {
        "env": setting.env_id,
        "env_kwargs": setting.env_kwargs,
        "episodes": setting.episodes,
        "states": setting.n_states,
        "seed": setting.seed,
        "confidence": CONFIDENCE,
        "teacher": {
            **found.teacher.origin,
            **found.cost._asdict(),
            **describe_returns(found.returns),
        },
        "random": describe_returns(found.random),
        "students": [finding_json(f) for f in found.findings],
        "measures": {name: m.meaning for name, m in MEASURES.items()},
        "notes": found.notes,
    }


def finding_json(f: Finding) -> dict[str, Any]:
    """Return a student's figures and the returns behind them."""
    return {
        **f.subject.origin,
        "is_floor": f.subject.is_floor,
        **f.cost._asdict(),
        "compression": f.compression,
        **describe_returns(f.returns),
        "ratio": f.ratio,
        "retained": f.retained,
        "retained_interval": f.interval,
        "sets": {name: {"n": s.n, **s.values, "r2": s.r2} for name, s in f.scores.items()},
        "gap": {
            "seen": f.gap.seen,
            **f.gap.values,
            "unfitted": f.gap.unfitted,
            "ungeneralised": f.gap.ungeneralised,
        },
    }


def write_events(found: Audit, f: Finding, folder: Path) -> None:
    """Write a student's figures as one TensorBoard sub-run, in place of an earlier audit's."""
    from torch.utils.tensorboard import SummaryWriter

    from dpd.log.tensorboard import add_scalars

    run = folder / ("fidelity-" + re.sub(r"[^\w.-]+", "-", f.subject.name))
    for old in run.glob("events.out.tfevents.*"):
        old.unlink()
    steps = f.subject.policy.meta.provenance.get("steps")
    with SummaryWriter(run) as writer:
        add_scalars(writer, tags(found, f), steps if isinstance(steps, int) else 0)


def tags(found: Audit, f: Finding) -> dict[str, float | None]:
    """Name a student's figures for TensorBoard."""
    return {
        **{f"fidelity/{s}/{k}": v for s, row in f.scores.items() for k, v in row.values.items()},
        **{f"fidelity/gap/{k}": v for k, v in f.gap.values.items()},
        "eval/student_return": float(f.returns.mean()),
        "eval/teacher_return": float(found.returns.mean()),
        "eval/random_return": float(found.random.mean()),
        "eval/retained": f.retained,
        "model/params_student": f.cost.parameters,
        "model/params_teacher": found.cost.parameters,
        "model/compression": f.compression,
        "model/latency_us": f.cost.latency_us,
    }
