"""`dpd fidelity`: audit policies, and report to the terminal, as JSON, TensorBoard and a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import Progress

from dpd.fidelity.audit import Audit, Finding, audit
from dpd.fidelity.known import ReadRun
from dpd.fidelity.measures import MEASURES
from dpd.fidelity.page import page
from dpd.fidelity.states import setting_of
from dpd.fidelity.subjects import read_subjects
from dpd.fidelity.tables import sheets
from dpd.intervals import CONFIDENCE
from dpd.sheets import Report, deliver, mean_and_each, require_writable
from dpd.terminal import make_console

if TYPE_CHECKING:
    from dpd.commands import FidelityConfig


def fidelity_paths(config: FidelityConfig, read_run: ReadRun) -> int:
    """Audit all students; print tables or JSON, and write what is kept."""
    require_writable(config.out)
    teacher, students, place = read_subjects(config, read_run)
    setting = setting_of(config, teacher.policy, place)
    with Progress(console=make_console(stderr=True, highlight=False), transient=True) as progress:
        task = progress.add_task("", total=1 + len(students))

        def tell(name: str) -> None:
            progress.update(task, description=f"playing {escape(name)}", advance=1)

        found = audit(teacher, students, setting, tell)
    report = Report("fidelity", as_json(found), page(found), sheets(found), found.notes)
    deliver(report, config.out, config.json)
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
            **mean_and_each(found.returns),
        },
        "random": mean_and_each(found.random),
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
        **mean_and_each(f.returns),
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

    from dpd.tblog import add_scalars

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
