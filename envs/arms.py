"""Gymnasium's tasks of arms that reach and push, and of carts that balance poles.

Source: Gymnasium 1.4's `envs/mujoco/*_v5.py` and `*_v4.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpd.envs.task import Array, SimState, Task, norm, sines, square


@dataclass(frozen=True, kw_only=True)
class Reacher(Task):
    """An arm whose tip is paid for being near a target."""

    dist_weight: float = 1.0
    control_weight: float = 1.0
    pays_before: bool = False
    """True to pay for the distance before the step, as version 4 does, not for that after it."""
    target_axes: int = 2
    """Observed numbers of the vector from the target to the tip; 3 in version 4."""

    @property
    def derived(self) -> tuple[str, ...]:
        return ("xpos",)

    def observed_parts(self, state: SimState) -> dict[str, Array]:
        qpos, qvel = state["qpos"], state["qvel"]
        sine, cosine = sines(qpos[:, :2])
        to_target = self._between(state, "fingertip", "target")[:, : self.target_axes]
        groups = {"cos": cosine, "sin": sine, "target": qpos[:, 2:], "qvel": qvel[:, :2]}
        return {**groups, "to_target": to_target}

    def marker(self, state: SimState, mass: Array, axis: int = 0) -> Array:
        """Return the distance [M] to the target, if the reward is for that before the step."""
        if self.pays_before:
            return norm(self._between(state, "fingertip", "target"))
        return super().marker(state, mass, axis)

    def reward_terms(
        self, before: Array, after: Array, state: SimState, act: Array, up: Array | None
    ) -> dict[str, Array]:
        between = self._between(state, "fingertip", "target")
        distance = before if self.pays_before else norm(between)
        return {
            "reward_dist": -distance * self.dist_weight,
            "reward_ctrl": -(act * act).sum(-1) * self.control_weight,
        }

    def _between(self, state: SimState, first: str, second: str) -> Array:
        """Return the vectors [M, 3] from the second body to the first."""
        place = state["xpos"]
        return place[:, self.body(first)] - place[:, self.body(second)]


@dataclass(frozen=True, kw_only=True)
class Pusher(Reacher):
    """An arm that is paid for pushing an object to its goal."""

    near_weight: float = 0.5

    def observed_parts(self, state: SimState) -> dict[str, Array]:
        place = state["xpos"]
        parts = {"qpos": state["qpos"][:, :7], "qvel": state["qvel"][:, :7]}
        return parts | {name: place[:, self.body(name)] for name in ("tips_arm", "object", "goal")}

    def reward_terms(
        self, before: Array, after: Array, state: SimState, act: Array, up: Array | None
    ) -> dict[str, Array]:
        far, near = (norm(self._between(state, "object", name)) for name in ("goal", "tips_arm"))
        return {
            "reward_dist": -far * self.dist_weight,
            "reward_ctrl": -(act * act).sum(-1) * self.control_weight,
            "reward_near": -near * self.near_weight,
        }

    def pose(self) -> np.ndarray:
        qpos = super().pose()
        qpos[-2:] = 0.0  # the goal, which Gymnasium puts there whatever the model says
        return qpos


@dataclass(frozen=True, kw_only=True)
class Pendulum(Task):
    """A cart that is paid for every step in which its pole stands."""

    @property
    def terminates(self) -> bool:
        return True

    def healthy(self, state: SimState) -> Array:
        qpos, qvel = state["qpos"], state["qvel"]
        # NaN and infinity are not below infinity
        finite = (abs(qpos) < np.inf).all(-1) & (abs(qvel) < np.inf).all(-1)
        return finite & ~(abs(qpos[:, 1]) > 0.2)

    def reward_terms(
        self, before: Array, after: Array, state: SimState, act: Array, up: Array | None
    ) -> dict[str, Array]:
        assert up is not None
        return {"reward_survive": self.paid(up) * 1}


@dataclass(frozen=True, kw_only=True)
class DoublePendulum(Task):
    """A cart that is paid for keeping the tip of two poles high, in the middle and slow."""

    healthy_reward: float = 10.0
    forces: int = 1
    """Observed numbers of the force of constraints: that of the cart, or of all 3 joints."""

    @property
    def terminates(self) -> bool:
        return True

    @property
    def derived(self) -> tuple[str, ...]:
        return ("site_xpos", "qfrc_constraint")

    def observed_parts(self, state: SimState) -> dict[str, Array]:
        qpos, qvel, force = state["qpos"], state["qvel"], state["qfrc_constraint"]
        sine, cosine = sines(qpos[:, 1:])
        parts = {"qpos": qpos[:, :1], "sin": sine, "cos": cosine, "qvel": qvel.clip(-10, 10)}
        return {**parts, "qfrc_constraint": force[:, : self.forces].clip(-10, 10)}

    def healthy(self, state: SimState) -> Array:
        return ~(state["site_xpos"][:, 0, 2] <= 1)

    def reward_terms(
        self, before: Array, after: Array, state: SimState, act: Array, up: Array | None
    ) -> dict[str, Array]:
        assert up is not None
        x, y = state["site_xpos"][:, 0, 0], state["site_xpos"][:, 0, 2]
        speed, speed2 = state["qvel"][:, 1], state["qvel"][:, 2]
        return {
            "reward_survive": self.healthy_reward * (self.paid(up) * 1),
            "distance_penalty": -(0.01 * square(x) + square(y - 2)),
            "velocity_penalty": -(1e-3 * square(speed) + 5e-3 * square(speed2)),
        }
