"""Deterministic evaluation: of learners while they train, of saved policies after."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import gymnasium
import numpy as np
import torch
from torch import Tensor

from dpd.config import BadInput
from dpd.envs.base import Env, EnvKwargs, EnvSpec, UnsupportedEnv
from dpd.envs.make import make
from dpd.policyfile import Policy
from dpd.sources import Place, find_policies, load_any, place_of, refuse_shared_statistics
from dpd.terminal import make_console

if TYPE_CHECKING:
    from dpd.commands import EvaluateConfig

EVAL_SEED = 1_000_003  # keeps evaluation's episodes apart from training's


class Outcome(NamedTuple):
    """Returns and lengths of a fixed number of episodes."""

    returns: np.ndarray  # [N, K]
    lengths: np.ndarray  # [N, K]


def episode_seeds(seed: int, episodes: int, purpose: int = 0) -> list[int]:
    """Return seeds of evaluation episodes, the same for every policy compared."""
    words = np.random.SeedSequence([seed, EVAL_SEED, purpose]).generate_state(episodes, np.uint64)
    return [int(w) for w in words]


class EvaluationStopped(Exception):
    """An evaluation ended early because a stop was requested."""


@torch.no_grad()
def run_episodes(
    env: Env,
    act: Callable[[Tensor], Tensor],
    n: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Play one episode in each environment: act maps raw obs [N, K, O] -> [N, K, A].

    Every environment counts once, so that short, failing episodes are not over-counted. Raises
    EvaluationStopped if a stop is requested, and UnsupportedEnv if an episode passes its time
    limit.
    """
    obs = env.reset()
    m = env.n_envs
    returns, lengths = np.zeros(m), np.zeros(m, dtype=np.int64)
    running = np.ones(m, dtype=bool)
    for _ in range(env.spec.max_steps):
        if stop_requested():
            raise EvaluationStopped
        step = env.step(act(obs.view(n, m // n, -1)).reshape(m, -1))
        happened = running & step.valid.numpy()  # not where the physics became unstable
        returns[happened] += step.reward.numpy()[happened]  # a NaN times 0 would be a NaN
        lengths += happened
        running &= ~(step.terminated | step.truncated).numpy()
        obs = step.obs
        if not running.any():
            break
    else:
        raise UnsupportedEnv(
            f"{env.spec.env_id} did not end its episode at its time limit of "
            f"{env.spec.max_steps:,} steps"
        )
    return Outcome(returns.reshape(n, -1), lengths.reshape(n, -1))


class Evaluator:
    """Evaluates a stack of learners: the same episodes for all peers of a seed, fresh each time."""

    def __init__(
        self, make_env: Callable[[list[int]], Env], seeds: Sequence[int], peers: int, episodes: int
    ) -> None:
        self.make_env, self.episodes = make_env, episodes
        self.rows = [s for s in seeds for _ in range(peers)]

    def __call__(
        self,
        mode: Callable[[Tensor], Tensor],
        purpose: int,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Return the outcome of all learners; `purpose` chooses the episodes.

        Raises EvaluationStopped if a stop is requested.
        """
        seeds = [s for row in self.rows for s in episode_seeds(row, self.episodes, purpose)]
        env = self.make_env(seeds)
        try:
            return run_episodes(env, mode, len(self.rows), stop_requested)
        finally:
            env.close()


def evaluate_policy(
    policy: Policy, env_id: str, episodes: int, seed: int, threads: int | None = None
) -> Outcome:
    """Play episodes of a saved policy. Raises BadInput where it doesn't fit the environment."""
    return evaluate_together([policy], env_id, episodes, seed, threads)[0]


def evaluate_together(
    policies: Sequence[Policy],
    env_id: str,
    episodes: int,
    seed: int,
    threads: int | None = None,
    env_kwargs: EnvKwargs | None = None,
) -> list[Outcome]:
    """Play the same episodes of saved policies side by side, of one environment's settings.

    `env_kwargs` are the environment's; None: those that the first policy was trained with. Raises
    BadInput where a policy does not fit the environment.
    """
    n = len(policies)
    kwargs = policies[0].meta.env_kwargs if env_kwargs is None else env_kwargs
    env = make(env_id, n * episodes, n * episode_seeds(seed, episodes), "auto", kwargs, threads)

    def act(obs: Tensor) -> Tensor:
        return torch.stack([p.repeatable_mode(o) for p, o in zip(policies, obs, strict=True)])

    try:
        for policy in policies:
            require_fit(policy, env.spec)
        found = run_episodes(env, act, n)
    finally:
        env.close()
    return [Outcome(found.returns[i : i + 1], found.lengths[i : i + 1]) for i in range(n)]


def require_fit(policy: Policy, spec: EnvSpec) -> None:
    """Raise BadInput unless a policy reads what an environment gives."""
    meta = policy.meta
    if (spec.obs_dim, spec.act_dim) != (meta.obs_dim, meta.act_dim):
        raise BadInput(
            f"the policy reads {meta.obs_dim} observations and gives {meta.act_dim} actions; "
            f"{spec.env_id} has {spec.obs_dim} and {spec.act_dim}"
        )


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


def summary(name: str, place: Place, policy: Policy, outcome: Outcome) -> dict[str, object]:
    """Return a policy's row: returns over episodes, and where it comes from."""
    r = outcome.returns[0]
    return {
        "policy": name,
        "env": place.env_id,
        "env_kwargs": place.env_kwargs,
        "steps": policy.meta.provenance.get("steps"),
        "episodes": len(r),
        "mean": float(r.mean()),
        "std": float(r.std(ddof=1)) if len(r) > 1 else 0.0,
        "min": float(r.min()),
        "max": float(r.max()),
        "length": float(outcome.lengths.mean()),
        "returns": r.tolist(),
    }


def print_table(rows: Sequence[dict[str, object]], title: str = "Deterministic evaluation") -> None:
    """Print rows of `summary` as a table."""
    from rich.table import Table

    places = [str(Place(str(row["env"]), cast(EnvKwargs, row["env_kwargs"]))) for row in rows]
    envs = sorted(set(places))
    episodes = sorted({str(row["episodes"]) for row in rows})
    table = Table(
        title=f"{title}: {', '.join(envs)}, {'/'.join(episodes)} episodes each",
        title_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for name in ("return", "± std", "min", "max", "length"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, place in zip(rows, places, strict=True):
        numbers = [f"{row[k]:,.0f}" for k in ("mean", "std", "min", "max", "length")]
        name = str(row["policy"]) + (f"  {place}" if len(envs) > 1 else "")
        table.add_row(name, *numbers)
    make_console(highlight=False).print(table)


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
