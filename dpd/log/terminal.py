"""Rich consoles that do not truncate tables in pipes and files."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

PIPE_WIDTH = 1000


def make_console(**settings: Any) -> Console:
    """Make a rich console from rich's settings.

    Rich assumes 80 columns for a pipe or a file, and truncates table cells to fit. This console is
    wide enough for any table, unless the environment variable COLUMNS sets a width.
    """
    console = Console(**settings)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = settings.get("width") or PIPE_WIDTH
    return console
