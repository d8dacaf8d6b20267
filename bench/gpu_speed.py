"""Time simulation, learners and whole training on a GPU, and train peers there for minutes."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from gpu_parity import CHEETAH, Measures, Record
from learners import UPDATES, A, O, fill
from timing import rate
from train import work

from dpd.agents.graphs import Graphs
from dpd.agents.offpolicy_config import SACConfig, TD3Config
from dpd.cli import parse_train
from dpd.envs.make import make
from dpd.envs.tasks import TASKS
from dpd.envs.warp_physics import wait_for
from dpd.policies import policyfile
from dpd.run.episodes import evaluate_together
from dpd.run.sources import find_policies, is_best
from dpd.run.train import iterate
from dpd.run.training import Training

SMALL = ("--n-envs", "4", "--n-steps", "64", "--minibatch-size", "64")
WAYS = {
    "no distillation": "--preset large --method none",
    "paper": "--preset paper,large",
    "modern": "--preset modern,large",
}
BOX_S = {CHEETAH: 300.0, "Ant-v5": 90.0, "Hopper-v5": 60.0, "Walker2d-v5": 60.0}
"""Maximum seconds per run; HalfCheetah's is its goal."""
CONTROL_S, JUDGED_S, LEAST_S = 60.0, 15.0, 20.0


def timed(device: torch.device, work: Callable[[], int], seconds: float) -> float:
    """Repeat work for at least `seconds` after a warm-up call; return units per second."""

    def done() -> int:
        n = work()
        wait_for(device)
        return n

    done()
    return rate(done, seconds)


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


def env_rates(
    env_id: str, backends: Sequence[str], sizes: Sequence[int], device: torch.device, quick: bool
) -> Record:
    """Time the backends of one task at several sizes."""
    return {
        backend: {
            str(n): env_rate(env_id, n, backend, device, 0.7) for n in ([16] if quick else sizes)
        }
        for backend in backends
    }


def stacked(
    algo: str, n: int, device: torch.device, recorded: bool, quick: bool
) -> Callable[[], int]:
    """Return stacked updates: 256-256, minibatches of 256; no environment is stepped."""
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as in a run
    kind = {"td3": TD3Config, "sac": SACConfig}[algo]
    config = kind(learning_starts=0, capacity=100_000, n_steps=UPDATES)
    agent = config.build(O, A, [(0, peer) for peer in range(n)], device)
    if not recorded:
        agent.graphs = Graphs(torch.device("cpu"))  # records nothing
    batch = fill(agent, 1000 if quick else 100_000)

    def update() -> int:
        agent.update(batch, 0.0)
        return UPDATES

    return update


def updates(algo: str, n: int, device: torch.device, recorded: bool, quick: bool) -> Record:
    """Time stacked updates."""
    work = stacked(algo, n, device, recorded, quick)
    rate = timed(device, work, 1.0 if quick else 4.0)
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


def iteration(flags: Sequence[str], device: torch.device) -> Callable[[], object]:
    """Return one iteration of PPO."""
    return partial(iterate, Training(parse_train([CHEETAH, "--device", str(device), *flags])))


def profile(make_work: Callable[[], Callable[[], object]], device: torch.device) -> Record:
    """Return the milliseconds of a piece of work, of all its kernels, and of the largest ones."""
    work = make_work()
    for _ in range(3):
        work()
    wait_for(device)
    begin = time.perf_counter()
    with torch.profiler.profile(acc_events=True) as found:
        work()
        wait_for(device)
    taken_ms = 1e3 * (time.perf_counter() - begin)
    kernels = [e for e in found.key_averages() if e.device_type.name == device.type.upper()]
    spent = {
        f"{e.key[:90]} x{e.count}": (e.self_device_time_total or e.self_cpu_time_total) / 1e3
        for e in kernels
    }
    largest = sorted(spent.items(), key=lambda item: -item[1])[:40]
    shown = {name: round(ms, 3) for name, ms in largest}
    return {"taken_ms": taken_ms, "kernels_ms": sum(spent.values())} | shown


