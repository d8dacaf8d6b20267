"""Read a pickle as data: no name in it is imported, looked up or called.

`pickle.load` is a small stack machine whose instructions can import any object and call it. This
module interprets the same instructions without that power:

* `pickletools.genops` only splits the bytes into instructions and their literal arguments.
* An instruction that names an object (GLOBAL, STACK_GLOBAL, INST) gives a `Name`: two strings.
* An instruction that calls an object (REDUCE, NEWOBJ, NEWOBJ_EX, INST, OBJ) or sets its state
  (BUILD) gives or changes a `Record` of the name, the arguments and the state.
* Names are compared with the constants in `BUILDERS`. Those few functions make arrays and numbers
  from plain bytes, and check the type of each argument before they read an attribute of it.
* Instructions that reach outside the file (persistent ids, extension codes, out-of-band buffers)
  are rejected, like every instruction that is not in `MACHINE`.

Work and memory are linear in the size of the file: containers share their items, the number of
instructions is bounded, and an array is no larger than its bytes in the file. Nothing recurses, and
values from the file are hashed, compared or printed only if they are strings, numbers or bytes.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

MAX_OPS = 200_000  # a VecNormalize of Stable-Baselines3 has about 700
MAX_ARRAY_AXES, MAX_LENGTH = 8, 2**40  # of arrays; multiplying longer lengths would take time
NUMBERS = re.compile(r"[biuf]\d{1,2}")  # dtypes of booleans, integers and floats


class Name(NamedTuple):
    """An object that the pickle would import."""

    module: str
    name: str


@dataclass(eq=False)
class Record:
    """A call that was not made: the class, the arguments and the state."""

    of: Name | None
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass(eq=False)
class PickledArray:
    """An array; BUILD sets its value, which stays None if it is not numeric."""

    value: np.ndarray | None = None


@dataclass
class Machine:
    """The state of the interpreter: a stack, the stacks below its marks, and the memo."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        """Take the top of the stack."""
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items


DTYPE = Name("numpy", "dtype")


class Unreadable(ValueError):
    """The pickle cannot be read as data; the message says why."""


def read_pickle(raw: bytes) -> Any:
    """Return the value of a pickle: plain values, `PickledArray`s and `Record`s.

    Raises Unreadable if the pickle is damaged, or if only running it would give the value.
    """
    machine = Machine()
    try:
        for count, (op, arg, _) in enumerate(pickletools.genops(raw)):
            if count == MAX_OPS:
                raise Unreadable(f"it has over {MAX_OPS:,} instructions")
            if op.name == "STOP":
                return machine.pop()
            if op.name not in MACHINE:
                raise Unreadable(f"it uses the unsupported instruction {op.name}")
            MACHINE[op.name](machine, arg)
    except Unreadable:
        raise
    # raised by genops, and by an instruction on a stack that is too short
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise Unreadable(f"it is damaged ({type(error).__name__}: {error!s:.80})") from error
    raise Unreadable("it has no end")


# The instructions. See pickletools for their meaning.


def push(machine: Machine, arg: Any) -> None:
    machine.stack.append(arg)


def push_constant(value: Any) -> Callable[[Machine, Any], None]:
    return lambda machine, arg: machine.stack.append(value)


def push_new(kind: Callable[[], Any]) -> Callable[[Machine, Any], None]:
    return lambda machine, arg: machine.stack.append(kind())


def push_bytearray(machine: Machine, arg: Any) -> None:
    machine.stack.append(bytes(arg))


def mark(machine: Machine, arg: Any) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def pop(machine: Machine, arg: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def pop_mark(machine: Machine, arg: Any) -> None:
    machine.pop_mark()


def duplicate(machine: Machine, arg: Any) -> None:
    machine.stack.append(machine.stack[-1])


def push_tuple(n: int | None) -> Callable[[Machine, Any], None]:
    def run(machine: Machine, arg: Any) -> None:
        items = machine.pop_mark() if n is None else [machine.pop() for _ in range(n)][::-1]
        machine.stack.append(tuple(items))

    return run


def push_list(machine: Machine, arg: Any) -> None:
    items = machine.pop_mark()
    machine.stack.append(items)


def push_dict(machine: Machine, arg: Any) -> None:
    found: dict[str, Any] = {}
    put(found, machine.pop_mark())
    machine.stack.append(found)


def push_set(machine: Machine, arg: Any) -> None:
    machine.stack.append(machine.pop_mark())  # as a list, so that no item is hashed


def append(machine: Machine, arg: Any) -> None:
    value = machine.pop()
    extend(machine.stack[-1], [value])


def appends(machine: Machine, arg: Any) -> None:
    items = machine.pop_mark()
    extend(machine.stack[-1], items)


def extend(target: Any, items: list[Any]) -> None:
    """Append to a list. A subclass of list is a Record, whose items are dropped."""
    if type(target) is list:
        target.extend(items)


def set_item(machine: Machine, arg: Any) -> None:
    value, key = machine.pop(), machine.pop()
    put(machine.stack[-1], [key, value])


def set_items(machine: Machine, arg: Any) -> None:
    items = machine.pop_mark()
    put(machine.stack[-1], items)


def put(target: Any, items: list[Any]) -> None:
    """Set alternating keys and values. Other keys than strings are dropped: hashes can collide."""
    if len(items) % 2:
        raise Unreadable("it is damaged (a key without a value)")
    if type(target) is dict:
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if type(key) is str)


def memoize(machine: Machine, arg: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def memorise_as(machine: Machine, arg: Any) -> None:
    machine.memo[arg] = machine.stack[-1]


def recall(machine: Machine, arg: Any) -> None:
    machine.stack.append(machine.memo[arg])


def push_name(machine: Machine, arg: Any) -> None:
    module, _, name = arg.partition(" ")
    machine.stack.append(Name(module, name))


def push_stacked_name(machine: Machine, arg: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Unreadable("it is damaged (a name that is no string)")
    machine.stack.append(Name(module, name))


def reduce(machine: Machine, arg: Any) -> None:
    args, function = machine.pop(), machine.pop()
    machine.stack.append(call(function, args))


def new_with_keywords(machine: Machine, arg: Any) -> None:
    machine.pop()  # keyword arguments, which no NumPy constructor has
    reduce(machine, arg)


def instance(machine: Machine, arg: Any) -> None:
    args = tuple(machine.pop_mark())
    push_name(machine, arg)
    machine.stack.append(call(machine.pop(), args))


def new_object(machine: Machine, arg: Any) -> None:
    function, *args = machine.pop_mark()
    machine.stack.append(call(function, tuple(args)))


def call(function: Any, args: Any) -> Any:
    """Return the result of one of `BUILDERS`, or a Record for any other function."""
    if not isinstance(args, tuple):
        raise Unreadable("it is damaged (arguments that are no tuple)")
    name = function if isinstance(function, Name) else None
    builder = BUILDERS.get(name) if name is not None else None
    return Record(name, args) if builder is None else builder(args)


def build(machine: Machine, arg: Any) -> None:
    """Set the state of an object: an array's bytes, or a dtype's byte order."""
    state = machine.pop()
    target = machine.stack[-1]
    if isinstance(target, PickledArray):
        target.value = array_of(state)
    elif isinstance(target, Record):
        target.state = state


# NumPy objects, built from untrusted arguments.


def dtype_of(record: Any) -> np.dtype[Any] | None:
    """Return the numeric dtype in a Record of `numpy.dtype(code, align, copy)`, else None."""
    if not isinstance(record, Record) or record.of != DTYPE or not record.args:
        return None
    code, state = record.args[0], record.state
    if not isinstance(code, str) or not NUMBERS.fullmatch(code):
        return None
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
    is_known = type(order) is str and order in ("<", ">", "|")
    return np.dtype(order + code) if is_known else None


def array_of(state: Any) -> np.ndarray | None:
    """Return an array from its pickled state (version, shape, dtype, order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, dtype, is_fortran, raw = state
    return filled(raw, dtype_of(dtype), shape, "F" if is_fortran is True else "C")


def filled(raw: Any, dtype: np.dtype[Any] | None, shape: Any, order: Any) -> np.ndarray | None:
    """Return bytes as an array; None if they are not numbers of exactly this shape."""
    if dtype is None or not isinstance(shape, tuple) or len(shape) > MAX_ARRAY_AXES:
        return None
    if not all(type(n) is int and 0 <= n < MAX_LENGTH for n in shape):
        return None
    if type(raw) is not bytes or math.prod(shape) * dtype.itemsize != len(raw):
        return None
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if order == "F" else "C")


