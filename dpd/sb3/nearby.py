"""Search the folders around a Stable-Baselines3 zip for files that complete it.

A zip has no VecNormalize statistics and no environment arguments. The programs that write zips
store them in these places, where E is the environment's id with a dash for each slash:

* Stable-Baselines3's CheckpointCallback: PREFIX_vecnormalize_STEPS_steps.pkl next to
  PREFIX_STEPS_steps.zip. Its examples: vec_normalize.pkl next to the zip or best_model.zip, or
  next to the folder of best_model/best_model.zip.
* The model hub: vec_normalize.pkl, config.yml and args.yml next to the zip.
* rl-baselines3-zoo: ALGO/E_1/E.zip and ALGO/E_1/best_model.zip, with ALGO/E_1/E/vecnormalize.pkl,
  config.yml and args.yml; without a number of the run, ALGO/E.zip with ALGO/E/vecnormalize.pkl.

The YAML files are searched line by line, which is enough for what the zoo writes.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpd.sb3.archive import BAD_ZIP, open_zip, read_bytes

STATISTICS_NAME = re.compile(r"vec[-_. ]*norm", re.IGNORECASE)
STATISTICS_ENDINGS = (".pkl", ".pickle", ".npz", "")
"""Endings of files that may hold statistics."""
PICKLED_CLASS = b"VecNormalize"  # near the beginning of its pickle
SEARCHED = 1024  # bytes of a pickle
MAX_NPZ, MAX_YAML = 2**24, 2**16  # bytes
EMPTY_VALUES = ("", "null", "none", "~", "false", "{}")


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
    return sorted(files, key=lambda file: not _is_of_checkpoint(file, path))  # a stable sort


def _is_of_checkpoint(file: Path, path: Path) -> bool:
    """Return True if CheckpointCallback wrote the file together with the zip."""
    return file.stem.replace("_vecnormalize_", "_") == path.stem


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
            with open_zip(read_bytes(file, MAX_NPZ)) as archive:
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
