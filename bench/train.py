"""Time whole training against other projects' PPO, and the cost of distillation.

python bench/train.py --cleanrl FILE ... --json train.json   about 12 minutes on a quiet machine
python bench/train.py --only paper modern                    set-ups whose names contain a word
python bench/train.py --quick --force                        smoke run; its numbers are meaningless

All learn HalfCheetah-v5 with the same hyper-parameters, minibatches and epochs. Every measurement
runs in a separate process, and set-ups take turns. dpd logs (csv, TensorBoard, live table),
Stable-Baselines3 and SBX are silent, CleanRL's file logs as it does. Nobody evaluates, and the
first iteration, with its compilation, is not counted. SBX is included if it is installed, and
CleanRL's or LeanRL's ppo_continuous_action.py if its file is named.
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
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from marked import RATIO_RULE, ratio_head, ratio_rows, report, table
from rivals import ENDLESS, TimeBox
from timing import (
    MAX_CPU_PERCENT,
    Record,
    fastest,
    in_rounds,
    least_goal,
    median_ratio,
    parse_timed,
    require_quiet,
    run_at_once,
)

import dpd.run.train
from dpd.cli import parse_train
from dpd.log.log import Metric, RunLog
from dpd.log.terminal import MetricValue, make_console
from dpd.study.arms import learner_flags

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

    def record(
        self, step: int, metrics: Mapping[str, Metric], keep: bool = True
    ) -> dict[str, MetricValue]:
        """Record as usual, then check the clock."""
        recorded = super().record(step, metrics, keep)
        box = self.box
        if box.first is not None:
            for phase in PHASES:
                self.phases[phase] += float(metrics[f"time/{phase}"])  # type: ignore[arg-type]
        if box.mark(step * len(self._seeds)):
            threads = torch.get_num_threads()
            measured = {"steps": box.steps, "seconds": box.seconds, "threads": threads}
            raise TimeUp(measured | {"phases": self.phases})
        return recorded


def work(seconds: float, flags: Sequence[str], env: str = ENV) -> dict[str, Any]:
    """Train as `dpd train` does with these flags, until the time is up."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as sink:
        endless = ("--total-steps", str(ENDLESS), "--evals", "1", "--out", folder)
        # With a live table as on a terminal: drawing it is part of the cost.
        screen = make_console(file=sink, force_terminal=True, force_interactive=True, width=120)
        log = partial(TimedLog, seconds)
        try:
            with patch.multiple(dpd.run.train, RunLog=log):
                dpd.run.train.train(parse_train([env, *flags, *endless]), console=screen)
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
        script = str(HERE / "rivals.py")
        return [sys.executable, script, "--env", ENV, "--seconds", str(seconds), *flags]

    def measure(self, seconds: float, threads: int | None) -> Record:
        """Run once; steps per second sum over the processes."""
        seeds = range(self.processes)
        parts = run_at_once([self.command(seconds, seed, threads) for seed in seeds])
        return {"steps_per_s": sum(p["steps"] / p["seconds"] for p in parts), "parts": parts}


def ways(name: str, flags: str = "", n_envs: int = 32) -> tuple[Setup, ...]:
    """Return another project's ways to use two cores: two threads, or two runs.

    32 environments are the fastest of 1, 8, 16 and 32 for SBX (32 against 8: 1.5 times as fast).
    """
    one = f"{flags} --n-envs {n_envs}"
    return (
        Setup(f"{name}, {n_envs} envs, 2 threads", 1, f"{one} --threads 2"),
        Setup(f"{name}, 2 runs of {n_envs} envs, 1 thread", 2, f"{one} --threads 1", 2),
    )


SB3_DEFAULT = Setup("SB3, 1 env, default threads", 1, "--n-envs 1")
SB3 = (SB3_DEFAULT, *ways("SB3", n_envs=8), *ways("SB3"))
ONE = Setup("dpd, one learner", 1, "--peers 1 --method none", ours=True)
TEN = Setup("dpd, ten seeds in one stack", 10, "--peers 1 --seeds 10 --method none", ours=True)
# As with `--workers`: independent processes, each with a share of the seeds and cores.
PAIR = "--peers 2 --preset paper"
PAIRS = Setup("dpd, ten pairs, one process", 20, f"{PAIR} --seeds 10", ours=True)
SHARED = Setup(
    "dpd, ten pairs, two processes", 20, f"{PAIR} --seeds 5 --threads 1", processes=2, ours=True
)
ALONE = Setup("dpd, two peers, no distillation", 2, "--peers 2 --method none", ours=True)
# Sharing doubles the samples of a pair's updates, and so do twice the epochs.
TWICE = Setup(f"{ALONE.name}, twice the epochs", 2, f"{ALONE.flags} --epochs 20", ours=True)
SHARING = Setup(f"{ALONE.name}, sharing", 2, f"{ALONE.flags} --share-experience", ours=True)
IN_LOSS = "--distill.dose loss --distill.divergence kl_forward --distill.states mixed"


