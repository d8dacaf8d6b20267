"""Names of learners in policy files, TensorBoard runs, tables and curves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from dpd.config import TrainConfig

BEST = "best"
_FILE = re.compile(r"(?P<learner>.+?)(?:-(?P<best>best)|-(?P<steps>\d{12}))?")


class PolicyName(NamedTuple):
    """Parts of a policy file's name; any name that dpd did not write counts as a learner's."""

    learner: str
    """For instance seed0-peer1 or seed0-64x64."""
    is_best: bool = False
    """True for the policy of the learner's best evaluation."""
    steps: int | None = None
    """Environment steps at which a file of the history was saved."""


def learner_name(seed: int, peer: str) -> str:
    """Name a learner by its seed and its peer's name."""
    return f"seed{seed}-{peer}"


def policy_name(learner: str, is_best: bool = False, steps: int | None = None) -> str:
    """Name a policy file, without suffix: a learner's last, its best, or the one at `steps`."""
    if steps is not None:
        return f"{learner}-{steps:012d}"
    return f"{learner}-{BEST}" if is_best else learner


def parse_policy_name(stem: str) -> PolicyName:
    """Parse a name that `policy_name` of this or of an earlier version made."""
    match = _FILE.fullmatch(stem)
    if match is None:
        return PolicyName(stem)
    steps = match["steps"]
    return PolicyName(match["learner"], match["best"] is not None, int(steps) if steps else None)


def peer_names(config: TrainConfig) -> list[str]:
    """Name the peers of a run: peer0, peer1, ..., or by algorithm and size if these differ.

    Students are named by size (64x64), and also by algorithm if they have different ones, or by the
    length of their history (h4). The names of peers in `dpd train` include the number that their
    flags use (--peer1.hidden): peer0-ppo, peer1-sac.
    """
    if len(config.histories) > 1:  # students then differ in nothing else
        return [f"h{history}" for history in config.histories]
    numbers = [f"peer{peer}" for peer in range(config.run.peers)]
    traits = _distinguishing_traits(config)
    if not any(traits):
        return numbers
    if config.command == "train":
        return [f"{number}-{trait}" for number, trait in zip(numbers, traits, strict=True)]
    count = Counter(traits)
    return [
        trait if count[trait] == 1 else f"{trait}-{number}"
        for number, trait in zip(numbers, traits, strict=True)
    ]


def display_names(names: Sequence[str]) -> list[str]:
    """Format peers' names for tables and curves: peer0 becomes peer 0, a size is unchanged."""
    return [re.sub(r"peer(\d+)", r"peer \1", name).replace("-", " ") for name in names]


def _distinguishing_traits(config: TrainConfig) -> list[str]:
    """Return what distinguishes each peer: algorithm, size, both, or neither (empty)."""
    traits = {
        peer: (stack.name, "x".join(map(str, stack.hidden_of(peer))) or "linear")
        for stack in config.stacks
        for peer in stack.peers
    }
    algos = {algo for algo, _ in traits.values()}
    by_algo = len(algos) > 1
    by_size = len(set(traits.values())) > len(algos)
    return [
        "-".join([algo] * by_algo + [size] * by_size)
        for algo, size in (traits[peer] for peer in sorted(traits))
    ]
