"""Read the files that W&B's offline mode writes: LevelDB's log format, with protocol buffers."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb.proto.wandb_internal_pb2 as protocol

PROTOCOL: Any = protocol  # its classes are made at run time
BLOCK, HEADER = 32 * 1024, 7  # bytes; the file has a header of 7 bytes too
PATIENCE_S = 60.0
LAST_PARTS = (1, 4)  # a record that is whole, or the end of one


def chunks(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log, joined where they cross a block's end."""
    at, whole = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if at + HEADER + size > len(data):  # being written
            return
        whole += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in LAST_PARTS:
            yield whole
            whole = b""


def read_records(file: Path) -> list[Any]:
    """Read the records of one file, once W&B's own process has written the last one."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = []
        for chunk in chunks(file.read_bytes()):
            found.append(PROTOCOL.Record())
            found[-1].ParseFromString(chunk)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.05)


def records(run_dir: Path) -> list[Any]:
    """Return the records of all W&B runs in a directory, oldest file first."""
    files = sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    return [record for file in files for record in read_records(file)]


def history(run_dir: Path) -> list[dict[str, float]]:
    """Return what was logged, one dictionary per step, in the order of the files."""
    found = []
    for record in records(run_dir):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return found


def wandb_runs(run_dir: Path) -> list[Any]:
    """Return how each W&B run of a directory was opened."""
    kinds = (r for r in records(run_dir) if r.WhichOneof("record_type") == "run")
    return [record.run for record in kinds]
