"""Look beside a Stable-Baselines3 zip for what it does not say of itself.

A zip holds no VecNormalize statistics and no arguments of its environment. Those who write zips
leave them in these places, where E is the environment's id with a dash for each slash:

* Stable-Baselines3's CheckpointCallback: PREFIX_vecnormalize_STEPS_steps.pkl beside
  PREFIX_STEPS_steps.zip; its examples: vec_normalize.pkl beside the zip or best_model.zip, or
  beside the folder in best_model/best_model.zip.
* The model hub: vec_normalize.pkl, config.yml and args.yml beside the zip.
* rl-baselines3-zoo: ALGO/E_1/E.zip and ALGO/E_1/best_model.zip, with ALGO/E_1/E/vecnormalize.pkl,
  config.yml and args.yml; without a number of the run, ALGO/E.zip with ALGO/E/vecnormalize.pkl.

The YAML files are searched line by line, which is enough for what the zoo writes.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpd.sb3.archive import BAD_ZIP, open_zip, read_bytes

NAME = re.compile(r"vec[-_. ]*norm", re.IGNORECASE)
KINDS = (".pkl", ".pickle", ".npz", "")
"""Endings of files that may hold statistics."""
CLASS = b"VecNormalize"  # at the beginning of its pickle
HEAD = 1024  # bytes
MAX_NPZ, MAX_YAML = 2**24, 2**16  # bytes
NOTHING = ("", "null", "none", "~", "false", "{}")


def folders(path: Path, env_id: str) -> list[Path]:
    """Return where a zip's companions may lie: beside it, and in folders named as it or its task.

    The version of the environment does not count, because `env_id` may be a later one.
    """
    parent = path.resolve().parent
    run = re.sub(r"_\d+$", "", parent.name)  # the zoo's E_1
    names = {_base(name) for name in (path.stem, env_id, run)}
    inner = (f for f in path.parent.iterdir() if f.is_dir() and _base(f.name) in names)
    outer = [parent.parent] if parent.name == path.stem else []
    return [*sorted(inner), path.parent, *outer]


def _base(name: str) -> str:
    """Return an environment's id or a folder's name without module and version."""
    return re.sub(r"-v\d+$", "", name.rpartition(":")[2].replace("/", "-"))


def statistics_beside(path: Path, env_id: str) -> list[Path]:
    """Return the files with VecNormalize statistics that lie with a zip, the likeliest first."""
    found = [
        file
        for folder in folders(path, env_id)
        for file in sorted(folder.iterdir())
        if file.is_file() and _is_statistics(file)
    ]
    return sorted(found, key=lambda file: not _is_of_checkpoint(file, path))  # stable


def _is_of_checkpoint(file: Path, path: Path) -> bool:
    """Whether CheckpointCallback wrote a file together with a zip."""
    return file.stem.replace("_vecnormalize_", "_") == path.stem


def _is_statistics(file: Path) -> bool:
    """Whether a file is called or begins as a VecNormalize, or is an .npz of a mean and a variance.

    A file that cannot be read is none.
    """
    if file.suffix.lower() not in KINDS:
        return False
    if NAME.search(file.name):
        return True
    try:
        if file.suffix.lower() == ".npz":
            with open_zip(read_bytes(file, MAX_NPZ)) as archive:
                return {"mean.npy", "var.npy"} <= set(archive.namelist())
        with file.open("rb") as opened:
            return CLASS in opened.read(HEAD)
    except (*BAD_ZIP, ValueError):
        return False


def said_beside(path: Path, env_id: str, names: tuple[str, ...], key: str) -> tuple[Path, str]:
    """Return what YAML files of these names that lie with a zip say of a key, and which says it.

    The text is empty where none says anything but null, false or an empty mapping.
    """
    for folder in folders(path, env_id):
        for file in (folder / name for name in names):
            if file.is_file() and (said := _said(file, key)):
                return file, said
    return path, ""


def _said(file: Path, key: str) -> str:
    """Return the value of a key, or its first line; "" for nothing.

    The zoo writes a mapping as `key: value` or as a list of pairs, one part a line.
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
            return "" if value.lower() in NOTHING else value
    return ""
