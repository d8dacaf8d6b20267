"""Videos of policies: an episode in Gymnasium's environment, as frames or as an .mp4 file."""

from __future__ import annotations

import os
from pathlib import Path

import gymnasium
import numpy as np
import torch

from dpd.envs.make import choose_backend
from dpd.envs.rendering import make_renderable
from dpd.errors import BadInput
from dpd.policies.playing import Playing
from dpd.policies.policyfile import Policy
from dpd.run.sources import Place


def record_video(
    policy: Policy, place: Place, path: Path, seed: int, seconds: float | None = None
) -> None:
    """Record one episode, or its first seconds, as .mp4.

    Raises BadInput if it cannot be rendered or written.
    """
    if path.suffix != ".mp4":
        raise BadInput(f"--video writes .mp4 files, not '{path.name}'")
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a display
    try:
        frames, fps = render_episode(policy, place, seed, seconds)
    except BadInput:  # a subclass of ValueError that already names the remedy
        raise
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"no video: {place.env_id} can't be rendered: {error}; choose MuJoCo's renderer with "
            "MUJOCO_GL=egl, osmesa or glfw"
        ) from error
    try:
        import imageio

        imageio.mimwrite(path, frames, fps=fps)  # type: ignore[arg-type]
    except (ImportError, RuntimeError, ValueError) as error:
        raise BadInput(f"no video: {error}; to write it, pip install 'imageio[ffmpeg]'") from error


def fit_action(act: np.ndarray, space: gymnasium.Space) -> np.ndarray:
    """Convert an action to a Box's shape and dtype, and clip it to the Box's bounds.

    A policy file stores bounds as float32, which can lie outside those of a float64 Box.
    """
    assert isinstance(space, gymnasium.spaces.Box), "policies need a Box action space"
    return act.reshape(space.shape).astype(space.dtype).clip(space.low, space.high)


def render_episode(
    policy: Policy, place: Place, seed: int, seconds: float | None = None
) -> tuple[list[np.ndarray], int]:
    """Play one episode, or its first seconds; return its frames and frame rate.

    Raises BadInput if the environment cannot render images.
    """
    if choose_backend(place.env_id, env_kwargs=place.env_kwargs) == "envpool":
        raise BadInput(  # its renderer ends the whole process where there is no display
            f"no video: {place.env_id} is EnvPool's alone, which is not rendered; leave --video out"
        )
    env = make_renderable(place.env_id, place.env_kwargs)
    if env.render_mode != "rgb_array" or "rgb_array" not in env.metadata.get("render_modes", []):
        env.close()
        raise BadInput(
            f"no video: {place.env_id} does not render images (rgb_array is not in its "
            "render_modes); leave --video out"
        )
    obs, _ = env.reset(seed=seed)
    frames, playing = [np.asarray(env.render())], Playing(policy, seed)
    limit = env.spec.max_episode_steps if env.spec is not None else None
    fps = int(env.metadata.get("render_fps", 30))
    most = limit or 0  # environments without a limit were refused before
    for _ in range(most if seconds is None else min(most, round(seconds * fps))):
        seen = torch.from_numpy(np.asarray(obs, np.float32).reshape(1, -1))
        act = policy.scaled(playing(seen))
        obs, _, terminated, truncated, _ = env.step(fit_action(act, env.action_space))
        frames.append(np.asarray(env.render()))
        if terminated or truncated:
            break
    env.close()
    return frames, fps
