"""Compiled matrix products of contiguous arrays, in tiles that stay in registers.

Numba's own loops keep sums in memory: on one core with AVX-512 they reach 130 GFLOP/s of
[256, 256] x [256, 256], MKL and OpenBLAS 110 to 120, and these tiles 250; of [64, 64] x [64, 64],
73, 88 and 215. Each sum runs over its terms in order, for a tile of any height, so that a row of a
product has the same bits in a matrix of any number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dpd.agents.kernels.compiled import compiled


def _has_wide_vectors() -> bool:
    """Return true if vectors of 64 bytes fit a register."""
    try:
        return bool(llvm.get_host_cpu_features().get("avx512f", False))
    except RuntimeError:  # LLVM does not know the machine
        return False


WIDE_VECTORS = _has_wide_vectors()
VECTOR_BYTES = 64 if WIDE_VECTORS else 32
TILE_ROWS, FEWER_ROWS = (8, 4) if WIDE_VECTORS else (6, 3)  # sums fill the registers, but fit
PANEL = 256  # rows of a product's second factor that stay in the cache
INDEX, SHORT, BIT = ir.IntType(64), ir.IntType(32), ir.IntType(1)


class TileCode:
    """Writes LLVM's instructions for tiles of some rows and two vectors of columns.

    Tiles that are not whole mask the lanes beyond the last column; not every processor has masks.
    """

    def __init__(self, builder: ir.IRBuilder, real: ir.Type, size: int, whole: bool) -> None:
        self.builder, self.real, self.size = builder, real, size
        self.lanes = VECTOR_BYTES // size
        self.vector = ir.VectorType(real, self.lanes)
        self.whole = whole

    def spread(self, x: ir.Value) -> ir.Value:
        """Return a vector whose lanes all are x."""
        none = ir.Constant(ir.VectorType(x.type, self.lanes), ir.Undefined)
        first = ir.Constant(ir.VectorType(SHORT, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(
            self.builder.insert_element(none, x, SHORT(0)), none, first
        )

    def masks(self, columns: ir.Value) -> list[ir.Value]:
        """Return which lanes of the two vectors belong to the columns; none for a whole tile."""
        if self.whole:
            return []
        kind, last = ir.VectorType(INDEX, self.lanes), self.spread(columns)
        numbers = [ir.Constant(kind, [*range(n, n + self.lanes)]) for n in (0, self.lanes)]
        return [self.builder.icmp_signed("<", x, last) for x in numbers]

    def at(self, data: ir.Value, *offsets: ir.Value) -> ir.Value:
        """Return the pointer to an element."""
        for offset in offsets:
            data = self.builder.gep(data, [offset])
        return data

    def load(self, data: ir.Value, masks: Sequence[ir.Value]) -> list[ir.Value]:
        """Read two vectors; lanes outside the masks are 0 and are not touched in memory."""
        if self.whole:
            return [self.builder.load(p, align=self.size) for p in self._pair(data)]
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        return [
            self._call("masked.load", ".p0", self.vector, p, SHORT(self.size), mask, zero)
            for p, mask in zip(self._pair(data), masks, strict=True)
        ]

    def store(self, data: ir.Value, masks: Sequence[ir.Value], pair: Sequence[ir.Value]) -> None:
        """Write the lanes of two vectors that are in the masks."""
        if self.whole:
            for p, x in zip(self._pair(data), pair, strict=True):
                self.builder.store(x, p, align=self.size)
            return
        for p, mask, x in zip(self._pair(data), masks, pair, strict=True):
            self._call("masked.store", ".p0", ir.VoidType(), x, p, SHORT(self.size), mask)

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """Return x y + z, rounded once if the machine can."""
        return self._call("fmuladd", "", self.vector, x, y, z)

    def _pair(self, data: ir.Value) -> list[ir.Value]:
        ends = (self.at(data, INDEX(n)) for n in (0, self.lanes))
        return [self.builder.bitcast(p, self.vector.as_pointer()) for p in ends]

    def _call(self, name: str, suffix: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [x.type for x in args])
        full = f"llvm.{name}.v{self.lanes}f{8 * self.size}{suffix}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, full)
        return self.builder.call(function, args)


class Strides(NamedTuple):
    """Sizes of a tile, and steps in memory, in elements."""

    a_row: Any
    a_column: Any
    b_row: Any
    c_row: Any
    terms: Any
    columns: Any


def write_tile(
    code: TileCode, rows: int, a: ir.Value, b: ir.Value, c: ir.Value, n: Strides
) -> None:
    """Write the loop that adds a tile's product; a, b and c point to its first elements."""
    build, masks = code.builder, code.masks(n.columns)
    outs = [code.at(c, build.mul(n.c_row, INDEX(i))) for i in range(rows)]
    begin = [code.load(out, masks) for out in outs]
    before = build.block
    head, body, after = (build.append_basic_block(x) for x in ("tile", "terms", "tile_end"))
    build.branch(head)
    build.position_at_end(head)
    term = build.phi(INDEX)
    sums = [[build.phi(code.vector) for _ in pair] for pair in begin]
    build.cbranch(build.icmp_signed("<", term, n.terms), body, after)
    build.position_at_end(body)
    ys = code.load(code.at(b, build.mul(term, n.b_row)), masks)
    column = code.at(a, build.mul(term, n.a_column))
    for i, (pair, first) in enumerate(zip(sums, begin, strict=True)):
        x = code.spread(build.load(code.at(column, build.mul(n.a_row, INDEX(i)))))
        for total, start, y in zip(pair, first, ys, strict=True):
            total.add_incoming(start, before)
            total.add_incoming(code.multiply_add(x, y, total), body)
    term.add_incoming(INDEX(0), before)
    term.add_incoming(build.add(term, INDEX(1)), body)
    build.branch(head)
    build.position_at_end(after)
    for out, pair in zip(outs, sums, strict=True):
        code.store(out, masks, pair)