def make_dtype(args: tuple[Any, ...]) -> Record:
    """Keep a dtype as a Record; BUILD sets its state."""
    return Record(DTYPE, args)


def make_array(args: tuple[Any, ...]) -> PickledArray:
    """Return an array without a value; BUILD sets it."""
    return PickledArray()


def make_scalar(args: tuple[Any, ...]) -> PickledArray:
    """Return a number, `numpy.core.multiarray.scalar(dtype, bytes)`, as an array of shape ()."""
    dtype, raw = args
    return PickledArray(filled(raw, dtype_of(dtype), (), "C"))


def make_from_buffer(args: tuple[Any, ...]) -> PickledArray:
    """Return an array from `numpy.core.numeric._frombuffer(bytes, dtype, shape, order)`."""
    raw, dtype, shape, order = args
    return PickledArray(filled(raw, dtype_of(dtype), shape, order))


def make_bytes(args: tuple[Any, ...]) -> bytes:
    """Return the bytes that protocol 2 writes as `_codecs.encode(text, "latin1")`."""
    text, encoding = args
    if type(text) is not str or encoding != "latin1":
        raise Unreadable("its bytes have an unsupported encoding")
    return text.encode("latin1")


def make_no_bytes(args: tuple[Any, ...]) -> Any:
    """Return b"", which protocol 2 writes as `bytes()`."""
    return Record(None, args) if args else b""


