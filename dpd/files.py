"""Files that no reader ever sees half of, and a directory that one run holds at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dpd.config import BadInput

DRAFT = ".part."
_UMASK = os.umask(0o022)
os.umask(_UMASK)  # it can only be read by setting it


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Give a draft to write beside `path`; put it in its place, or remove it after an error.

    `durable`: on disk before it takes the place, so that not even a power cut loses both.
    """
    draft = path.with_name(f"{DRAFT}{path.name}")
    try:
        yield draft
        os.chmod(draft, 0o666 & ~_UMASK)  # safetensors writes files that only their owner reads
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


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Hold a run's directory, made if it isn't there. Raises BadInput while another run has it.

    The system releases it however this process ends, and those that inherit the descriptor given.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror}; give --out another") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise BadInput(
                f"{folder} is in use by another run (process {holder}); give --out another"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield fd
    finally:
        os.close(fd)
