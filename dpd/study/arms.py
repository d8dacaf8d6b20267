"""Arms of a study: methods, and controls that change the subject's flags; imports no torch."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dpd.agents.ppo_config import PPOConfig
from dpd.agents.table import ALGORITHMS
from dpd.distill.table import METHODS
from dpd.errors import BadInput, flag
from dpd.run.config import RunConfig
from dpd.run.settings import with_default_preset

PARTS = {
    "distillation": r"method|preset|distill\..*",
    "sharing": r"share-.*",
    "peers": r"peers|peer-.*",
}
"""Parts of a method that a control may leave out, by the names of their flags."""
ALONE = ("distillation", "sharing", "peers")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to use the steps of a seed.

    A control has the flags of the subject, except for the parts that it is without, and its own.
    """

    flags: str
    """Flags of `dpd train`."""
    asks: str
    """Question that the subject's difference from this arm answers."""
    without: tuple[str, ...] = ()
    """Names of PARTS that the control does not take from the subject."""
    per_peer: tuple[str, ...] = ()
    """Settings of the learners that the control multiplies by the subject's number of peers."""
    fills_batch: bool = False
    """Multiply `n_envs` too if the subject's peers share experience: an update of the control's
    learner then has as many samples as one of a peer."""
    needs: tuple[str, ...] = ()
    """Further settings that the learners must have."""
    is_method: bool = False
    """A method of its own, which takes no flags from the subject."""
    is_extra: bool = False
    """Leave the arm out unless --arms names it."""

    def lacks(self, algo: str) -> str | None:
        """Return the first setting that an algorithm lacks and this arm needs, or None."""
        known = {f.name for f in fields(ALGORITHMS[algo].settings)}
        return next((name for name in (*self.needs, *self.per_peer) if name not in known), None)


def one_learner(asks: str, *per_peer: str, needs: tuple[str, ...] = (), own: str = "") -> Arm:
    """Return a control of one learner with more computation, which --arms must name."""
    return Arm(
        flags=f"--method none --peers 1{own}",
        fills_batch="epochs" in per_peer,
        asks=asks,
        without=ALONE,
        per_peer=per_peer,
        needs=needs,
        is_extra=True,
    )


ARMS: dict[str, Arm] = {
    "dpd": Arm(flags="", asks="is the method with its defaults better?", is_method=True),
    "independent": Arm(
        flags="--method none",
        asks="do peers help each other?",
        without=("distillation", "sharing"),
    ),
    "one": Arm(
        flags="--method none --peers 1",
        asks="are several peers worth one learner that takes all steps?",
        without=ALONE,
        fills_batch=True,
    ),
    "uniform": Arm(
        flags="--distill.gate uniform",
        asks="does it matter where they imitate?",
    ),
    "shuffled": Arm(
        flags="--distill.control shuffled",
        asks="would the same weights work in other states?",
    ),
    "reversed": Arm(
        flags="--distill.control reversed",
        asks="does imitating the worse peer work as well?",
    ),
    "hard": Arm(
        flags="--distill.gate hard",
        asks="is it better than imitating only where the peer is ahead?",
    ),
    "one-way": Arm(
        flags="--distill.students 0",
        asks="must both peers learn from each other?",
    ),
    "shared-replay": Arm(
        flags="--method none --share-replay",
        asks="does it help beyond sharing data?",
        without=("distillation", "sharing"),
        needs=("share_replay",),
    ),
    "extra-updates": Arm(
        flags="--method none --extra-policy-updates 1",
        asks="does it help beyond extra updates?",
        without=("distillation", "sharing"),
        needs=("extra_policy_updates",),
    ),
    "shared": Arm(
        flags="--method none --share-experience",
        asks="does it help beyond sharing experience?",
        without=("distillation",),
        needs=("share_experience",),
        is_extra=True,
    ),
    "unshared": Arm(
        flags="--no-share-experience",
        asks="does it help beyond distillation without shared experience?",
        without=("sharing",),
        needs=("share_experience",),
        is_extra=True,
    ),
    "one-epochs": one_learner(
        "is it better than one learner with as much computation, in more epochs?", "epochs"
    ),
    "one-batch": one_learner(
        "is it better than one learner that collects as much per iteration as all peers?",
        "n_envs",
        needs=("epochs",),
    ),
    "one-reuse": one_learner(
        "is it better than one learner that reuses its own last iteration, and not a peer's?",
        needs=("reuse_iterations",),
        own=" --reuse-iterations 2",
    ),
    "one-updates": one_learner(
        "is it better than one learner with as many updates as all peers?", "updates_per_step"
    ),
    "one-critics": one_learner(
        "is it better than one learner with as many critics and updates as all peers?",
        "n_critics",
        "updates_per_step",
    ),
    "paper": Arm(
        flags="--preset paper",
        asks="is it better than the method as the paper has it?",
        is_method=True,
        is_extra=True,
    ),
    "modern": Arm(
        flags="--preset modern",
        asks="is it better than the preset modern?",
        is_method=True,
        is_extra=True,
    ),
    "released": Arm(
        flags="--preset released",
        asks="is it better than the 2020 code?",
        is_method=True,
        is_extra=True,
    ),
}

