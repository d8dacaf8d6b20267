"""Read zips that anyone may have made: nothing unpacks beyond a bound, and nothing is run."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

MAX_FILE = 2**27  # bytes, of a zip, and of what its weights unpack to
MAX_MEMBERS = 1000
MAX_INDEX = 2**20  # bytes, of the pickle that lists the tensors of a torch file
# All that reading zipfile's part of a crafted file raises, beside ValueError.
BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
# What a list of tensors names. torch's own list of harmless names is longer: its bytearray
# takes any amount of memory.
NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | {
    f"torch {kind}Storage" for kind in ("Half", "Float", "Double")
}


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises ValueError otherwise."""
    if not path.is_file():
        raise ValueError("no regular file" if path.exists() else "no such file")
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"over {limit} bytes")
    return raw


def open_zip(raw: bytes) -> zipfile.ZipFile:
    """Open a zip of at most MAX_MEMBERS. Raises ValueError or one of BAD_ZIP otherwise."""
    if raw.count(b"PK\x01\x02") > MAX_MEMBERS:  # what each entry of a zip's directory begins with
        raise ValueError(f"it has over {MAX_MEMBERS} members")
    return zipfile.ZipFile(io.BytesIO(raw))


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Read a member of at most `limit` bytes. Raises ValueError otherwise."""
    if name not in archive.namelist():
        raise ValueError(f"it holds no {name}")
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise ValueError(f"{name} unpacks to {info.file_size} bytes, over {limit}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed in an unusual way")  # which zipfile unpacks unbounded
    with archive.open(info) as member:
        return member.read(info.file_size)


def read_weights(packed: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file of torch.save: named float vectors and matrices.

    Raises ValueError for anything else.
    """
    try:
        _check_names(packed)
        weights = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch makes of a crafted file can be any of them
        reason = str(error).split("\n")[0]
        raise ValueError(f"{reason:.200}") from error
    if not isinstance(weights, dict):
        raise ValueError("no named tensors")
    for name, tensor in weights.items():
        is_good = (
            isinstance(name, str)
            and type(tensor) is Tensor
            and tensor.layout == torch.strided
            and tensor.is_floating_point()
            and tensor.device.type == "cpu"
            and tensor.dim() <= 2
            and tensor.numel() * tensor.element_size() <= MAX_FILE  # a stride of 0 costs nothing
        )
        if not is_good:
            raise ValueError(f"{name!r:.80} is no matrix of weights")
    return weights


def _check_names(packed: bytes) -> None:
    """Raise ValueError unless a torch file lists tensors and nothing else; runs none of it."""
    with open_zip(packed) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_FILE:
            raise ValueError(f"it unpacks to over {MAX_FILE} bytes")
        lists = [n for n in archive.namelist() if n.lower().endswith("data.pkl")]
        if len(lists) != 1:
            raise ValueError("it is no file of torch.save")
        index = read_member(archive, lists[0], MAX_INDEX)
    for op, arg, _ in pickletools.genops(index):
        if op.name in ("GLOBAL", "INST", "STACK_GLOBAL") and arg not in NAMES:
            raise ValueError(f"it asks for {arg!r:.80}, which no weights need")