def with_preset(preset: str, extra: str = "") -> Setup:
    """Return two peers that distil with a preset, and with `extra` flags."""
    flags = f"--peers 2 --method dpd --preset {preset} {extra}"
    name = f"dpd, two peers, {preset}"
    return Setup(f"{name}, {extra}" if extra else name, 2, flags, ours=True)


def in_loss() -> Setup:
    """Return two peers whose divergence is a term in PPO's loss, and that share nothing."""
    return Setup("dpd, two peers, in the loss", 2, f"{PAIR} {IN_LOSS}", ours=True)


def distilled() -> dict[str, tuple[Setup, Setup]]:
    """Return the ways to distil by name, each with the same learners without distillation."""
    presets = {name: (with_preset(name), without_distillation(name)) for name in PRESETS}
    return presets | {"in the loss": (in_loss(), ALONE)}


def without_distillation(preset: str) -> Setup:
    """Return two peers with a preset's learners, but no distillation."""
    words = " ".join(word for group in learner_flags([preset], "ppo") for word in group)
    if not words:
        return ALONE
    flags = f"{words} {ALONE.flags}"
    return Setup(f"dpd, two peers, no distillation, {preset}'s learners", 2, flags, ours=True)


def setups(cleanrl: Sequence[Path]) -> tuple[list[Setup], list[str]]:
    """Return every set-up once, dpd's and the rivals' alternating, and the rivals left out."""
    ours = [ONE, ALONE, *(own for own, _ in distilled().values())]
    ours += [with_preset("paper", "--kernels torch"), TEN, PAIRS, SHARED]
    ours += [*(bare for _, bare in distilled().values()), TWICE, SHARING]
    rivals, missing = [*SB3], []
    if find_spec("sbx"):
        rivals += ways("SBX", "--package sbx")
    else:
        missing.append("SBX (pip install sbx-rl)")
    for file in cleanrl:
        project = "LeanRL" if "tensordict" in file.read_text() else "CleanRL"
        rivals += ways(project, f"--file {shlex.quote(str(file))}")
    if not cleanrl:
        missing.append("CleanRL and LeanRL (--cleanrl FILE)")
    pairs = zip_longest(dict.fromkeys(ours), rivals)
    return [setup for pair in pairs for setup in pair if setup is not None], missing


@dataclass
class Results:
    """Measurements of every set-up by name, round by round."""

    raw: dict[str, list[Record]]

    @property
    def rates(self) -> dict[str, list[float]]:
        """Environment steps per second, of all learners of a set-up together."""
        return {k: [r["steps_per_s"] for r in v] for k, v in self.raw.items()}

    def own_phase(self, setup: Setup) -> float:
        """Return the share of the time in the distillation phase."""
        parts = [p for r in self.raw[setup.name] for p in r["parts"]]
        return median(p["phases"]["distill"] / p["seconds"] for p in parts)

    def cost(self, own: Setup, bare: Setup) -> float:
        """Return the share of the time that the same learners save without distillation.

        It includes the cost of a term in the learners' loss, which is no separate phase, and of
        the distance between peers, which learners without distillation measure as well.
        """
        return 1 - median_ratio(self.rates, own.name, bare.name) * (1 - self.own_phase(bare))

    def has(self, *setups: Setup) -> bool:
        return all(setup.name in self.raw for setup in setups)


def lines(data: Record) -> list[str]:
    """Lay out the rates of all set-ups, also relative to the default and to the best rival."""
    listed = sorted(data["medians"].values(), key=lambda row: row["ours"])  # rivals first
    learners = {row["name"]: str(row["learners"]) for row in listed}
    rivals = [row["name"] for row in listed if not row["ours"]] or list(learners)
    default = SB3_DEFAULT.name if SB3_DEFAULT.name in learners else rivals[0]
    rates = Results(data["raw"]).rates
    return table(ratio_head("steps"), RATIO_RULE, ratio_rows(learners, rates, default, rivals))


