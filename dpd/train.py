"""Training: one loop for every algorithm and method."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from dpd import __version__, policyfile
from dpd.agents.base import Metrics
from dpd.agents.ppo import PPO
from dpd.collect import EpisodeStatistics, collect
from dpd.config import BadInput, TrainConfig
from dpd.distill.base import Context
from dpd.envs.base import Env
from dpd.envs.make import make
from dpd.evaluate import Evaluator, Outcome, print_table, summary
from dpd.log import RunLog


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
        self.agent = PPO(config.algo, self.env.spec.obs_dim, self.env.spec.act_dim, rows)
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


def train(config: TrainConfig) -> int:
    """Train, show progress, save policies; return the exit status (130 after Ctrl-C)."""
    console = Console()
    torch.set_num_threads(config.run.threads or torch.get_num_threads())
    training = Training(config)
    run_dir = new_run_dir(config)
    hparams = config.as_json()
    (run_dir / "config.json").write_text(json.dumps(hparams, indent=2) + "\n")
    title = f"dpd train {config.run.env}: {config.method}, {config.algo_name}"
    saver = PolicySaver(run_dir, training, hparams)
    run = config.run
    status = 0
    with RunLog(
        run_dir, training.seeds, run.peers, run.total_steps, hparams, title, console
    ) as log:
        log.show_start(start_facts(config, training, run_dir))
        try:
            loop(training, log, saver)
        except KeyboardInterrupt:
            log.notice(f"stopped at {training.steps:,} steps; policies are saved")
            status = 130
        except NonFinite as error:
            log.notice(f"dpd: {error}", style="red")
            status = 3
        else:
            saver.save_final()
        if status == 130:
            saver.save_final()
    finish(training, run_dir, saver, console, title)
    return status


def loop(training: Training, log: RunLog, saver: PolicySaver) -> None:
    """Iterate until the budget is used; evaluate and keep the best on the way."""
    config = training.config
    every = max(1, config.iterations // config.run.evals)
    while training.iteration < config.iterations:
        start = time.perf_counter()
        metrics = training.iterate()
        left = config.iterations - training.iteration
        if left % every == 0:
            metrics |= training.evaluate()
            saver.save(metrics["eval/return"])
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
    seeds = f", seeds {training.seeds[0]} to {training.seeds[-1]}" if run.seeds > 1 else ""
    each = run.total_steps // run.peers
    return {
        "budget": f"{run.total_steps:,} environment steps = {run.peers} peers x {each:,}"
        + (f", for each of {run.seeds} seeds" if run.seeds > 1 else ""),
        "learners": f"{training.agent.n_learners} in one stack, seed {run.seed}{seeds}",
        "iteration": f"{algo.n_envs} envs x {algo.n_steps} steps = {algo.samples:,} a learner, "
        f"{algo.epochs} epochs of {algo.minibatch_size}",
        "simulation": f"{spec.backend}, {spec.obs_dim} observations, {spec.act_dim} actions",
        "run": run_dir,
        "watch": f"tensorboard --logdir {run_dir / 'tb'}",
    }


class PolicySaver:
    """Writes every learner's last and best policy with where it came from."""

    def __init__(self, run_dir: Path, training: Training, hparams: dict[str, Any]) -> None:
        self.dir, self.training = run_dir / "policies", training
        self.best = [-np.inf] * training.agent.n_learners
        digest = hashlib.sha256(json.dumps(hparams, sort_keys=True).encode()).hexdigest()
        self.origin = {
            "config_sha256": digest,
            "dpd": __version__,
            "torch": torch.__version__,
            "git": git_commit(),
            "method": training.config.method,
        }

    def path(self, n: int, suffix: str = "") -> Path:
        """Return the file of learner n."""
        group, peer = divmod(n, self.training.run.peers)
        return self.dir / f"seed{self.training.seeds[group]}-peer{peer}{suffix}.safetensors"

    def save(self, returns: Tensor | float) -> None:
        """Write all policies, and those that evaluated best so far."""
        for n, value in enumerate(torch.as_tensor(returns).tolist()):
            self._write(n, self.path(n), value)
            if value > self.best[n]:
                self.best[n] = value
                self._write(n, self.path(n, "-best"), value)

    def save_final(self) -> None:
        """Write all policies as they are."""
        for n in range(self.training.agent.n_learners):
            self._write(n, self.path(n), None)

    def _write(self, n: int, path: Path, value: float | None) -> None:
        t = self.training
        group, peer = divmod(n, t.run.peers)
        meta = policyfile.PolicyMeta(
            algo=t.config.algo_name,
            env_id=t.run.env,
            activation=t.config.algo.activation,
            squashed=False,
            obs_dim=t.env.spec.obs_dim,
            act_dim=t.env.spec.act_dim,
            hidden=t.config.algo.hidden,
            env_kwargs=t.run.parsed_env_kwargs(),
            provenance=self.origin
            | {"seed": t.seeds[group], "peer": peer, "steps": t.steps, "eval_return": value},
        )
        policyfile.save(path, t.agent.export(n) | policyfile.bounds(t.env.spec), meta)


def git_commit() -> str | None:
    """Return the commit of the working directory, if it is in a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def finish(
    training: Training, run_dir: Path, saver: PolicySaver, console: Console, title: str
) -> None:
    """Draw the curves, evaluate the saved policies on fresh episodes, say where all is."""
    from dpd.plots import learning_curves

    files = [
        f
        for n in range(training.agent.n_learners)
        for f in (saver.path(n), saver.path(n, "-best"))
        if f.exists()
    ]
    rows = [final_row(training, f) for f in files]
    if rows:
        print_table(rows)
    if (run_dir / "metrics.csv").exists() and training.iteration:
        learning_curves(run_dir / "metrics.csv", run_dir / "curves.png", title)
    console.print(
        f"policies     {saver.dir}\ncurves       {run_dir / 'curves.png'}\n"
        f"TensorBoard  tensorboard --logdir {run_dir / 'tb'}",
        soft_wrap=True,
    )


def final_row(training: Training, file: Path) -> dict[str, object]:
    """Evaluate one saved policy on episodes no evaluation in training used."""
    from dpd.evaluate import evaluate_policy

    policy = policyfile.load(file)
    run = training.run
    outcome: Outcome = evaluate_policy(
        policy, run.env, run.final_episodes, run.seed + 1_000_000, run.threads
    )
    return summary(file.name.removesuffix(".safetensors"), run.env, policy, outcome)
