"""Files that no reader ever sees half of, and a directory that one run holds at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
