"""Time the updates of off-policy learners against Stable-Baselines3's.

python bench/learners.py --json learners.json      about 15 minutes on a quiet machine
python bench/learners.py --end-to-end              whole training on HalfCheetah, logs included
python bench/learners.py --end-to-end --cpu        per CPU second, also on a busy machine
python bench/learners.py --quick --force           smoke run; its numbers are meaningless

By default no environment is stepped: both sides draw minibatches from a replay of 100,000
transitions with HalfCheetah's sizes and take gradient steps on them. End to end, an update follows
every environment step, so steps equal updates; SBX is included if it is installed. Every
measurement runs in a separate process, and set-ups take turns. `--only` names set-ups by words.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and "--ours" in sys.argv:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `dpd` does, before torch is loaded

import torch
from marked import RATIO_RULE, ratio_head, ratio_rows, report, table
from rich.console import Console
from rivals import ENDLESS, TimeBox, make_offpolicy, make_vec
from timing import (
    Record,
    Work,
    fastest,
    in_rounds,
    least_goal,
    median_ratio,
    parse_timed,
    rate,
    require_quiet,
    run_at_once,
)

from dpd.agents.kernels import Kernels
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.log.terminal import make_console

if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

    from dpd.agents.base import Batch

O, A, HELD = 17, 6, 100_000  # noqa: E741
UPDATES = 50  # per call: one iteration of dpd

COMMON: dict[str, Any] = {"learning_starts": 0, "capacity": HELD, "n_steps": UPDATES}
CASES: dict[str, tuple[int, OffPolicyConfig]] = {
    "td3": (2, TD3Config(**COMMON)),
    "sac": (2, SACConfig(**COMMON)),
    "ddpg": (10, DDPGConfig(**COMMON, hidden=(64, 64), minibatch_size=64)),
}
"""Learners in dpd's stack, and the settings of both sides."""
GOALS = {"td3": (1.4, 1.0), "sac": (1.4, 1.0), "ddpg": (4.0, 1.0)}
"""Least rate per learner, relative to SB3's default set-up and to its best set-up."""


@dataclass(frozen=True)
class Setup:
    """A way to run updates, in one process or several in parallel."""

    name: str
    threads: int | None = None
    processes: int = 1
    ours: bool = False
    package: str = "stable_baselines3"
    kernels: str = "auto"

    def measure(self, case: str, args: argparse.Namespace) -> dict[str, Any]:
        """Run once; return updates per second of all learners and processes together."""
        command = [sys.executable, __file__, "--worker", case, "--seconds", str(args.seconds)]
        command += ["--package", self.package, *(["--end-to-end"] if args.end_to_end else [])]
        command += [] if self.threads is None else ["--threads", str(self.threads)]
        command += ["--kernels", self.kernels]
        command += [*(["--ours"] if self.ours else []), *(["--cpu"] if args.cpu else [])]
        return {
            "updates_per_s": sum(
                x["updates_per_s"] for x in run_at_once([command] * self.processes)
            )
        }


SB3_DEFAULT = Setup("SB3, default threads")
SB3 = (SB3_DEFAULT, Setup("SB3, 1 thread", 1), Setup("SB3, 2 processes of 1 thread", 1, 2))
DPD = (
    Setup("dpd by torch, 1 thread", 1, ours=True, kernels="torch"),
    Setup("dpd by torch, default threads", ours=True, kernels="torch"),
    Setup("dpd, 1 thread", 1, ours=True),
    Setup("dpd, default threads", ours=True),
)
SBX = (
    Setup("SBX, default threads", package="sbx"),
    Setup("SBX, 2 processes", processes=2, package="sbx"),
)
"""Compiled by JAX; for comparison without a goal, end to end only."""


