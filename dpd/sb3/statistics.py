"""Find and read the files that complete a Stable-Baselines3 zip: statistics and settings.

A zip has no VecNormalize statistics and no environment arguments. The programs that write zips
store them in these places, where E is the environment's id with a dash for each slash:

* Stable-Baselines3's CheckpointCallback: PREFIX_vecnormalize_STEPS_steps.pkl next to
  PREFIX_STEPS_steps.zip. Its examples: vec_normalize.pkl next to the zip or best_model.zip, or
  next to the folder of best_model/best_model.zip.
* The model hub: vec_normalize.pkl, config.yml and args.yml next to the zip.
* rl-baselines3-zoo: ALGO/E_1/E.zip and ALGO/E_1/best_model.zip, with ALGO/E_1/E/vecnormalize.pkl,
  config.yml and args.yml; without a number of the run, ALGO/E.zip with ALGO/E/vecnormalize.pkl.

The YAML files are searched line by line, which is enough for what the zoo writes. Statistics are
read from VecNormalize's own pickle, as data, or from an .npz of their numbers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpd.agents.norm import CLIP, EPSILON
from dpd.errors import BadInput
from dpd.policies.metadata import MAX_CLIP
from dpd.sb3.untrusted import (
    BAD_ZIP,
    Record,
    open_zip,
    read_array,
    read_bytes,
    read_pickle,
    read_zip_member,
)

STATISTICS_NAME = re.compile(r"vec[-_. ]*norm", re.IGNORECASE)
STATISTICS_ENDINGS = (".pkl", ".pickle", ".npz", "")
"""Endings of files that may hold statistics."""
PICKLED_CLASS = b"VecNormalize"  # near the beginning of its pickle
SEARCHED = 1024  # bytes of a pickle
MAX_STATISTICS, MAX_YAML = 2**24, 2**16  # bytes; room for statistics of a million dimensions
EMPTY_VALUES = ("", "null", "none", "~", "false", "{}")
PICKLE = b"\x80"  # the first byte of every pickle since protocol 2
MOMENTS, SETTINGS = ("mean", "var", "count"), ("norm_obs", "epsilon", "clip_obs")


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
    try:
        raw = read_bytes(path, MAX_STATISTICS)
        arrays = _of_pickle(read_pickle(raw)) if raw.startswith(PICKLE) else _of_npz(raw)
        stats = _of_arrays(arrays)
    except (*BAD_ZIP, ValueError) as error:
        raise BadInput(f"{path} holds no VecNormalize statistics: {error}") from error
    if stats is None:
        return None
    for name, moments in (("mean", stats.mean), ("var", stats.var)):
        if moments.shape not in ((obs_dim,), obs_shape):
            of_shape = "" if obs_shape is None else f", of shape {obs_shape}"
            raise BadInput(
                f"{path} does not fit: {name} has shape {moments.shape!s:.60}; "
                f"the policy reads {obs_dim} observations{of_shape}"
            )
    return stats._replace(mean=stats.mean.reshape(-1), var=stats.var.reshape(-1))


def _of_arrays(arrays: Mapping[str, np.ndarray]) -> Statistics | None:
    """Check the arrays of known names, and return their statistics with moments of any shape."""
    numbers = {"norm_obs": 1.0, "count": 0.0, "epsilon": EPSILON, "clip_obs": CLIP}
    for name in numbers:
        if name in arrays:
            if arrays[name].size != 1:
                raise ValueError(f"{name} is not a number")
            numbers[name] = arrays[name].item()
    if not numbers["norm_obs"]:
        return None
    for name in MOMENTS:
        if name not in arrays:
            raise ValueError(f"{name} is missing")
    mean, var, epsilon = arrays["mean"], arrays["var"], numbers["epsilon"]
    stats = Statistics(mean, var, numbers["count"], epsilon, min(numbers["clip_obs"], MAX_CLIP))
    is_valid = (
        np.isfinite(mean).all()
        and np.isfinite(var).all()
        and (var >= 0).all()
        and 0 <= epsilon < np.inf
        and (var + epsilon > 0).all()
        and 0 < stats.n_samples < np.inf
        and stats.clip_obs > 0
    )
    if not is_valid:
        raise ValueError("they are not finite and positive")
    return stats


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
    array = value if isinstance(value, bool | int | float) else read_array(value)
    if array is None:
        raise ValueError(f"{name} is not an array of numbers")
    try:
        return np.array(array, np.float64)  # a writable copy
    except OverflowError as error:  # an integer beyond float64
        raise ValueError(f"{name} is too large") from error


def _of_npz(raw: bytes) -> dict[str, np.ndarray]:
    with open_zip(raw) as archive:
        names = {*MOMENTS, *SETTINGS} & {n.removesuffix(".npy") for n in archive.namelist()}
        return {n: _of_npy(read_zip_member(archive, f"{n}.npy", MAX_STATISTICS)) for n in names}


def _of_npy(raw: bytes) -> np.ndarray:
    """Return one numeric array. The memory for it is filled only as far as there are bytes."""
    try:
        array = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except Exception as error:  # a crafted header can make NumPy's parser raise anything
        raise ValueError("an array cannot be read") from error
    if array.dtype.kind not in "fiub":
        raise ValueError("an array is not numeric")
    return array.astype(np.float64)


def folders(path: Path, env_id: str) -> list[Path]:
    """Return the folders to search: the zip's own, and those named after it or its environment.

    Names are compared without version, because `env_id` may be a later version.
    """
    parent = path.resolve().parent
    run = re.sub(r"_\d+$", "", parent.name)  # the zoo's E_1
    names = {_base(name) for name in (path.stem, env_id, run)}
    inner = (f for f in path.parent.iterdir() if f.is_dir() and _base(f.name) in names)
    outer = [parent.parent] if parent.name == path.stem else []
    return [*sorted(inner), path.parent, *outer]


def _base(name: str) -> str:
    """Strip module and version from an environment's id or a folder's name."""
    return re.sub(r"-v\d+$", "", name.rpartition(":")[2].replace("/", "-"))


def find_statistics(path: Path, env_id: str) -> list[Path]:
    """Return the files with VecNormalize statistics near a zip, the likeliest first."""
    files = [
        file
        for folder in folders(path, env_id)
        for file in sorted(folder.iterdir())
        if file.is_file() and _is_statistics(file)
    ]
    # a stable sort that begins with the file that CheckpointCallback wrote together with the zip
    return sorted(files, key=lambda file: file.stem.replace("_vecnormalize_", "_") != path.stem)


def _is_statistics(file: Path) -> bool:
    """Return True for a file named like or pickled from a VecNormalize, or an .npz of mean and var.

    A file that cannot be read does not count.
    """
    if file.suffix.lower() not in STATISTICS_ENDINGS:
        return False
    if STATISTICS_NAME.search(file.name):
        return True
    try:
        if file.suffix.lower() == ".npz":
            with open_zip(read_bytes(file, MAX_STATISTICS)) as archive:
                return {"mean.npy", "var.npy"} <= set(archive.namelist())
        with file.open("rb") as opened:
            return PICKLED_CLASS in opened.read(SEARCHED)
    except (*BAD_ZIP, ValueError):
        return False


def find_setting(path: Path, env_id: str, name: str, key: str) -> tuple[Path, str]:
    """Return the value of a key in a YAML file of this name near a zip, and the file.

    The text is empty if no file has the key with a value other than null, false or {}.
    """
    for folder in folders(path, env_id):
        file = folder / name
        if file.is_file() and (value := _yaml_value(file, key)):
            return file, value
    return path, ""


def _yaml_value(file: Path, key: str) -> str:
    """Return the first line of a key's value, or "" if there is none.

    The zoo writes a mapping as `key: value` or as a list of pairs, one part per line.
    """
    try:
        text = read_bytes(file, MAX_YAML).decode(errors="replace")
    except (OSError, ValueError):
        return ""
    lines = [line.strip(" -\t'\"") for line in text.splitlines()]
    for k, line in enumerate(lines):
        name, _, rest = line.partition(":")
        if name.strip(" '\"") == key:
            value = rest.strip() or "".join(lines[k + 1 : k + 2])
            return "" if value.lower() in EMPTY_VALUES else value
    return ""
