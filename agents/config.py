"""Settings that all algorithms share, and views; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch

    from dpd.agents.base import LearnerId
    from dpd.agents.learners import Learners

BOUNDS: dict[str, Callable[[float], bool]] = {
    "be positive": lambda x: x > 0,
    "not be negative": lambda x: x >= 0,
    "be at least 1": lambda x: x >= 1,
    "lie in [0, 1]": lambda x: 0 <= x <= 1,
    "lie in (0, 1]": lambda x: 0 < x <= 1,
    "lie in (0, 1)": lambda x: 0 < x < 1,
}


def require(config: Any, bound: str, *names: str, called: Callable[[str], str] = str) -> None:
    """Raise ValueError unless settings keep one of BOUNDS: every number of a tuple, None always.

    `called` turns the name of a setting into the one that the message shows.
    """
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(x is None or BOUNDS[bound](x) for x in numbers):
            raise ValueError(f"{called(name)} must {bound}, not {value}")


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of an environment's observations that one learner sees.

    Before the first step of an episode, the first frame stands for all earlier ones, and the
    previous action is 0.
    """

    obs_dim: int
    act_dim: int
    columns: tuple[int, ...]
    """Numbers of a raw observation that are seen, in rising order."""
    groups: tuple[str, ...] = ()
    """Names of these columns' groups."""
    prev_action: bool = False
    """See the action before each observation too, in [-1, 1]."""
    history: int = 1
    """H, the number of frames."""
    delay: int = 0
    """Steps by which observations are late; actions are not."""
    noise: tuple[float, ...] = ()
    """Standard deviation of each column's Gaussian noise, in raw units; empty: no noise."""

    @property
    def frame_dim(self) -> int:
        """G, the numbers in one frame."""
        return len(self.columns) + self.prev_action * self.act_dim

    @property
    def dim(self) -> int:
        """F, the numbers that the learner sees."""
        return self.history * self.frame_dim

    @property
    def reach(self) -> int:
        """L, the number of frames that it needs to know."""
        return self.history + self.delay

    @property
    def has_noise(self) -> bool:
        """True if any column is noisy."""
        return any(self.noise)

    @property
    def is_memoryless(self) -> bool:
        """True if it needs nothing but the present observation."""
        return self.reach == 1 and not self.prev_action

    @property
    def without_sensors(self) -> View:
        """The view without noise and delay, which a robot's own sensors add."""
        return replace(self, noise=(), delay=0)

    def places(self, frames: int) -> list[int]:
        """Return the positions of what is seen [F] in the last frames [frames, O + A], flattened.

        A frame there is a raw observation and the action before it.
        """
        width = self.obs_dim + self.act_dim
        acts = range(self.obs_dim, width) if self.prev_action else range(0)
        found: list[int] = []
        for now in range(frames - self.history, frames):
            found += [(now - self.delay) * width + c for c in self.columns]
            found += [now * width + c for c in acts]
        return found


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The layers between what a learner sees and its MLP."""

    kind: Literal["gru", "lstm", "tcn"]
    size: int
    """Numbers that they give to the MLP."""

    @property
    def memory_dim(self) -> int:
        """S, the numbers kept from step to step: h, and behind it c of an LSTM; 0: none."""
        return {"gru": 1, "lstm": 2, "tcn": 0}[self.kind] * self.size

    def __str__(self) -> str:
        return f"{self.kind} of {self.size}"


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Settings of every algorithm. Subclasses override the defaults and name their sources."""

    squashed: ClassVar[bool] = False
    """True if actions are the tanh of a Gaussian sample."""
    tanh_mean: ClassVar[bool] = False
    """True if the Gaussian's mean is the tanh of the actor's output, with noise added after it."""
    state_std: ClassVar[bool] = False
    """True if the actor also outputs the standard deviation."""
    lr: float = 3e-4
    """Adam's learning rate."""
    peer_lr: tuple[float, ...] = ()
    """Learning rate of each peer of a group; empty: `lr` for all."""
    n_envs: int
    """Environments per learner."""
    n_steps: int
    """Steps per environment and iteration."""
    stagger: bool = False
    """Truncate each environment's first episode at a random age, so that a learner's environments
    are not all in the same phase of their episodes when only a time limit ends them (rsl_rl's
    init_at_random_ep_len). First episodes are then left out of train/return."""
    minibatch_size: int
    """Samples per learner and gradient step."""
    gamma: float = 0.99
    """Discount factor."""
    peer_gamma: tuple[float, ...] = ()
    """Discount factor of each peer of a group; empty: `gamma` for all."""
    hidden: tuple[int, ...]
    """Widths of the hidden layers."""
    activation: Literal["tanh", "relu", "elu"] = "tanh"
    """Activation of the hidden layers."""
    norm_obs: bool = True
    """Normalise observations by running statistics (VecNormalize)."""

    def __post_init__(self) -> None:
        require(self, "be positive", "lr", "peer_lr", "n_envs", "n_steps", "minibatch_size")
        require(self, "lie in [0, 1]", "gamma", "peer_gamma")
        if not self.hidden or min(self.hidden) <= 0:
            raise ValueError(f"hidden must name positive layer sizes, not {self.hidden}")

    def build(
        self,
        obs_dim: int,
        act_dim: int,
        ids: Sequence[LearnerId],
        device: torch.device | None = None,
        views: Sequence[View] = (),
        critic_columns: Sequence[int] = (),
    ) -> Learners:
        """Return a stack of learners, one for each of `ids`, on a device (None: the CPU).

        `views` are what each of them sees; empty: all of the observation. `critic_columns` are what
        value functions and critics read if they do not see what the policies do; empty: all.
        """
        from dpd.agents.base import CPU  # here: settings must not import torch

        kind: type[Learners] = resolve_name(self.learners)
        given: dict[str, Any] = {"device": device or CPU, "views": views}
        return kind(self, obs_dim, act_dim, ids, **given, critic_columns=critic_columns)

    @property
    def learners(self) -> str:
        """Import path of the stack of learners that these settings ask for."""
        from dpd.agents.table import ALGORITHMS  # here: the table lists these settings

        return next(row.learners for row in ALGORITHMS.values() if row.settings is type(self))

    @property
    def samples(self) -> int:
        """Samples per learner and iteration."""
        return self.n_envs * self.n_steps

    def idle_iterations(self, peers: int) -> int:
        """Return the iterations at the start without updates, of a stack with so many peers."""
        return 0

    @property
    def plan(self) -> str:
        """A description of one iteration for the start-up table."""
        return f"{self.n_envs} envs x {self.n_steps} steps = {self.samples:,} per learner"

    def hidden_of(self, peer: int) -> tuple[int, ...]:
        """Return the hidden layers of a peer's policy."""
        return self.hidden

    @property
    def encoder_layers(self) -> Encoder | None:
        """Layers before the policy's MLP; None: the MLP reads what is seen."""
        return None

    @property
    def memory_dim(self) -> int:
        """Numbers that a recurrent policy keeps from step to step; 0: it keeps none."""
        return 0 if self.encoder_layers is None else self.encoder_layers.memory_dim