def _tile(rows: int, whole: bool) -> Any:
    """Return a function that adds the product of some rows of `a` and two vectors of `b`'s columns.

    Its arguments are three arrays, the positions of the tile's first elements, and `Strides`.
    """

    @intrinsic
    def tile(context: Any, a: Any, b: Any, c: Any, at: Any, strides: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            real = context.get_value_type(a.dtype)
            code = TileCode(builder, real, context.get_abi_sizeof(real), whole)
            firsts = cgutils.unpack_tuple(builder, args[3])
            of_a, of_b, of_c = (
                code.at(context.make_array(kind)(context, builder, x).data, first)
                for kind, x, first in zip((a, b, c), args[:3], firsts, strict=True)
            )
            steps = Strides(*cgutils.unpack_tuple(builder, args[4]))
            write_tile(code, rows, of_a, of_b, of_c, steps)
            return context.get_dummy_value()

        return types.void(a, b, c, at, strides), generate

    return tile


_tall_tile, _low_tile, _row_tile = (_tile(n, True) for n in (TILE_ROWS, FEWER_ROWS, 1))
_tall_edge, _row_edge = _tile(TILE_ROWS, False), _tile(1, False)
COLUMNS = 2 * VECTOR_BYTES


@compiled
def _add_tiles(
    a: np.ndarray, a_row: int, a_column: int, m: int, b: np.ndarray, c: np.ndarray
) -> None:
    """Add a b to c [m, N]; element (i, q) of a is at i * a_row + q * a_column."""
    k, n = b.shape
    step = COLUMNS // b.itemsize
    whole = n - n % step
    for begin in range(0, k, PANEL):
        terms, first = min(PANEL, k - begin), begin * a_column
        strides = (a_row, a_column, n, n, terms, n - whole)
        for j in range(0, whole, step):
            i, of_b = 0, begin * n + j
            while i + TILE_ROWS <= m:
                _tall_tile(a, b, c, (first + i * a_row, of_b, i * n + j), strides)
                i += TILE_ROWS
            while i + FEWER_ROWS <= m:
                _low_tile(a, b, c, (first + i * a_row, of_b, i * n + j), strides)
                i += FEWER_ROWS
            while i < m:
                _row_tile(a, b, c, (first + i * a_row, of_b, i * n + j), strides)
                i += 1
        if whole < n:
            i, of_b = 0, begin * n + whole
            while i + TILE_ROWS <= m:
                _tall_edge(a, b, c, (first + i * a_row, of_b, i * n + whole), strides)
                i += TILE_ROWS
            while i < m:
                _row_edge(a, b, c, (first + i * a_row, of_b, i * n + whole), strides)
                i += 1


@compiled
def add_product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    """Add a b to c: a [M, K], b [K, N], c [M, N]."""
    _add_tiles(a, a.shape[1], 1, a.shape[0], b, c)


@compiled
def add_turned_product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    """Add a^T b to c: a [K, M], b [K, N], c [M, N]."""
    _add_tiles(a, 1, a.shape[1], a.shape[1], b, c)
