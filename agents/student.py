"""Students: learners that are trained by a distillation method alone, not by reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpd.agents.base import Answer, Batch, ExtraLoss, LearnerId, Metrics
from dpd.agents.config import Encoder
from dpd.agents.dist import DiagGaussian
from dpd.agents.encoders import (
    convolve,
    encode,
    encode_along,
    encoder_shapes,
    features_of,
    init_encoder,
)
from dpd.agents.learners import GaussianLearners
from dpd.agents.nets import Shapes, StackedNets
from dpd.agents.optim import StackedAdam
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student_config import StudentConfig
from dpd.agents.views import RememberingFrames


class Student(GaussianLearners):
    """N learners that act and store states; rows may differ in width and in view."""

    config: StudentConfig
    replay: Replay

    def _make(self, ids: Sequence[LearnerId]) -> None:
        config, dtype, device = self.config, self.dtype, self.device
        rows = [self._shapes(config.hidden_of(peer), n) for n, (_, peer) in enumerate(ids)]
        self.nets = StackedNets.padded(rows, config.activation, dtype, device)
        self._initialise("actor", 0.01, RowRandom(ids, Stream.INIT))
        self.optimizer = StackedAdam(self.nets.flat, self.lr.tolist())
        sizes = self.n_learners, self.obs_dim, self.act_dim
        has_next = config.memory_dim == 0
        self.replay = Replay(config, *sizes, dtype, device=device, has_next=has_next)

    def _shapes(self, hidden: Sequence[int], n: int) -> Shapes:
        """Return the names and shapes of learner n's parameters."""
        return self._policy_shapes(hidden, self.in_dims[n])

    @property
    def sequence_length(self) -> int:
        """Successive states that `dist_along` reads together."""
        return 1

    def dist_along(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, K, O], sequence after sequence, as `dist`."""
        return self.dist(obs)

    @torch.no_grad()
    def ask(self, obs: Tensor) -> Answer:
        """Return the policy at raw obs [N, B, O]; students have no value function."""
        return Answer(self.dist(self.obs_norm(obs)), None)

    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Set the learning rates of the method's own steps, which train students.

        Raises ValueError for `extra`.
        """
        if extra is not None:
            raise ValueError(
                "students have no loss of their own to which a method's loss could be added; "
                "distil by separate gradient steps (dose `step`)"
            )
        self.optimizer.lr = self.lr.tolist()
        return {}


class EncoderStudent(Student):
    """N students with layers between what they see and their MLP."""

    encoder: Encoder

    def _make(self, ids: Sequence[LearnerId]) -> None:
        layers = self.config.encoder_layers
        if layers is None or not self.views:
            raise ValueError("students with an encoder need its settings and a view")
        self.encoder = layers
        super()._make(ids)
        init_encoder(layers, self.nets, RowRandom(ids, Stream.ENCODER).generators)

    def _shapes(self, hidden: Sequence[int], n: int) -> Shapes:
        view, policy = self.views[n], self._policy_shapes(hidden, self.encoder.size)
        return encoder_shapes(self.encoder, view.frame_dim, view.history) | policy

    @property
    def _params(self) -> Mapping[str, Tensor]:
        return self.nets.named() if torch.is_grad_enabled() else self.nets.views


class ConvolutionalStudent(EncoderStudent):
    """N students with convolutions over the frames of a history, which all of them share."""

    def dist(self, obs: Tensor) -> DiagGaussian:
        frames = obs.unflatten(-1, (self.views[0].history, -1))
        return super().dist(convolve(self._params, frames))


class RecurrentStudent(EncoderStudent):
    """N students with a recurrent layer, which remembers the episode.

    The memory [S] is a part of every stored observation: that of the steps before it. So a single
    state says how its learner acts, and a sequence from the replay begins with the memory that its
    learner had. Normalised observations are joint: what is seen [..., F], and the memory.
    """

    def new_frames(self, n_envs: int, sensors: RowRandom) -> RememberingFrames:
        sizes = self.encoder.memory_dim, self.dtype, self.device
        return RememberingFrames(self.views, n_envs, sensors, self.remember, *sizes)

    @torch.no_grad()
    def remember(self, seen: Tensor, memory: Tensor) -> Tensor:
        """Return the memories [N, E, S] after what is seen at one step [N, E, F]."""
        x = self.obs_norm.normalised(seen)
        return encode(self.encoder, self.nets.views, x, memory)

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at joint obs [N, B, F + S], differentiably."""
        x, memory = self._parts(obs)
        memory = encode(self.encoder, self._params, x, memory)
        return super().dist(features_of(self.encoder, memory))

    @property
    def sequence_length(self) -> int:
        return self.config.gradient_length

    def dist_along(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at joint obs [N, K, F + S], sequences of `sequence_length` states.

        Gradients go back through a sequence, and not into the memory at its beginning.
        """
        x, memory = self._parts(obs.unflatten(1, (-1, self.sequence_length)))
        memories = encode_along(self.encoder, self._params, x, memory)
        return super().dist(features_of(self.encoder, memories).flatten(1, 2))

    def _parts(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x, memory = obs.split([self.in_dim, self.encoder.memory_dim], -1)
        return x, memory
