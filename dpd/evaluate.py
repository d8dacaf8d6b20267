"""`dpd evaluate`: deterministic episodes of saved policies, and videos."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from dpd.envs.rendering import make_renderable
from dpd.errors import BadInput
from dpd.policies.playing import Playing
from dpd.policies.policyfile import Policy
from dpd.report.report import print_report
from dpd.run.episodes import evaluate_together
from dpd.run.hybrid import hybrid_report, play_group
from dpd.run.hybrid_groups import read_groups
from dpd.run.saved import RunReader
from dpd.run.sources import (
    Place,
    find_policies,
    load_any,
    place_of,
    refuse_shared_statistics,
    refuse_zip_settings,
)
from dpd.run.summary import evaluation_report, summary

if TYPE_CHECKING:
    from dpd.config import EvaluateConfig

Latencies = Callable[[Policy], dict[str, float]]
"""Measures a policy's microseconds per action, by runtime."""


def evaluate_hybrids(config: EvaluateConfig, read_settings: RunReader, measure: Latencies) -> int:
    """Play the hybrid policy of every group beside its peers, and print a table or JSON.

    `measure` times the first group. Raises BadInput for a path that has no hybrid policy.
    """
    groups = []
    for path in config.paths:
        refuse_zip_settings(path, config.foreign)
        groups += read_groups(path, read_settings)
    results = [
        play_group(g, place_of(g.name, g.hybrid, config.foreign), config.episodes, config.seed)
        for g in groups
    ]
    first = groups[0]
    timed = {first.names[0]: first.peers[0], first.name: first.hybrid}
    latency = {name: measure(policy) for name, policy in timed.items()}
    print_report(hybrid_report(results, latency), config.json)
    if config.video is not None:
        record_video(first.hybrid, results[0].place, config.video, config.seed)
    return 0


def evaluate_paths(config: EvaluateConfig) -> int:
    """Evaluate every policy, print a table or JSON, and record a video if asked to."""
    files = [f for path in config.paths for f in find_policies(path)]
    refuse_shared_statistics(files, config.foreign)
    policies = {f: load_any(f, config.foreign, with_hybrids=True) for f in files}
    places = {f: place_of(f, policy, config.foreign) for f, policy in policies.items()}
    # Policies of one environment are evaluated side by side in one vector environment.
    groups: dict[str, list[Path]] = {}
    for file, place in places.items():
        groups.setdefault(json.dumps(place, sort_keys=True), []).append(file)
    summaries: dict[Path, dict[str, Any]] = {}
    for group in groups.values():
        together, place = [policies[f] for f in group], places[group[0]]
        outcomes = evaluate_together(
            together, place.env_id, config.episodes, config.seed, env_kwargs=place.env_kwargs
        )
        for file, policy, outcome in zip(group, together, outcomes, strict=True):
            summaries[file] = summary(str(file), place, policy, outcome)
    rows = [summaries[file] for file in policies]
    print_report(evaluation_report(rows), config.json)
    if config.video is not None:  # last, so that a failure does not lose the numbers
        file, first = next(iter(policies.items()))
        record_video(first, places[file], config.video, config.seed)
    return 0


def record_video(policy: Policy, place: Place, path: Path, seed: int) -> None:
    """Record one episode as .mp4. Raises BadInput if it cannot be rendered or written."""
    if path.suffix != ".mp4":
        raise BadInput(f"--video writes .mp4 files, not '{path.name}'")
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a display
    try:
        frames, fps = render_episode(policy, place, seed)
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


def render_episode(policy: Policy, place: Place, seed: int) -> tuple[list[np.ndarray], int]:
    """Play one episode in Gymnasium's environment; return its frames and frame rate.

    Raises BadInput if the environment cannot render images.
    """
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
    for _ in range(limit or 0):  # environments without a limit were refused before
        seen = torch.from_numpy(np.asarray(obs, np.float32).reshape(1, -1))
        act = policy.scaled(playing(seen))
        obs, _, terminated, truncated, _ = env.step(fit_action(act, env.action_space))
        frames.append(np.asarray(env.render()))
        if terminated or truncated:
            break
    fps = int(env.metadata.get("render_fps", 30))
    env.close()
    return frames, fps
