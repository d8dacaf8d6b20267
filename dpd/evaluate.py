"""Deterministic evaluation: of learners while they train, of saved policies after."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from dpd.errors import BadInput
from dpd.policies.policyfile import Policy
from dpd.run.episodes import (
    evaluate_together,
)
from dpd.run.sources import Place, find_policies, load_any, place_of, refuse_shared_statistics
from dpd.run.summary import print_table, summary

if TYPE_CHECKING:
    from dpd.config import EvaluateConfig


def evaluate_paths(config: EvaluateConfig) -> int:
    """Evaluate every policy and print a table or JSON."""
    files = [f for path in config.paths for f in find_policies(path)]
    refuse_shared_statistics(files, config.foreign)
    policies = {f: load_any(f, config.foreign) for f in files}
    places = {f: place_of(f, policy, config.foreign) for f, policy in policies.items()}
    alike: dict[str, list[Path]] = {}
    for file, place in places.items():
        alike.setdefault(json.dumps(place, sort_keys=True), []).append(file)
    found: dict[Path, dict[str, object]] = {}
    for group in alike.values():
        played, place = [policies[f] for f in group], places[group[0]]
        outcomes = evaluate_together(
            played, place.env_id, config.episodes, config.seed, env_kwargs=place.env_kwargs
        )
        for file, policy, outcome in zip(group, played, outcomes, strict=True):
            found[file] = summary(str(file), place, policy, outcome)
    rows = [found[file] for file in policies]
    if config.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        print_table(rows)
    if config.video is not None:  # last: the numbers are out should it fail
        file, first = next(iter(policies.items()))
        record_video(first, places[file], config.video, config.seed)
    return 0


def record_video(policy: Policy, place: Place, path: Path, seed: int) -> None:
    """Record one episode as .mp4. Raises BadInput where nothing can render."""
    if path.suffix != ".mp4":
        raise BadInput(f"--video writes .mp4 files, not '{path.name}'")
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a screen
    try:
        frames, fps = render_episode(policy, place, seed)
    except BadInput:  # a ValueError too, but it says already what to do
        raise
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"no video: {place.env_id} can't be rendered: {error}; MuJoCo's renderer is chosen by "
            "MUJOCO_GL=egl, osmesa or glfw"
        ) from error
    try:
        import imageio

        imageio.mimwrite(path, frames, fps=fps)  # type: ignore[arg-type]
    except (ImportError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"no video: {error}; writing it needs pip install 'imageio[ffmpeg]'"
        ) from error


def fitted(act: np.ndarray, space: gymnasium.Space) -> np.ndarray:
    """Give an action the shape and dtype of a Box, and clip it to the Box's own bounds.

    The bounds in a policy file are float32, in older files rounded beyond those of a float64 Box.
    """
    assert isinstance(space, gymnasium.spaces.Box), "a policy acts in a Box"
    return act.reshape(space.shape).astype(space.dtype).clip(space.low, space.high)


def render_episode(policy: Policy, place: Place, seed: int) -> tuple[list[np.ndarray], int]:
    """Play one episode on Gymnasium's environment; return its frames and their rate.

    Raises BadInput where the environment offers no images.
    """
    env = gymnasium.make(place.env_id, render_mode="rgb_array", **place.env_kwargs)
    if env.render_mode != "rgb_array" or "rgb_array" not in env.metadata.get("render_modes", []):
        env.close()
        raise BadInput(
            f"no video: {place.env_id} does not render images (rgb_array is not in its "
            "render_modes); leave --video out"
        )
    obs, _ = env.reset(seed=seed)
    frames = [np.asarray(env.render())]
    limit = env.spec.max_episode_steps if env.spec is not None else None
    for _ in range(limit or 0):  # an environment without a limit was refused before
        act = policy.act_flat(np.asarray(obs, np.float32).reshape(1, -1))
        obs, _, terminated, truncated, _ = env.step(fitted(act, env.action_space))
        frames.append(np.asarray(env.render()))
        if terminated or truncated:
            break
    fps = int(env.metadata.get("render_fps", 30))
    env.close()
    return frames, fps
