"""Settings of views: the part of the observations that students and teachers see; torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from dpd.agents.config import View, require
from dpd.envs.groups import EVERYTHING, UnknownColumns, columns_of
from dpd.errors import BadInput

if TYPE_CHECKING:
    from dpd.envs.base import EnvSpec

PREV_ACTION = "prev_action"
"""The word, beside an observation's groups, for the action before it."""


class SeenConfig:
    """Settings of what learners see; their names are `ROLE`_obs, `ROLE`_noise and `ROLE`_delay."""

    ROLE: ClassVar[str]
    """The name of these learners in flags."""
    PLURAL: ClassVar[str]
    """The name of these learners in messages."""

    @property
    def obs(self) -> str | None:
        """Groups and columns that are seen; None: all."""
        return cast("str | None", getattr(self, f"{self.ROLE}_obs"))

    @property
    def noise(self) -> str | None:
        """Standard deviations of the noise; None: there is none."""
        return cast("str | None", getattr(self, f"{self.ROLE}_noise"))

    @property
    def delay(self) -> int:
        """Steps by which observations are late."""
        return int(getattr(self, f"{self.ROLE}_delay"))

    @property
    def shows_all(self) -> bool:
        """True if whole observations are seen, without noise and in time."""
        return (self.obs, self.noise, self.delay) == (None, None, 0)

    def __post_init__(self) -> None:
        called = f"--{self.ROLE}-delay"
        require(self, "not be negative", f"{self.ROLE}_delay", called=lambda _: called)

    def resolve(self, spec: EnvSpec, history: int) -> View:
        """Return the view of a learner with a history of so many frames.

        Raises BadInput for groups that the environment lacks, and for a history that is longer than
        its episodes.
        """
        if history + self.delay > spec.max_steps:
            raise BadInput(
                f"--history {history} with --{self.ROLE}-delay {self.delay} goes back further "
                f"than an episode of {spec.env_id}, which has {spec.max_steps:,} steps"
            )
        words = ["all"] if self.obs is None else self.obs.split(",")
        words = [word.strip() for word in words if word.strip()]
        acts = PREV_ACTION in words and PREV_ACTION not in spec.groups
        chosen = [word for word in words if not (acts and word == PREV_ACTION)]
        if acts and not chosen:
            raise BadInput(
                f"--{self.ROLE}-obs {PREV_ACTION} shows no observation; add a group to it"
            )
        columns = chosen_columns(f"--{self.ROLE}-obs", ",".join(chosen), spec)
        return View(
            obs_dim=spec.obs_dim,
            act_dim=spec.act_dim,
            columns=tuple(columns),
            groups=tuple(dict.fromkeys(words)),
            prev_action=acts,
            history=history,
            delay=self.delay,
            noise=self._noise(columns, spec),
        )

    def _noise(self, columns: Sequence[int], spec: EnvSpec) -> tuple[float, ...]:
        """Return the noise of each column that is seen; empty if there is none."""
        std: dict[int, float] = {}
        flag = f"--{self.ROLE}-noise"
        for word, value in parse_noise(self.noise or "", flag).items():
            noisy = chosen_columns(flag, word, spec)
            if not set(noisy) <= set(columns):
                seen = self.obs or "all"
                raise BadInput(
                    f"{flag} {word}: {self.PLURAL} do not see all of it, but {seen}; name what "
                    f"they see, or give --{self.ROLE}-obs more"
                )
            if set(noisy) & std.keys():
                raise BadInput(f"{flag} {word} repeats columns of another word")
            std |= dict.fromkeys(noisy, value)
        return tuple(std.get(column, 0.0) for column in columns) if std else ()


@dataclass(frozen=True, kw_only=True)
class ViewConfig(SeenConfig):
    """The part of the observations that students see."""

    ROLE: ClassVar[str] = "student"
    PLURAL: ClassVar[str] = "students"

    student_obs: str | None = None
    """Observations that students see: groups, columns (3) or ranges of columns (0:8), separated by
    commas; `dpd groups ENV` prints them. prev_action is the action before. None: all of them, as
    their teacher."""
    student_noise: str | None = None
    """Standard deviation of Gaussian noise on what students see, in raw units and per step, for
    example qpos=0.01,qvel=0.1. The teacher answers about observations without it."""
    student_delay: int = 0
    """Steps by which students' observations are late; prev_action is not."""
    teacher_obs: str | None = None
    """Observations that the teachers read, if their files do not say so; None: all of them."""


@dataclass(frozen=True, kw_only=True)
class ActorViewConfig(SeenConfig):
    """The part of the observations that policies see in `dpd train`."""

    ROLE: ClassVar[str] = "actor"
    PLURAL: ClassVar[str] = "policies"

    actor_obs: str | None = None
    """Observations that policies see: groups, columns (3) or ranges of columns (0:8), separated by
    commas; `dpd groups ENV` prints them. prev_action is the action before. Value functions see the
    same, or everything with --critic-obs all. None: all of them, or those that the policy of
    --init-from sees."""
    actor_noise: str | None = None
    """Standard deviation of Gaussian noise on what policies see, in raw units and per step, for
    example qpos=0.01,qvel=0.1."""
    actor_delay: int = 0
    """Steps by which policies' observations are late; prev_action is not."""


def critic_columns(text: str, spec: EnvSpec) -> list[int]:
    """Return the columns that --critic-obs chooses; none for the words `actor` and `all`."""
    if text in ("actor", EVERYTHING):
        return []
    return chosen_columns("--critic-obs", text, spec)


def chosen_columns(name: str, text: str, spec: EnvSpec) -> list[int]:
    """Return the columns of an observation that a flag's text chooses. Raises BadInput."""
    try:
        return columns_of(text, spec.groups, spec.obs_dim)
    except UnknownColumns as error:
        raise BadInput(f"{name}: {error}") from error


def parse_noise(text: str, flag: str = "--student-noise") -> dict[str, float]:
    """Parse standard deviations, qpos=0.01,qvel=0.1. Raises BadInput."""
    noise: dict[str, float] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = word.partition("=")
        try:
            std = float(number)
        except ValueError:
            std = 0.0
        if not (name and 0 < std < float("inf")):
            raise BadInput(
                f"{flag} {word}: give a positive standard deviation to each group, for "
                "example qpos=0.01,qvel=0.1"
            )
        if name in noise:
            raise BadInput(f"{flag} names {name} twice")
        noise[name] = std
    return noise


def parse_histories(text: str | None) -> tuple[int, ...]:
    """Parse the lengths of histories, 1,2,4,8. Raises BadInput unless they differ, from 1 on."""
    if text is None:
        return ()
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise BadInput(f"--history must be numbers of frames such as 4 or 1,2,4,8, not '{text}'")
    histories = tuple(map(int, words))
    if len(set(histories)) < len(histories):
        raise BadInput(f"--history {text} names a number twice")
    return histories
