"""A run on another machine: the work of one task of a cluster, and the files that travel.

If the study's directory is not there, the run trains in a temporary one. Its metrics and its log
travel home while it trains, and the whole directory at its end.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dpd import __version__
from dpd.files import DRAFT
from dpd.study.jobs import JOB_LOG, Child, child_command, resumed, start_child

REPORT_S = 1.0  # between two reports of a task
LEFT_OUT = (".lock", DRAFT)
"""Beginnings of the names of files that belong to the process that writes them."""
Changes = dict[str, tuple[int, bytes]]
"""Names of growing files, and the bytes that begin at an offset."""


class Order(NamedTuple):
    """One run for a task."""

    key: int
    words: list[str]
    """Arguments of `dpd train`, without --out."""
    hardware: list[str]
    """Further flags, which a resumed run takes too."""
    path: str
    """Directory of the run in the study."""
    token: str
    """File that the task sees only if it shares the study's storage."""
    cwd: str
    kept: bytes | None
    """Packed directory of a run that has begun; None: not sent."""
    has_begun: bool
    version: str


class TaskReport(NamedTuple):
    """Message of a task that trains."""

    key: int
    place: str
    changes: Changes


class TaskOutcome(NamedTuple):
    """End of a task."""

    status: int
    """Exit status of the child."""
    files: bytes | None = None
    """Packed directory of the run, unless the study shares the task's storage."""
    wants_run: bool = False
    """True if the task needs `kept`, and ended for lack of it."""
    complaint: str = ""


Send = Callable[[TaskReport], int | None]
"""Sends a report; returns the signal to pass on to the run, if any."""


def train_order(order: Order, send: Send) -> TaskOutcome:
    """Train a run, on shared storage or in a temporary directory."""
    if order.version != __version__:
        return TaskOutcome(2, complaint=f"found dpd {__version__} there, and {order.version} here")
    is_shared = Path(order.token).is_file()
    if not is_shared and order.has_begun and order.kept is None:
        return TaskOutcome(0, wants_run=True)
    with directory_of(order, is_shared) as path:
        status = train_in(order, path, send, Tail(path) if not is_shared else None)
        return TaskOutcome(status, None if is_shared else pack(path))


@contextmanager
def directory_of(order: Order, is_shared: bool) -> Iterator[Path]:
    """Yield the directory to train in; a temporary one holds the run as far as it got."""
    if is_shared:
        yield Path(order.path)
        return
    with tempfile.TemporaryDirectory(prefix="dpd-") as folder:
        path = Path(folder) / "run"
        path.mkdir()
        if order.kept is not None:
            unpack(order.kept, path)
        yield path


def train_in(order: Order, path: Path, send: Send, tail: Tail | None) -> int:
    """Train in a directory; return the exit status. Ends the child if it is ended itself."""
    place = socket.gethostname()
    if (signum := send(TaskReport(order.key, place, {}))) is not None:
        return 128 + signum
    words = [*order.words, "--out", str(path)]
    command = child_command(resumed(path, words, [*words, *order.hardware]))
    child = start_child(command, path / JOB_LOG, order.cwd if os.path.isdir(order.cwd) else None)
    try:
        return follow_child(child, lambda: send(TaskReport(order.key, place, changes(tail))))
    finally:
        child.kill()
        child.wait()


def follow_child(child: Child, report: Callable[[], int | None]) -> int:
    """Report until a child ends, and pass a signal on to it once; return its exit status."""
    is_passed_on = False
    while (status := child.poll()) is None:
        signum = report()
        if signum is not None and not is_passed_on:
            is_passed_on = True
            child.send_signal(signum)
        wait_for_end(child, REPORT_S)
    report()
    return status


def wait_for_end(child: Child, seconds: float) -> None:
    """Wait for the end of a child, but not longer than this."""
    until = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


class Tail:
    """The growth of a run's metrics and log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._offsets = path, dict[str, int]()
        self.new()  # the study has these already

    def new(self) -> Changes:
        """Return what was added; a file that has shrunk is sent anew."""
        changes: Changes = {}
        for file in [*self._path.glob("metrics*.csv"), self._path / JOB_LOG]:
            if not file.is_file():
                continue
            size, offset = file.stat().st_size, self._offsets.get(file.name, 0)
            offset = offset if offset <= size else 0
            with file.open("rb") as opened:
                opened.seek(offset)
                added = opened.read()
            if added or offset != self._offsets.get(file.name, 0):
                changes[file.name] = offset, added
            self._offsets[file.name] = offset + len(added)
        return changes


def changes(tail: Tail | None) -> Changes:
    """Return the growth of the files, if they must travel."""
    return {} if tail is None else tail.new()


def write_changes(path: Path, changed: Changes) -> None:
    """Write into a run's directory at home what a task has added to its files."""
    path.mkdir(parents=True, exist_ok=True)
    for name, (offset, added) in changed.items():
        with (path / name).open("r+b" if (path / name).exists() else "w+b") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(added)


def pack(path: Path) -> bytes:
    """Return a directory as a tar file, without locks and drafts."""

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(member.name).name.startswith(LEFT_OUT) else member

    box = io.BytesIO()
    with tarfile.open(fileobj=box, mode="w") as tar:
        tar.add(path, arcname=".", filter=kept)
    return box.getvalue()


def unpack(packed: bytes, path: Path) -> None:
    """Extract a packed directory, which cannot name files outside `path`."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(path, filter="data")


def replace_directory(packed: bytes, path: Path) -> None:
    """Put a packed directory in the place of another one, as a whole or not at all."""
    draft, old = (path.with_name(f"{DRAFT}{end}{path.name}") for end in ("new.", "old."))
    for left in (draft, old):
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir(parents=True)
    unpack(packed, draft)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    shutil.rmtree(old, ignore_errors=True)
