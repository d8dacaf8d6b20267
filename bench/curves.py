"""Compare learning curves with Stable-Baselines3 at this suite's hyper-parameters.

python bench/curves.py --seeds 3 --json sb3.json              train SB3's PPO, two runs in parallel
python bench/curves.py --algo td3 --total-steps 100000 --json sb3.json
python bench/curves.py --seeds 8 --seed 3 --json more.json    more of them
python bench/curves.py --sb3 sb3.json more.json --ours runs/...   compare with runs of dpd
python bench/curves.py --plot a.json b.json --out curves.png  draw a panel for each file

All final policies act without noise in the same episodes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from marked import report, table
from rich.console import Console
from rivals import make_offpolicy, make_ppo, make_vec
from scipy.stats import sem
from timing import machine, write_json

from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.table import ALGORITHMS
from dpd.log.csv import read_rows
from dpd.log.terminal import make_console
from dpd.policies.config import NO_STATISTICS, ForeignConfig
from dpd.report.figures import (
    INK,
    Line,
    draw_line,
    format_axes,
    line_style,
    new_figure,
    save_png,
    set_title,
)
from dpd.report.stats import Difference, family, iqm, unpaired_difference
from dpd.run.episodes import evaluate_policy
from dpd.run.sources import read_run
from dpd.sb3.zip import load_zip

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

CURVE_EVERY = 1000  # minimum steps between the points of a curve
WINDOW = 20  # episodes per point of a curve, as dpd.run.collect.EpisodeStatistics takes
PLOTTED = 60  # points of a drawn curve

Record = dict[str, Any]
"""One learner: name, steps, returns of its episodes, curve of training returns."""


def train_sb3(args: argparse.Namespace, seed: int) -> Record:
    """Train one run of SB3 on one thread; return its record."""
    torch.set_num_threads(1)
    config = ALGORITHMS[args.algo].settings()
    model = make_sb3(args, seed)
    curve: list[tuple[int, float]] = []

    def on_step(_: dict[str, Any], __: dict[str, Any]) -> bool:
        last = [episode["r"] for episode in model.ep_info_buffer or ()][-WINDOW:]
        if last and model.num_timesteps % max(config.samples, CURVE_EVERY) == 0:
            curve.append((model.num_timesteps, float(np.mean(last))))
        return args.until is None or model.num_timesteps < args.until

    begin = time.perf_counter()
    # Whole iterations within the budget, like dpd: SB3 by default exceeds the budget.
    model.learn(args.total_steps // config.samples * config.samples, callback=on_step)
    seconds = time.perf_counter() - begin
    record = {"name": f"seed{seed}", "steps": model.num_timesteps, "seconds": seconds}
    record |= {"returns": final_returns(model, args), "curve": curve}
    assert model.env is not None
    model.env.close()
    return record


def make_sb3(args: argparse.Namespace, seed: int) -> BaseAlgorithm:
    """Return an SB3 model with its environments."""
    config = ALGORITHMS[args.algo].settings()
    kind = "native" if args.native else "dummy"
    venv = make_vec(kind, args.env, config.n_envs, seed, 1)
    if isinstance(config, OffPolicyConfig):
        return make_offpolicy(args.algo, venv, seed, config)
    assert isinstance(config, PPOConfig)
    return make_ppo(venv, config.n_steps, seed, config)


def final_returns(model: BaseAlgorithm, args: argparse.Namespace) -> list[float]:
    """Return SB3's returns without noise and with frozen normalisation, as `dpd` reads its zip."""
    with tempfile.TemporaryDirectory() as folder:
        file, statistics = Path(folder) / "model.zip", NO_STATISTICS
        model.save(file)
        if (normaliser := model.get_vec_normalize_env()) is not None:
            statistics = Path(folder) / "vecnormalize.pkl"
            normaliser.save(str(statistics))
        policy = load_zip(file, ForeignConfig(env=args.env, vecnormalize=statistics))
    played = evaluate_policy(policy, args.env, args.episodes, args.eval_seed)
    returns: list[float] = played.returns[0].tolist()
    return returns


