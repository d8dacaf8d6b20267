"""Policies as modules of torch alone, for TorchScript and for the runtimes that read it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpd.agents.encoders import TAPS
from dpd.agents.nets import layers
from dpd.policies.hybrid import HybridPolicy, sequential
from dpd.policies.policyfile import Policy, refuse_memory


class ExportedActor(nn.Module):
    """A policy as a network: raw obs [B, O] -> actions [B, A] in the environment's bounds.

    Of a policy with a view, the input is the stack of frames that it sees [B, H, G].
    """

    obs_mean: Tensor
    obs_scale: Tensor
    act_low: Tensor
    act_high: Tensor
    act_half: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        refuse_memory(policy, "such a file")
        meta, tensors = policy.meta, policy.tensors
        self.norm_obs, self.clip_obs = meta.norm_obs, meta.clip_obs
        self.is_bounded, self.has_view = meta.squashed or meta.tanh_mean, meta.view is not None
        for name in ("obs_mean", "obs_scale", "act_low", "act_high"):
            self.register_buffer(name, tensors[name].clone())
        self.register_buffer("act_half", 0.5 * (tensors["act_high"] - tensors["act_low"]))
        self.net = sequential(layers(tensors, "actor"), meta.activation)

    def forward(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [B, O], or on frames [B, H, G]."""
        return self.act(self.inputs(obs))

    def inputs(self, obs: Tensor) -> Tensor:
        """Return what the network reads of raw obs [B, O], or of frames [B, H, G], flattened."""
        x = self.normalised(obs)
        return x.flatten(1) if self.has_view else x

    def normalised(self, obs: Tensor) -> Tensor:
        """Return obs as the network reads them."""
        if not self.norm_obs:
            return obs
        return torch.clamp((obs - self.obs_mean) * self.obs_scale, -self.clip_obs, self.clip_obs)

    def act(self, x: Tensor) -> Tensor:
        """Return the actions [B, A] of the MLP at its inputs."""
        mean = self.net(x)
        act = torch.tanh(mean) if self.is_bounded else torch.clamp(mean, -1.0, 1.0)
        scaled = self.act_low + (act + 1.0) * self.act_half
        return torch.clamp(scaled, self.act_low, self.act_high)  # rounding may leave the bounds


def fill_layer(layer: nn.RNNBase, policy: Policy) -> None:
    """Copy a policy's recurrent layer into torch's own, whose weights are transposed."""
    for ours, theirs in (("input", "ih"), ("state", "hh")):
        with torch.no_grad():
            getattr(layer, f"weight_{theirs}_l0").copy_(policy.tensors[f"encoder.{ours}.weight"].T)
            getattr(layer, f"bias_{theirs}_l0").copy_(policy.tensors[f"encoder.{ours}.bias"][0])


class ExportedGRU(ExportedActor):
    """A policy with a GRU: frames [B, H, G] and h [1, B, D] -> actions [B, A] and the next h."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        meta = policy.meta
        assert meta.encoder is not None
        self.layer = nn.GRU(meta.in_dim, meta.encoder.size)
        fill_layer(self.layer, policy)

    def forward(self, obs: Tensor, h_in: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Act and remember; h is 0 where an episode begins."""
        out, h_out = self.layer(self.inputs(obs).unsqueeze(0), h_in)
        return self.act(out.squeeze(0)), h_out


class ExportedLSTM(ExportedActor):
    """A policy with an LSTM: frames [B, H, G], h and c [1, B, D] -> actions, the next h and c."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        meta = policy.meta
        assert meta.encoder is not None
        self.layer = nn.LSTM(meta.in_dim, meta.encoder.size)
        fill_layer(self.layer, policy)

    def forward(  # type: ignore[override]
        self, obs: Tensor, h_in: Tensor, c_in: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Act and remember; h and c are 0 where an episode begins."""
        out, (h_out, c_out) = self.layer(self.inputs(obs).unsqueeze(0), (h_in, c_in))
        return self.act(out.squeeze(0)), h_out, c_out


class ExportedTCN(ExportedActor):
    """A policy with convolutions over its frames: [B, H, G] -> actions [B, A]."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.convolutions = nn.ModuleList()
        i = 0
        while (weight := policy.tensors.get(f"encoder.conv{i}.weight")) is not None:
            taps = weight.unflatten(0, (TAPS, -1)).permute(2, 1, 0)  # [D, C, TAPS]
            layer = nn.Conv1d(taps.shape[1], taps.shape[0], TAPS, dilation=2**i)
            with torch.no_grad():
                layer.weight.copy_(taps)
                layer.bias.copy_(policy.tensors[f"encoder.conv{i}.bias"][0])  # type: ignore[union-attr]
            self.convolutions.append(layer)
            i += 1

    def forward(self, obs: Tensor) -> Tensor:
        """Act without noise on frames [B, H, G]."""
        x = self.normalised(obs).mT  # [B, G, H]
        for i, layer in enumerate(self.convolutions):
            x = torch.relu(layer(nn.functional.pad(x, ((TAPS - 1) * 2**i, 0))))
        return self.act(x[..., -1])


MODULES: dict[str, type[ExportedActor]] = {
    "gru": ExportedGRU,
    "lstm": ExportedLSTM,
    "tcn": ExportedTCN,
}


def as_module(policy: Policy) -> nn.Module:
    """Return a policy as a torch module: raw obs [B, O] -> actions in the environment's bounds.

    A recurrent policy's module takes and returns its memory too.
    """
    if isinstance(policy, HybridPolicy):
        return policy.network
    encoder = policy.meta.encoder
    return (ExportedActor if encoder is None else MODULES[encoder.kind])(policy).eval()


def example_inputs(policy: Policy, batch: int = 2) -> list[Tensor]:
    """Return inputs of the module, 0. To trace with a batch of one would fix its size."""
    meta = policy.meta
    if not meta.memory_dim or meta.encoder is None or meta.view is None:
        return [torch.zeros(batch, *meta.input_shape)]
    states = meta.memory_dim // meta.encoder.size
    frames = torch.zeros(batch, meta.view.history, meta.view.frame_dim)
    return [frames, *(torch.zeros(1, batch, meta.encoder.size) for _ in range(states))]
