"""The audit as one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from dpd.fidelity.audit import Audit, Finding
from dpd.fidelity.measures import MEASURES
from dpd.fidelity.pictures import MAX_DIMS, bars, histogram, scatter
from dpd.fidelity.states import SETS
from dpd.fidelity.subjects import Subject
from dpd.fidelity.tables import (
    Sheet,
    costs_sheet,
    fidelity_sheet,
    label,
    r2_sheet,
    returns_sheet,
)

# No script, and nothing from elsewhere, whatever a policy file calls itself.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --soft: #6b6b6b; --grid: #e4e4e4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #16181b; --soft: #9a9a9a; --grid: #34383d; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.note { color: var(--soft); margin: 0.3rem 0; } .sheet { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.87rem; }
caption { text-align: left; color: var(--soft); padding: 0.4rem 0; }
th, td { padding: 0.2rem 0.7rem 0.2rem 0; text-align: right; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; }
dt { font-weight: 600; } dd { margin: 0 0 0.4rem 1.2rem; color: var(--soft); }
code { overflow-wrap: anywhere; font-size: 0.85rem; }
"""
MORE = {
    "retained": "return above random actions, as a share of the teacher's; 95 % bootstrap interval "
    "over episodes, paired by their seed",
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


def document(title: str, parts: Sequence[str]) -> str:
    """Return a page of these parts below its title."""
    body = "\n".join((f"<h1>{escape(title)}</h1>", *parts))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def notes(said: Sequence[str]) -> list[str]:
    """Lay out what weakens or explains the numbers."""
    return [f'<p class="note">Note: {escape(note)}.</p>' for note in said]


def table(sheet: Sheet) -> str:
    """Lay out a sheet."""
    head = "".join(f"<th>{escape(name)}</th>" for name in sheet.columns)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in sheet.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="sheet"><table><caption>{escape(sheet.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


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
    found = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in lines.items())
    return f"<dl>{''.join(found)}</dl>"


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
