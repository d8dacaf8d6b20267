"""Compare a GPU with the CPU: physics, updates, recorded graphs, and iterations without waits.

Physics: the warp backend and the native one step from the same mid-episode states of native
episodes with the same actions. Errors are |difference| / (1 + |native|), over environments and
rounds. For Ant, whose friction differs in some states (see `dpd.envs.warp.DIFFERENCES`), the share
of environments within 1e-3 is more informative than the maximum. On a GPU, some steps raise an
error if they wait for the device.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
import warp as wp
from learners import A, O
from torch import Tensor

from dpd.agents.graphs import Graphs
from dpd.agents.offpolicy_config import DDPGConfig, SACConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.ppo_loss import Samples
from dpd.agents.replay import Transitions
from dpd.cli import parse_train
from dpd.envs.base import Snapshot
from dpd.envs.groups import Groups
from dpd.envs.make import make
from dpd.envs.native import NativeEnv
from dpd.envs.task import load_model
from dpd.envs.tasks import TASKS
from dpd.envs.warp import WarpEnv
from dpd.run.train import iterate
from dpd.run.training import Training

Record = dict[str, Any]
Measures = Iterator[tuple[str, Callable[[], Record]]]

CHEETAH = "HalfCheetah-v5"
CLOSE = 1e-3
WARM_UP = 20  # steps before the first comparison, until there are contacts
APART = 5  # steps between comparisons
SEEDS = [(0, 0), (0, 1)]
SIZES: dict[str, Any] = {"n_envs": 16, "n_steps": 16, "minibatch_size": 64}
REPLAY: dict[str, Any] = SIZES | {"learning_starts": 0, "capacity": 4096}
REPLAY["updates_per_step"] = 1 / 16
CONFIGS: dict[str, Any] = {
    "ppo": PPOConfig(**SIZES),
    "ppo, target KL": PPOConfig(**SIZES, target_kl=0.01),
    "td3": TD3Config(**REPLAY),
    "td3, 3 steps, unlike rates": TD3Config(**REPLAY, n_step=3, peer_lr=(1e-3, 3e-4)),
    "ddpg": DDPGConfig(**REPLAY),
    "sac": SACConfig(**REPLAY, norm_obs=True),
    "sac, 3 steps, shared": SACConfig(**REPLAY, n_step=3, share_replay=True),
}
SHORT = ("--evals", "1", "--eval-episodes", "1", "--final-episodes", "1")
SOME = ("--n-envs", "256", "--n-steps", "16", "--minibatch-size", "512")
OFF = f"train {CHEETAH} --total-steps 24000 --algo"
COMMANDS = {
    "ppo, warp": f"train {CHEETAH} --total-steps 40960 --preset modern {' '.join(SOME)}",
    "ppo, native": "train Hopper-v5 --total-steps 16384 --preset paper",
    "ppo, gymnasium": "train Pendulum-v1 --total-steps 16384 --preset paper",
    "td3": f"{OFF} td3",
    "td3, not recorded": f"{OFF} td3 --no-record-updates",
    "sac, lcb": f"{OFF} sac --preset modern",
    "unlike peers": f"train {CHEETAH} --total-steps 16384 --algo ppo,sac --preset modern "
    "--peer1.learning-starts 1000",
}
"""Short runs of the command line."""


def learnt(config: Any, device: torch.device, recorded: bool) -> Tensor:
    """Train learners for three iterations on noise; return their parameters."""
    agent = config.build(O, A, SEEDS, device)
    agent.graphs = Graphs(device if recorded else torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for k in range(3):
        rollout = agent.new_rollout()
        for x in (rollout.obs, rollout.next_obs, rollout.act, rollout.reward):
            x.copy_(torch.randn(x.shape, generator=generator))
        rollout.truncated.copy_(torch.rand(rollout.reward.shape, generator=generator) < 0.05)
        agent.update(agent.prepare(rollout), k / 3)
        agent.observe(rollout)
    return agent.nets.flat.detach().cpu()


def recorded_updates(name: str, device: torch.device) -> Record:
    """Compare updates recorded as CUDA graphs with the same updates run eagerly."""
    eager, graph = (learnt(CONFIGS[name], device, recorded) for recorded in (False, True))
    return {
        "largest_difference": float((eager - graph).abs().max()),
        "is_exact": eager.equal(graph),
    }


def updates_beside_cpu(name: str, device: torch.device) -> Record:
    """Compare one float64 update with the CPU's, from the same parameters and data."""
    config, home = CONFIGS[name], torch.device("cpu")
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 64, 2 * O + 3 * A + 4, generator=generator, dtype=torch.float64)
    moved = []
    for where in (home, device):
        agent = type(config.build(O, A, SEEDS))(config, O, A, SEEDS, torch.float64, where)
        agent.graphs = Graphs(home)
        before = agent.nets.flat.detach().cpu().clone()
        one_update(agent, noise.to(where))
        moved.append(agent.nets.flat.detach().cpu() - before)
    return {
        "moved": float(moved[0].abs().max()),
        "largest_difference": float((moved[0] - moved[1]).abs().max()),
    }