EXTRA_COLUMNS = 4
"""Numbers stored per transition besides obs, act and next_obs: reward, terminated, done, valid."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(LearnerConfig):
    """Settings shared by all learners with a replay."""

    capacity: int
    """Transitions in a learner's replay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "be positive", "capacity")
        sizes = {"minibatch_size": self.minibatch_size, "n_envs * n_steps": self.samples}
        self._require_capacity(**sizes)

    def _require_capacity(self, **sizes: int) -> None:
        for name, least in sizes.items():
            if self.capacity < least:
                raise ValueError(f"capacity {self.capacity} is less than {name} = {least}")

    @property
    def _held(self) -> int:
        """Transitions in a full replay."""
        return self.capacity // self.n_envs * self.n_envs

    def replay_bytes(self, obs_dim: int, act_dim: int, n_learners: int) -> int:
        """Return the size in bytes of all learners' full replays in float32."""
        samples = self._held
        # plus 8 bytes for the sample's index in the list of valid ones
        return n_learners * samples * (4 * (2 * obs_dim + act_dim + EXTRA_COLUMNS) + 8)


def layers_of(word: str, depth: int) -> tuple[int, ...]:
    """Parse hidden layers: 64x32, or one width for `depth` layers. Raises ValueError otherwise."""
    widths = word.split("x")
    if not all(w.isascii() and w.isdigit() and int(w) > 0 for w in widths):
        raise ValueError(f"sizes must be words such as 64x64 or 64, not {word!r}")
    layers = tuple(map(int, widths))
    return layers * depth if len(layers) == 1 else layers


def refuse_unlike_depths(name: str, words: Sequence[str], depth: int) -> None:
    """Raise ValueError unless all words of a setting are hidden layers of one depth."""
    if len({len(layers_of(word, depth)) for word in words}) > 1:
        raise ValueError(
            f"{name} {' '.join(words)} differ in depth, but all of them need the same depth; "
            f"give each as many layers (a single width gives {depth} layers)"
        )
