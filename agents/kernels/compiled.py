"""The compiler of the kernels: Numba, with its results kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba.core import event

HERE = Path(__file__).parent
NUMBA_CONFIG: Any = numba.config  # its stubs know no settings
# Sums may be reordered, but NaN and infinity stay themselves: the guard against NaN reads them.
OPTIONS: Any = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
    "error_model": "numpy",
}


@contextmanager
def _cache_of_this_version() -> Iterator[None]:
    """Let Numba cache in a directory named by the text of all kernels.

    Numba itself compares only the file of the outermost function, so that a change of a function
    called from another file would go unnoticed.
    """
    text = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))
    before = NUMBA_CONFIG.CACHE_DIR
    name = f"kernels-{hashlib.sha256(text).hexdigest()[:16]}"
    NUMBA_CONFIG.CACHE_DIR = before or str(HERE / "__pycache__" / name)
    try:
        yield
    finally:
        NUMBA_CONFIG.CACHE_DIR = before


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call, without Python's global lock.

    The result is kept beside the source or, if that is read-only, in the user's cache directory;
    if neither can be written, every process compiles anew.
    """
    with _cache_of_this_version():
        try:
            return numba.njit(cache=True, **OPTIONS)(function)
        except RuntimeError as error:
            if "no locator" not in str(error):
                raise
            return numba.njit(**OPTIONS)(function)


class CompileListener(event.Listener):
    """Calls `say` once when Numba begins to compile instead of reading its cache."""

    def __init__(self, say: Callable[[], None]) -> None:
        self.say: Callable[[], None] | None = say

    def on_start(self, event: event.Event) -> None:
        if self.say is not None:
            self.say()
            self.say = None

    def on_end(self, event: event.Event) -> None:
        """Do nothing; Numba requires the method."""


@contextmanager
def announced(say: Callable[[], None]) -> Iterator[None]:
    """Call `say` once if anything is compiled in the `with` block."""
    with event.install_listener("numba:compile", CompileListener(say)):
        yield
