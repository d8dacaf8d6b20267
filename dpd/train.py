"""Training: one loop for every algorithm and method."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from dpd import policyfile
from dpd.agents.base import Metrics
from dpd.collect import EpisodeStatistics, collect
from dpd.config import BadInput, TrainConfig
from dpd.distill.base import Context
from dpd.envs.base import Env
from dpd.envs.make import make
from dpd.envs.physics import n_cores
from dpd.evaluate import Evaluator, evaluate_policy, print_table, summary
from dpd.log import RunLog
from dpd.policies import PolicySaver


class NonFinite(RuntimeError):
    """A number in training is NaN or infinite; the message names it."""


class Clock:
    """Seconds spent per phase of an iteration."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        start = time.perf_counter()
        yield
        self.spent[phase] = self.spent.get(phase, 0.0) + time.perf_counter() - start

    def flush(self) -> dict[str, float]:
        """Return seconds per phase since the last flush."""
        spent, self.spent = self.spent, {}
        return {f"time/{k}": v for k, v in spent.items()}


class Training:
    """A run's parts, put together from its settings."""

    def __init__(self, config: TrainConfig) -> None:
        run = self.run = config.run
        self.config = config
        self.seeds = [run.seed + g for g in range(run.seeds)]
        rows = [(s, p) for s in self.seeds for p in range(run.peers)]
        self.env = self._make(env_seeds(rows, config.algo.n_envs))
        self.agent = config.algo.build(self.env.spec.obs_dim, self.env.spec.act_dim, rows)
        self.method = config.distill.build(Context(self.agent, run.seeds, run.peers, rows))
        self.evaluator = Evaluator(self._make, self.seeds, run.peers, run.eval_episodes)
        self.episodes = EpisodeStatistics(len(rows), config.algo.n_envs)
        self.clock = Clock()
        self.iteration = 0
        self.rollout = self.agent.new_rollout()
        self.obs = self.env.reset().view(len(rows), config.algo.n_envs, -1)

    def _make(self, seeds: list[int]) -> Env:
        run = self.run
        return make(run.env, len(seeds), seeds, run.backend, run.parsed_env_kwargs(), run.threads)

    @property
    def steps(self) -> int:
        """Environment steps of one group so far."""
        return self.iteration * self.config.steps_per_iteration

    def iterate(self) -> dict[str, Tensor | float]:
        """Collect, learn and distil once; return metrics."""
        progress = self.iteration / self.config.iterations
        with self.clock("collect"):
            self.obs = collect(self.env, self.agent, self.obs, self.rollout)
            self.episodes.add(self.rollout)
            require_finite("observation", self.rollout.obs)
        with self.clock("update"):
            batch = self.agent.prepare(self.rollout)
        with self.clock("distill"):
            self.method.prepare(batch, progress)
        with self.clock("update"):
            metrics = self.agent.update(batch, progress, self.method.loss)
        with self.clock("distill"):
            metrics |= self.method.step()
        with self.clock("update"):
            self.agent.observe(self.rollout)
        self.iteration += 1
        for name, value in metrics.items():
            if name.startswith(("loss/", "distill/loss")):
                require_finite(name, value)
        require_finite("parameter", self.agent.nets.flat)
        return {**metrics, **self.episodes.metrics()}

    def evaluate(self) -> Metrics:
        """Evaluate all learners without noise."""
        with self.clock("eval"):
            outcome = self.evaluator(self.agent.mode, self.iteration)
        return {
            "eval/return": torch.tensor(outcome.returns.mean(1)),
            "eval/length": torch.tensor(outcome.lengths.mean(1)),
        }


def env_seeds(rows: list[tuple[int, int]], n_envs: int) -> list[int]:
    """Return a seed per environment, learner-major, that no two learners share."""
    return [
        int(np.random.SeedSequence([seed, peer, e]).generate_state(1, np.uint64)[0])
        for seed, peer in rows
        for e in range(n_envs)
    ]


