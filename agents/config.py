"""Settings of all algorithms; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dpd.agents.presets import (
    DDPG_PRESETS,
    OFF_POLICY_PRESETS,
    PPO_PRESETS,
    STUDENT_PRESETS,
    Presets,
)

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


Critic = Literal["own", "mean"]
"""The value function of a learner, or the mean of those of its group."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(LearnerConfig):
    """Proximal policy optimization (Schulman et al. 2017).

    Unless a source is named, defaults are those of the paper's MuJoCo experiments and of
    Stable-Baselines3.
    """

    lr: float = 3e-4
    """Adam's learning rate."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """Decay linearly to zero over the run (the paper, tianshou's MuJoCo benchmark), or not."""
    n_envs: int = 16
    """Environments per learner."""
    n_steps: int = 128
    """Steps per environment and iteration: 16 x 128 = 2048 samples per learner, as in the paper."""
    minibatch_size: int = 64
    """Samples per learner and gradient step."""
    epochs: int = 10
    """Passes over the samples of an iteration."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip: float = 0.2
    """Clip range of the probability ratio."""
    value_coef: float = 0.5
    """Weight of the squared value error (Stable-Baselines3)."""
    value_clip: float | None = None
    """Value clipping (OpenAI Baselines' ppo2: 0.2): the loss is the larger of the value's squared
    error and that of the value clipped to this distance from the old one, in normalised reward
    units. None: no clipping (the paper, Stable-Baselines3)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Upper bound on each learner's gradient norm (Stable-Baselines3)."""
    adam_eps: float = 1e-5
    """Adam's epsilon (Stable-Baselines3)."""
    target_kl: float | None = None
    """End a learner's iteration after the epoch in which its KL to the old policy exceeds 1.5
    times this value (Stable-Baselines3 checks every minibatch); None: never."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy and of the separate value function."""
    peer_hidden: tuple[str, ...] = ()
    """Hidden layers of each peer of a group, such as 64x64, or a single width for every layer of
    `hidden`; empty: `hidden` for all. All peers need the same depth. They then collect and learn at
    once, as --share-experience needs."""
    log_std_init: float = -0.5
    """Initial log standard deviation (tianshou's MuJoCo benchmark; Andrychowicz et al. 2021)."""
    norm_adv: bool = True
    """Centre and scale advantages within each minibatch (Stable-Baselines3)."""
    norm_reward: bool = True
    """Divide rewards by the running standard deviation of the return (VecNormalize)."""
    share_experience: bool = False
    """Learn from the samples of all peers of a group too, weighted by min(1, rho), where rho is the
    learner's probability of the peer's action over the peer's (SEAC, SAPG; values by V-trace). An
    iteration then has as many times the samples and gradient steps as there are peers."""
    share_min_ess: float = 0.2
    """Drop all samples of a peer (or of a past iteration) in iterations in which their effective
    sample size, (sum rho)^2 / sum rho^2, is less than this share of their number; further passes
    over the others take their place."""
    share_value: Critic = "own"
    """Value function of the advantages with --share-experience: the learner's own, or the mean of
    all peers', each in its own normalizer's units (peers are then an ensemble of critics)."""
    reuse_iterations: int = 1
    """Learn from the learner's own samples of so many iterations, this one included: 2 is the
    control of --share-experience for two peers, with the same weights (after GePPO's M, Queeney et
    al. 2021). An iteration then has as many times the samples and gradient steps."""
    critic_obs: str = "actor"
    """Observations that the value function reads: those that the policy sees (`actor`), `all`, or
    groups and columns as in --actor-obs. The latter are read as they are, without noise and delay,
    with a normaliser of their own (Pinto et al. 2018): the function is needed in training only."""
    critic_warmup: int = 0
    """Iterations at the start in which only the value function learns, because it is new while the
    policy of --init-from is not. They count as part of the run: the learning rate decays in them
    too. The policy and its observation normaliser stay as they are; then Adam starts anew."""
    init_std: float | None = None
    """Initial standard deviation, in place of that of the policy of --init-from; None: keep it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "be positive", "epochs", "max_grad_norm", "value_clip")
        require(self, "be positive", "init_std")
        require(self, "not be negative", "critic_warmup")
        require(self, "be at least 1", "reuse_iterations")
        require(self, "lie in [0, 1]", "lam", "share_min_ess")
        self._refuse_idle_sharing()
        refuse_unlike_depths("peer_hidden", self.peer_hidden, len(self.hidden))
        if self.samples % self.minibatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} does not divide n_envs * n_steps = "
                f"{self.n_envs} * {self.n_steps} = {self.samples}; choose a divisor of it"
            )

    @property
    def learners(self) -> str:
        if self.critic_obs != "actor":
            return "dpd.agents.asymmetric:AsymmetricPPO"
        return super().learners

    def hidden_of(self, peer: int) -> tuple[int, ...]:
        words = self.peer_hidden
        return layers_of(words[peer], len(self.hidden)) if words else self.hidden

    def _refuse_idle_sharing(self) -> None:
        """Raise ValueError for settings of shared or reused samples that would do nothing."""
        reuses = self.reuse_iterations > 1
        if reuses and self.share_experience:
            raise ValueError(
                "reuse_iterations is a control in the place of share_experience: give one of them"
            )
        if self.share_value != "own" and not self.share_experience:
            raise ValueError("share_value does nothing without --share-experience")
        changed = self.share_min_ess != type(self).share_min_ess
        if changed and not (self.share_experience or reuses):
            raise ValueError(
                "share_min_ess does nothing without --share-experience or --reuse-iterations 2"
            )

    @property
    def plan(self) -> str:
        shared = " and those of its peers" if self.share_experience else ""
        if self.reuse_iterations > 1:
            shared = f" of each of {self.reuse_iterations} iterations"
        return f"{super().plan}{shared}, {self.epochs} epochs of {self.minibatch_size}"


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


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(ReplayConfig):
    """Settings shared by TD3, DDPG and SAC.

    Unless a source is named, defaults are Stable-Baselines3's.
    """

    lr: float = 3e-4
    """Adam's learning rate of the policy, and of the critics unless `critic_lr` is set."""
    critic_lr: float | None = None
    """Adam's learning rate of the critics; None: `lr`."""
    peer_lr: tuple[float, ...] = ()
    """Learning rate of each peer of a group and of its critics; empty: `lr` for all."""
    n_envs: int = 1
    """Environments per learner."""
    n_steps: int = 50
    """Steps per environment between updates (Spinning Up: 50). Random numbers are drawn for that
    many steps at once; the acting policy is up to that many steps old."""
    capacity: int = 1_000_000
    """Transitions in a learner's replay (Lillicrap et al. 2016)."""
    minibatch_size: int = 256
    """Transitions per learner and gradient step (Haarnoja et al. 2018)."""
    learning_starts: int = 10_000
    """Initial environment steps of a learner with uniformly random actions and no updates, rounded
    up to whole iterations (Fujimoto et al. 2018 for HalfCheetah and Ant; rl-zoo3). Peers that draw
    from each other's replays count the steps of all of them together."""
    updates_per_step: float = 1.0
    """Gradient steps per environment step of a learner; with `share_experience`, gradient steps of
    every peer per environment step of any peer of its group."""
    extra_policy_updates: int = 0
    """Additional policy-only updates after each policy update, on separate minibatches: a control
    for methods that add updates (in the 2020 code, peers update their policies twice as often)."""
    share_replay: bool = False
    """Draw minibatches from the replays of all peers of a group: a control that shares data but
    not policies."""
    act: Literal["own", "hybrid"] = "own"
    """Who acts in a learner's environments after the first `learning_starts` steps. own: the
    learner; hybrid: a peer of its group, drawn by the softmax of the standardised values that all
    their critics give to the peers' actions, or with probability 0.2 the learner itself."""
    act_every: int = 10
    """Steps after which the peer that acts is drawn anew, with `act` hybrid."""
    share_experience: bool = False
    """Draw half of a minibatch from the peers' replays, and let the critics of all peers of a group
    judge as one pool: a few drawn at random in targets (REDQ, Chen et al. 2021), the mean of all in
    the policy's loss."""
    share_critics: Literal["both", "targets", "policy"] = "both"
    """Place where the peers' critics count with `share_experience`: in the targets, in the policy's
    loss, or in both. In the other place, the learner's own critics take their part."""
    critic_obs: str = "actor"
    """Observations that the critics read: those that the policy sees (`actor`), `all`, or groups
    and columns as in --actor-obs. The latter are read as they are, without noise and delay, with a
    normaliser of their own (Pinto et al. 2018): critics are needed in training only."""
    critic_warmup: int = 0
    """Iterations with updates, at the start, in which only the critics learn, because they are new
    while the policy of --init-from is not. Policy, temperature and observation normaliser stay as
    they are. The policy then also acts in the first `learning_starts` steps."""
    n_step: int = 1
    """Number of rewards in a target before it bootstraps."""
    tau: float = 0.005
    """Polyak coefficient: the step of the target networks towards the trained ones per update."""
    n_critics: int = 2
    """Critics per learner; the minimum of their values is used (Fujimoto et al. 2018)."""
    target_critics: int | None = None
    """Critics whose least value is the target, drawn at random for every update; the policy then
    ascends the mean of all critics (REDQ, Chen et al. 2021). None: the least of all own critics, or
    with `share_experience` of 2 drawn from all peers' (of 1 if each learner has one critic)."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the policy and of every critic (Haarnoja et al. 2018)."""
    activation: Literal["tanh", "relu", "elu"] = "relu"
    """Activation of the hidden layers."""
    norm_obs: bool = False
    """Normalise observations by running statistics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "be positive", "updates_per_step", "n_step", "n_critics", "critic_lr")
        require(self, "be at least 1", "act_every")
        if self.act == "own" and self.act_every != type(self).act_every:
            raise ValueError("act_every does nothing without --act hybrid")
        require(self, "be positive", "target_critics")
        require(self, "not be negative", "learning_starts", "extra_policy_updates")
        require(self, "not be negative", "critic_warmup")
        self._refuse_idle_sharing()
        require(self, "lie in (0, 1]", "tau")
        if self.peer_lr and self.critic_lr is not None:
            raise ValueError("peer_lr sets the critics' learning rates too; leave critic_lr out")
        targets = {"n_envs * n_step": self.n_envs * self.n_step}
        self._require_capacity(learning_starts=self.learning_starts, **targets)
        if self.samples * self.updates_per_step < 1:
            raise ValueError(
                f"updates_per_step {self.updates_per_step} makes less than one update in the "
                f"n_envs * n_steps = {self.samples} steps of an iteration; raise it or n_steps"
            )

    def _refuse_idle_sharing(self) -> None:
        """Raise ValueError for settings of sharing that would do nothing."""
        if self.share_experience and self.share_replay:
            raise ValueError("share_experience includes a shared replay; leave share_replay out")
        if not self.share_experience and self.share_critics != type(self).share_critics:
            raise ValueError("share_critics does nothing without --share-experience")
        if not self.pools_targets and (self.target_critics or 0) > self.n_critics:
            raise ValueError(
                f"target_critics {self.target_critics} is more than the {self.n_critics} critics "
                "to draw from; raise n_critics"
            )

    @property
    def learners(self) -> str:
        if self.critic_obs != "actor":
            return f"dpd.agents.asymmetric:Asymmetric{'SAC' if self.squashed else 'TD3'}"
        return super().learners

    @property
    def pools_targets(self) -> bool:
        """True if the critics of all peers count in a learner's targets."""
        return self.share_experience and self.share_critics != "policy"

    @property
    def pools_policy(self) -> bool:
        """True if the critics of all peers count in a learner's policy loss."""
        return self.share_experience and self.share_critics != "targets"

    @property
    def drawn_critics(self) -> int | None:
        """Number of critics drawn for a target; None: all own critics count, none is drawn."""
        if self.target_critics is None and self.share_experience:
            return min(2, self.n_critics)
        return self.target_critics

    @property
    def plan(self) -> str:
        shares = self.share_experience
        of_all = " of all peers" if shares or self.share_replay else ""
        return (
            f"{super().plan}, {self.updates:,} updates of {self.minibatch_size}"
            f"{' for the steps of each peer' if shares else ''}; "
            f"the first {self.learning_starts:,} steps{of_all} "
            + ("without updates" if self.critic_warmup else "at random")
        )

    def idle_iterations(self, peers: int) -> int:
        together = self.share_experience or self.share_replay
        steps = self.samples * (peers if together else 1)
        return max(0, math.ceil(self.learning_starts / steps) - 1)

    @property
    def updates(self) -> int:
        """Gradient steps per iteration for the steps of one learner."""
        return round(self.samples * self.updates_per_step)


@dataclass(frozen=True, kw_only=True)
class TD3Config(OffPolicyConfig):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018)."""

    tanh_mean: ClassVar[bool] = True
    lr: float = 1e-3
    """Adam's learning rate of the policy, and of the critics unless `critic_lr` is set (paper)."""
    policy_delay: int = 2
    """Critic updates per update of the policy and the target networks (paper)."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target policy's action (paper)."""
    target_noise_clip: float = 0.5
    """Clip range of that noise (paper)."""
    exploration: Literal["gaussian", "ou", "param"] = "gaussian"
    """Exploration noise: independent per step (paper); an Ornstein-Uhlenbeck process (Lillicrap
    et al. 2016), which continues across episodes; or adaptive noise on the policy's parameters,
    redrawn for every episode of every environment (Plappert et al. 2018)."""
    noise_std: float = 0.1
    """Standard deviation of the action noise (paper). With `ou`, that of the process's increments
    (Lillicrap et al. 2016: 0.2); with `param`, the target distance between the actions of the
    perturbed and the unperturbed policy (Plappert et al. 2018: 0.2)."""
    peer_noise_std: tuple[float, ...] = ()
    """`noise_std` of each peer of a group; empty: `noise_std` for all."""
    ou_theta: float = 0.15
    """Mean reversion of the `ou` process per step (Lillicrap et al. 2016)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "be positive", "policy_delay", "noise_std", "peer_noise_std", "ou_theta")
        require(self, "not be negative", "target_noise", "target_noise_clip")
        if self.updates < self.policy_delay:
            raise ValueError(
                f"{self.updates} updates an iteration are fewer than policy_delay "
                f"{self.policy_delay}; raise updates_per_step or n_steps"
            )
        if self.exploration == "param" and self.act == "hybrid":
            raise ValueError(
                "act hybrid needs noise on actions: with exploration param, each perturbed policy "
                "belongs to one environment; choose gaussian or ou"
            )
        if self.exploration != "ou" and self.ou_theta != type(self).ou_theta:
            raise ValueError(
                f"ou_theta does nothing with exploration {self.exploration}; it is for ou"
            )
        if self.target_noise == 0 and self.target_noise_clip != type(self).target_noise_clip:
            raise ValueError("target_noise_clip does nothing if target_noise is 0")


@dataclass(frozen=True, kw_only=True)
class DDPGConfig(TD3Config):
    """Deep deterministic policy gradient (Lillicrap et al. 2016): TD3 without its three tricks."""

    n_critics: int = 1
    """Critics per learner."""
    policy_delay: int = 1
    """Critic updates per update of the policy and the target networks."""
    target_noise: float = 0.0
    """Standard deviation of the noise on the target policy's action."""


@dataclass(frozen=True, kw_only=True)
class SACConfig(OffPolicyConfig):
    """Soft actor-critic with a learned temperature (Haarnoja et al. 2018, arXiv 1812.05905)."""

    squashed: ClassVar[bool] = True
    state_std: ClassVar[bool] = True
    alpha: float | None = None
    """Temperature, the weight of the entropy; None: learned."""
    alpha_init: float = 1.0
    """Initial value of a learned temperature."""
    target_entropy: float | None = None
    """Target entropy of a learned temperature; None: minus the number of action dimensions
    (paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "not be negative", "alpha")
        require(self, "be positive", "alpha_init")
        if self.alpha is not None:
            for name in ("alpha_init", "target_entropy"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"{name} applies to a learned temperature only; leave alpha out"
                    )


@dataclass(frozen=True, kw_only=True)
class StudentConfig(ReplayConfig):
    """Students: learners that collect and store data, and that only a method's steps train.

    Their policies are like PPO's. Defaults without a source are our choice.
    """

    n_step: ClassVar[int] = 1
    """Required by the replay; students do not learn from rewards."""
    lr: float = 3e-4
    """Adam's learning rate (as PPO and SAC in Stable-Baselines3)."""
    n_envs: int = 8
    """Environments per learner."""
    n_steps: int = 256
    """Steps per environment and iteration: 8 x 256 = 2048 samples per learner, as in PPO."""
    capacity: int = 200_000
    """States in a learner's replay."""
    minibatch_size: int = 256
    """States per learner and gradient step (Haarnoja et al. 2018)."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy (Schulman et al. 2017)."""
    sizes: tuple[str, ...] = ()
    """Hidden layers of each peer of a group, such as 64x64, or a single width for every layer of
    `hidden`. All peers need the same depth. Empty: `hidden` for all."""
    log_std_init: float = -0.5
    """Initial log standard deviation (as in PPO)."""
    encoder: Literal["mlp", "gru", "lstm", "tcn"] = "mlp"
    """Network that reads what the student sees: the hidden layers alone (`mlp`); first a recurrent
    layer, which remembers the episode (`gru`; `lstm`); or first convolutions over the frames of
    --history (`tcn`, Bai et al. 2018)."""
    encoder_size: int | None = None
    """Units of the recurrent layer, or channels of the convolutions. None: 128 (rsl_rl: 256) or 32
    (RMA, Kumar et al. 2021)."""
    gradient_length: int = 15
    """Steps through which a recurrent student's gradients go back (rsl_rl). It learns on sequences
    of so many successive states, as many as fit into a minibatch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unlike_depths("sizes", self.sizes, len(self.hidden))
        require(self, "be positive", "encoder_size", "gradient_length")
        self._refuse_unfit_encoder()

    def _refuse_unfit_encoder(self) -> None:
        """Raise ValueError for settings of an encoder that would do nothing, or do not fit."""
        if self.encoder == "mlp" and self.encoder_size is not None:
            raise ValueError("encoder_size does nothing without --encoder gru, lstm or tcn")
        if not self.memory_dim:
            if self.gradient_length != type(self).gradient_length:
                raise ValueError("gradient_length does nothing without --encoder gru or lstm")
            return
        for name in ("n_steps", "minibatch_size"):
            if getattr(self, name) < self.gradient_length:
                raise ValueError(
                    f"gradient_length {self.gradient_length} is more than {name} "
                    f"{getattr(self, name)}; lower it, or raise {name}"
                )

    def replay_bytes(self, obs_dim: int, act_dim: int, n_learners: int) -> int:
        full, samples = super().replay_bytes(obs_dim, act_dim, n_learners), self._held
        return full - n_learners * samples * 4 * obs_dim if self.memory_dim else full  # no next_obs

    @property
    def learners(self) -> str:
        kinds = {"mlp": "Student", "tcn": "ConvolutionalStudent"}
        return f"dpd.agents.student:{kinds.get(self.encoder, 'RecurrentStudent')}"

    @property
    def encoder_layers(self) -> Encoder | None:
        if self.encoder == "mlp":
            return None
        default = 32 if self.encoder == "tcn" else 128
        return Encoder(kind=self.encoder, size=self.encoder_size or default)

    def hidden_of(self, peer: int) -> tuple[int, ...]:
        """Return the hidden layers of a peer."""
        return layers_of(self.sizes[peer], len(self.hidden)) if self.sizes else self.hidden

    @property
    def plan(self) -> str:
        along = f", gradients through {self.gradient_length} steps" if self.memory_dim else ""
        return f"{super().plan}, the latest {self.capacity:,} stored{along}"


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
            f"{name} {' '.join(words)} differ in depth, but all peers need the same depth; "
            f"give each as many layers (a single width gives {depth} layers)"
        )


@dataclass(frozen=True)
class AlgorithmSpec:
    """An algorithm: a row of ALGORITHMS."""

    settings: type[Any]
    """A class of settings, derived from LearnerConfig."""
    learners: str
    """Import path of the stack of learners, `module:class`; the module may import torch."""
    presets: Presets = field(default_factory=dict)
    """Settings of the learners under named presets."""
    sb3: str = ""
    """Name of the counterpart among the policies of Stable-Baselines3 (dpd/sb3/kinds.py)."""


ALGORITHMS: dict[str, AlgorithmSpec] = {
    "ppo": AlgorithmSpec(PPOConfig, "dpd.agents.ppo:PPO", PPO_PRESETS, "ppo"),
    "td3": AlgorithmSpec(TD3Config, "dpd.agents.td3:TD3", OFF_POLICY_PRESETS, "td3"),
    "ddpg": AlgorithmSpec(DDPGConfig, "dpd.agents.td3:TD3", DDPG_PRESETS, "ddpg"),
    "sac": AlgorithmSpec(SACConfig, "dpd.agents.sac:SAC", OFF_POLICY_PRESETS, "sac"),
    "student": AlgorithmSpec(StudentConfig, "dpd.agents.student:Student", STUDENT_PRESETS),
}
"""All algorithms, by the name that `--algo` takes."""
