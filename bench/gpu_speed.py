"""Time simulation, learners and whole training on a GPU, and measure memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from gpu_parity import Measure, Record, random_replay
from train import work

from dpd.agents.config import SACConfig, TD3Config
from dpd.agents.graphs import Graphs
from dpd.envs.make import make
from dpd.envs.tasks import TASKS

SIZES = (1024, 4096, 16_384)
FEW = (64, 256, 512, 1024)
UPDATES = 50
LARGE = ("--preset", "large", "--method", "none")
WAYS: dict[str, Sequence[str]] = {
    "no distillation": LARGE,
    "paper": ("--preset", "paper,large"),
    "modern": ("--preset", "modern,large"),
}


def wait(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], int], seconds: float) -> float:
    """Repeat work for at least `seconds` after a warm-up call; return units per second."""
    work()
    wait(device)
    n, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        n += work()
        wait(device)
    return n / (time.perf_counter() - begin)


def env_rate(env_id: str, n: int, backend: str, device: torch.device, seconds: float) -> float:
    """Return environment steps per second under random actions."""
    env = make(env_id, n, range(n), backend, device=device)
    env.reset()
    act = torch.rand(n, env.spec.act_dim, device=device) * 2 - 1

    def steps() -> int:
        for _ in range(20):
            env.step(act)
        return 20 * n

    try:
        return timed(device, steps, seconds)
    finally:
        env.close()


def env_rates(env_id: str, device: torch.device, quick: bool) -> Record:
    """Time the warp backend of one task at several sizes."""
    sizes = (16,) if quick else SIZES
    return {str(n): env_rate(env_id, n, "warp", device, 1.0) for n in sizes}


def few_envs(env_id: str, device: torch.device, quick: bool) -> Record:
    """Time small numbers of environments on CPU and GPU, to see where the GPU becomes faster."""
    sizes = (16,) if quick else FEW
    return {
        backend: {str(n): env_rate(env_id, n, backend, device, 0.7) for n in sizes}
        for backend in ("native", "warp")
    }


def updates(algo: str, n: int, device: torch.device, recorded: bool, quick: bool) -> Record:
    """Time stacked updates: 256-256, minibatches of 256; no environment is stepped."""
    kind = {"td3": TD3Config, "sac": SACConfig}[algo]
    config = kind(learning_starts=0, capacity=100_000, n_steps=UPDATES)
    agent = config.build(17, 6, [(0, peer) for peer in range(n)], device)
    if not recorded:
        agent.graphs = Graphs(torch.device("cpu"))  # records nothing
    random_replay(agent, 1000 if quick else 100_000)
    batch = agent.prepare(agent.new_rollout())

    def update() -> int:
        agent.update(batch, 0.0)
        return UPDATES

    rate = timed(device, update, 1.0 if quick else 4.0)
    return {"updates_per_s_each": rate, "updates_per_s_all": n * rate}


def end_to_end(env_id: str, flags: Sequence[str], device: torch.device, seconds: float) -> Record:
    """Time `dpd train` with two peers, logs included, and the GPU's memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = work(seconds, ["--device", str(device), *flags], env_id)
    record = {"steps_per_s": found["steps"] / found["seconds"], **found}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        record["torch_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        record["in_use_gb"] = (total - free) / 1e9
    return record


def measures(device: torch.device, quick: bool, seconds: float) -> Iterator[tuple[str, Measure]]:
    """Yield the measurements, the most important first."""
    small = ("--n-envs", "4", "--n-steps", "64", "--minibatch-size", "64") if quick else ()

    def train(env_id: str, flags: Sequence[str], seconds: float) -> Measure:
        return lambda: end_to_end(env_id, [*flags, *small], device, 0.5 if quick else seconds)

    yield "ppo/HalfCheetah-v5/no distillation", train("HalfCheetah-v5", WAYS["no distillation"], 8)
    for algo in ("td3", "sac"):
        for n in (20, 2):
            for recorded in (True, False):
                name = f"updates/{algo}/{n}/{'recorded' if recorded else 'eager'}"
                yield name, _updates(algo, n, device, recorded, quick)
    yield "few/HalfCheetah-v5", lambda: few_envs("HalfCheetah-v5", device, quick)
    for way in ("paper", "modern"):
        yield f"ppo/HalfCheetah-v5/{way}", train("HalfCheetah-v5", WAYS[way], 8)
    for env_id in TASKS:
        yield f"envs/{env_id}", _envs(env_id, device, quick)
    twenty = [*WAYS["paper"], "--seeds", "10"]
    yield "ppo/HalfCheetah-v5/ten pairs", train("HalfCheetah-v5", twenty, 8)
    for algo in ("td3", "sac"):
        flags = ["--algo", algo, "--preset", "large", "--method", "none"]
        yield f"{algo}/HalfCheetah-v5/large", train("HalfCheetah-v5", flags, 8)
        few = ["--algo", algo, "--method", "none", "--learning-starts", "1000"]
        yield f"{algo}/HalfCheetah-v5/one environment", train("HalfCheetah-v5", few, 8)
    for env_id in ("Ant-v5", "Humanoid-v5", "Walker2d-v5", "Hopper-v5"):
        yield f"ppo/{env_id}/no distillation", train(env_id, WAYS["no distillation"], 8)
    yield "few/Humanoid-v5", lambda: few_envs("Humanoid-v5", device, quick)


def _updates(algo: str, n: int, device: torch.device, recorded: bool, quick: bool) -> Measure:
    return lambda: updates(algo, n, device, recorded, quick)


def _envs(env_id: str, device: torch.device, quick: bool) -> Measure:
    return lambda: env_rates(env_id, device, quick)


GOALS: dict[str, tuple[str, str, float]] = {
    "two PPO peers on HalfCheetah, environment steps per second": (
        "ppo/HalfCheetah-v5/no distillation",
        "steps_per_s",
        1_000_000,
    ),
    "20 stacked TD3 learners, updates per second of each": (
        "updates/td3/20/recorded",
        "updates_per_s_each",
        2_000,
    ),
}


def goals(found: dict[str, Any]) -> list[Record]:
    """Return the goals and their measurements."""
    rows = []
    for goal, (name, key, least) in GOALS.items():
        value = found.get(name, {}).get(key)
        rows.append({"goal": goal, "least": least, "measured": value})
    return rows
