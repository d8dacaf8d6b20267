"""Pickles read as data: nothing in them runs, whatever they ask for."""

import builtins
import collections
import contextlib
import importlib
import os
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpd.sb3.untrusted import Name, Record, Unreadable, read_array, read_pickle
from tests.toy.zips import Bomb

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.arange(3, dtype=">f8"),
    np.zeros((0, 4)),
    np.array(2.5),
    np.array([True, False]),
    np.arange(4, dtype=np.uint16),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_arrays_are_read_as_numpy_reads_them(array, protocol):
    found = read_array(read_pickle(pickle.dumps(array, protocol)))
    assert found is not None
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_as_they_are(protocol):
    value = {
        "a": [1, -2, 2**70, 1.5, float("inf"), True, False, None],
        "b": ("x", "é\n", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ()),
        "c": {"d": {}, "e": [[]]},
        "f": "shared",
        "g": "shared",
    }
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_number_of_numpys_is_an_array_of_no_dimensions(protocol):
    found = read_array(read_pickle(pickle.dumps(np.float64(2.5), protocol)))
    assert found is not None and found.shape == () and found.item() == 2.5


def test_an_object_is_a_record_of_its_class_and_state():
    found = read_pickle(pickle.dumps(Thing(x=3)))
    assert isinstance(found, Record)
    assert found.of == Name(Thing.__module__, "Thing") and found.state == {"x": 3}


class Thing:
    """An object with attributes, that says so when it is made or changed."""

    made = 0

    def __new__(cls, **attributes):
        cls.made += 1
        return super().__new__(cls)

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __setstate__(self, state):
        Thing.made += 1


class Late:
    """Puts a bomb where its state is set."""

    def __init__(self, target):
        self.target = os.fspath(target)

    def __reduce__(self):
        return (Thing, (), {"x": Bomb(self.target)})