FlagWords = tuple[str, ...]
"""A flag and the values that follow it."""


def split_flags(words: Sequence[str]) -> list[FlagWords]:
    """Split words of a command line into flags with their values."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    return [tuple(group) for group in groups]


def name_of(group: FlagWords) -> str:
    """Return the name of a flag, in the spelling with hyphens and without a leading no-."""
    name = group[0].partition("=")[0].removeprefix("--")
    return name.replace("_", "-").removeprefix("no-")  # the parser accepts underscores as well


def values_of(group: FlagWords) -> list[str]:
    """Return the values of a flag."""
    _, equals, value = group[0].partition("=")
    return [value] if equals else list(group[1:])


def arm_flags(arm: Arm, common: Sequence[str], subject: Arm, algo: str) -> list[str]:
    """Return the flags of an arm; `common` are those of every run, where they apply."""
    own, base = split_flags(shlex.split(arm.flags)), split_flags(common)
    if not arm.is_method:
        base += split_flags(shlex.split(subject.flags)) if subject.is_method else []
        base = with_named_preset(base, algo)
        peers = int(last_value(base, "peers") or RunConfig.peers)
        fills = arm.fills_batch and shares_experience(base, algo)
        per_peer = (*arm.per_peer, *(("n_envs",) if fills else ()))
        base = list(left_over(base, arm.without, algo))
        own += [(flag(name), multiplied(name, base, peers, algo)) for name in per_peer]
    replaced = {name_of(group) for group in own}
    kept = [group for group in base if name_of(group) not in replaced]
    return [word for group in (*kept, *own) for word in group]


def with_named_preset(groups: list[FlagWords], algo: str) -> list[FlagWords]:
    """Return the flags of a method with its default preset, if that applies.

    A control leaves out parts of a preset, for which the flags must name it.
    """
    method = last_value(groups, "method") or "dpd"
    presets = last_value(groups, "preset")
    if method not in METHODS or (every := with_default_preset(presets, method, algo)) == presets:
        return groups
    return [("--preset", str(every)), *(g for g in groups if name_of(g) != "preset")]


def shares_experience(groups: Sequence[FlagWords], algo: str) -> bool:
    """Return whether each update of PPO's peers with these flags has the samples of all of them.

    Off-policy, minibatches have the same size with and without sharing.
    """
    if not issubclass(ALGORITHMS[algo].settings, PPOConfig):
        return False
    if presets := last_value(groups, "preset"):
        groups = [*learner_flags(presets.split(","), algo), *groups]
    last = next((g[0] for g in reversed(groups) if name_of(g) == "share-experience"), "--no-")
    return not last.startswith("--no")


def left_over(
    groups: Sequence[FlagWords], without: Sequence[str], algo: str
) -> Iterator[FlagWords]:
    """Yield the flags that belong to no part of `without`.

    A preset of the method sets the learners too; their share of it stays.
    """
    patterns = [PARTS[part] for part in without]
    if "distillation" in without and (presets := last_value(groups, "preset")):
        given = {name_of(group) for group in groups}
        of_preset = learner_flags(presets.split(","), algo)
        groups = [*(group for group in of_preset if name_of(group) not in given), *groups]
    for group in groups:
        if not any(re.fullmatch(pattern, name_of(group)) for pattern in patterns):
            yield group


def learner_flags(presets: Sequence[str], algo: str) -> Iterator[FlagWords]:
    """Yield the learners' settings of presets as flags; later presets override earlier ones."""
    settings: dict[str, Any] = {}
    for preset in presets:
        settings |= ALGORITHMS[algo].presets.get(preset, {})
    for name, value in settings.items():
        if isinstance(value, bool):
            yield (flag(name) if value else flag(f"no_{name}"),)
        else:
            yield (flag(name), *map(str, value if isinstance(value, list) else [value]))


def last_value(groups: Sequence[FlagWords], name: str) -> str | None:
    """Return the first value of the last flag with a name, or None."""
    last = next((values_of(g) for g in reversed(groups) if name_of(g) == name), [])
    return last[0] if last else None


def multiplied(name: str, groups: Sequence[FlagWords], peers: int, algo: str) -> str:
    """Return a learner's setting, as the flags or the algorithm's default give it, times peers."""
    given = last_value(groups, name.replace("_", "-"))
    value = getattr(ALGORITHMS[algo].settings, name)
    try:
        return json.dumps((value if given is None else json.loads(given)) * peers)
    except ValueError as error:
        raise BadInput(f"{flag(name)} must be a number, not '{given}'") from error


def own_arms(given: Sequence[str]) -> dict[str, Arm]:
    """Return the arms of --own, NAME=FLAGS; a name in ARMS replaces that arm. Raises BadInput."""
    arms: dict[str, Arm] = {}
    for text in given:
        name, equals, flags = text.partition("=")
        if not equals or not name.replace("-", "").isalnum() or name in arms:
            raise BadInput(
                f"--own takes NAME=FLAGS, each name once, as in 'sharp=--distill.alpha 3', not "
                f"'{text}'"
            )
        asks = ARMS[name].asks if name in ARMS else f"is it better than {flags}?"
        arms[name] = Arm(flags=flags, asks=asks, is_method=True)
    return arms
