"""Time environment steps: native, Gymnasium, Stable-Baselines3 and the limit of MuJoCo itself.

`raw` is only batched mj_step on all cores, without observations, rewards or resets. It starts 100
random steps into native episodes, and returns to those states every 20 steps. `acting` collects
rollouts as `dpd train` does: a PPO policy acts in the native simulation, and steps are stored.

The part `rollouts` collects PPO's rollouts end to end, up to the advantages, for the same number of
environments, steps, network and normalisation: `dpd train` with each of its backends, and
Stable-Baselines3's `collect_rollouts`.

    python bench/envs.py --tasks HalfCheetah-v5 --n-envs 32 256 --json envs.json
    python bench/envs.py --parts rollouts --tasks InvertedPendulum-v5 --n-envs 8
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from marked import report, table
from mujoco.batch import Batch
from rivals import ENDLESS, make_ppo
from timing import (
    Record,
    Work,
    interleaved_rates,
    least_goal,
    median_ratio,
    parse_timed,
    require_quiet,
)

from dpd.agents.ppo_config import PPOConfig
from dpd.cli import parse_train
from dpd.envs.make import check
from dpd.envs.make import make as make_envs
from dpd.envs.native import NativeEnv
from dpd.envs.physics import n_cores
from dpd.envs.task import load_model
from dpd.envs.tasks import find_task, is_native
from dpd.log.terminal import make_console
from dpd.run.train import make_training

WARM_UP = 100
RAW_ROUND = 20
N_ACTIONS = 64
SAMPLES = 2048  # of an iteration, whatever the number of environments
MOST_RIVAL_ENVS = 64  # more only take longer to build for Gymnasium and SB3
GOALS = (  # task, contender, base, least ratio
    ("HalfCheetah-v5", "native@256", "raw@256", 0.85),
    ("Ant-v5", "native@256", "raw@256", 0.65),
    ("Humanoid-v5", "native@256", "raw@256", 0.65),
    ("HalfCheetah-v5", "native@32", "gymnasium sync@32", 2.5),
)


ROLLOUT_PAIRS = (  # contender, rival that also steps Gymnasium's environments
    ("dpd gymnasium", "sb3 DummyVecEnv"),
    ("dpd async", "sb3 SubprocVecEnv"),
)
NO_OVERHEAD = 1.0
"""Least ratio of ROLLOUT_PAIRS: we collect as fast as SB3, whatever the task."""


def native(env_id: str, n_envs: int) -> Work:
    """Return the work of the backend that dpd chooses; it is the native one for a native task."""
    env = make_envs(env_id, n_envs, list(range(n_envs)))
    env.reset()
    acts = torch.rand(N_ACTIONS, n_envs, env.spec.act_dim) * 2 - 1
    return _cycle(lambda k: env.step(acts[k]), n_envs, WARM_UP)


def raw(env_id: str, n_envs: int) -> Work:
    """Return the work of MuJoCo alone."""
    task = find_task(env_id)
    model = load_model(task)
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


def acting(env_id: str, n_envs: int) -> Work:
    """Return the work of collecting a rollout of one PPO learner."""
    sizes = f"--n-envs {n_envs} --n-steps {max(1, SAMPLES // n_envs)}"
    config = parse_train([env_id, *f"--method none --peers 1 {sizes}".split()])
    training = make_training(config)
    (stack,) = training.stacks

    def work() -> int:
        stack.collect()
        return config.stacks[0].algo.samples

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


def sb3_vector(kind: str) -> Callable[[str, int], Work]:
    def make(env_id: str, n_envs: int) -> Work:
        from stable_baselines3.common import vec_env  # takes seconds, and tables need none of it

        # Forked processes need not import this script, which takes each of them seconds.
        forked = {"start_method": "fork"} if kind == "SubprocVecEnv" else {}
        envs = getattr(vec_env, kind)([lambda: gymnasium.make(env_id)] * n_envs, **forked)
        envs.reset()
        acts = _actions(env_id, n_envs)
        return _cycle(lambda k: envs.step(acts[k]), n_envs)

    return make


def rollout_steps(n_envs: int) -> int:
    """Return the steps of a rollout in each environment."""
    return max(1, SAMPLES // n_envs)


def dpd_rollouts(backend: str) -> Callable[[str, int], Work]:
    """Return a maker of our work of collecting rollouts on a backend."""

    def make(env_id: str, n_envs: int) -> Work:
        sizes = f"--n-envs {n_envs} --n-steps {rollout_steps(n_envs)} --minibatch-size {n_envs}"
        words = f"--method none --peers 1 {sizes} --backend {backend}".split()
        (stack,) = make_training(parse_train([env_id, *words])).stacks

        def work() -> int:
            stack.collect()
            stack.agent.prepare(stack.rollout)
            return stack.config.algo.samples

        return work

    return make


def sb3_rollouts(kind: str) -> Callable[[str, int], Work]:
    """Return a maker of SB3's work of collecting rollouts, with our settings."""

    def make(env_id: str, n_envs: int) -> Work:
        from stable_baselines3.common import vec_env
        from stable_baselines3.common.env_util import make_vec_env

        n_steps, forked = rollout_steps(n_envs), {"start_method": "fork"}
        envs = make_vec_env(
            env_id,
            n_envs,
            seed=0,
            vec_env_cls=getattr(vec_env, kind),
            vec_env_kwargs=forked if kind == "SubprocVecEnv" else {},
        )
        model = make_ppo(envs, n_steps, 0, PPOConfig(minibatch_size=n_envs, n_envs=n_envs))
        _, callback = model._setup_learn(ENDLESS)

        def work() -> int:
            assert model.env is not None
            model.collect_rollouts(model.env, callback, model.rollout_buffer, n_steps)
            return n_envs * n_steps

        return work

    return make


