"""Atomic replacement of files, and the lock on a directory as others see it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

DRAFT = ".part."
SETTINGS_FILE = "config.json"
DEPTH = 3  # STUDY/ENV/ARM/SHARE, or a directory of studies without shares
LOCK = ".lock"
_UMASK = os.umask(0o022)
os.umask(_UMASK)  # the umask can only be read by setting it


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a draft path next to `path`; rename the draft to `path`, or remove it after an error.

    `durable` flushes the draft to disk before the rename, so that a power cut cannot lose both.
    """
    draft = path.with_name(f"{DRAFT}{path.name}")
    try:
        yield draft
        os.chmod(draft, 0o666 & ~_UMASK)  # safetensors writes files with mode 0600
        if durable:
            _sync(draft)
        os.replace(draft, path)
        if durable:
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class LockState(NamedTuple):
    """The lock of a run's directory, seen from outside."""

    is_held: bool
    process: str
    """The process that holds the lock, or that ended without releasing it; empty if none."""


def read_lock(folder: Path) -> LockState:
    """Return the state of a directory's lock.

    Asks for a shared lock and returns it at once; `locked` waits for such an interruption.
    """
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return LockState(False, "")
    try:
        process = os.pread(fd, 32, 0).decode(errors="replace").strip()
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return LockState(True, process)
        return LockState(False, os.pread(fd, 32, 0).decode(errors="replace").strip())
    finally:
        os.close(fd)


def run_folders(path: Path) -> list[Path]:
    """Return the run directories among a directory and its folders, by name.

    A directory that is a run stands for itself alone.
    """
    if (path / SETTINGS_FILE).is_file():
        return [path]
    patterns = ["/".join(["*"] * level + [SETTINGS_FILE]) for level in range(1, DEPTH + 1)]
    return sorted({file.parent for pattern in patterns for file in path.glob(pattern)})
