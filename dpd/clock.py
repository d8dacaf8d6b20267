"""Where a run's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds spent per phase of an iteration."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        start = time.perf_counter()
        yield
        self.spent[phase] = self.spent.get(phase, 0.0) + time.perf_counter() - start

    def flush(self) -> dict[str, float]:
        """Return seconds per phase since the last flush."""
        spent, self.spent = self.spent, {}
        return {f"time/{k}": v for k, v in spent.items()}
