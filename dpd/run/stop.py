"""Graceful stop: the first signal lets the iteration finish, the second stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run must end now; the process exits with `status`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


class StopRequest:
    """Record SIGINT or SIGTERM within a `with` block; the second signal raises Stopped at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise Stopped(signum)
        self.signum = signum
        # Bypass the console: the signal may have interrupted its drawing.
        with suppress(OSError):
            os.write(2, b"\nfinishing the iteration to save it; a second signal stops at once\n")

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
