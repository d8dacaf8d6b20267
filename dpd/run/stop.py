"""Stopping in order: the first signal asks, the second insists."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run is to end now; `status` is what the process exits with."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


class StopRequest:
    """Note SIGINT and SIGTERM while inside; the second one raises Stopped wherever it arrives."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise Stopped(signum)
        self.signum = signum
        # Not through the console: the signal may have come in the middle of its drawing.
        with suppress(OSError):
            os.write(2, b"\nfinishing the iteration to save it; once more stops at once\n")

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
