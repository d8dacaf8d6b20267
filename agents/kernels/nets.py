"""Compiled forward and backward passes of one learner's MLPs.

Products are written out instead of calling BLAS: they are faster, and their sums depend neither on
the BLAS library that is installed nor on its threads. Arrays are one learner's;
its parameters, and all intermediate values, lie in flat vectors at the positions of a `layers`
table, so that networks of any depth and width share one compiled function.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from dpd.agents.kernels.compiled import OPTIONS, compiled
from dpd.agents.kernels.product import add_product, add_turned_product

WEIGHT, BIAS, N_IN, N_OUT, INPUT, OUTPUT, TURNED = range(7)
"""Columns of a `layers` table [L, 7]: positions in the parameters, sizes, positions on the tape of
a layer's input and output, and the position of its transposed weights."""
TANH, RELU, ELU = range(3)
ROWS_AT_ONCE = (
    256  # rows that pass through the networks at once, so that activations stay in the cache
)
FEW_OUTPUTS = 16  # outputs; below, a vectorised loop over outputs has too few of them


@compiled
def add_dots(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    """Add a b^T to c: a [M, K], b [N, K], c [M, N], for a small N."""
    for i in range(a.shape[0]):
        x = a[i]
        for j in range(b.shape[0]):
            y = b[j]
            total = c[i, j]
            for q in range(x.size):
                total += x[q] * y[q]
            c[i, j] = total


@compiled
def turn(a: np.ndarray, b: np.ndarray) -> None:
    """Write the transpose of a [M, N] to b [N, M].

    Eight rows at once: one by one, writes of a stride of M leave the cache before they are full.
    """
    eights = a.shape[0] - a.shape[0] % 8
    for i in range(0, eights, 8):
        a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
        a4, a5, a6, a7 = a[i + 4], a[i + 5], a[i + 6], a[i + 7]
        for j in range(a.shape[1]):
            row = b[j]
            row[i], row[i + 1], row[i + 2], row[i + 3] = a0[j], a1[j], a2[j], a3[j]
            row[i + 4], row[i + 5], row[i + 6], row[i + 7] = a4[j], a5[j], a6[j], a7[j]
    for i in range(eights, a.shape[0]):
        for j in range(a.shape[1]):
            b[j, i] = a[i, j]


def tanh_of(x: float) -> float:
    """Return the hyperbolic tangent."""
    raise NotImplementedError("compiled code only")


@overload(tanh_of, jit_options=OPTIONS)
def _typed_tanh(x: Any) -> Any:  # Numba requires the same signature of this and its results
    if x == types.float64:

        def exact(x: Any) -> Any:
            return math.tanh(x)

        return exact

    def rational(x: Any) -> Any:
        # Eigen's rational approximation, to a few units in the last place of float32; unlike
        # libm's function it is vectorised.
        f = np.float32
        v = f(7.90531110763549805) if x > f(7.90531110763549805) else x
        v = f(-7.90531110763549805) if v < f(-7.90531110763549805) else v
        s = v * v
        p = f(-2.76076847742355e-16) * s + f(2.00018790482477e-13)
        p = p * s + f(-8.60467152213735e-11)
        p = p * s + f(5.12229709037114e-08)
        p = p * s + f(1.48572235717979e-05)
        p = p * s + f(6.37261928875436e-04)
        p = p * s + f(4.89352455891786e-03)
        q = f(1.19825839466702e-06) * s + f(1.18534705686654e-04)
        q = q * s + f(2.26843463243900e-03)
        q = q * s + f(4.89352518554385e-03)
        return v * p / q

    return rational


@compiled
def activate(kind: int, x: np.ndarray) -> None:
    """Apply an activation to x [K] in place."""
    if kind == TANH:
        for i in range(x.size):
            x[i] = tanh_of(x[i])
    elif kind == RELU:
        for i in range(x.size):
            x[i] = x.dtype.type(0) if x[i] < 0 else x[i]  # so that NaN stays
    else:
        half, one, two = x.dtype.type(0.5), x.dtype.type(1), x.dtype.type(2)
        for i in range(x.size):
            v = x[i]
            t = tanh_of(half * v)
            x[i] = v if v > 0 else two * t / (one - t)  # exp(v) - 1


@compiled
def into_activation(kind: int, grad: np.ndarray, out: np.ndarray) -> None:
    """Turn the gradient [K] of an activation's output into that of its input, in place."""
    one, zero = out.dtype.type(1), out.dtype.type(0)
    if kind == TANH:
        for i in range(out.size):
            grad[i] *= one - out[i] * out[i]
    elif kind == RELU:
        for i in range(out.size):
            grad[i] = zero if out[i] <= zero else grad[i]
    else:
        for i in range(out.size):
            grad[i] *= out[i] + one if out[i] <= zero else one


@compiled
def matrix(flat: np.ndarray, begin: int, rows: int, columns: int) -> np.ndarray:
    """Return a part of a vector as a matrix, without a copy."""
    return flat[begin : begin + rows * columns].reshape(rows, columns)


@compiled
def turn_weights(layers: np.ndarray, param: np.ndarray, turned: np.ndarray) -> None:
    """Write every layer's transposed weights to `turned`; the passes below read them."""
    for k in range(layers.shape[0]):
        layer = layers[k]
        n_in, n_out = layer[N_IN], layer[N_OUT]
        if k > 0 or n_out < FEW_OUTPUTS:
            across = matrix(turned, layer[TURNED], n_out, n_in)
            turn(matrix(param, layer[WEIGHT], n_in, n_out), across)


@compiled
def turn_narrow_weights(layers: np.ndarray, param: np.ndarray, turned: np.ndarray) -> None:
    """Write the transposed weights that a forward pass reads: those of layers with few outputs."""
    for k in range(layers.shape[0]):
        n_in, n_out = layers[k, N_IN], layers[k, N_OUT]
        if n_out < FEW_OUTPUTS:
            across = matrix(turned, layers[k, TURNED], n_out, n_in)
            turn(matrix(param, layers[k, WEIGHT], n_in, n_out), across)


@compiled
def run_mlp(
    layers: np.ndarray, kind: int, n: int, param: np.ndarray, tape: np.ndarray, turned: np.ndarray
) -> None:
    """Run an MLP on the n rows of input that are on the tape; write all its layers to the tape."""
    for k in range(layers.shape[0]):
        layer = layers[k]
        n_in, n_out = layer[N_IN], layer[N_OUT]
        x, y = matrix(tape, layer[INPUT], n, n_in), matrix(tape, layer[OUTPUT], n, n_out)
        bias = param[layer[BIAS] : layer[BIAS] + n_out]
        for i in range(n):
            for j in range(n_out):
                y[i, j] = bias[j]
        if n_out < FEW_OUTPUTS:
            add_dots(x, matrix(turned, layer[TURNED], n_out, n_in), y)
        else:
            add_product(x, matrix(param, layer[WEIGHT], n_in, n_out), y)
        if k < layers.shape[0] - 1:
            activate(kind, y.reshape(y.size))


@compiled
def _add_weight_gradient(
    x: np.ndarray, grad: np.ndarray, total: np.ndarray, spare: np.ndarray
) -> None:
    """Add x^T grad to total; `spare` is free memory."""
    n_in, n_out = total.shape
    if n_out >= FEW_OUTPUTS:
        add_turned_product(x, grad, total)
        return
    across = matrix(spare, 0, n_out, n_in)
    across[:] = 0
    add_turned_product(grad, x, across)
    for i in range(n_in):
        for j in range(n_out):
            total[i, j] += across[j, i]


@compiled
def add_mlp_gradient(
    layers: np.ndarray,
    kind: int,
    n: int,
    tape: np.ndarray,
    turned: np.ndarray,
    of_output: np.ndarray,
    spare: np.ndarray,
    total: np.ndarray,
) -> None:
    """Add the gradient of an MLP's parameters to `total` [D], from that of its n rows of output.

    Call it after `run_mlp`, before the parameters change. `of_output` and `spare` are overwritten.
    """
    for k in range(layers.shape[0] - 1, -1, -1):
        layer = layers[k]
        n_in, n_out = layer[N_IN], layer[N_OUT]
        x, grad = matrix(tape, layer[INPUT], n, n_in), matrix(of_output, 0, n, n_out)
        _add_weight_gradient(x, grad, matrix(total, layer[WEIGHT], n_in, n_out), spare)
        of_bias = total[layer[BIAS] : layer[BIAS] + n_out]
        for i in range(n):
            for j in range(n_out):
                of_bias[j] += grad[i, j]
        if k > 0:
            of_input = matrix(spare, 0, n, n_in)
            of_input[:] = 0
            add_product(grad, matrix(turned, layer[TURNED], n_out, n_in), of_input)
            into_activation(kind, of_input.reshape(of_input.size), x.reshape(x.size))
            of_output, spare = spare, of_output


@compiled
def mlp_input_gradient(
    layers: np.ndarray,
    kind: int,
    n: int,
    param: np.ndarray,
    tape: np.ndarray,
    turned: np.ndarray,
    of_output: np.ndarray,
    spare: np.ndarray,
    of_last: np.ndarray,
) -> None:
    """Add the gradient of an MLP's last inputs to `of_last` [n, A], from that of its output.

    Call it after `run_mlp`, before the parameters change. `of_output` and `spare` are overwritten.
    """
    for k in range(layers.shape[0] - 1, 0, -1):
        layer = layers[k]
        n_in, n_out = layer[N_IN], layer[N_OUT]
        of_input = matrix(spare, 0, n, n_in)
        of_input[:] = 0
        across = matrix(turned, layer[TURNED], n_out, n_in)
        add_product(matrix(of_output, 0, n, n_out), across, of_input)
        x = matrix(tape, layer[INPUT], n, n_in)
        into_activation(kind, of_input.reshape(of_input.size), x.reshape(x.size))
        of_output, spare = spare, of_output
    n_in, n_out = layers[0, N_IN], layers[0, N_OUT]
    weight = matrix(param, layers[0, WEIGHT], n_in, n_out)
    add_dots(matrix(of_output, 0, n, n_out), weight[n_in - of_last.shape[1] :], of_last)