def require_finite(name: str, value: Tensor) -> None:
    """Raise NonFinite that names a quantity and the learner it went wrong in."""
    good = torch.isfinite(value).flatten(1).all(1) if value.ndim > 1 else torch.isfinite(value)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        raise NonFinite(
            f"{name} of learner {row} is NaN or infinite; the policies of the last evaluation are "
            "kept; lower --lr or look at the environment's rewards"
        )


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as for Ctrl-C."""


def terminate(signum: int, frame: object) -> None:
    """Turn SIGTERM into an exception, so that the run is left in order."""
    raise Terminated


def train(config: TrainConfig) -> int:
    """Train, show progress, save policies.

    Returns the exit status: 0, 130 after Ctrl-C, 143 after SIGTERM, 3 after a NaN.
    """
    console = Console()
    training = Training(config)
    torch.set_num_threads(config.run.threads or learner_threads(config, training.agent.n_learners))
    run_dir = new_run_dir(config)
    settings = config.as_json()
    (run_dir / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    title = f"dpd train {config.run.env}: {config.method}, {config.algo_name}"
    saver = PolicySaver(run_dir, config, training.agent, training.env.spec)
    run = config.run
    with RunLog(
        run_dir, training.seeds, run.peers, run.total_steps, settings, title, console
    ) as log:
        log.show_start(start_facts(config, training, run_dir))
        status = guarded_loop(training, log, saver)
    if status == 0:
        report(training, saver, console)
    curves = draw_curves(run_dir, title)
    if saver.files():
        console.print(f"policies     {saver.dir}", soft_wrap=True)
    if curves is not None:
        console.print(f"curves       {curves}", soft_wrap=True)
    console.print(f"TensorBoard  tensorboard --logdir {run_dir / 'tb'}", soft_wrap=True)
    return status


def learner_threads(config: TrainConfig, n_learners: int) -> int:
    """Return how many threads a minibatch can use.

    Below torch's own grain of work per thread, a second one only adds waiting.
    """
    elements = n_learners * config.algo.minibatch_size * max(config.algo.hidden)
    return n_cores() if elements >= 32768 else 1


def guarded_loop(training: Training, log: RunLog, saver: PolicySaver) -> int:
    """Run the loop so that a stop or a NaN leaves loadable policies; return the exit status."""
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        loop(training, log, saver)
    except KeyboardInterrupt as stop:
        saver.save_last(training.steps)
        log.notice(f"stopped at {training.steps:,} steps; the policies are saved")
        return 143 if isinstance(stop, Terminated) else 130
    except NonFinite as error:
        log.notice(f"dpd: {error}", style="red")
        return 3
    finally:
        signal.signal(signal.SIGTERM, before)
    saver.save_last(training.steps)
    return 0


def loop(training: Training, log: RunLog, saver: PolicySaver) -> None:
    """Iterate until the budget is used; evaluate and keep the best on the way."""
    config = training.config
    every = max(1, config.iterations // config.run.evals)
    while training.iteration < config.iterations:
        start = time.perf_counter()
        metrics = training.iterate()
        left = config.iterations - training.iteration
        if left % every == 0:
            evaluated = training.evaluate()
            metrics |= evaluated
            saver.save(training.steps, evaluated["eval/return"])
        spent = training.clock.flush()
        busy = time.perf_counter() - start - spent.get("time/eval", 0.0)
        total = config.steps_per_iteration * config.run.seeds
        log.record(training.steps, {**metrics, **spent, "time/steps_per_s": total / busy})


def new_run_dir(config: TrainConfig) -> Path:
    """Create the run's directory. Raises BadInput where one is there or can't be."""
    run = config.run
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"{run.env.replace(':', '-').replace('/', '-')}-{config.method}-{config.algo_name}"
    path = run.out or Path("runs") / f"{name}-seed{run.seed}-{stamp}"
    if (path / "config.json").exists():
        raise BadInput(f"{path} already holds a run; give --out another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror}; give --out another") from error
    return path


def start_facts(config: TrainConfig, training: Training, run_dir: Path) -> dict[str, object]:
    """Return what the start-up table says."""
    run, algo, spec = config.run, config.algo, training.env.spec
    seeds = f"seeds {run.seed} to {training.seeds[-1]}" if run.seeds > 1 else f"seed {run.seed}"
    each = run.total_steps // run.peers
    return {
        "budget": f"{run.total_steps:,} environment steps = {run.peers} peers x {each:,}"
        + (f", for each of {run.seeds} seeds" if run.seeds > 1 else ""),
        "learners": f"{training.agent.n_learners} in one stack, {seeds}",
        "iteration": f"{algo.n_envs} envs x {algo.n_steps} steps = {algo.samples:,} a learner, "
        f"{algo.epochs} epochs of {algo.minibatch_size}",
        "simulation": f"{spec.backend}, {spec.obs_dim} observations, {spec.act_dim} actions",
        "run": run_dir,
        "watch": f"tensorboard --logdir {run_dir / 'tb'}",
    }


def report(training: Training, saver: PolicySaver, console: Console) -> None:
    """Evaluate the saved policies on fresh episodes and print a table."""
    with console.status("evaluating the saved policies"):
        rows = [final_row(training, f) for f in saver.files()]
    print_table(rows)


def draw_curves(run_dir: Path, title: str) -> Path | None:
    """Draw the learning curves, if there is anything to draw."""
    from dpd.plots import learning_curves

    if "/return," not in (run_dir / "metrics.csv").read_text():
        return None  # stopped before the first episode ended
    learning_curves(run_dir / "metrics.csv", run_dir / "curves.png", title)
    return run_dir / "curves.png"


def final_row(training: Training, file: Path) -> dict[str, object]:
    """Evaluate one saved policy on episodes no evaluation in training used."""
    policy = policyfile.load(file)
    run = training.run
    outcome = evaluate_policy(
        policy, run.env, run.final_episodes, run.seed + 1_000_000, run.threads
    )
    return summary(file.name.removesuffix(".safetensors"), run.env, policy, outcome)
