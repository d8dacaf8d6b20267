"""Self-contained HTML pages: sections of text, tables, definitions and inline SVG figures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from markupsafe import Markup

from dpd.report.figures import COLOURS, line_style
from dpd.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Block = str | Table | Iterable[tuple[str, str]]
"""A paragraph, a table or pairs of term and definition. Markup is inserted as it is."""

INK, GRID = "#123456", "#654321"
"""Placeholder colours of figures; `svg` replaces them by the page's CSS colours."""


class Section(NamedTuple):
    """A part of a page; an empty title gives no heading."""

    title: str
    blocks: Sequence[Block]


def render_page(title: str, sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """Return a page. All text but Markup is escaped: names of files and runs may be anything."""
    return page_template().render(title=title, sections=sections, notes=notes) + "\n"


@cache
def page_template() -> jinja2.Template:
    """Load the template next to this module."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpd.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2")


def svg(figure: Figure, name: str) -> Markup:
    """Return a figure as an SVG element in the page's colours; `name` is unique on the page."""
    from matplotlib import rc_context

    file = io.StringIO()
    # The salt makes element ids unique on the page and the same in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    return Markup(text.replace(INK, "currentColor").replace(GRID, "var(--grid)"))


def style_axes(axes: Axes, title: str) -> None:
    """Remove the frame and set the title."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, labelcolor=INK, labelsize=9, length=0)
    axes.set_title(title, loc="left", color=INK, fontsize=10, parse_math=False)


def legend(figure: Figure, names: str = "{}", columns: int = 4) -> None:
    """Add a legend of the first panel's lines above all panels, if there are at least two."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(handles) < 2:
        return
    added = figure.legend(
        handles,
        [names.format(label) for label in labels],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    for text in added.get_texts():
        text.set_parse_math(False)  # a file name may contain dollar signs


def page_line_style(k: int) -> dict[str, Any]:
    """Return the colour and dashes of line k, without black: it is invisible on a dark page."""
    return line_style(k, COLOURS[:-1])
