"""Settings of students, who learn by distillation alone; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dpd.agents.learner_config import LearnerConfig
from dpd.agents.offpolicy_config import bytes_held

if TYPE_CHECKING:
    from dpd.agents.student import Student


@dataclass(frozen=True, kw_only=True)
class StudentConfig(LearnerConfig):
    """Learners that collect and remember, and are moved by a distillation method's own steps.

    Their policies are PPO's. Unless a source is named, defaults are a choice of ours.
    """

    n_step: ClassVar[int] = 1
    """Rewards summed in what is remembered: none are learnt from."""
    lr: float = 3e-4
    """Adam's learning rate (Stable-Baselines3's of PPO and of SAC)."""
    n_envs: int = 8
    """Environments per learner."""
    n_steps: int = 256
    """Steps per environment and iteration: 8 x 256 = 2048 samples per learner, as PPO's."""
    capacity: int = 200_000
    """States a learner remembers."""
    minibatch_size: int = 256
    """States per learner and gradient step (Haarnoja et al. 2018)."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy (Schulman et al. 2017)."""
    sizes: tuple[str, ...] = ()
    """Hidden layers of each peer of a group, all of one depth: words such as 64x64, or a width
    alone at the depth of `hidden`; none: `hidden` for all."""
    log_std_init: float = -0.5
    """Initial log standard deviation (PPO's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("capacity")
        if len({len(layers_of(word, len(self.hidden))) for word in self.sizes}) > 1:
            raise ValueError(
                f"sizes {' '.join(self.sizes)} differ in depth, and one stack holds one depth; "
                f"give all as many layers (a width alone has the {len(self.hidden)} of hidden)"
            )
        for name, least in (
            ("minibatch_size", self.minibatch_size),
            ("n_envs * n_steps", self.samples),
        ):
            if self.capacity < least:
                raise ValueError(f"capacity {self.capacity} is less than {name} = {least}")

    @property
    def learners(self) -> type[Student]:
        """The stack of learners that these are the settings of."""
        from dpd.agents.student import Student

        return Student

    def hidden_of(self, peer: int) -> tuple[int, ...]:
        """Return the hidden layers of a group's peer."""
        return layers_of(self.sizes[peer], len(self.hidden)) if self.sizes else self.hidden

    @property
    def plan(self) -> str:
        """What an iteration is, for the start-up table."""
        return (
            f"{self.n_envs} envs x {self.n_steps} steps = {self.samples:,} a learner, "
            f"the latest {self.capacity:,} remembered"
        )

    def replay_bytes(self, obs_dim: int, act_dim: int, n_learners: int) -> int:
        """Return the memory that full replays of all learners take, in float32."""
        return n_learners * bytes_held(self.capacity, self.n_envs, obs_dim, act_dim)


def layers_of(word: str, depth: int) -> tuple[int, ...]:
    """Read hidden layers: 64x32, or one width for all of a depth. Raises ValueError otherwise."""
    widths = word.split("x")
    if not all(w.isascii() and w.isdigit() and int(w) > 0 for w in widths):
        raise ValueError(f"sizes must be words such as 64x64 or 64, not {word!r}")
    layers = tuple(map(int, widths))
    return layers * depth if len(layers) == 1 else layers
