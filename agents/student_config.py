"""Settings of students; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dpd.agents.config import Encoder, ReplayConfig, layers_of, refuse_unlike_depths, require


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