def one_update(agent: Any, noise: Tensor) -> None:
    """Take one update on the data [N, B, ...]."""
    obs, next_obs, act, first, second, rest = noise.split([O, O, A, A, A, 4], -1)
    if isinstance(agent.config, PPOConfig):
        batch = Samples(obs, act, rest[..., 0] - 8, rest[..., 1], rest[..., 2], rest[..., 2])
        agent._own_step([True] * 2, *batch)
        return

    sample = Transitions(
        torch.cat([obs, act.tanh()], -1), next_obs, rest[..., 0], agent.gamma.expand(-1, 64)
    )
    agent.n_updates = 2  # an even number, which updates TD3's policy
    drawn = torch.stack([first, second], 1) if agent.config.squashed else first * 0.1
    agent._set_rates()
    with torch.no_grad():
        agent._learn(sample, drawn, agent._draw_judges(1)[:, 0], None)


def nothing_waits(device: torch.device, quick: bool) -> Record:
    """Run iterations in which waiting for the device raises an error."""
    sizes = ["--n-envs", "64"] if quick else list(SOME)
    argv = [CHEETAH, "--backend", "warp", "--device", str(device), "--preset", "modern", *sizes]
    training = Training(parse_train(argv))
    (stack,) = training.stacks
    iterate(training)
    settle, on_gpu = stack.guard.check_pending, device.type == "cuda"
    stack.guard.check_pending = lambda: None  # type: ignore[method-assign] # the one wait, at the end
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            iterate(training)
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    settle()
    return {"iterations_without_waiting": 2, "is_checked": on_gpu}


def goes_on(device: torch.device) -> Record:
    """Compare a run resumed from its state with an uninterrupted one."""
    argv = [CHEETAH, "--backend", "native", "--device", str(device), "--total-steps"]
    argv += ["32768", "--preset", "paper"]
    whole, stopped = (Training(parse_train(argv)) for _ in range(2))
    for training in (whole, stopped):
        iterate(training), iterate(training)
    resumed = Training(parse_train(argv))
    resumed.load_state({name: x.detach().cpu().clone() for name, x in stopped.state().items()})
    for training in (whole, resumed):
        iterate(training)
    ours, theirs = resumed.stacks[0].agent.nets.flat, whole.stacks[0].agent.nets.flat
    return {"largest_difference": float((ours - theirs).detach().abs().max())}


def closing_frees(device: torch.device, quick: bool) -> Record:
    """Measure how much memory a simulation takes, and keeps after it is closed."""

    def in_use() -> int:
        if device.type != "cuda":
            return 0
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)

    n = 16 if quick else 4096
    make(CHEETAH, n, range(n), "warp", device=device).close()  # kernels stay loaded
    before = in_use()
    env = make(CHEETAH, n, range(n), "warp", device=device)
    env.reset()
    opened = in_use()
    env.close()
    return {"taken_mb": (opened - before) / 1e6, "kept_mb": (in_use() - before) / 1e6}


