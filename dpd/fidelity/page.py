"""The audit as one self-contained HTML page."""

from __future__ import annotations

import json
from html import escape

from dpd.fidelity.audit import Audit, Finding
from dpd.fidelity.measures import MEASURES
from dpd.fidelity.pictures import MAX_DIMS, bars, histogram, scatter
from dpd.fidelity.states import SETS
from dpd.fidelity.subjects import Subject
from dpd.fidelity.tables import costs_sheet, fidelity_sheet, label, r2_sheet, returns_sheet
from dpd.intervals import BOOTSTRAP_SEEDS
from dpd.webpage import definitions, document, notes, table

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
    parts = [
        *notes(found.notes),
        table(returns_sheet(found)),
        table(costs_sheet(found)),
        f"<h2>By set of states</h2>{bars(found)}{histogram(found)}",
        *(student(found, f, k) for k, f in enumerate(found.findings)),
        f"<h2>What the numbers mean</h2>{meanings()}",
        f"<h2>Where it comes from</h2>{provenance(found)}",
    ]
    return document(title, parts)


def student(found: Audit, f: Finding, k: int) -> str:
    """Lay out one student's tables, and its actions over the teacher's."""
    n_act = f.acts[0].shape[1]
    which = f"; the {MAX_DIMS} of {n_act} with the largest error" if n_act > MAX_DIMS else ""
    return (
        f"<h2>{escape(label(f))}</h2>{table(fidelity_sheet(found, f))}{table(r2_sheet(f))}"
        f"<p>The student's action (up) over the teacher's (right) on held-out states{which}.</p>"
        f"{scatter(f, k)}"
    )


def meanings() -> str:
    """Say in a line each what the numbers and the sets of states are."""
    lines = {m.title: m.meaning for m in MEASURES.values()} | MORE
    lines |= {f"states: {name}": meaning for name, meaning in SETS.items()}
    return definitions(lines)


def provenance(found: Audit) -> str:
    """Name the files with their digests, and the settings."""
    subjects = [found.teacher, *(f.subject for f in found.findings)]
    setting = found.setting
    line = (
        f"{setting.env_id} {json.dumps(setting.env_kwargs)}, {setting.episodes} episodes each, "
        f"{setting.n_states:,} states in each set, seed {setting.seed}"
    )
    return f"<p>{escape(line)}.</p><dl>{''.join(map(origin, subjects))}</dl>"


def origin(subject: Subject) -> str:
    """Say where a policy comes from."""
    said = {k: v for k, v in subject.origin.items() if k != "name" and v is not None}
    lines = (f"{escape(k)} <code>{escape(json.dumps(v))}</code>" for k, v in said.items())
    return f"<dt>{escape(subject.name)}</dt><dd>{'<br>'.join(lines)}</dd>"