ROLLOUTS = {
    **{f"dpd {name}": dpd_rollouts(name) for name in ("native", "gymnasium", "async", "envpool")},
    **{f"sb3 {name}": sb3_rollouts(name) for name in ("DummyVecEnv", "SubprocVecEnv")},
}
OURS = {"raw": raw, "native": native, "acting": acting}
RIVALS = {
    "gymnasium sync": gymnasium_vector("sync"),
    "gymnasium async": gymnasium_vector("async"),
    "sb3 DummyVecEnv": sb3_vector("DummyVecEnv"),
    "sb3 SubprocVecEnv": sb3_vector("SubprocVecEnv"),
}


def _actions(env_id: str, n_envs: int) -> np.ndarray:
    spec = check(env_id)
    low, high = spec.act_low, spec.act_high
    shape = (N_ACTIONS, n_envs, len(low))
    acts = np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)
    return acts.reshape(N_ACTIONS, n_envs, *(spec.act_shape or (len(low),)))


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
        ours = {name: make for name, make in OURS.items() if name != "raw" or is_native(env_id)}
        for name, make in {**ours, **rivals}.items():
            works[f"{name}@{n_envs}"] = make(env_id, n_envs)
    return works


def rollout_contenders(env_id: str, sizes: list[int]) -> dict[str, Work]:
    """Return the works that collect rollouts, without backends that cannot make the task."""
    lacking = set() if is_native(env_id) else {"dpd native"}
    if find_spec("envpool") is None:
        lacking.add("dpd envpool")
    makers = {name: make for name, make in ROLLOUTS.items() if name not in lacking}
    return {f"{name}@{n}": make(env_id, n) for n in sizes for name, make in makers.items()}