def speed(device: torch.device, quick: bool, seconds: float) -> Measures:
    """Yield times of simulation, learners and whole training."""

    def train(flags: str, env_id: str = CHEETAH) -> Callable[[], Record]:
        words = [*flags.split(), *(SMALL if quick else ())]
        return partial(end_to_end, env_id, words, device, 0.5 if quick else 8.0)

    def few(env_id: str) -> Callable[[], Record]:
        return partial(env_rates, env_id, ("native", "warp"), (64, 256, 512, 1024), device, quick)

    yield f"ppo/{CHEETAH}/no distillation", train(WAYS["no distillation"])
    for n in (4096, 8192):
        more = f"{WAYS['no distillation']} --n-envs {n} --minibatch-size {2 * n}"
        yield f"ppo/{CHEETAH}/no distillation, {n:,} environments", train(more)
    words = [*WAYS["no distillation"].split(), *(SMALL if quick else ())]
    yield "profile/ppo", partial(profile, partial(iteration, words, device), device)
    td3 = partial(stacked, "td3", 20, device, True, quick)
    yield f"profile/td3, {UPDATES} updates of 20", partial(profile, td3, device)
    for algo in ("td3", "sac"):
        for n, recorded in ((20, True), (2, True), (20, False)):
            name = f"updates/{algo}/{n}/{'recorded' if recorded else 'eager'}"
            yield name, partial(updates, algo, n, device, recorded, quick)
    for way in ("paper", "modern"):
        yield f"ppo/{CHEETAH}/{way}", train(WAYS[way])
    pool = "--algo sac --seeds 10 --learning-starts 1000 --preset modern --share-experience"
    yield f"sac/{CHEETAH}/ten pairs, pooled, one environment each", train(pool)
    yield f"few/{CHEETAH}", few(CHEETAH)
    for env_id in (task for task in TASKS if task.endswith("-v5")):
        sizes = (1024, 4096, 16_384)
        yield f"envs/{env_id}", partial(env_rates, env_id, ("warp",), sizes, device, quick)
    yield f"ppo/{CHEETAH}/ten pairs", train(f"{WAYS['paper']} --seeds 10")
    for algo in ("td3", "sac"):
        yield f"{algo}/{CHEETAH}/large", train(f"--algo {algo} {WAYS['no distillation']}")
        one = f"--algo {algo} --method none --learning-starts 1000"
        yield f"{algo}/{CHEETAH}/one environment", train(one)
    for env_id in ("Ant-v5", "Humanoid-v5", "Walker2d-v5", "Hopper-v5"):
        yield f"ppo/{env_id}/no distillation", train(WAYS["no distillation"], env_id)
    yield "few/Humanoid-v5", few("Humanoid-v5")


def learn(
    env_id: str, way: str, device: torch.device, end: float, box: float, quick: bool
) -> Record:
    """Train for at most `box` seconds, or until `end`; evaluate the last policies on the CPU."""
    steps, seeds = (20_000, 1) if quick else (20_000_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        argv = [sys.executable, "-m", "dpd", "train", env_id, "--device", str(device)]
        argv += [*WAYS[way].split(), "--seeds", str(seeds), "--total-steps", str(steps)]
        argv += [*(SMALL if quick else ()), "--evals", "4", "--final-episodes", "1"]
        begin = time.perf_counter()
        left = max(end - begin, LEAST_S)
        status = boxed([*argv, "--out", str(out)], min(box, left))
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "status": status, **judged(out, env_id)}


def boxed(argv: list[str], box: float) -> int:
    """Run a command; after `box` seconds, ask it to save and stop."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        return process.wait(box)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        return process.wait(60)
    finally:
        process.kill()


def judged(run_dir: Path, env_id: str) -> Record:
    """Return the mean return of each learner's last policy, on the CPU."""
    files = [file for file in find_policies(run_dir) if not is_best(file)]
    policies = [policyfile.load(file) for file in files]
    outcomes = evaluate_together(policies, env_id, 10, 1_000_000)
    return {
        "steps_of_both_peers": policies[0].meta.provenance["steps"],
        "returns": {f.stem: float(o.returns.mean()) for f, o in zip(files, outcomes, strict=True)},
    }


def runs(device: torch.device, quick: bool, seconds: float) -> Measures:
    """Yield runs of two PPO peers; all of them share `seconds`."""
    end = time.perf_counter() + seconds - JUDGED_S
    for env_id, box in BOX_S.items():
        yield f"{env_id}/paper", partial(learn, env_id, "paper", device, end, box, quick)
    alone = partial(learn, CHEETAH, "no distillation", device, end, CONTROL_S, quick)
    yield f"{CHEETAH}/no distillation", alone
