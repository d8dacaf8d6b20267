"""Gymnasium's MuJoCo tasks (v5 and v4) as one table, beside the tasks that users register.

Source: Gymnasium 1.4's `envs/mujoco/*_v5.py` and `*_v4.py`.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from dpd.envs.arms import DoublePendulum, Pendulum, Pusher, Reacher
from dpd.envs.base import UnsupportedEnv
from dpd.envs.locomotion import Locomotion, Range, Standup
from dpd.envs.task import Goal, Task
from dpd.envs.user_task import USER_TASKS, imported, registered_task

_PLANE = ("x_position", "y_position", "distance_from_origin")
_TENDONS = ("tendon_length", "tendon_velocity")
_HUMANOID = (("cinert", 1), ("cvel", 1), ("qfrc_actuator", 6), ("cfrc_ext", 1))

TASKS: dict[str, Task] = {
    task.env_id: task
    for task in (
        Locomotion(
            env_id="HalfCheetah-v5",
            xml="half_cheetah.xml",
            frame_skip=5,
            ctrl_cost=0.1,
            normal_qvel=True,
        ),
        Locomotion(
            env_id="Hopper-v5",
            xml="hopper.xml",
            frame_skip=4,
            ctrl_cost=1e-3,
            healthy_reward=1.0,
            ranges=(Range(1, 0.7, inf), Range(2, -0.2, 0.2)),
            state_range=(-100.0, 100.0),
            state_from=2,
            clip_qvel=10.0,
            qpos_noise=5e-3,
            places=("x_position", "z_distance_from_origin"),
        ),
        Locomotion(
            env_id="Walker2d-v5",
            xml="walker2d_v5.xml",
            frame_skip=4,
            ctrl_cost=1e-3,
            healthy_reward=1.0,
            ranges=(Range(1, 0.8, 2.0), Range(2, -1.0, 1.0)),
            clip_qvel=10.0,
            qpos_noise=5e-3,
            places=("x_position", "z_distance_from_origin"),
        ),
        Locomotion(
            env_id="Swimmer-v5",
            xml="swimmer.xml",
            frame_skip=4,
            ctrl_cost=1e-4,
            skip_qpos=2,
            places=_PLANE,
            axes=2,
        ),
        Locomotion(
            env_id="Ant-v5",
            xml="ant.xml",
            frame_skip=5,
            ctrl_cost=0.5,
            healthy_reward=1.0,
            ranges=(Range(2, 0.2, 1.0, closed=True),),
            state_range=(-inf, inf),
            skip_qpos=2,
            extra=(("cfrc_ext", 1),),
            contact_range=(-1.0, 1.0),
            contact_cost=5e-4,
            velocity_of=("xpos", 1),
            normal_qvel=True,
            places=_PLANE,
            axes=2,
        ),
        Locomotion(
            env_id="Humanoid-v5",
            xml="humanoid.xml",
            frame_skip=5,
            ctrl_cost=0.1,
            # Gymnasium squares data.ctrl here, which is float64, and the float32 action elsewhere.
            cost_field="ctrl",
            forward_reward=1.25,
            healthy_reward=5.0,
            ranges=(Range(2, 1.0, 2.0),),
            skip_qpos=2,
            extra=_HUMANOID,
            contact_cost=5e-7,
            contact_cost_range=(-inf, 10.0),
            velocity_of=("xipos", -1),
            qpos_noise=1e-2,
            places=("x_position", "y_position", *_TENDONS, "distance_from_origin"),
            axes=2,
        ),
        Standup(
            env_id="HumanoidStandup-v5",
            xml="humanoidstandup.xml",
            frame_skip=5,
            ctrl_cost=0.1,
            cost_field="ctrl",
            skip_qpos=2,
            extra=_HUMANOID,
            contact_cost=0.5e-6,
            contact_cost_range=(-inf, 10.0),
            qpos_noise=1e-2,
            places=("x_position", "y_position", "z_distance_from_origin", *_TENDONS),
        ),
        Reacher(
            env_id="Reacher-v5",
            xml="reacher.xml",
            frame_skip=2,
            max_steps=50,
            qvel_noise=5e-3,
            goal=Goal(-2, (-0.2, -0.2), (0.2, 0.2), radius=0.2, is_inside=True),
            still=2,
        ),
        Pusher(
            env_id="Pusher-v5",
            xml="pusher_v5.xml",
            frame_skip=5,
            max_steps=100,
            control_weight=0.1,
            qpos_noise=None,
            qvel_noise=5e-3,
            goal=Goal(-4, (-0.3, -0.2), (0.0, 0.2), radius=0.17, is_inside=False),
            still=4,
        ),
        Pendulum(
            env_id="InvertedPendulum-v5", xml="inverted_pendulum.xml", frame_skip=2, qpos_noise=0.01
        ),
        DoublePendulum(
            env_id="InvertedDoublePendulum-v5",
            xml="inverted_double_pendulum.xml",
            frame_skip=5,
            normal_qvel=True,
        ),
    )
}

_WITH_WORLD = (("cinert", 0), ("cvel", 0), ("qfrc_actuator", 0), ("cfrc_ext", 0))
_V4: dict[str, dict[str, Any]] = {
    "HalfCheetah": {},
    "Hopper": {"pays_fall": True},
    "Walker2d": {"pays_fall": True, "xml": "walker2d.xml"},
    "Swimmer": {},
    "Ant": {"pays_fall": True, "uses_contacts": False, "extra": (("cfrc_ext", 0),)},
    "Humanoid": {"pays_fall": True, "extra": _WITH_WORLD, "contact_cost": None},
    "HumanoidStandup": {"extra": _WITH_WORLD},
    "Reacher": {"pays_before": True, "target_axes": 3},
    "InvertedPendulum": {"pays_fall": True},
    "InvertedDoublePendulum": {"pays_fall": True, "forces": 3},
}
"""Differences of version 4 from version 5 of a task. Pusher-v4 is left out, because Gymnasium makes
it with MuJoCo 2 only."""
TASKS |= {
    f"{name}-v4": replace(TASKS[f"{name}-v5"], env_id=f"{name}-v4", **changes)
    for name, changes in _V4.items()
}


def find_task(env_id: str) -> Task:
    """Look up a task of the table, or one that a user registered (`module:Id`).

    Raises UnsupportedEnv with the known ids.
    """
    task = TASKS.get(env_id) or registered_task(env_id)
    if task is None:
        known = ", ".join(name for name in TASKS if name.endswith("-v5"))
        raise UnsupportedEnv(
            f"no native simulation of {env_id}; there is one of {known}, and of the same as v4 "
            "except for Pusher"
        )
    return task


def is_native(env_id: str) -> bool:
    """Return True if there is a native simulation of an id; `module:Id` imports the module."""
    return env_id in TASKS or imported(env_id) in USER_TASKS