def cost_lines(data: Record) -> list[str]:
    """Lay out the cost of distillation by preset, for two peers."""
    results, rows = Results(data["raw"]), []
    for way, (own, bare) in distilled().items():
        if results.has(own, bare):
            costs = (results.own_phase(own), results.cost(own, bare))
            shares = [f"{100 * x:.1f} %".replace("-", "−") for x in costs]
            rows.append(
                [
                    f"`{way}`" if way in PRESETS else way,
                    f"{median(results.rates[own.name]):,.0f}",
                    *shares,
                ]
            )
    head = [
        "distillation",
        "steps/s",
        "distillation phase",
        "time saved by the same learners without it",
    ]
    return table(head, "lrrr", rows) if rows else []


def goals(results: Results) -> list[Record]:
    """Return the goals that were measured; SB3's best way is the fastest of its own."""
    paper, rates, rows = with_preset("paper"), results.rates, []
    best = fastest(rates, [s.name for s in SB3]) if results.has(SB3_DEFAULT) else ""
    bases = {"default": SB3_DEFAULT.name, "best": best}
    for what, own, way, least in (
        ("two peers, paper", paper, "default", 6.0),
        ("two peers, paper", paper, "best", 1.6),
        ("ten learners", TEN, "default", 12.0),
        ("ten learners", TEN, "best", 3.0),
        ("ten pairs, two processes", SHARED, "best", 5.0),
    ):
        if results.has(own, SB3_DEFAULT):
            measured = median_ratio(rates, own.name, bases[way])
            rows.append(least_goal(f"{what}, x SB3's {way} way", measured, least))
    if results.has(paper, ALONE):
        share = max(results.own_phase(paper), results.cost(paper, ALONE))
        name = "distillation, paper, share of the time (the larger of both) <= 0.15"
        rows.append({"goal": name, "measured": share, "met": share <= 0.15})
    if results.has(SHARING, TWICE):
        share = 1 - median_ratio(rates, SHARING.name, TWICE.name)
        name = "sharing, share of the time beyond the gradient steps that it adds <= 0.25"
        rows.append({"goal": name, "measured": share, "met": share <= 0.25})
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time training against other projects' PPO.")
    parser.add_argument("--threads", type=int, help="CPU threads of dpd; default: its own")
    parser.add_argument("--only", nargs="+", default=[""], help="set-ups that contain such a word")
    cleanrl = "CleanRL's or LeanRL's ppo_continuous_action.py, not part of this project"
    parser.add_argument("--cleanrl", nargs="+", type=Path, default=[], help=cleanrl)
    args = parse_timed(parser, repeats=5, seconds=4.0)
    for file in args.cleanrl:
        if not file.is_file():
            parser.error(f"--cleanrl: there is no {file}")
    return args


def main() -> int:
    """Take one measurement (--worker SECONDS FLAGS ...), or all of them."""
    if sys.argv[1:2] == ["--worker"]:
        sys.stdout.write(json.dumps(work(float(sys.argv[2]), sys.argv[3:])) + "\n")
        return 0
    args = parse()
    require_quiet(args.force)
    console = make_console()
    every, missing = setups(args.cleanrl)
    if missing:
        console.print(f"left out: {', '.join(missing)}")
    chosen = [s for s in every if any(word in s.name for word in args.only)]
    contenders = {s.name: partial(s.measure, args.seconds, args.threads) for s in chosen}
    raw, rounds = in_rounds(args.repeats, contenders, "steps", console)
    rates = Results(raw).rates
    medians = {s.name: {**asdict(s), "steps_per_s": median(rates[s.name])} for s in chosen}
    data = {"env": ENV, "seconds": args.seconds, "threads": args.threads}
    data |= {"goals": goals(Results(raw)), "medians": medians, "rounds": rounds, "raw": raw}
    data["busy_rounds"] = sum(r["cpu_percent"] > MAX_CPU_PERCENT for r in rounds)
    if data["busy_rounds"]:
        # Two torch threads on shared cores mostly wait for each other.
        console.print(
            f"the machine was busy in {data['busy_rounds']} of {len(rounds)} rounds: do "
            "not quote these numbers, in particular those of two threads",
            style="red",
            soft_wrap=True,
        )
    report(args.json, data, lines(data), cost_lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
