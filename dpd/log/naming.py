"""The names of a run's learners: of their policy files, TensorBoard runs, table rows and curves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dpd.config import TrainConfig

BEST = "best"
_NUMBERED = re.compile(r"seed\d+-peer\d+")
_FILE = re.compile(r"(?P<learner>.+?)(?:-(?P<best>best)|-(?P<steps>\d{12}))?")


class PolicyName(NamedTuple):
    """What the name of a policy file says; names of other programs are all learner."""

    learner: str
    """For instance seed0-peer1 or seed0-64x64."""
    is_best: bool = False
    """Whether it is the policy of the learner's best evaluation."""
    steps: int | None = None
    """When it was kept, for a file of the history."""


def learner_name(seed: int, peer: str) -> str:
    """Name a learner by its seed and its peer's name."""
    return f"seed{seed}-{peer}"


def policy_name(learner: str, is_best: bool = False, steps: int | None = None) -> str:
    """Name a learner's policy file, without its ending: the last, the best, or one of `steps`."""
    if steps is not None:
        return f"{learner}-{steps:012d}"
    return f"{learner}-{BEST}" if is_best else learner


def parse_policy_name(stem: str) -> PolicyName:
    """Read a name that `policy_name` made, of this or of an earlier version of dpd."""
    found = _FILE.fullmatch(stem)
    if found is None:
        return PolicyName(stem)
    steps = found["steps"]
    return PolicyName(found["learner"], found["best"] is not None, int(steps) if steps else None)


def peer_names(config: TrainConfig, run_dir: Path | None = None) -> list[str]:
    """Name every peer of a run: peer0, peer1, ... or by what it is, where peers are unlike.

    Students are named by size (64x64), and by algorithm where that differs. Peers that train have
    flags by number (--peer1.hidden), so that their names keep it: peer0-ppo, peer1-sac. A run in
    `run_dir` that an earlier version of dpd began with numbers goes on with numbers.
    """
    numbers = [f"peer{peer}" for peer in range(config.run.peers)]
    if run_dir is not None and _is_numbered(run_dir):
        return numbers
    kinds = _kinds(config)
    if not any(kinds):
        return numbers
    if config.command == "train":
        return [f"{number}-{kind}" for number, kind in zip(numbers, kinds, strict=True)]
    often = Counter(kinds)
    return [
        kind if often[kind] == 1 else f"{kind}-{number}"
        for number, kind in zip(numbers, kinds, strict=True)
    ]


def spoken(names: Sequence[str]) -> list[str]:
    """Word peers' names for tables and curves: peer0 is peer 0, and a size stays as it is."""
    return [re.sub(r"peer(\d+)", r"peer \1", name).replace("-", " ") for name in names]


def _kinds(config: TrainConfig) -> list[str]:
    """Say what tells each peer from the others: algorithm, size, both, or nothing."""
    found = {
        peer: (stack.name, "x".join(map(str, stack.hidden_of(peer))) or "linear")
        for stack in config.stacks
        for peer in stack.peers
    }
    algos = {algo for algo, _ in found.values()}
    by_algo = len(algos) > 1
    by_size = len(set(found.values())) > len(algos)
    return [
        "-".join([algo] * by_algo + [size] * by_size)
        for algo, size in (found[peer] for peer in sorted(found))
    ]


def _is_numbered(run_dir: Path) -> bool:
    """Say whether a run's policies are named by numbers alone."""
    stems = (file.stem for file in (run_dir / "policies").glob("seed*.safetensors"))
    return any(_NUMBERED.fullmatch(stem) for stem in stems)
