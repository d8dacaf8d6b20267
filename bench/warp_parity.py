"""Compare one step of the warp backend with the native one, for each of the six tasks.

Both backends step from the same mid-episode states of native episodes with the same actions. Errors
are |difference| / (1 + |native|), over environments and rounds. For Ant, whose friction differs in
some states (see `dpd.envs.warp.NOTES`), the share of environments within 1e-3 is more informative
than the maximum. On a GPU, timed steps raise an error if they wait for the device.

    python bench/warp_parity.py --device cpu --tasks HalfCheetah-v5 --json parity.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
import warp as wp
from rich.table import Table
from timing import machine, write_json

from dpd.envs.base import Snapshot
from dpd.envs.native import NativeEnv
from dpd.envs.tasks import TASKS, load_model, observe
from dpd.envs.warp import WarpEnv
from dpd.log.terminal import make_console

CLOSE = 1e-3
WARM_UP = 20  # steps before the first comparison, until there are contacts
APART = 5  # steps between comparisons


def transplanted(native: NativeEnv, env: WarpEnv) -> Snapshot:
    """Convert a native snapshot to the warp backend, whose physics is a prefix of MuJoCo's."""
    mine, theirs = env.snapshot(), native.snapshot()
    width = mine["physics"].shape[1]
    shared = {name: theirs[name] for name in ("elapsed", "marker", "obs")}
    return {**mine, **shared, "physics": theirs["physics"][:, :width]}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """Return |difference| / (1 + |native|)."""
    return ((ours.cpu() - theirs).abs() / (1 + theirs.abs())).double().numpy()


def seconds(env: WarpEnv, n_steps: int) -> float:
    """Time steps that do not wait for the device."""
    act = torch.rand(env.n_envs, env.spec.act_dim, device=env.device) * 2 - 1
    on_gpu = env.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    began = time.perf_counter()
    for _ in range(n_steps):
        env.step(act)
    if on_gpu:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(env_id: str, n_envs: int, rounds: int, timed: int, device: str) -> dict[str, Any]:
    native = NativeEnv(env_id, n_envs, range(n_envs))
    began = time.perf_counter()
    env = WarpEnv(env_id, n_envs, range(n_envs), device)
    made_s = time.perf_counter() - began
    first = start_errors(env, env_id)
    native.reset()
    obs, reward, n_unlike, n_over = [], [], 0, 0
    generator = torch.Generator().manual_seed(0)
    for k in range(WARM_UP + APART * rounds):
        act = torch.rand(n_envs, env.spec.act_dim, generator=generator) * 2 - 1
        compared = k >= WARM_UP and k % APART == 0
        if compared:
            env.restore(transplanted(native, env))
            ours = env.step(act.to(env.device))
        step = native.step(act)
        if compared:
            obs.append(error(ours.next_obs, step.next_obs))
            reward.append(error(ours.reward, step.reward))
            over = step.terminated
            n_unlike += int((ours.terminated.cpu() != over).sum())
            n_over += int(over.sum())
    native.close()
    return {
        **describe_errors(env_id, native.spec.obs_dim, np.concatenate(obs)),
        "first observation": spread(first),
        "reward": spread(np.concatenate(reward)),
        "terminated": n_over,
        "terminated unlike": n_unlike,
        "trouble": env.trouble(),
        "lost": int(env.n_lost),
        "compile and record s": round(made_s, 1),
        "steps/s": round(n_envs * timed / seconds(env, timed)),
    }


def start_errors(env: WarpEnv, env_id: str) -> np.ndarray:
    """Return errors [M, O] of first observations against MuJoCo's at the same state."""
    task, model = TASKS[env_id], load_model(TASKS[env_id])
    obs, expected = env.reset(), []
    for row in env.snapshot()["physics"].astype(np.float64):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = np.split(row[1 : 1 + model.nq + model.nv], [model.nq])
        mujoco.mj_forward(model, data)
        names = ("qpos", "qvel", *task.derived)
        expected.append(observe(task, {name: getattr(data, name)[None] for name in names})[0])
    return error(obs, torch.tensor(np.stack(expected)))


def describe_errors(env_id: str, obs_dim: int, errors: np.ndarray) -> dict[str, Any]:
    """Split errors [K, O] into the parts of the observation."""
    model, task = load_model(TASKS[env_id]), TASKS[env_id]
    n_qpos = model.nq - task.skip_qpos
    parts = {
        "qpos": errors[:, :n_qpos],
        "qvel": errors[:, n_qpos : n_qpos + model.nv],
        "further": errors[:, n_qpos + model.nv : obs_dim],
    }
    spreads = {name: spread(part) for name, part in parts.items() if part.size}
    return {**spreads, "within 1e-3": float((errors.max(1) < CLOSE).mean())}


def spread(errors: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(errors)), "max": float(errors.max())}


def table(results: dict[str, dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for result in results.values() for name in result))
    shown = Table(
        "",
        *(env_id.removesuffix("-v5") for env_id in results),
        title="One step, warp against native: median / max error",
    )
    for name in names:
        shown.add_row(name, *(cell(result.get(name)) for result in results.values()))
    return shown


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.0e} / {value['max']:.0e}"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare one step of warp and native.")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--timed", type=int, default=20, help="steps to time")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick-compile", action="store_true", help="kernels without optimisation")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    return parser.parse_args(args)


def main() -> None:
    args = parse()
    if args.quick_compile:
        wp.config.optimization_level = 0
    console = make_console()
    results = {}
    for env_id in args.tasks:
        console.print(f"comparing {env_id}")
        results[env_id] = compare(env_id, args.n_envs, args.rounds, args.timed, args.device)
    console.print(table(results))
    about = {"device": args.device, "warp": wp.__version__, **machine()}
    write_json(args.json, {"machine": about, "results": results})


if __name__ == "__main__":
    main()