def attacks(target):
    """Return pickles that create the file `target` when they are run, by every way there is."""
    shell = f"touch {target}"
    text = f"open({os.fspath(target)!r}, 'w')"
    quoted = repr(shell).encode()
    short = bytes([len(text)]) + text.encode()
    evaluate = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93"
    return {
        **{f"reduce {p}": pickle.dumps(Bomb(target), p) for p in range(6)},
        **{f"state {p}": pickle.dumps(Late(target), p) for p in range(6)},
        "global os.system": b"cos\nsystem\n(S" + quoted + b"\ntR.",
        "inst": b"(S" + quoted + b"\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS" + quoted + b"\no.",
        "eval": evaluate + b"\x8c" + short + b"\x85R.",
        "new object": evaluate + b"\x8c" + short + b"\x85\x81.",
        "new object with keywords": evaluate + b"\x8c" + short + b"\x85}\x92.",
        "under a constructor of numpy's": (
            b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\nS" + quoted + b"\nR(tS'b'\ntR."
        ),
        "as a dtype": (
            b"cnumpy\ndtype\n(cos\nsystem\n(S" + quoted + b"\ntRI00\nI01\ntR(I3\nS'|'\nNNNtb."
        ),
        "as a key": b"(dcos\nsystem\n(S" + quoted + b"\ntRI1\ns.",
    }


@pytest.mark.parametrize("name", attacks("x"))
def test_nothing_that_a_pickle_names_is_imported_or_called(name, tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    raw, before = attacks(trap)[name], Thing.made

    def refuse(*given, **more):
        raise AssertionError(f"the pickle reached an import of {given[0]}")

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", refuse)
        patch.setattr(pickle, "Unpickler", refuse)
        patch.setattr(os, "system", refuse)
        patch.setattr(builtins, "__import__", refuse)  # the last: setattr imports
        with contextlib.suppress(Unreadable):
            read_array(read_pickle(raw))
    assert not trap.exists() and Thing.made == before


def test_the_attacks_do_work_where_pickles_are_run(tmp_path):
    for k, name in enumerate(("reduce 4", "global os.system", "inst", "obj", "eval", "state 2")):
        trap = tmp_path / str(k)
        pickle.loads(attacks(trap)[name])
        assert trap.exists(), name


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no end|damaged"),
        (b"\x80\x04", "no end|damaged"),
        (b"\x80\x04.", "damaged"),  # nothing on the stack
        (b"\x80\x04]\x94h\x07.", "damaged"),  # recalls what was never memorised
        (b"\x80\x04K\x01K\x02\x93.", "damaged"),  # a name of numbers
        (b"\x80\x04K\x01Q.", "BINPERSID"),
        (b"Pabc\n.", "PERSID"),
        (b"\x80\x04\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x04cos\nsystem\nK\x01R.", "no tuple"),
        (b"\x80\x04" + b"N0" * 200_001 + b"N.", "over 200,000 instructions"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.", "damaged"),  # claims exabytes
        (b"\x80\x04(K\x01d.", "key without a value"),
    ],
)
def test_what_cannot_be_read_as_data_is_refused(raw, says):
    with pytest.raises(Unreadable, match=says):
        read_pickle(raw)


def array_pickle(shape, dtype=b"S'f8'\n", raw=b"S'12345678'\n"):
    """Return a pickle of an array that claims anything."""
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    kind = b"cnumpy\ndtype\n(" + dtype + b"I00\nI01\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    return head + b"(I1\n" + shape + kind + b"I00\nc_codecs\nencode\n(" + raw + b"S'latin1'\ntRtb."


def test_an_array_holds_no_more_than_its_bytes():
    found = read_array(read_pickle(array_pickle(b"(I1\nt")))
    assert found is not None and found.shape == (1,) and found.tobytes() == b"12345678"
    for wrong in (
        array_pickle(b"(I2\nt"),
        array_pickle(b"(I1000000000000\nt"),
        array_pickle(b"(I-1\nt"),
        array_pickle(b"(I1\n" + 9 * b"I1\n" + b"t"),
        array_pickle(b"(I1\nt", dtype=b"S'O8'\n"),
        array_pickle(b"(I1\nt", dtype=b"S'V8'\n"),
        array_pickle(b"(I1\nt", dtype=b"S'f8,f8'\n"),
        array_pickle(b"(I1\nt", dtype=b"I8\n"),
        array_pickle(b"I1\n"),
    ):
        assert read_array(read_pickle(wrong)) is None


def test_deep_nesting_and_hostile_keys_take_no_long_time():
    start = time.process_time()
    read_pickle(b"\x80\x04N" + b"\x85" * 190_000 + b".")  # a tuple in a tuple in a tuple
    read_pickle(b"\x80\x04N" + b"\x85" * 90_000 + b"}0}N" + b"\x85" * 90_000 + b"Ns.")  # as a key
    step = 2**61 - 1  # integers whose hashes are all 0
    keys = [b"\x8a\x0c" + (k * step).to_bytes(12, "little") + b"N" for k in range(60_000)]
    read_pickle(b"\x80\x04}(" + b"".join(keys) + b"u.")
    long = b"\x8b" + (2**20).to_bytes(4, "little") + b"\x7f" * 2**20  # a length of a million bytes
    assert read_array(read_pickle(array_pickle(b"(" + 8 * long + b"t"))) is None
    assert time.process_time() - start < 5


def test_containers_may_hold_themselves():
    found = read_pickle(b"\x80\x04]\x94h\x00a.")
    assert found[0] is found


def test_subclasses_of_containers_are_records():
    found = read_pickle(pickle.dumps(collections.OrderedDict(a=1)))
    assert isinstance(found, Record) and found.of == Name("collections", "OrderedDict")


EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)


@settings(max_examples=300)
@given(edits=EDITS, protocol=st.integers(0, 5))
def test_no_damage_makes_anything_but_data_or_a_refusal(edits, protocol):
    raw = bytearray(pickle.dumps([*ARRAYS, Thing(x=np.float64(1))], protocol))
    for place, byte in edits:
        raw[int(place * len(raw))] = byte
    with contextlib.suppress(ValueError):  # Unreadable is one
        value = read_pickle(bytes(raw))
        for item in value if isinstance(value, list) else ():
            read_array(item)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_no_bytes_make_anything_but_data_or_a_refusal(raw):
    with contextlib.suppress(Unreadable):
        read_pickle(raw + b".")
