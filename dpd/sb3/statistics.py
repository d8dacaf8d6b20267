"""Read the statistics of Stable-Baselines3's VecNormalize from its pickle, as data, or an .npz."""

from __future__ import annotations

import io
import math
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpd.agents.norm import CLIP, EPSILON
from dpd.errors import BadInput
from dpd.policies.metadata import MAX_AXES, MAX_CLIP
from dpd.sb3.archive import BAD_ZIP, open_zip, read_bytes, read_zip_member
from dpd.sb3.pickle_reader import PickledArray, Record, read_pickle

MAX_STATISTICS = 2**24  # bytes; room for statistics of a million dimensions
PICKLE = b"\x80"  # the first byte of every pickle since protocol 2
MOMENTS, SETTINGS = ("mean", "var", "count"), ("norm_obs", "epsilon", "clip_obs")
ARRAY_NAMES = {*MOMENTS, *SETTINGS}
READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Errors of NumPy and Python's parser on crafted array headers.
BAD_HEADER = (
    *(ValueError, KeyError, SyntaxError, TypeError, RecursionError, MemoryError),
    tokenize.TokenError,
)


class Statistics(NamedTuple):
    """Mean and variance of observations, and the settings to normalise with them."""

    mean: np.ndarray  # [O] float64
    var: np.ndarray  # [O] float64
    n_samples: float
    epsilon: float = EPSILON
    clip_obs: float = CLIP

    @property
    def scale(self) -> np.ndarray:
        """Factors [O] for centred observations."""
        return 1 / np.sqrt(self.var + self.epsilon)


def read_statistics(
    path: Path, obs_dim: int, obs_shape: tuple[int, ...] | None = None
) -> Statistics | None:
    """Read a pickled VecNormalize, or an .npz of its numbers; None if it leaves observations alone.

    An .npz must hold mean, var and count, and may hold norm_obs, epsilon and clip_obs. Arrays of
    the environment's own shape are flattened, like its observations. Raises BadInput for another
    object, arrays of the wrong shape, or invalid numbers.
    """
    arrays = _read_arrays(path)
    if not _number(path, arrays, "norm_obs", 1.0):
        return None
    for name in MOMENTS:
        if name not in arrays:
            raise BadInput(f"{path} holds no VecNormalize statistics: {name} is missing")
    for name in ("mean", "var"):
        if arrays[name].shape not in ((obs_dim,), obs_shape):
            of_shape = "" if obs_shape is None else f", of shape {obs_shape}"
            raise BadInput(
                f"{path} does not fit: {name} has shape {arrays[name].shape}; "
                f"the policy reads {obs_dim} observations{of_shape}"
            )
    stats = Statistics(
        arrays["mean"].reshape(-1),
        arrays["var"].reshape(-1),
        _number(path, arrays, "count", 0.0),
        _number(path, arrays, "epsilon", EPSILON),
        min(_number(path, arrays, "clip_obs", CLIP), MAX_CLIP),
    )
    is_valid = (
        np.isfinite(stats.mean).all()
        and np.isfinite(stats.var).all()
        and (stats.var >= 0).all()
        and 0 <= stats.epsilon < np.inf
        and (stats.var + stats.epsilon > 0).all()
        and 0 < stats.n_samples < np.inf
        and stats.clip_obs > 0
    )
    if not is_valid:
        raise BadInput(f"{path} holds no VecNormalize statistics: they are not finite and positive")
    return stats


def _number(path: Path, arrays: dict[str, np.ndarray], name: str, default: float) -> float:
    value = arrays.get(name, np.float64(default))
    if value.size != 1:
        raise BadInput(f"{path} holds no VecNormalize statistics: {name} is not a number")
    return float(value.reshape(()))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of known names, as float64."""
    try:
        raw = read_bytes(path, MAX_STATISTICS)
        return _of_pickle(read_pickle(raw)) if raw.startswith(PICKLE) else _of_npz(raw)
    except (*BAD_ZIP, ValueError) as error:
        raise BadInput(f"{path} holds no VecNormalize statistics: {error}") from error


def _of_pickle(value: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a VecNormalize. Raises ValueError for any other object."""
    state = _state_of(value, "VecNormalize")
    arrays = {name: _as_array(name, state[name]) for name in SETTINGS if name in state}
    if arrays.get("norm_obs", np.ones(())).any():
        moments = _state_of(state.get("obs_rms"), "RunningMeanStd")
        arrays |= {name: _as_array(name, moments[name]) for name in MOMENTS if name in moments}
    return arrays


def _state_of(value: Any, kind: str) -> dict[str, Any]:
    """Return the attributes of an object of Stable-Baselines3 or its predecessor."""
    if not isinstance(value, Record) or value.of is None:
        raise ValueError(f"the pickle holds no {kind}")
    module, name = value.of
    if name != kind or not module.startswith("stable_baselines") or type(value.state) is not dict:
        raise ValueError(f"the pickle holds a {module:.60}.{name:.60}, not a {kind}")
    return value.state


def _as_array(name: str, value: Any) -> np.ndarray:
    array = value.value if isinstance(value, PickledArray) else value
    if not isinstance(array, np.ndarray | bool | int | float):
        raise ValueError(f"{name} is not an array of numbers")
    try:
        return np.array(array, np.float64)  # a writable copy
    except OverflowError as error:  # an integer beyond float64
        raise ValueError(f"{name} is too large") from error


def _of_npz(raw: bytes) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with open_zip(raw) as archive:
        for name in ARRAY_NAMES & {n.removesuffix(".npy") for n in archive.namelist()}:
            arrays[name] = _read_npy(read_zip_member(archive, f"{name}.npy", MAX_STATISTICS))
    return arrays


def _read_npy(raw: bytes) -> np.ndarray:
    """Read one numeric array, after checking its header against the number of bytes."""
    file = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = READ_HEADER[version](file)
    except BAD_HEADER as error:
        raise ValueError("an array has no readable header") from error
    rest = file.read()
    is_shape = all(n >= 0 for n in shape) and len(shape) <= MAX_AXES
    if dtype.kind not in "fiub" or not is_shape or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError("an array is not numeric")
    array = np.frombuffer(rest, dtype).reshape(shape, order="F" if is_fortran else "C")
    return array.astype(np.float64)
