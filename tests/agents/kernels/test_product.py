"""Compiled products equal NumPy's, for tiles of every height and width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpd.agents.kernels.product import add_product, add_turned_product

ROWS, TERMS, COLUMNS = (1, 3, 8, 13, 33, 257), (1, 7, 300), (1, 5, 16, 31, 33, 100)


def factors(m: int, k: int, n: int, real: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return random a [m, k], b [k, n] and c [m, n]."""
    rng = np.random.default_rng(m * k * n)
    a, b, c = (rng.standard_normal(shape).astype(real) for shape in ((m, k), (k, n), (m, n)))
    return a, b, c


@pytest.mark.parametrize(("real", "bound"), [(np.float32, 1e-3), (np.float64, 1e-11)])
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("k", TERMS)
@pytest.mark.parametrize("n", COLUMNS)
def test_products_are_added(m: int, k: int, n: int, real: Any, bound: float) -> None:
    a, b, c = factors(m, k, n, real)
    plain, turned = c.copy(), c.copy()
    add_product(a, b, plain)
    add_turned_product(np.ascontiguousarray(a.T), b, turned)
    np.testing.assert_allclose(plain, c + a @ b, rtol=0, atol=bound)
    np.testing.assert_array_equal(plain, turned)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_a_row_has_the_same_bits_in_a_matrix_of_any_height(real: Any) -> None:
    a, b, c = factors(23, 300, 50, real)
    whole = c.copy()
    add_product(a, b, whole)
    for m in range(1, 23):
        part = c[:m].copy()
        add_product(a[:m].copy(), b, part)
        np.testing.assert_array_equal(part, whole[:m])


def test_nothing_is_written_beside_a_product() -> None:
    a, b, _ = factors(5, 6, 7, np.float32)
    memory = np.full(5 * 7 + 64, 9, np.float32)
    add_product(a, b, memory[32:67].reshape(5, 7))
    assert (memory[:32] == 9).all() and (memory[67:] == 9).all()
