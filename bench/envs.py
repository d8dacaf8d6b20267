"""Time environment steps: native, Gymnasium, Stable-Baselines3 and the limit of MuJoCo itself.

`raw` is only batched mj_step on all cores, without observations, rewards or resets. It starts 100
random steps into native episodes, and returns to those states every 20 steps.

    python bench/envs.py --tasks HalfCheetah-v5 --n-envs 32 256 --json envs.json
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from mujoco.batch import Batch
from rich.table import Table
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from timing import (
    Work,
    interleaved_rates,
    machine,
    median_ratio,
    parse_timed,
    require_quiet,
    write_json,
)

from dpd.envs.native import NativeEnv
from dpd.envs.physics import n_cores
from dpd.envs.tasks import TASKS, load_model
from dpd.log.terminal import make_console

WARM_UP = 100
RAW_ROUND = 20
N_ACTIONS = 64
MOST_RIVAL_ENVS = 64  # more only take longer to build for Gymnasium and SB3
GOALS = (  # task, contender, base, least ratio
    ("HalfCheetah-v5", "native@256", "raw@256", 0.85),
    ("Ant-v5", "native@256", "raw@256", 0.65),
    ("Humanoid-v5", "native@256", "raw@256", 0.65),
    ("HalfCheetah-v5", "native@32", "gymnasium sync@32", 2.5),
)


def native(env_id: str, n_envs: int) -> Work:
    """Return the work of the native backend."""
    env = NativeEnv(env_id, n_envs, list(range(n_envs)))
    env.reset()
    acts = torch.rand(N_ACTIONS, n_envs, env.spec.act_dim) * 2 - 1
    return _cycle(lambda k: env.step(acts[k]), n_envs, WARM_UP)


def raw(env_id: str, n_envs: int) -> Work:
    """Return the work of MuJoCo alone."""
    task, model = TASKS[env_id], load_model(TASKS[env_id])
    env = NativeEnv(env_id, n_envs, list(range(n_envs)))
    env.reset()
    for _ in range(WARM_UP):
        env.step(torch.rand(n_envs, env.spec.act_dim) * 2 - 1)
    states = env.snapshot()["physics"]
    env.close()
    batch = Batch(model, n_envs, n_cores())
    ctrl, acts = batch.bind("ctrl"), _actions(env_id, n_envs)

    def work() -> int:
        batch.state[:] = states
        for k in range(RAW_ROUND):
            ctrl[:] = acts[k]
            batch.step(nstep=task.frame_skip)
        return n_envs * RAW_ROUND

    return work


def gymnasium_vector(mode: str) -> Callable[[str, int], Work]:
    """Return a maker of Gymnasium's work in a vectorization mode."""

    def make(env_id: str, n_envs: int) -> Work:
        envs = gymnasium.make_vec(
            env_id,
            num_envs=n_envs,
            vectorization_mode=mode,
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        )
        envs.reset(seed=0)
        acts = _actions(env_id, n_envs)
        return _cycle(lambda k: envs.step(acts[k]), n_envs)

    return make


def sb3_vector(kind: type[DummyVecEnv] | type[SubprocVecEnv]) -> Callable[[str, int], Work]:
    def make(env_id: str, n_envs: int) -> Work:
        envs = kind([lambda: gymnasium.make(env_id)] * n_envs)
        envs.reset()
        acts = _actions(env_id, n_envs)
        return _cycle(lambda k: envs.step(acts[k]), n_envs)

    return make


LIMITS = {"raw": raw, "native": native}
RIVALS = {
    "gymnasium sync": gymnasium_vector("sync"),
    "gymnasium async": gymnasium_vector("async"),
    "sb3 DummyVecEnv": sb3_vector(DummyVecEnv),
    "sb3 SubprocVecEnv": sb3_vector(SubprocVecEnv),
}


def _actions(env_id: str, n_envs: int) -> np.ndarray:
    low, high = load_model(TASKS[env_id]).actuator_ctrlrange.T
    shape = (N_ACTIONS, n_envs, len(low))
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def _cycle(step: Callable[[int], object], n_envs: int, warm_up: int = 0) -> Work:
    """Return the work of a step function that takes the index of its actions."""
    count = 0

    def work() -> int:
        nonlocal count
        step(count % N_ACTIONS)
        count += 1
        return n_envs

    for _ in range(warm_up):
        work()
    return work


def contenders(env_id: str, sizes: list[int]) -> dict[str, Work]:
    works = {}
    for n_envs in sizes:
        rivals = RIVALS if n_envs <= MOST_RIVAL_ENVS else {}
        for name, make in {**LIMITS, **rivals}.items():
            works[f"{name}@{n_envs}"] = make(env_id, n_envs)
    return works


def rate_table(rates: dict[str, dict[str, list[float]]]) -> Table:
    table = Table("steps/s (median)", *rates, title="Environment steps per second")
    for name in next(iter(rates.values())):
        medians = [statistics.median(of_task[name]) for of_task in rates.values()]
        table.add_row(name, *(f"{median:,.0f}" for median in medians))
    return table


def goal_table(rates: dict[str, dict[str, list[float]]]) -> Table:
    table = Table("task", "ratio", "measured", "goal", title="Ratios by round, medians")
    for env_id, name, base, goal in GOALS:
        if name in rates.get(env_id, {}) and base in rates[env_id]:
            ratio = median_ratio(rates[env_id], name, base)
            mark = "" if ratio >= goal else "  missed"
            table.add_row(env_id, f"{name} / {base}", f"{ratio:.2f}{mark}", f"{goal:.2f}")
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the environments against each other.")
    tasks = ["HalfCheetah-v5", "Ant-v5", "Humanoid-v5"]
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=tasks)
    parser.add_argument("--n-envs", nargs="+", type=int, default=[32, 256])
    return parse_timed(parser, repeats=5, seconds=1.0)


def main() -> None:
    args = parse()
    load, percent = require_quiet(args.force)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    console = make_console()
    rates = {}
    for env_id in args.tasks:
        console.print(f"timing {env_id}")
        works = contenders(env_id, args.n_envs)
        rates[env_id] = interleaved_rates(works, args.repeats, args.seconds)
        del works  # ends their processes before the next task
    console.print(rate_table(rates), goal_table(rates))
    console.print(f"{n_cores()} cores; load {load:.2f}, CPU {percent:.0f} % before the start")
    about = machine() | {"load": load, "cpu_percent": percent}
    write_json(args.json, {"machine": about, "rates": rates})


if __name__ == "__main__":
    main()
