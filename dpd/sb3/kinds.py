"""Which policies of Stable-Baselines3 have a counterpart here, and what their parts are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

ANY = object()  # a setting that must be there, whatever it is


class Kind(NamedTuple):
    """An algorithm's MlpPolicy: how its zip is recognised, what it is made of, how it acts."""

    algo: str
    policy: str  # class
    settings: Mapping[str, Any]  # that tell it from the algorithms below it with this class
    trunk: str  # of the actor
    head: str  # its last layer; "": the trunk's
    log_std: str  # a vector, or a layer where `state_std`; "": there is none
    others: tuple[str, ...]  # networks that do not act
    critic: str  # what net_arch calls those
    activation: str  # unless policy_kwargs gives another
    trace: str = ""  # what only training with VecNormalize leaves in the settings; "": nothing
    squashed: bool = False
    tanh_mean: bool = False
    state_std: bool = False

    @property
    def is_scaled(self) -> bool:
        """Whether it acts in [-1, 1], as ours do, and not in the environment's own units."""
        return self.squashed or self.tanh_mean

    @property
    def std(self) -> list[str]:
        """Names of the tensors that give the log standard deviation."""
        if self.state_std:
            return [f"{self.log_std}.weight", f"{self.log_std}.bias"]
        return [self.log_std] if self.log_std else []

    def layers(self, n: int) -> list[str]:
        """Return the names of an actor's n layers."""
        names = [f"{self.trunk}.{2 * i}" for i in range(n)]  # activations have the odd numbers
        return [*names[:-1], self.head] if self.head else names

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Whether a zip's settings are this algorithm's."""
        return all(k in settings and v in (ANY, settings[k]) for k, v in self.settings.items())


TD3 = Kind(
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
        trace="_last_original_obs",  # an off-policy algorithm keeps it in any case
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
    # SB3's DDPG is its TD3 with these settings, and nothing else in a zip tells which it was
    TD3._replace(algo="ddpg", settings={"policy_delay": 1, "target_noise_clip": 0.0}),
    TD3,
)