def train_all(args: argparse.Namespace, console: Console) -> Record:
    """Train every seed, several in parallel; return the records with settings and versions.

    Finished records are written after each run, so that `--sb3` can read an interrupted file.
    """
    seeds = range(args.seed, args.seed + args.seeds)
    names = ("env", "algo", "native", "until", "episodes", "eval_seed")
    settings = {name: getattr(args, name) for name in names}
    config = asdict(ALGORITHMS[args.algo].settings())
    data: Record = {"settings": settings, "algo": config, "machine": machine(), "sb3": []}
    # Spawn: a forked copy of torch's thread pool hangs.
    with ProcessPoolExecutor(args.at_once, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_sb3, args, seed) for seed in seeds]):
            record = future.result()
            console.print(f"SB3 {record['name']}: {np.mean(record['returns']):,.0f}")
            data["sb3"] = sorted([*data["sb3"], record], key=lambda r: int(r["name"][4:]))
            write_json(args.json, data)
    return data


def our_records(run_dir: Path, args: argparse.Namespace) -> list[Record]:
    """Evaluate a run's last policies; return a record per learner."""
    members = read_run(run_dir, run_dir.name).members
    peers = 1 + max(member.peer for member in members)
    curves = our_curves(run_dir / "metrics.csv", peers)
    records = []
    for member in members:
        played = evaluate_policy(member.policy, args.env, args.episodes, args.eval_seed)
        steps = member.policy.meta.provenance["steps"] // peers
        record = {"name": member.file.stem, "steps": steps, "returns": played.returns[0].tolist()}
        records.append(record | {"curve": curves.get(member.file.stem, [])})
    return records


def our_curves(path: Path, peers: int) -> dict[str, list[tuple[int, float]]]:
    """Read training returns by learner, as often as SB3's; steps count one learner's."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(path):
        if row["metric"] == "train/return":
            curve = curves.setdefault(f"seed{row['seed']}-peer{row['peer']}", [])
            step = int(row["step"]) // peers
            if not curve or step >= curve[-1][0] + CURVE_EVERY:
                curve.append((step, float(row["value"])))
    return curves


def summarise(records: list[Record]) -> dict[str, Any]:
    """Return statistics of the learners' mean final returns."""
    means = np.array([np.mean(r["returns"]) for r in records])
    return {
        "iqm": float(iqm(means)),
        "mean": float(means.mean()),
        "std": float(means.std(ddof=1)) if len(means) > 1 else 0.0,
        "each": means.tolist(),
        "steps": sorted({r["steps"] for r in records}),
    }


def verdict(name: str, gap: Difference) -> str:
    """Format the difference of a run's mean from SB3's, and its verdict."""
    if gap.interval is None:
        return f"{name}: {gap.mean:+,.0f} from SB3's mean, {gap.verdict}"
    low, high = gap.interval
    return (
        f"{name}: {gap.mean:+,.0f} ({low:+,.0f} to {high:+,.0f}) from SB3's mean, "
        f"p {gap.p:.2g}, adjusted {gap.p_adjusted:.2g}: {gap.verdict}"
    )


def lines(*files: Record) -> list[str]:
    """Lay out the final policies' returns of files, a row per group of learners."""
    rows = []
    for name, group in (pair for data in files for pair in named_groups(data).items()):
        s = summarise(group)
        numbers = [f"{s[k]:,.0f}" for k in ("iqm", "mean", "std")]
        rows.append([name, str(len(group)), *numbers, " ".join(f"{x:,.0f}" for x in s["each"])])
    return table(["", "learners", "IQM", "mean", "± std", "every learner"], "lrrrrl", rows)


