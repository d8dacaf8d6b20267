"""Statistics of Stable-Baselines3's VecNormalize, from an .npz and never from a pickle."""

from __future__ import annotations

import io
import json
import math
import shlex
import tokenize
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpd.agents.norm import CLIP, EPSILON
from dpd.archive import BAD_ZIP, open_zip, read_bytes, read_member
from dpd.config import BadInput
from dpd.policymeta import MAX_CLIP

MAX_FILE = 2**24  # bytes; statistics of a million observations
PICKLE = b"\x80"  # the first byte of every pickle since protocol 2
NAMES = {"norm_obs", "mean", "var", "count", "epsilon", "clip_obs"}
READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What numpy and Python's parser make of a crafted array header.
BAD_HEADER = (
    *(ValueError, KeyError, SyntaxError, TypeError, RecursionError, MemoryError),
    tokenize.TokenError,
)


class Statistics(NamedTuple):
    """What VecNormalize knows of observations."""

    mean: np.ndarray  # [O] float64
    var: np.ndarray  # [O] float64
    n_samples: float
    epsilon: float = EPSILON
    clip_obs: float = CLIP

    @property
    def scale(self) -> np.ndarray:
        """What centred observations are multiplied by [O]."""
        return 1 / np.sqrt(self.var + self.epsilon)


def conversion(path: Path) -> str:
    """Return the command by which a user who trusts a pickle turns it into an .npz."""
    source, target = (
        json.dumps(str(p), ensure_ascii=False) for p in (path, path.with_suffix(".npz"))
    )
    program = (
        f'import pickle, numpy; v = pickle.load(open({source}, "rb")); '
        "r = v.obs_rms if v.norm_obs else None; "
        "s = dict(mean=r.mean, var=r.var, count=r.count) if r else {}; "
        f"numpy.savez({target}, norm_obs=v.norm_obs, epsilon=v.epsilon, clip_obs=v.clip_obs, **s)"
    )
    return f"python -c {shlex.quote(program)}"


def read_statistics(path: Path, obs_dim: int) -> Statistics | None:
    """Read an .npz that `conversion` wrote; None where observations were not normalised.

    Raises BadInput for anything else: a pickle, arrays that don't fit, numbers that can't be.
    """
    arrays = _read_npz(path)
    if not _number(path, arrays, "norm_obs", 1.0):
        return None
    for name in ("mean", "var", "count"):
        if name not in arrays:
            raise BadInput(f"{path} holds no VecNormalize statistics: {name} is missing")
    for name in ("mean", "var"):
        if arrays[name].shape != (obs_dim,):
            raise BadInput(
                f"{path} does not fit: {name} has shape {arrays[name].shape}; "
                f"the policy reads {obs_dim} observations"
            )
    found = Statistics(
        arrays["mean"],
        arrays["var"],
        _number(path, arrays, "count", 0.0),
        _number(path, arrays, "epsilon", EPSILON),
        min(_number(path, arrays, "clip_obs", CLIP), MAX_CLIP),
    )
    is_sane = (
        np.isfinite(found.mean).all()
        and np.isfinite(found.var).all()
        and (found.var >= 0).all()
        and 0 <= found.epsilon < np.inf
        and (found.var + found.epsilon > 0).all()
        and 0 < found.n_samples < np.inf
        and found.clip_obs > 0
    )
    if not is_sane:
        raise BadInput(f"{path} holds no VecNormalize statistics: they are not finite and positive")
    return found


def _number(path: Path, arrays: dict[str, np.ndarray], name: str, default: float) -> float:
    value = arrays.get(name, np.float64(default))
    if value.size != 1:
        raise BadInput(f"{path} holds no VecNormalize statistics: {name} is no number")
    return float(value.reshape(()))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays we know the names of, as float64."""
    arrays: dict[str, np.ndarray] = {}
    try:
        raw = read_bytes(path, MAX_FILE)
        if not raw.startswith(PICKLE):
            with open_zip(raw) as archive:
                for name in NAMES & {n.removesuffix(".npy") for n in archive.namelist()}:
                    arrays[name] = _read_npy(read_member(archive, f"{name}.npy", MAX_FILE))
            return arrays
    except (*BAD_ZIP, ValueError) as error:
        raise BadInput(f"{path} holds no VecNormalize statistics: {error}") from error
    raise BadInput(
        f"{path} is a pickle, which can run any program, and is not read; if you trust it, run "
        f"{conversion(path)} and give --vecnormalize {path.with_suffix('.npz')}"
    )


def _read_npy(raw: bytes) -> np.ndarray:
    """Read one array of numbers; its header is checked against the bytes that are there."""
    file = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = READ_HEADER[version](file)
    except BAD_HEADER as error:
        raise ValueError("an array has no readable header") from error
    rest = file.read()
    if dtype.kind not in "fiub" or len(shape) > 1 or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError("an array is no vector of numbers")
    return np.frombuffer(rest, dtype).reshape(shape).astype(np.float64)
