"""Read zips, weights and pickles from untrusted sources: sizes are bounded, nothing is executed.

`pickle.load` is a small stack machine whose instructions can import any object and call it.
`read_pickle` interprets the same instructions without that power:

* `pickletools.genops` only splits the bytes into instructions and their literal arguments.
* An instruction that names an object gives a `Name`: two strings. None is imported or looked up.
* An instruction that calls an object or sets its state gives or changes a `Record`.
* Every instruction that is not in `INSTRUCTIONS` is rejected, such as those that reach outside the
  file (persistent ids, extension codes, out-of-band buffers).

Its work and memory are linear in the size of the file: containers share their items, the number of
instructions is bounded, and `read_array` makes no array that is larger than its bytes in the file.
Nothing recurses, and values from the file are hashed, compared or printed only if they are strings,
numbers or bytes.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
MAX_OPS = 200_000  # a VecNormalize of Stable-Baselines3 has about 700
MAX_ARRAY_AXES, MAX_LENGTH = 8, 2**40  # of arrays; multiplying longer lengths would take time
NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")  # dtypes of booleans, integers and floats


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
            and type(tensor) is Tensor  # of floats on the CPU, since nothing else was imported
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


class Name(NamedTuple):
    """An object that a pickle would import."""

    module: str
    name: str


@dataclass(eq=False)
class Record:
    """A call that was not made: the class or function, the arguments, and a state set later."""

    of: Name | None  # None if a pickle calls anything but a name
    args: tuple[Any, ...] = ()
    state: Any = None


class Unreadable(ValueError):
    """The pickle cannot be read as data; the message says why."""


def read_pickle(raw: bytes) -> Any:
    """Return the value of a pickle: plain values and `Record`s, some of which are arrays.

    Raises Unreadable if the pickle is damaged, or if only running it would give the value.
    """
    machine = Machine()
    try:
        for count, (op, arg, _) in enumerate(pickletools.genops(raw)):
            if count == MAX_OPS:
                raise Unreadable(f"it has over {MAX_OPS:,} instructions")
            if op.name == "STOP":
                return machine.pop()
            if op.name not in INSTRUCTIONS:
                raise Unreadable(f"it uses the unsupported instruction {op.name}")
            INSTRUCTIONS[op.name](machine, arg)
    except Unreadable:
        raise
    # raised by genops, and by an instruction on a stack that is too short
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise Unreadable(f"it is damaged ({type(error).__name__}: {error!s:.80})") from error
    raise Unreadable("it has no end")


class Machine:
    """The interpreter's state: a stack, the stacks below its marks, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_several(self, n: int) -> list[Any]:
        return [self.stack.pop() for _ in range(n)][::-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def memoize(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top. A subclass of list is a Record; its items are dropped."""
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Set alternating keys and values of the dict on top.

        Other keys than strings are dropped, because their hashes can be made to collide.
        """
        if len(items) % 2:
            raise Unreadable("it is damaged (a key without a value)")
        if type(target := self.stack[-1]) is dict:
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((key, value) for key, value in pairs if type(key) is str)

    def push_dict(self) -> None:
        items = self.pop_mark()
        self.push({})
        self.update(items)

    def name(self) -> None:
        module, name = self.pop_several(2)
        if not isinstance(name, str) or not isinstance(module, str):
            raise Unreadable("it is damaged (a name that is no string)")
        self.push(Name(module, name))

    def call(self) -> None:
        function, args = self.pop_several(2)
        if not isinstance(args, tuple):
            raise Unreadable("it is damaged (arguments that are no tuple)")
        self.push(Record(function if isinstance(function, Name) else None, args))

    def call_with_keywords(self) -> None:
        self.pop()  # no constructor of NumPy has keyword arguments
        self.call()

    def build(self) -> None:
        """Set the state of the object below."""
        state = self.pop()
        if isinstance(target := self.stack[-1], Record):
            target.state = state


LITERALS = (
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
INSTRUCTIONS: dict[str, Callable[[Machine, Any], object]] = {  # their meaning is in pickletools
    **dict.fromkeys(LITERALS, Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, arg: None),
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "BYTEARRAY8": lambda m, arg: m.push(bytes(arg)),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "EMPTY_LIST": lambda m, arg: m.push([]),
    "EMPTY_SET": lambda m, arg: m.push([]),  # sets are lists, so that no item is hashed
    "EMPTY_DICT": lambda m, arg: m.push({}),
    "TUPLE1": lambda m, arg: m.push(tuple(m.pop_several(1))),
    "TUPLE2": lambda m, arg: m.push(tuple(m.pop_several(2))),
    "TUPLE3": lambda m, arg: m.push(tuple(m.pop_several(3))),
    "MARK": lambda m, arg: m.mark(),
    "TUPLE": lambda m, arg: m.push(tuple(m.pop_mark())),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, arg: m.push(m.pop_mark())),
    "DICT": lambda m, arg: m.push_dict(),
    "POP": lambda m, arg: m.pop() if m.stack else m.pop_mark(),
    "POP_MARK": lambda m, arg: m.pop_mark(),
    "APPEND": lambda m, arg: m.extend([m.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, arg: m.extend(m.pop_mark())),
    "SETITEM": lambda m, arg: m.update(m.pop_several(2)),
    "SETITEMS": lambda m, arg: m.update(m.pop_mark()),
    "MEMOIZE": lambda m, arg: m.memoize(len(m.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, arg: m.push(m.memo[arg])),
    "GLOBAL": lambda m, arg: m.push(Name(*arg.split(" ", 1))),
    "STACK_GLOBAL": lambda m, arg: m.name(),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, arg: m.call()),
    "NEWOBJ_EX": lambda m, arg: m.call_with_keywords(),
    "BUILD": lambda m, arg: m.build(),
}


def read_array(value: Any) -> np.ndarray | None:
    """Return the array or number that NumPy 1 or 2 pickled; None for any other value."""
    if not isinstance(value, Record) or value.of is None:
        return None
    module, name = value.of
    match (module.replace("numpy._core.", "numpy.core."), name, value.args, value.state):
        case "numpy.core.multiarray", "_reconstruct", _, (_, shape, dtype, is_fortran, raw):
            order = "F" if is_fortran is True else "C"
        case "numpy.core.multiarray", "scalar", (dtype, raw), _:
            shape, order = (), "C"
        case "numpy.core.numeric", "_frombuffer", (raw, dtype, shape, order), _:
            pass
        case _:
            return None
    numbers, content = _dtype(dtype), _content(raw)
    if numbers is None or not isinstance(shape, tuple) or len(shape) > MAX_ARRAY_AXES:
        return None
    if not all(type(n) is int and 0 <= n < MAX_LENGTH for n in shape):
        return None
    if content is None or math.prod(shape) * numbers.itemsize != len(content):
        return None
    return np.frombuffer(content, numbers).reshape(shape, order="F" if order == "F" else "C")


def _dtype(value: Any) -> np.dtype[Any] | None:
    """Return the numeric dtype in a Record of `numpy.dtype(code, align, copy)`, else None."""
    match value:
        case Record(("numpy", "dtype"), (str(code), *_), state) if NUMBERS.fullmatch(code):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
            return np.dtype(order + code) if order in ("<", ">", "|") else None
    return None


def _content(value: Any) -> bytes | None:
    """Return the bytes of an array. Protocol 2 writes them as text, or as `bytes()`."""
    match value:
        case bytes():
            return value
        case Record(("_codecs", "encode"), (str(text), "latin1")):
            return text.encode("latin1")
        case Record(("__builtin__", "bytes"), ()):
            return b""
    return None
