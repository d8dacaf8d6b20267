"""Read zips from untrusted sources: unpacked sizes are bounded, and nothing is executed."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

MAX_ZIP = 2**27  # bytes of a zip, and of its unpacked weights
MAX_MEMBERS = 1000
MAX_INDEX = 2**20  # bytes of the pickle that lists a torch file's tensors
# Everything that zipfile raises on crafted files, apart from ValueError.
BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
# The imports that a pickled list of tensors needs. torch's own list of safe names is longer: it has
# bytearray, which can allocate any amount of memory.
WEIGHT_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | {
    f"torch {kind}Storage" for kind in ("Half", "Float", "Double")
}


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file. Raises ValueError if it is longer than `limit` bytes."""
    if not path.is_file():
        raise ValueError("not a regular file" if path.exists() else "no such file")
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"over {limit} bytes")
    return raw


def open_zip(raw: bytes) -> zipfile.ZipFile:
    """Open a zip. Raises ValueError or one of BAD_ZIP if damaged or of over MAX_MEMBERS members."""
    if raw.count(b"PK\x01\x02") > MAX_MEMBERS:  # signature of a directory entry
        raise ValueError(f"it has over {MAX_MEMBERS} members")
    return zipfile.ZipFile(io.BytesIO(raw))


def read_zip_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Read a member of a zip. Raises ValueError if missing or over `limit` bytes unpacked."""
    if name not in archive.namelist():
        raise ValueError(f"it holds no {name}")
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise ValueError(f"{name} unpacks to {info.file_size} bytes, over {limit}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile does not bound the memory of the other methods
        raise ValueError(f"{name} uses an unsupported compression")
    with archive.open(info) as member:
        return member.read(info.file_size)


def read_weights(packed: bytes) -> dict[str, Tensor]:
    """Return the named float vectors and matrices in a file of torch.save.

    Raises ValueError for any other content.
    """
    try:
        _check_globals(packed)
        weights = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted file can make torch raise anything
        reason = str(error).split("\n")[0]
        raise ValueError(f"{reason:.200}") from error
    if not isinstance(weights, dict):
        raise ValueError("no named tensors")
    for name, tensor in weights.items():
        is_valid = (
            isinstance(name, str)
            and type(tensor) is Tensor
            and tensor.layout == torch.strided
            and tensor.is_floating_point()
            and tensor.device.type == "cpu"
            and tensor.dim() <= 2
            and tensor.numel() * tensor.element_size() <= MAX_ZIP  # a stride of 0 hides the size
        )
        if not is_valid:
            raise ValueError(f"{name!r:.80} is not a weight matrix or vector")
    return weights


def _check_globals(packed: bytes) -> None:
    """Raise ValueError if a torch file imports more than tensors; executes none of it."""
    with open_zip(packed) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_ZIP:
            raise ValueError(f"it unpacks to over {MAX_ZIP} bytes")
        lists = [n for n in archive.namelist() if n.lower().endswith("data.pkl")]
        if len(lists) != 1:
            raise ValueError("it was not written by torch.save")
        index = read_zip_member(archive, lists[0], MAX_INDEX)
    for op, arg, _ in pickletools.genops(index):
        if op.name in ("GLOBAL", "INST", "STACK_GLOBAL") and arg not in WEIGHT_GLOBALS:
            raise ValueError(f"it imports {arg!r:.80}, which weights do not need")
