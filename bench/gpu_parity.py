"""Compare a GPU with the CPU: physics, updates, recorded graphs, and iterations without waits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from warp_parity import compare

from dpd.agents.config import DDPGConfig, PPOConfig, SACConfig, TD3Config
from dpd.agents.graphs import Graphs
from dpd.cli import parse_train
from dpd.envs.make import make, native_ids
from dpd.run.train import iterate
from dpd.run.training import Training

Record = dict[str, Any]
Measure = Callable[[], Record]

O, A = 17, 6  # noqa: E741
SEEDS = [(0, 0), (0, 1)]
SIZES: dict[str, Any] = {"n_envs": 16, "n_steps": 16, "minibatch_size": 64}
REPLAY: dict[str, Any] = SIZES | {
    "learning_starts": 0,
    "capacity": 4096,
    "updates_per_step": 1 / 16,
}
CONFIGS: dict[str, Any] = {
    "ppo": PPOConfig(**SIZES),
    "ppo, target KL": PPOConfig(**SIZES, target_kl=0.01),
    "td3": TD3Config(**REPLAY),
    "td3, 3 steps, unlike rates": TD3Config(**REPLAY, n_step=3, peer_lr=(1e-3, 3e-4)),
    "ddpg": DDPGConfig(**REPLAY),
    "sac": SACConfig(**REPLAY, norm_obs=True),
    "sac, 3 steps, shared": SACConfig(**REPLAY, n_step=3, share_replay=True),
}
QUICK = ("--evals", "1", "--eval-episodes", "1", "--final-episodes", "1")
LARGE = ("--n-envs", "256", "--n-steps", "16", "--minibatch-size", "512")
COMMANDS: dict[str, Sequence[str]] = {
    "ppo, warp": ("train", "HalfCheetah-v5", *LARGE, "--total-steps", "40960"),
    "ppo, native": ("train", "Hopper-v5", "--total-steps", "16384"),
    "ppo, gymnasium": ("train", "Pendulum-v1", "--total-steps", "16384"),
    "td3": ("train", "HalfCheetah-v5", "--algo", "td3", "--total-steps", "24000"),
    "td3, not recorded": (
        *("train", "HalfCheetah-v5", "--algo", "td3", "--total-steps", "24000"),
        "--no-record-updates",
    ),
    "sac, lcb": (
        *("train", "HalfCheetah-v5", "--algo", "sac", "--preset", "modern"),
        *("--total-steps", "24000"),
    ),
    "unlike peers": (
        *("train", "HalfCheetah-v5", "--algo", "ppo,sac", "--preset", "modern"),
        *("--total-steps", "16384", "--peer1.learning-starts", "1000"),
    ),
}
"""Short runs of the command line."""


def random_replay(agent: Any, held: int) -> None:
    """Fill a replay with noise: all transitions are valid and none ends an episode."""
    rows = torch.randn(agent.n_learners, held, 1, agent.replay.rows.shape[-1])
    rows[..., -3:] = torch.tensor([0.0, 0.0, 1.0])
    rows[..., agent.obs_dim : agent.obs_dim + agent.act_dim].clamp_(-1, 1)
    agent.replay.extend(rows)


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
        from dpd.agents.ppo import Samples

        batch = Samples(obs, act, rest[..., 0] - 8, rest[..., 1], rest[..., 2], rest[..., 2])
        agent._own_step([True] * 2, *batch)
        return

    from dpd.agents.replay import Transitions

    sample = Transitions(
        torch.cat([obs, act.tanh()], -1), next_obs, rest[..., 0], agent.gamma.expand(-1, 64)
    )
    agent.n_updates = 2  # an even number, which updates TD3's policy
    drawn = torch.stack([first, second], 1) if agent.config.squashed else first * 0.1
    agent._set_rates()
    with torch.no_grad():
        agent._step(sample, drawn, lambda: (None, {}))


def nothing_waits(device: torch.device, quick: bool) -> Record:
    """Run iterations in which waiting for the device raises an error."""
    sizes = ["--n-envs", "64"] if quick else list(LARGE)
    argv = ["HalfCheetah-v5", "--backend", "warp", "--device", str(device), *sizes]
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
    argv = ["HalfCheetah-v5", "--backend", "native", "--device", str(device), "--total-steps"]
    argv += ["32768"]
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
    make("HalfCheetah-v5", n, range(n), "warp", device=device).close()  # kernels stay loaded
    before = in_use()
    env = make("HalfCheetah-v5", n, range(n), "warp", device=device)
    env.reset()
    opened = in_use()
    env.close()
    return {"taken_mb": (opened - before) / 1e6, "kept_mb": (in_use() - before) / 1e6}


def command(name: str, device: torch.device) -> Record:
    """Run a command in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "dpd", *COMMANDS[name], *QUICK, "--device", str(device)]
        run = subprocess.run(
            [*argv, "--out", str(Path(folder) / "run")],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    return {"status": run.returncode, "said": (run.stdout + run.stderr)[-1500:]}


def measures(device: torch.device, quick: bool, seconds: float) -> Iterator[tuple[str, Measure]]:
    """Yield the comparisons, the most important first."""

    def physics(env_id: str) -> Measure:
        return lambda: compare(env_id, 8 if quick else 256, 1 if quick else 10, 20, str(device))

    yield "physics/HalfCheetah-v5", physics("HalfCheetah-v5")
    yield "waiting", lambda: nothing_waits(device, quick)
    for name in CONFIGS:
        yield f"recorded/{name}", _on(recorded_updates, name, device)
        if name not in ("ppo, target KL", *(name for name in CONFIGS if "3 steps" in name)):
            yield f"beside CPU/{name}", _on(updates_beside_cpu, name, device)
    yield "goes on", lambda: goes_on(device)
    yield "closing frees", lambda: closing_frees(device, quick)
    for name in COMMANDS:
        yield f"command/{name}", _on(command, name, device)
    for env_id in native_ids():
        if env_id != "HalfCheetah-v5" and not quick:
            yield f"physics/{env_id}", physics(env_id)


def _on(measure: Callable[[str, torch.device], Record], name: str, device: torch.device) -> Measure:
    return lambda: measure(name, device)