BUILDERS: dict[Name, Callable[[tuple[Any, ...]], Any]] = {
    DTYPE: make_dtype,
    Name("_codecs", "encode"): make_bytes,
    Name("__builtin__", "bytes"): make_no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    BUILDERS[Name(f"{_core}.multiarray", "_reconstruct")] = make_array
    BUILDERS[Name(f"{_core}.multiarray", "scalar")] = make_scalar
    BUILDERS[Name(f"{_core}.numeric", "_frombuffer")] = make_from_buffer

LITERALS = (
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)


def ignore(machine: Machine, arg: Any) -> None:
    """Do nothing: the instruction concerns only the file format."""


MACHINE: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(LITERALS, push),
    **dict.fromkeys(("PROTO", "FRAME"), ignore),
    **{name: push_tuple(n) for n, name in enumerate(("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))},
    "NONE": push_constant(None),
    "NEWTRUE": push_constant(True),
    "NEWFALSE": push_constant(False),
    "BYTEARRAY8": push_bytearray,
    "EMPTY_LIST": push_new(list),
    "EMPTY_DICT": push_new(dict),
    "EMPTY_SET": push_new(list),
    "TUPLE": push_tuple(None),
    "LIST": push_list,
    "DICT": push_dict,
    "FROZENSET": push_set,
    "MARK": mark,
    "POP": pop,
    "POP_MARK": pop_mark,
    "DUP": duplicate,
    "APPEND": append,
    "APPENDS": appends,
    "ADDITEMS": appends,
    "SETITEM": set_item,
    "SETITEMS": set_items,
    "MEMOIZE": memoize,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), memorise_as),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), recall),
    "GLOBAL": push_name,
    "STACK_GLOBAL": push_stacked_name,
    "REDUCE": reduce,
    "NEWOBJ": reduce,
    "NEWOBJ_EX": new_with_keywords,
    "INST": instance,
    "OBJ": new_object,
    "BUILD": build,
}
