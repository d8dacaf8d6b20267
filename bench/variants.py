"""Time possible speed-ups of learners with a replay.

python bench/variants.py --json variants.json      about 10 minutes, most of them compilation
python bench/variants.py --cpu --force             per CPU second, also on a busy machine
python bench/variants.py --quick --force           smoke run; its numbers are meaningless

For updates alone: matrix products in bfloat16, and updates compiled by torch.compile. For
simulation and updates: in turns, as in `dpd train`, and in parallel, with the policy of the
previous iteration. None of these is an option of dpd; docs/benchmarks.md has the results.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from unittest.mock import patch

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `dpd` does, before torch is loaded

import torch
from learners import CASES, UPDATES, filled_agent, ours
from marked import report, table
from timing import (
    Record,
    Work,
    interleaved_rates,
    median_ratio,
    parse_timed,
    require_quiet,
)
from torch import Tensor

import dpd.agents.nets
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.td3 import TD3
from dpd.config import TrainConfig
from dpd.distill.table import METHODS
from dpd.envs.make import make
from dpd.log.terminal import make_console
from dpd.run.collect import collect
from dpd.run.config import RunConfig
from dpd.run.stack import env_seeds
from dpd.run.updates import learner_threads

PRODUCT = (4, 256, 256)
"""A hidden layer of two learners' critics on a minibatch."""


def threads_of(case: str) -> int:
    """Return the threads that `dpd train` would give these learners."""
    n, config = CASES[case]
    run = RunConfig(peers=n)
    method = METHODS["none"].settings()
    settings = TrainConfig(run=run, algos=((case, config),), method="none", distill=method)
    return learner_threads(settings)


def product(dtype: torch.dtype) -> Work:
    """Return the work of one batched product in this type."""
    torch.set_num_threads(1)
    x, y = (torch.randn(PRODUCT, dtype=torch.float32).to(dtype) for _ in range(2))

    def work() -> int:
        torch.bmm(x, y)
        return 1

    return work


def rounded(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a product with operands rounded to bfloat16 and a float32 result."""

    def run(*operands: Tensor) -> Tensor:
        return product(*(x.bfloat16() for x in operands)).float()

    return run


def updates_in_bfloat16(case: str) -> Work:
    """Return the work of updates with every product and gradient in bfloat16."""
    work, nets = ours(case), dpd.agents.nets
    names = ("affine", "affine_gradient", "into_input")
    lowered = {name: rounded(getattr(nets, name)) for name in names}

    def in_bfloat16() -> int:
        with patch.multiple(nets, **lowered):  # type: ignore[call-overload]
            return work()

    return in_bfloat16


def compiled_updates(case: str) -> Work:
    """Return the work of compiled updates, except for Adam, which is a fused kernel already."""
    agent, batch = filled_agent(case)
    for name in ("optimizer", "critic_optimizer", "alpha_optimizer"):
        if (optimizer := getattr(agent, name, None)) is not None:
            optimizer.step = torch._dynamo.disable(optimizer.step)
    agent._step = torch.compile(agent._step)  # type: ignore[method-assign]

    def work() -> int:
        agent.update(batch, 0.0)
        return UPDATES * agent.n_learners

    work()  # compile both cases: TD3 updates its policy in every second step
    return work


def behind(agent: OffPolicy) -> OffPolicy:
    """Return learners that act with a copy of the policy's parameters."""
    actor = copy.copy(agent)
    actor.nets = agent.nets.twin()
    if isinstance(actor, TD3):
        actor.exploration = copy.copy(actor.exploration)
        actor.exploration.actor = actor.nets
    return actor


def training(case: str, at_once: bool) -> Work:
    """Return the work of a training iteration, its two halves in turns or in parallel."""
    agent, _ = filled_agent(case)
    learners = [(0, peer) for peer in range(agent.n_learners)]
    env = make("HalfCheetah-v5", len(learners), env_seeds(learners, 1))
    obs = env.reset().view(len(learners), 1, -1)
    actor, pool = behind(agent), ThreadPoolExecutor(1)
    rollout, other = agent.new_rollout(), agent.new_rollout()

    def work() -> int:
        nonlocal obs, rollout, other
        if at_once:
            actor.nets.load_state(agent.nets.state())
            batch = agent.prepare(rollout)  # of the previous iteration
            rollout, other = other, rollout
            running = pool.submit(collect, env, actor, obs, rollout)
            agent.update(batch, 0.0)
            obs = running.result()
        else:
            obs = collect(env, agent, obs, rollout)
            agent.update(agent.prepare(rollout), 0.0)
        return UPDATES * len(learners)

    if at_once:
        obs = collect(env, agent, obs, rollout)
    return work


def measure(case: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Time every variant of a case in turns; return updates, or steps, per second."""
    torch.set_num_threads(1 if args.cpu else threads_of(case))
    learning = {
        "updates": ours(case),
        "updates, bfloat16": updates_in_bfloat16(case),
        **({} if args.no_compile else {"updates, compiled": compiled_updates(case)}),
    }
    whole = {"training": training(case, False)}
    if not args.cpu:
        whole["training, at once"] = training(case, True)
    return timed(learning | whole, args)


def timed(works: dict[str, Work], args: argparse.Namespace) -> dict[str, list[float]]:
    """Time works in turns; return rates per second, or per CPU second."""
    clock = time.process_time if args.cpu else time.perf_counter
    return interleaved_rates(works, args.repeats, args.seconds, clock)


def lines(*files: Record) -> list[str]:
    """Lay out every rate, also relative to the unchanged learners: two columns per case."""
    cases = {name: of for file in files for name, of in file["rates"].items() if name != "products"}
    heads, rows = [""], []
    for name in cases:
        heads += [name.upper(), "×"]
    for variant in next(iter(cases.values())):
        row = [variant]
        for rates in cases.values():
            ratio = median_ratio(rates, variant, variant.split(",")[0])
            row += [f"{median(rates[variant]):,.0f}", f"{ratio:.2f}"]
        rows.append(row)
    return table(heads, "l" + "rr" * len(cases), rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time variants of learners with a replay.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--cpu", action="store_true", help="per CPU second, on one thread")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return parse_timed(parser, repeats=5, seconds=4.0)


def main() -> int:
    """Measure all variants."""
    args = parse()
    require_quiet(args.force)
    console = make_console()
    products = {"product": product(torch.float32), "product, bfloat16": product(torch.bfloat16)}
    rates = {"products": timed(products, args)}
    for case in args.cases:
        console.print(f"timing {case}")
        rates[f"{CASES[case][0]} {case}"] = measure(case, args)
    data = {"seconds": args.seconds, "rates": rates}
    report(args.json, data, lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
