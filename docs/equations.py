"""MkDocs hook: turn the TeX that pymdownx.arithmatex marks into MathML, which browsers show."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
    re.DOTALL,
)


def on_page_content(page_html: str, /, **_: Any) -> str:
    """Convert the equations of a page."""
    return EQUATION.sub(_mathml, page_html)


def _mathml(equation: re.Match[str]) -> str:
    display = "block" if equation[1] == "div" else "inline"
    return str(convert(html.unescape(equation[2]), display=display))
