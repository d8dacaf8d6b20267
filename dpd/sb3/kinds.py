"""The policies of Stable-Baselines3 that can be read and written, with the names of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

ANY = object()  # a setting that must exist, with any value


class Kind(NamedTuple):
    """An algorithm's MlpPolicy: the signs of its zip, its networks and its action distribution."""

    algo: str
    policy: str  # its class
    settings: Mapping[str, Any]  # that distinguish it from later KINDS with the same class
    trunk: str  # name of the actor's hidden layers
    head: str  # name of its last layer; "" if it belongs to the trunk
    log_std: str  # name of a vector, or of a layer if `state_std`; "" if there is none
    others: tuple[str, ...]  # prefixes of networks that do not act
    critic: str  # their key in net_arch
    activation: str  # default of policy_kwargs
    trace: str = ""  # a setting that only training with VecNormalize leaves; "" if none
    squashed: bool = False
    tanh_mean: bool = False
    state_std: bool = False

    @property
    def is_scaled(self) -> bool:
        """True if the network acts in [-1, 1]; else it acts in the environment's units."""
        return self.squashed or self.tanh_mean

    @property
    def std(self) -> list[str]:
        """Names of the tensors of the log standard deviation."""
        if self.state_std:
            return [f"{self.log_std}.weight", f"{self.log_std}.bias"]
        return [self.log_std] if self.log_std else []

    def layers(self, n: int) -> list[str]:
        """Return the names of an actor's n layers."""
        names = [f"{self.trunk}.{2 * i}" for i in range(n)]  # activations have the odd numbers
        return [*names[:-1], self.head] if self.head else names

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Return True if a zip's settings are those of this algorithm."""
        return all(k in settings and v in (ANY, settings[k]) for k, v in self.settings.items())


TD3_KIND = Kind(
    algo="td3",
    policy="stable_baselines3.td3.policies.TD3Policy",
    settings={"policy_delay": ANY},
    trunk="actor.mu",
    head="",
    log_std="",
    others=("actor_target.", "critic.", "critic_target."),
    critic="qf",
    activation="relu",
    tanh_mean=True,
)
KINDS = (
    Kind(
        algo="ppo",
        policy="stable_baselines3.common.policies.ActorCriticPolicy",
        settings={"clip_range": ANY},
        trunk="mlp_extractor.policy_net",
        head="action_net",
        log_std="log_std",
        others=("mlp_extractor.value_net.", "value_net."),
        critic="vf",
        activation="tanh",
        trace="_last_original_obs",  # off-policy algorithms always keep it
    ),
    Kind(
        algo="sac",
        policy="stable_baselines3.sac.policies.SACPolicy",
        settings={"target_entropy": ANY},
        trunk="actor.latent_pi",
        head="actor.mu",
        log_std="actor.log_std",
        others=("critic.", "critic_target."),
        critic="qf",
        activation="relu",
        squashed=True,
        state_std=True,
    ),
    # SB3's DDPG is its TD3 with these settings; nothing else in a zip distinguishes them.
    TD3_KIND._replace(algo="ddpg", settings={"policy_delay": 1, "target_noise_clip": 0.0}),
    TD3_KIND,
)
