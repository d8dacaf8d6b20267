"""A self-contained HTML page: its frame, tables, and pictures as inline SVG in its colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dpd.report.figures import COLOURS, DASHES
from dpd.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
INK, GRID = "#123456", "#654321"  # replaced by the page's own colours


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


def definitions(lines: Mapping[str, str]) -> str:
    """Lay out words and what is to be said of them."""
    found = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in lines.items())
    return f"<dl>{''.join(found)}</dl>"


def table(sheet: Table) -> str:
    """Lay out a sheet."""
    head = "".join(f"<th>{escape(name)}</th>" for name in sheet.columns)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in sheet.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="sheet"><table><caption>{escape(sheet.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element with the page's colours."""
    from matplotlib import rc_context

    file = io.StringIO()
    # the salt keeps the ids of the pictures on one page apart, and makes them the same each time
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    return text.replace(INK, "currentColor").replace(GRID, "var(--grid)")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.09))


def plain(axes: Axes, title: str) -> None:
    """Take away the frame, and write the title."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, labelcolor=INK, labelsize=9, length=0)
    axes.set_title(title, loc="left", color=INK, fontsize=10, parse_math=False)


def legend(figure: Figure, names: str = "{}", columns: int = 4) -> None:
    """Name what the first panel shows above all panels, in the page's ink, unless it is one."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(handles) < 2:
        return
    found = figure.legend(
        handles,
        [names.format(label) for label in labels],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    for text in found.get_texts():
        text.set_parse_math(False)  # a file may have dollars in its name


def look(k: int) -> dict[str, Any]:
    """Give a line its colour; past the palette's end, its dashes differ."""
    turn, colour = divmod(k, len(COLOURS) - 1)  # without black, which no dark page shows
    return {"color": COLOURS[colour], "linestyle": DASHES[turn % len(DASHES)]}