def named_groups(data: Record) -> dict[str, list[Record]]:
    """Return the learners of a file by their names in tables: dpd's runs, then SB3's."""
    algo = data["settings"]["algo"].upper()
    groups = {f"dpd, {algo}": r for r in data.get("ours", {}).values()}
    return groups | ({f"SB3 {algo}": data["sb3"]} if "sb3" in data else {})


def training_lines(*files: Record) -> list[str]:
    """Lay out mean and standard deviation over learners of their training returns, by step."""
    rows: list[list[str]] = []
    steps: list[int] = []
    for name, by_step in (pair for data in files for pair in along(named_groups(data)).items()):
        steps = steps or list(by_step)
        cells = (f"{np.mean(x):,.0f} ± {np.std(x, ddof=len(x) > 1):,.0f}" for x in by_step.values())
        rows.append([name, *(cell.replace("-", "−") for cell in cells)])
    head = ["", *(f"{step:,}" for step in steps)]
    return table(head, "l" + "r" * len(steps), rows) if rows else []


def further_lines(first: Record, more: Record) -> list[str]:
    """Lay out mean and standard error of training returns up to where more of SB3's runs stop."""
    (ours,), sb3, further = first["ours"].values(), first["sb3"], more["sb3"]
    steps = range(100_000, more["settings"]["until"] + 1, 100_000)
    groups = {f"dpd, {len(ours)} seeds": ours, f"SB3, the {len(further)} further seeds": further}
    groups[f"SB3, all {len(sb3 + further)}"] = sb3 + further
    rows = []
    for name, group in groups.items():
        by_step = [[nearest(record["curve"], step) for record in group] for step in steps]
        rows.append([name, *(f"{np.mean(x):,.0f} ± {sem(x):,.0f}" for x in by_step)])
    return table(["", *(f"{step:,}" for step in steps)], "l" + "r" * len(steps), rows)


def along(groups: dict[str, list[Record]], points: int = 5) -> dict[str, dict[int, list[float]]]:
    """Return every learner's training return at steps that all have reached."""
    curves = {name: [r for r in records if r["curve"]] for name, records in groups.items()}
    last = min((r["curve"][-1][0] for records in curves.values() for r in records), default=0)
    steps = [round(last * k / points) for k in range(1, points + 1)]
    return {
        name: {step: [latest(r["curve"], step) for r in records] for step in steps}
        for name, records in curves.items()
        if records
    }


def nearest(curve: list[tuple[int, float]], step: int) -> float:
    """Return a curve's value at the point nearest to a step."""
    return min(curve, key=lambda point: abs(point[0] - step))[1]


def latest(curve: list[tuple[int, float]], step: int) -> float:
    """Return a curve's value at a step, or at the point before it."""
    return next((value for at, value in reversed(curve) if at <= step), math.nan)


def read_sb3(paths: Sequence[Path]) -> Record:
    """Join the records of files; settings and machine are those of the first.

    Exits if settings differ or a seed occurs twice.
    """
    data, *more = [json.loads(path.read_text()) for path in paths]
    for path, other in zip(paths[1:], more, strict=True):
        if any(other[key] != data[key] for key in ("settings", "algo")):
            sys.exit(f"{path} has other settings than {paths[0]}")
        data["sb3"] += other["sb3"]
    names = [record["name"] for record in data.get("sb3", ())]
    if len(set(names)) < len(names):
        sys.exit(f"a seed occurs twice in {', '.join(map(str, paths))}")
    return data


