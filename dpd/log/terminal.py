"""The one place that makes consoles: tables are never cut where the output is no terminal."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

WIDE = 1000


def make_console(**settings: Any) -> Console:
    """Make a rich console; settings are rich's.

    Rich takes 80 columns for a pipe or a file, and cuts table cells to fit. There, what is printed
    is as wide as it has to be, unless COLUMNS in the environment says otherwise.
    """
    console = Console(**settings)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = settings.get("width") or WIDE
    return console
