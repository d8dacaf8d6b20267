"""Time whole training against Stable-Baselines3's PPO, and the cost of distillation.

python bench/train.py --json train.json        about 20 minutes on a quiet machine
python bench/train.py --quick --force          smoke run; its numbers are meaningless

Both sides learn HalfCheetah-v5 with the same hyper-parameters. Every measurement runs in a separate
process, and set-ups take turns. dpd logs (csv, TensorBoard, live table) and SB3 is silent; neither
evaluates, and the first iteration of both is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from sb3_baseline import ENDLESS, TimeBox
from timing import (
    MAX_CPU_PERCENT,
    fastest,
    in_rounds,
    least_goal,
    machine,
    median_ratio,
    parse_timed,
    print_goals,
    require_quiet,
    run_at_once,
    write_json,
)

import dpd.run.train
from dpd.cli import parse_train
from dpd.config import flag
from dpd.log.log import Metric, RunLog
from dpd.log.terminal import make_console
from dpd.run.settings import preset_settings

HERE = Path(__file__).resolve().parent
ENV = "HalfCheetah-v5"
PRESETS = ("paper", "modern", "released")
PHASES = ("collect", "update", "distill")


class TimeUp(Exception):
    """The measurement is over."""

    def __init__(self, measured: dict[str, Any]) -> None:
        super().__init__("time is up")
        self.measured = measured


class TimedLog(RunLog):
    """A run's log that also counts steps and seconds, and ends the run when time is up."""

    def __init__(self, seconds: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.box, self.phases = TimeBox(seconds), dict.fromkeys(PHASES, 0.0)

    def record(self, step: int, metrics: Mapping[str, Metric], keep: bool = True) -> None:
        """Record as usual, then check the clock."""
        super().record(step, metrics, keep)
        box = self.box
        if box.first is not None:
            for phase in PHASES:
                self.phases[phase] += float(metrics[f"time/{phase}"])  # type: ignore[arg-type]
        if box.mark(step * len(self._seeds)):
            threads = torch.get_num_threads()
            measured = {"steps": box.steps, "seconds": box.seconds, "threads": threads}
            raise TimeUp(measured | {"phases": self.phases})


def work(seconds: float, flags: Sequence[str], env: str = ENV) -> dict[str, Any]:
    """Train as `dpd train` does with these flags, until the time is up."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as sink:
        endless = ("--total-steps", str(ENDLESS), "--evals", "1", "--out", folder)
        # With a live table as on a terminal: drawing it is part of the cost.
        screen = make_console(file=sink, force_terminal=True, force_interactive=True, width=120)
        log = partial(TimedLog, seconds)
        try:
            with patch.multiple(dpd.run.train, RunLog=log, Console=lambda: screen):
                dpd.run.train.train(parse_train([env, *flags, *endless]))
        except TimeUp as over:
            return over.measured
    raise RuntimeError("the run ended before its time was up")


@dataclass(frozen=True)
class Setup:
    """A way to train, in one process or several in parallel."""

    name: str
    learners: int
    flags: str
    processes: int = 1
    ours: bool = False

    def command(self, seconds: float, seed: int, threads: int | None) -> list[str]:
        """Return the command line of one process; `threads` applies to dpd."""
        flags = [*shlex.split(self.flags), "--seed", str(seed)]
        if self.ours:
            flags += [] if threads is None else ["--threads", str(threads)]
            return [sys.executable, str(HERE / "train.py"), "--worker", str(seconds), *flags]
        script = str(HERE / "sb3_baseline.py")
        return [sys.executable, script, "--env", ENV, "--seconds", str(seconds), *flags]

    def measure(self, seconds: float, threads: int | None) -> dict[str, Any]:
        """Run once; steps per second sum over the processes."""
        seeds = range(self.processes)
        parts = run_at_once([self.command(seconds, seed, threads) for seed in seeds])
        return {"steps_per_s": sum(p["steps"] / p["seconds"] for p in parts), "parts": parts}


SB3_DEFAULT = Setup("SB3, 1 env, default threads", 1, "--n-envs 1")
SB3 = (
    SB3_DEFAULT,
    Setup("SB3, 1 env, 1 thread", 1, "--n-envs 1 --threads 1"),
    Setup("SB3, 1 env, 2 threads", 1, "--n-envs 1 --threads 2"),
    Setup("SB3, 8 envs, 1 thread", 1, "--n-envs 8 --threads 1"),
    Setup("SB3, 8 envs, 2 threads", 1, "--n-envs 8 --threads 2"),
    Setup("SB3, 8 env processes, 1 thread", 1, "--n-envs 8 --threads 1 --vec subproc"),
    Setup("SB3, 2 runs of 1 env, 1 thread", 2, "--n-envs 1 --threads 1", 2),
    Setup("SB3, 2 runs of 8 envs, 1 thread", 2, "--n-envs 8 --threads 1", 2),
)
ONE = Setup("dpd, one learner", 1, "--peers 1 --method none", ours=True)
TEN = Setup("dpd, ten seeds in one stack", 10, "--peers 1 --seeds 10 --method none", ours=True)
# As with `--workers`: independent processes, each with a share of the seeds and cores.
PAIRS = Setup("dpd, ten pairs, one process", 20, "--peers 2 --seeds 10", ours=True)
SHARED = Setup(
    "dpd, ten pairs, two processes", 20, "--peers 2 --seeds 5 --threads 1", processes=2, ours=True
)
ALONE = Setup("dpd, two peers, no distillation", 2, "--peers 2 --method none", ours=True)


def with_preset(preset: str) -> Setup:
    """Return two peers that distil with a preset."""
    flags = f"--peers 2 --method dpd --preset {preset}"
    return Setup(f"dpd, two peers, {preset}", 2, flags, ours=True)


def without_distillation(preset: str) -> Setup:
    """Return two peers with a preset's learners, but no distillation."""
    rest = {k: v for k, v in preset_settings(preset, "dpd", "ppo").items() if k != "distill"}
    if not rest:
        return ALONE
    words = " ".join(f"{flag(name)} {value}" for name, value in rest.items())
    flags = f"{words} {ALONE.flags}"
    return Setup(f"dpd, two peers, no distillation, {preset}'s learners", 2, flags, ours=True)


def in_turns() -> list[Setup]:
    """Return every set-up once, dpd's and SB3's alternating."""
    ours = [
        ONE,
        ALONE,
        TEN,
        PAIRS,
        SHARED,
        *map(with_preset, PRESETS),
        *map(without_distillation, PRESETS),
    ]
    pairs = zip_longest(dict.fromkeys(ours), SB3)
    return [setup for pair in pairs for setup in pair if setup is not None]


@dataclass
class Results:
    """Measurements of every set-up by name, round by round."""

    raw: dict[str, list[dict[str, Any]]]
    rounds: list[dict[str, float]]

    @property
    def rates(self) -> dict[str, list[float]]:
        """Environment steps per second, of all learners of a set-up together."""
        return {k: [r["steps_per_s"] for r in v] for k, v in self.raw.items()}

    def rate(self, setup: Setup) -> float:
        return median(self.rates[setup.name])

    def ratio(self, setup: Setup, base: Setup) -> float:
        return median_ratio(self.rates, setup.name, base.name)

    def best_sb3(self) -> Setup:
        name = fastest(self.rates, [setup.name for setup in SB3])
        return next(setup for setup in SB3 if setup.name == name)

    def own_phase(self, setup: Setup) -> float:
        """Return the share of the time in the distillation phase."""
        parts = [p for r in self.raw[setup.name] for p in r["parts"]]
        return median(p["phases"]["distill"] / p["seconds"] for p in parts)

    def cost(self, preset: str) -> float:
        """Return the share of the time that the same learners save without distillation.

        It includes the cost of a term in the learners' loss, which is no separate phase, and of
        the distance between peers, which learners without distillation measure as well.
        """
        bare = without_distillation(preset)
        return 1 - self.ratio(with_preset(preset), bare) * (1 - self.own_phase(bare))


def ratio_table(results: Results) -> Table:
    """Return the rates of all set-ups, also relative to SB3's."""
    best = results.best_sb3()
    title = f"Training {ENV} end to end; times SB3's default way, times its best way"
    table = Table(title=title, title_justify="left")
    table.add_column("set-up", no_wrap=True)
    for name in ("learners", "env steps/s", "x default", "x best"):
        table.add_column(name, justify="right")
    for setup in (*SB3, ONE, ALONE, with_preset("paper"), TEN, PAIRS, SHARED):
        ratios = [f"{results.ratio(setup, base):.2f}" for base in (SB3_DEFAULT, best)]
        name = f"{setup.name} (best)" if setup is best else setup.name
        table.add_row(name, str(setup.learners), f"{results.rate(setup):,.0f}", *ratios)
    return table


def cost_table(results: Results) -> Table:
    """Return the cost of distillation by preset."""
    table = Table(title="Distillation's share of the time, two peers", title_justify="left")
    table.add_column("preset")
    for name in ("env steps/s", "its own phase", "against learners without"):
        table.add_column(name, justify="right")
    rows = [("none", ALONE, results.own_phase(ALONE))]
    rows += [(p, with_preset(p), results.cost(p)) for p in PRESETS]
    for name, setup, cost in rows:
        shares = [f"{100 * share:.1f} %" for share in (results.own_phase(setup), cost)]
        table.add_row(name, f"{results.rate(setup):,.0f}", *shares)
    return table


def goals(results: Results) -> list[dict[str, Any]]:
    """Return the goals and their measurements."""
    best, paper = results.best_sb3(), with_preset("paper")
    lowest = [
        ("two peers, paper, x SB3's default way", results.ratio(paper, SB3_DEFAULT), 6.0),
        ("two peers, paper, x SB3's best way", results.ratio(paper, best), 1.6),
        ("ten learners, x SB3's default way", results.ratio(TEN, SB3_DEFAULT), 12.0),
        ("ten learners, x SB3's best way", results.ratio(TEN, best), 3.0),
        ("ten pairs, two processes, x SB3's best way", results.ratio(SHARED, best), 5.0),
    ]
    share = max(results.own_phase(paper), results.cost("paper"))
    rows = [least_goal(*row) for row in lowest]
    name = "distillation, paper, share of the time (the larger of both) <= 0.15"
    return [*rows, {"goal": name, "measured": share, "met": share <= 0.15}]


def report(results: Results, args: argparse.Namespace, console: Console) -> None:
    """Print the tables and goals, and write the numbers."""
    console.print(ratio_table(results), cost_table(results))
    print_goals(goals(results), console)
    busy = sum(r["cpu_percent"] > MAX_CPU_PERCENT for r in results.rounds)
    if busy:
        # Two torch threads on shared cores mostly wait for each other.
        console.print(
            f"the machine was busy in {busy} of {len(results.rounds)} rounds: do "
            "not quote these numbers, in particular those of two threads",
            style="red",
            soft_wrap=True,
        )
    if args.json:
        setups = {s.name: {**asdict(s), "steps_per_s": results.rate(s)} for s in in_turns()}
        data = {"machine": machine(), "env": ENV, "seconds": args.seconds, "threads": args.threads}
        data |= {"goals": goals(results), "medians": setups, "rounds": results.rounds}
        data |= {"busy_rounds": busy}
        write_json(args.json, data | {"raw": results.raw})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time training against Stable-Baselines3.")
    parser.add_argument("--threads", type=int, help="CPU threads of dpd; default: its own")
    return parse_timed(parser, repeats=3, seconds=15.0)


def main() -> int:
    """Take one measurement (--worker SECONDS FLAGS ...), or all of them."""
    if sys.argv[1:2] == ["--worker"]:
        sys.stdout.write(json.dumps(work(float(sys.argv[2]), sys.argv[3:])) + "\n")
        return 0
    args = parse()
    require_quiet(args.force)
    console = make_console()
    contenders = {s.name: partial(s.measure, args.seconds, args.threads) for s in in_turns()}
    results = Results(*in_rounds(args.repeats, contenders, "steps", console))
    report(results, args, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