def compare(args: argparse.Namespace, console: Console) -> None:
    """Train or read SB3's runs, evaluate runs of dpd, print and write the comparison."""
    data = read_sb3(args.sb3) if args.sb3 else {}
    for name, value in data.get("settings", {}).items():
        setattr(args, name, value)  # both play the same episodes
    if not args.sb3 and args.seeds:
        data = train_all(args, console)
    ours = {str(d): our_records(d, args) for d in args.ours or ()}
    data = {"settings": {"env": args.env, "algo": args.algo}, **data, "ours": ours}
    sb3 = f"SB3 {args.algo.upper()}"
    groups: dict[str, list[Record]] = ({sb3: data["sb3"]} if "sb3" in data else {}) | ours
    summary = {name: summarise(records) for name, records in groups.items()}
    gaps = {
        name: unpaired_difference(summary[name]["each"], summary[sb3]["each"])
        for name in (ours if "sb3" in data else ())
    }
    verdicts = [verdict(name, difference) for name, difference in family(gaps).items()]
    tables = (lines(data), training_lines(data), verdicts)
    report(args.json, data | {"summary": summary, "training": along(groups)}, *tables)


def plot(files: Sequence[Path], out: Path) -> None:
    """Draw mean and range over learners, ours and SB3's: a panel for each file."""
    figure = new_figure(5.2 * len(files), 4.2, 160)
    for k, file in enumerate(files):
        data = json.loads(file.read_text())
        sb3 = next(name for name in data["summary"] if name not in data["ours"])
        groups = {f"dpd, {len(r)} seeds in one stack": r for r in data["ours"].values()}
        groups |= {f"{sb3}, {len(data['sb3'])} runs": data["sb3"]}
        axes = figure.add_subplot(1, len(files), k + 1)
        for i, (name, curve) in enumerate(along(groups, PLOTTED).items()):
            means = [float(np.mean(values)) for values in curve.values()]
            band = [(min(values), max(values)) for values in curve.values()]
            draw_line(axes, Line(name, list(curve), means, band, "range"), line_style(i))
        axes.legend(loc="upper left", frameon=False, fontsize=9.5, handlelength=1.8)
        title = f"{sb3.split()[-1]}, {data['settings']['env']}"
        set_title(axes, title, "mean and range over learners")
        format_axes(axes, max(curve), "environment steps of each learner")
        axes.set_ylabel("" if k else "training return per episode", color=INK, fontsize=10)
    save_png(figure, out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare learning with Stable-Baselines3.")
    algos = [name for name in ALGORITHMS if name != "student"]
    parser.add_argument("--algo", choices=algos, default="ppo")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--seeds", type=int, default=3, help="number of SB3 runs; may be 0")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--total-steps", type=int, default=1_000_000, help="per run of SB3")
    parser.add_argument("--until", type=int, help="stop SB3's runs at this step")
    parser.add_argument("--at-once", type=int, default=2, help="SB3 runs in parallel")
    parser.add_argument("--native", action="store_true", help="run SB3 on dpd's faster simulation")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--eval-seed", type=int, default=1_000_000)
    parser.add_argument("--sb3", type=Path, nargs="+", help="read SB3's runs from these files")
    parser.add_argument("--ours", type=Path, nargs="+", metavar="RUN_DIR", help="runs of dpd")
    parser.add_argument("--json", type=Path, help="write returns, curves and versions here")
    parser.add_argument("--plot", type=Path, nargs="+", help="only draw these files, into --out")
    parser.add_argument("--out", type=Path, help="a .png")
    args = parser.parse_args()
    if bool(args.plot) != bool(args.out):
        parser.error("--plot and --out belong together")
    least = ALGORITHMS[args.algo].settings().samples
    if args.total_steps < least:
        parser.error(f"--total-steps must be at least {least}")
    if args.seeds < 0 or args.at_once < 1 or args.episodes < 1:
        parser.error("--at-once and --episodes must be positive, --seeds not negative")
    if not (args.seeds or args.sb3 or args.ours):
        parser.error("nothing to do: give --seeds, --sb3 or --ours")
    return args


def main() -> int:
    args = parse()
    if args.plot:
        plot(args.plot, args.out)
        return 0
    for path in (args.json.parent if args.json else None, *(args.ours or ())):
        if path is not None and not path.is_dir():  # fail before the training, not after it
            sys.exit(f"{path} is not a directory")
    compare(args, make_console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
