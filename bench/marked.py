"""Tables in a page of the documentation, between marks that name the benchmark they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def fill(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between a benchmark's marks. Raises ValueError where the page has none."""
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    before, found, rest = page.read_text().partition(begin)
    _, ends, after = rest.partition(end)
    if not found or not ends:
        raise ValueError(f"{page} lacks the lines {begin} and {end}")
    page.write_text("\n".join([before + begin, "", *lines, "", end + after]))
