"""Atomic replacement of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DRAFT = ".part."
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
