"""Deterministic evaluation: of learners while they train, of saved policies after."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.config import BadInput
from dpd.envs.base import Env, EnvSpec
from dpd.envs.make import make
from dpd.policyfile import Policy
from dpd.sources import find_policies, load_any

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


@torch.no_grad()
def run_episodes(env: Env, act: Callable[[Tensor], Tensor], n: int) -> Outcome:
    """Play one episode in each environment: act maps raw obs [N, K, O] -> [N, K, A].

    Every environment counts once, so that short, failing episodes are not over-counted.
    """
    obs = env.reset()
    m = env.n_envs
    returns, lengths = np.zeros(m), np.zeros(m, dtype=np.int64)
    running = np.ones(m, dtype=bool)
    while running.any():
        step = env.step(act(obs.view(n, m // n, -1)).reshape(m, -1))
        returns += step.reward.numpy() * running
        lengths += running
        running &= ~(step.terminated | step.truncated).numpy()
        obs = step.obs
    return Outcome(returns.reshape(n, -1), lengths.reshape(n, -1))


class Evaluator:
    """Evaluates a stack of learners: the same episodes for all peers of a seed, fresh each time."""

    def __init__(
        self, make_env: Callable[[list[int]], Env], seeds: Sequence[int], peers: int, episodes: int
    ) -> None:
        self.make_env, self.episodes = make_env, episodes
        self.rows = [s for s in seeds for _ in range(peers)]

    def __call__(self, mode: Callable[[Tensor], Tensor], purpose: int) -> Outcome:
        """Return the outcome of all learners; `purpose` chooses the episodes."""
        seeds = [s for row in self.rows for s in episode_seeds(row, self.episodes, purpose)]
        env = self.make_env(seeds)
        try:
            return run_episodes(env, mode, len(self.rows))
        finally:
            env.close()


def evaluate_policy(
    policy: Policy, env_id: str, episodes: int, seed: int, threads: int | None = None
) -> Outcome:
    """Play episodes of a saved policy. Raises BadInput where it doesn't fit the environment."""
    return evaluate_together([policy], env_id, episodes, seed, threads)[0]


def evaluate_together(
    policies: Sequence[Policy], env_id: str, episodes: int, seed: int, threads: int | None = None
) -> list[Outcome]:
    """Play the same episodes of saved policies side by side, of one environment's settings.

    Raises BadInput where one does not fit the environment.
    """
    n, meta = len(policies), policies[0].meta
    kwargs = meta.env_kwargs if env_id == meta.env_id else {}
    env = make(env_id, n * episodes, n * episode_seeds(seed, episodes), "auto", kwargs, threads)

    def act(obs: Tensor) -> Tensor:
        return torch.stack([p.mode(o) for p, o in zip(policies, obs, strict=True)])

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
    policies = {f: load_any(f, config.foreign) for f in files}
    alike: dict[tuple[str, str], list[Path]] = {}
    for file, policy in policies.items():
        kwargs = json.dumps(policy.meta.env_kwargs, sort_keys=True)
        alike.setdefault((config.foreign.env or policy.meta.env_id, kwargs), []).append(file)
    found: dict[Path, dict[str, object]] = {}
    for (env_id, _), group in alike.items():
        played = [policies[f] for f in group]
        outcomes = evaluate_together(played, env_id, config.episodes, config.seed)
        for file, policy, outcome in zip(group, played, outcomes, strict=True):
            found[file] = summary(str(file), env_id, policy, outcome)
    rows = [found[file] for file in policies]
    if config.video is not None:
        first = next(iter(policies.values()))
        record_video(first, config.foreign.env or first.meta.env_id, config.video, config.seed)
    if config.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        print_table(rows)
    return 0


def summary(name: str, env_id: str, policy: Policy, outcome: Outcome) -> dict[str, object]:
    """Return a policy's row: returns over episodes, and where it comes from."""
    r = outcome.returns[0]
    return {
        "policy": name,
        "env": env_id,
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

    from dpd.terminal import make_console

    envs = sorted({str(row["env"]) for row in rows})
    episodes = sorted({str(row["episodes"]) for row in rows})
    table = Table(
        title=f"{title}: {', '.join(envs)}, {'/'.join(episodes)} episodes each",
        title_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for name in ("return", "± std", "min", "max", "length"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        numbers = [f"{row[k]:,.0f}" for k in ("mean", "std", "min", "max", "length")]
        name = str(row["policy"]) + (f"  {row['env']}" if len(envs) > 1 else "")
        table.add_row(name, *numbers)
    make_console().print(table)


def record_video(policy: Policy, env_id: str, path: Path, seed: int) -> None:
    """Record one episode as .mp4. Raises BadInput where nothing can render."""
    if path.suffix != ".mp4":
        raise BadInput(f"--video writes .mp4 files, not '{path.name}'")
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a screen
    try:
        frames, fps = render_episode(policy, env_id, seed)
        import imageio

        imageio.mimwrite(path, frames, fps=fps)  # type: ignore[arg-type]
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"no video: {error}; it needs pip install 'imageio[ffmpeg]' and a renderer, "
            "which MUJOCO_GL=egl, osmesa or glfw chooses"
        ) from error


def render_episode(policy: Policy, env_id: str, seed: int) -> tuple[list[np.ndarray], int]:
    """Play one episode on Gymnasium's environment; return its frames and their rate."""
    import gymnasium

    env = gymnasium.make(env_id, render_mode="rgb_array", **policy.meta.env_kwargs)
    obs, _ = env.reset(seed=seed)
    frames, done = [np.asarray(env.render())], False
    while not done:
        obs, _, terminated, truncated, _ = env.step(policy.act(np.asarray(obs, np.float32)))
        frames.append(np.asarray(env.render()))
        done = terminated or truncated
    fps = int(env.metadata.get("render_fps", 30))
    env.close()
    return frames, fps