def fill(agent: Any, held: int) -> Batch:
    """Fill a replay with noise, without ends of episodes; return an iteration to update on."""
    rows = torch.randn(agent.n_learners, held, 1, agent.replay.rows.shape[-1])
    rows[..., -3:] = torch.tensor([0.0, 0.0, 1.0])
    rows[..., O : O + A].clamp_(-1, 1)
    agent.replay.extend(rows)
    return agent.prepare(agent.new_rollout())


def filled_agent(case: str) -> tuple[OffPolicy, Batch]:
    """Return dpd's stack with a full replay, and an iteration to update on."""
    n, config = CASES[case]
    agent = config.build(O, A, [(0, peer) for peer in range(n)])
    assert isinstance(agent, OffPolicy)
    return agent, fill(agent, HELD)


def ours(case: str, kernels: str = "torch") -> Work:
    """Return the work of dpd's stack: the updates of an iteration."""
    agent, batch = filled_agent(case)
    agent.kernels = None if kernels == "torch" else Kernels(torch.get_num_threads())

    def work() -> int:
        agent.update(batch, 0.0)
        return UPDATES * agent.n_learners

    return work


def theirs(case: str) -> Work:
    """Return the work of one Stable-Baselines3 learner: the same number of updates."""
    import gymnasium
    import numpy as np
    import stable_baselines3
    from gymnasium import spaces
    from stable_baselines3.common.logger import configure

    class Nothing(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(-np.inf, np.inf, (O,), np.float32)
        action_space = spaces.Box(-1, 1, (A,), np.float32)

    _, config = CASES[case]
    model: OffPolicyAlgorithm = getattr(stable_baselines3, case.upper())(
        "MlpPolicy",
        Nothing(),
        learning_rate=config.lr,
        buffer_size=HELD,
        batch_size=config.minibatch_size,
        policy_kwargs={"net_arch": list(config.hidden)},
        device="cpu",
    )
    model.set_logger(configure(None, []))
    replay, rng = model.replay_buffer, np.random.default_rng(0)
    assert replay is not None
    replay.observations[:] = rng.standard_normal(replay.observations.shape)
    replay.next_observations[:] = rng.standard_normal(replay.observations.shape)
    replay.actions[:] = rng.uniform(-1, 1, replay.actions.shape)
    replay.rewards[:] = rng.standard_normal(replay.rewards.shape)
    replay.full = True

    def work() -> int:
        model.train(UPDATES, config.minibatch_size)
        return UPDATES

    return work


def train_ours(case: str, seconds: float, threads: int | None, kernels: str) -> dict[str, Any]:
    """Train as `dpd train` does."""
    from train import work

    n, config = CASES[case]
    flags = ["--algo", case, "--method", "none", "--peers", str(n), "--learning-starts", "0"]
    flags += ["--hidden", *map(str, config.hidden), "--minibatch-size", str(config.minibatch_size)]
    flags += ["--kernels", kernels]
    return work(seconds, flags if threads is None else [*flags, "--threads", str(threads)])


def train_theirs(case: str, seconds: float, package: str) -> dict[str, Any]:
    """Train one learner of Stable-Baselines3 or SBX."""
    _, config = CASES[case]
    venv = make_vec("dummy", "HalfCheetah-v5", 1, 0, None)
    model = make_offpolicy(case, venv, 0, replace(config, learning_starts=200), package)
    box = TimeBox(seconds)

    def on_step(_: dict[str, Any], __: dict[str, Any]) -> bool:
        steps = model.num_timesteps
        return not (steps >= 500 and steps % UPDATES == 0 and box.mark(steps))

    model.learn(ENDLESS, callback=on_step)
    return {"steps": box.steps, "seconds": box.seconds}


def worker(args: argparse.Namespace) -> dict[str, Any]:
    """Take one measurement."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu else time.perf_counter
    TimeBox.clock = staticmethod(clock)
    if args.end_to_end:
        trained = (
            train_ours(args.worker, args.seconds, args.threads, args.kernels)
            if args.ours
            else train_theirs(args.worker, args.seconds, args.package)
        )
        return {"updates_per_s": trained["steps"] / trained["seconds"]}
    work = ours(args.worker, args.kernels) if args.ours else theirs(args.worker)
    work()
    return {"updates_per_s": rate(work, args.seconds, clock), "threads": torch.get_num_threads()}


Rates = dict[str, dict[str, list[float]]]
"""Updates per second by case and set-up, in rounds."""


def goals(rates: Rates) -> list[Record]:
    """Return the goals and their measurements; they do not apply to CPU seconds."""
    rows = []
    for case, own in rates.items():
        if SB3_DEFAULT.name not in own or not any(s.name in own for s in DPD):
            continue
        ours = fastest(own, [s.name for s in DPD])
        bases = {"default": SB3_DEFAULT.name, "best": fastest(own, [s.name for s in SB3])}
        for (way, base), least in zip(bases.items(), GOALS[case], strict=True):
            text = f"{CASES[case][0]} {case}, {ours}, x SB3's {way} way"
            rows.append(least_goal(text, median_ratio(own, ours, base), least))
    return rows


def setups(args: argparse.Namespace) -> tuple[Setup, ...]:
    """Return the set-ups to compare."""
    sbx = SBX if args.end_to_end and find_spec("sbx") else ()
    every = [s for s in (*SB3, *sbx, *DPD) if any(word in s.name for word in args.only)]
    alone = [s for s in every if s.processes == 1 and (s.threads == 1 or s in SBX)]
    return tuple(alone if args.cpu else every)


def measure_all(args: argparse.Namespace, console: Console) -> tuple[Rates, list[Any]]:
    """Measure all cases and set-ups in turns; return rates and loads, with those of --add."""
    before = json.loads(args.json.read_text()) if args.add and args.json.exists() else {}
    pairs = {f"{case}, {s.name}": (case, s) for case in args.cases for s in setups(args)}
    works = {name: partial(s.measure, case, args) for name, (case, s) in pairs.items()}
    found, rounds = in_rounds(args.repeats, works, "updates", console)
    rates: Rates = before.get("rates", {})
    for name, (case, setup) in pairs.items():
        own = rates.setdefault(case, {}).setdefault(setup.name, [])
        own += [record["updates_per_s"] for record in found[name]]
    return rates, [*before.get("rounds", []), *rounds]


def lines(data: Record) -> list[str]:
    """Lay out updates of all learners per second; ratios to SB3's default and the best rival."""
    rows = []
    for case, rates in data["rates"].items():
        learners = {s.name: f"{s.processes} {case.upper()}" for s in (*SB3, *SBX)}
        rivals = [name for name in learners if name in rates] or list(rates)
        learners |= {s.name: f"{CASES[case][0]} {case.upper()}" for s in DPD}
        rows += ratio_rows(learners, rates, rivals[0], rivals)
    return table(ratio_head("updates"), RATIO_RULE, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time updates against Stable-Baselines3.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--only", nargs="+", default=[""], help="set-ups that contain such a word")
    parser.add_argument("--add", action="store_true", help="add rounds to the file of --json")
    parser.add_argument("--end-to-end", action="store_true", help="whole training")
    parser.add_argument("--cpu", action="store_true", help="per CPU second, one thread each")
    parser.add_argument("--package", default="stable_baselines3", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--kernels", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parse_timed(parser, repeats=5, seconds=6.0)
    if args.add and args.json is None:
        parser.error("--add needs the file to add to: --json FILE")
    return args


def main() -> int:
    """Take one measurement as a worker, or all of them."""
    args = parse()
    if args.worker:
        sys.stdout.write(json.dumps(worker(args)) + "\n")
        return 0
    require_quiet(args.force)
    rates, rounds = measure_all(args, make_console())
    data = {"seconds": args.seconds, "end_to_end": args.end_to_end, "cpu_seconds": args.cpu}
    data |= {"goals": goals(rates), "rounds": rounds, "rates": rates}
    report(args.json, data, lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