def command(name: str, device: torch.device) -> Record:
    """Run a command in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "dpd", *COMMANDS[name].split(), *SHORT]
        run = subprocess.run(
            [*argv, "--device", str(device), "--out", str(Path(folder) / "run")],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    said = {"said": (run.stdout + run.stderr)[-1500:]} if run.returncode else {}
    return {"status": run.returncode, **said}


def transplanted(native: NativeEnv, env: WarpEnv) -> Snapshot:
    """Convert a native snapshot to the warp backend, whose physics is a prefix of MuJoCo's."""
    mine, theirs = env.snapshot(), native.snapshot()
    width = mine["physics"].shape[1]
    shared = {name: theirs[name] for name in ("elapsed", "marker", "obs")}
    return {**mine, **shared, "physics": theirs["physics"][:, :width]}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """Return |difference| / (1 + |native|)."""
    return ((ours.cpu() - theirs).abs() / (1 + theirs.abs())).double().numpy()


def step_without_waiting(env: WarpEnv, n_steps: int) -> None:
    """Take steps that raise an error if they wait for the device."""
    act = torch.rand(env.n_envs, env.spec.act_dim, device=env.device) * 2 - 1
    on_gpu = env.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(n_steps):
        env.step(act)
    if on_gpu:
        torch.cuda.set_sync_debug_mode("default")


def compare(env_id: str, n_envs: int, rounds: int, waitless: int, device: str) -> dict[str, Any]:
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
    step_without_waiting(env, waitless)
    return {
        **describe_errors(native.spec.groups, np.concatenate(obs)),
        "first observation": spread(first),
        "reward": spread(np.concatenate(reward)),
        "terminated": n_over,
        "terminated unlike": n_unlike,
        "trouble": env.trouble(),
        "lost": int(env.n_lost),
        "compile and record s": round(made_s, 1),
        "steps without waiting": waitless,
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
        expected.append(task.observe({name: getattr(data, name)[None] for name in names})[0])
    return error(obs, torch.tensor(np.stack(expected)))


def describe_errors(groups: Groups, errors: np.ndarray) -> dict[str, Any]:
    """Split errors [K, O] into the parts of the observation."""
    known = ("qpos", "qvel")
    parts = {name: errors[:, columns] for name, columns in groups.items() if name in known}
    further = [k for name, columns in groups.items() if name not in known for k in columns]
    parts["further"] = errors[:, further]
    spreads = {name: spread(part) for name, part in parts.items() if part.size}
    return {**spreads, "within 1e-3": float((errors.max(1) < CLOSE).mean())}


def spread(errors: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(errors)), "max": float(errors.max())}


def physics(env_id: str, device: torch.device, quick: bool) -> Record:
    """Compare steps of the warp backend with the native one."""
    if quick:
        wp.config.optimization_level = 0  # kernels compile in half the time
    n_envs, rounds = (8, 1) if quick else (256, 10)
    return compare(env_id, n_envs, rounds, 20, str(device))


def parity(device: torch.device, quick: bool, seconds: float) -> Measures:
    """Yield comparisons with the CPU: physics, updates, graphs, and iterations without waits."""
    yield f"physics/{CHEETAH}", partial(physics, CHEETAH, device, quick)
    yield "waiting", partial(nothing_waits, device, quick)
    for name in CONFIGS:
        yield f"recorded/{name}", partial(recorded_updates, name, device)
        if name != "ppo, target KL" and "3 steps" not in name:
            yield f"beside CPU/{name}", partial(updates_beside_cpu, name, device)
    yield "goes on", partial(goes_on, device)
    yield "closing frees", partial(closing_frees, device, quick)
    for name in COMMANDS:
        yield f"command/{name}", partial(command, name, device)
    for env_id in () if quick else [task for task in TASKS if task.endswith("-v5")]:
        if env_id != CHEETAH:
            yield f"physics/{env_id}", partial(physics, env_id, device, quick)