def rollout_lines(data: Record) -> list[str]:
    """Lay out steps per second of rollouts, and the ratios of ROLLOUT_PAIRS."""
    tasks, rows = data["rollouts"], []
    for contender in dict.fromkeys(name for of_task in tasks.values() for name in of_task):
        name, _, n_envs = contender.partition("@")
        medians = [statistics.median(t[contender]) if contender in t else 0 for t in tasks.values()]
        rows.append([f"{name}, {n_envs}", *(f"{m:,.0f}" if m else "" for m in medians)])
        if rival := next((base for own, base in ROLLOUT_PAIRS if own == name), None):
            ratios = [median_ratio(t, contender, f"{rival}@{n_envs}") for t in tasks.values()]
            rows.append([f"{name} / {rival}, {n_envs}", *(f"{ratio:.2f}" for ratio in ratios)])
    head = ["", *(env_id.partition("-")[0] for env_id in tasks)]
    return table(head, "l" + "r" * len(tasks), rows)


def rollout_goals(tasks: dict[str, dict[str, list[float]]]) -> list[Record]:
    """Return a goal for each task, number of environments and pair of ROLLOUT_PAIRS."""
    return [
        least_goal(
            f"{env_id}, {contender} / {rival}", median_ratio(rates, contender, rival), NO_OVERHEAD
        )
        for env_id, rates in tasks.items()
        for own, base in ROLLOUT_PAIRS
        for contender in rates
        if contender.partition("@")[0] == own and (rival := contender.replace(own, base)) in rates
    ]


def lines(data: Record) -> list[str]:
    """Lay out steps per second and ratios to raw, a row per contender and a column per task."""
    rates, rows = data["rates"], []
    for contender in dict.fromkeys(name for of_task in rates.values() for name in of_task):
        name, _, n_envs = contender.partition("@")
        tasks = rates.values()
        medians = [statistics.median(task[contender]) if contender in task else 0 for task in tasks]
        rows.append(
            [f"{name}, {n_envs}", *(f"{median:,.0f}" if median else "" for median in medians)]
        )
        raw = f"raw@{n_envs}"
        if name in ("native", "acting") and any(raw in task for task in tasks):
            ratios = [f"{median_ratio(t, contender, raw):.2f}" if raw in t else "" for t in tasks]
            rows.append([f"{name} / raw, {n_envs}", *ratios])
    head = ["", *(env_id.partition("-")[0] for env_id in rates)]
    return table(head, "l" + "r" * len(rates), rows)


def goals(rates: dict[str, dict[str, list[float]]]) -> list[Record]:
    """Return the goals that were measured: medians over rounds of ratios."""
    return [
        least_goal(f"{env_id}, {name} / {base}", median_ratio(rates[env_id], name, base), least)
        for env_id, name, base, least in GOALS
        if {name, base} <= rates.get(env_id, {}).keys()
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the environments against each other.")
    tasks = ["HalfCheetah-v5", "Ant-v5", "Humanoid-v5"]
    parser.add_argument("--tasks", nargs="+", default=tasks, help="any ids that dpd can train on")
    parser.add_argument("--n-envs", nargs="+", type=int, default=[32, 256])
    parts = ("steps", "rollouts")
    parser.add_argument("--parts", nargs="+", choices=parts, default=["steps"])
    return parse_timed(parser, repeats=5, seconds=1.0)


def main() -> None:
    args = parse()
    busy = require_quiet(args.force)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    data: Record = {**busy, "goals": []}
    tables = []
    if "steps" in args.parts:
        data["rates"] = rates_by_task(contenders, args)
        data["goals"] += goals(data["rates"])
        tables.append(lines(data))
    if "rollouts" in args.parts:
        data["rollouts"] = rates_by_task(rollout_contenders, args)
        data["goals"] += rollout_goals(data["rollouts"])
        tables.append(rollout_lines(data))
    report(args.json, data, *tables)


def rates_by_task(
    make: Callable[[str, list[int]], dict[str, Work]], args: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Time all contenders of each task."""
    console, rates = make_console(), {}
    for env_id in args.tasks:
        console.print(f"timing {env_id}")
        works = make(env_id, args.n_envs)
        rates[env_id] = interleaved_rates(works, args.repeats, args.seconds)
        del works  # ends their processes before the next task
    return rates


if __name__ == "__main__":
    main()
