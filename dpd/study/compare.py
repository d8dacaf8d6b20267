"""`dpd compare`: evaluate runs on fresh episodes, with intervals over seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.progress import Progress

from dpd.errors import BadInput
from dpd.log.terminal import make_console
from dpd.report.figures import Line, compared_curves
from dpd.report.panels import seeds_line
from dpd.report.report import Report, Section, Table, format_number
from dpd.report.stats import (
    BOOTSTRAP_SEEDS,
    CONFIDENCE,
    NARROW,
    Difference,
    bootstrap_interval,
    difference,
    family,
    iqm,
    least_seeds,
    mean_over_steps,
)
from dpd.report.studied import ComparisonOutcome
from dpd.run.episodes import evaluate_policy
from dpd.run.sources import Run, SavedLearner, read_run, short_names

if TYPE_CHECKING:
    from dpd.study.config import CompareConfig, StudyConfig

TEST_COLUMNS = ["95 % interval", "p", "p adj.", "verdict"]
COMPARE_EPISODES = 2_000_003  # keeps these episodes apart from training and `dpd evaluate`


class EvaluatedPolicy(NamedTuple):
    """A learner's last policy and its returns in the test episodes."""

    member: SavedLearner
    returns: np.ndarray  # [K]

    @property
    def mean(self) -> float:
        """Mean return over the episodes."""
        return float(self.returns.mean())


@dataclass(frozen=True)
class RunResult:
    """A run and its policies, evaluated.

    The seed is the unit of replication, because the peers of a seed are not independent.
    """

    run: Run
    seeds: dict[int, list[EvaluatedPolicy]]
    """The peers of each seed."""

    @property
    def scores(self) -> dict[int, float]:
        """Mean return over the peers, by seed."""
        return {s: float(np.mean([p.mean for p in peers])) for s, peers in self.seeds.items()}

    @property
    def best_scores(self) -> dict[int, float] | None:
        """Mean return of the best peer by seed; None if a seed's best peer is unknown."""
        best = {seed: best_peer(peers) for seed, peers in self.seeds.items()}
        scores = {seed: peer.mean for seed, peer in best.items() if peer is not None}
        return scores if len(scores) == len(best) else None

    @property
    def curves(self) -> tuple[list[int], np.ndarray]:
        """Steps of the evaluations in training [K], and returns by seed [n, K]."""
        curve = self.run.curve
        return list(curve), np.array(list(curve.values())).T

    @property
    def areas(self) -> dict[int, float] | None:
        """Mean return over the steps of training, by seed; None without evaluations."""
        steps, curves = self.curves
        if not steps or len(curves) != len(self.seeds):
            return None
        return dict(zip(sorted(self.seeds), mean_over_steps(steps, curves).tolist(), strict=True))

    @property
    def seconds(self) -> float | None:
        """Training time of all seeds without evaluations; None if unknown."""
        return None if self.run.records is None else self.run.records.seconds

    def returns_after(self, seconds: float) -> dict[int, float] | None:
        """Return the evaluations in training after some seconds of it, by seed; None if unknown.

        All steps count as equally long. Linear between two evaluations, and the last one from the
        end of training on.
        """
        steps, curves = self.curves
        if not self.seconds or self.areas is None:
            return None
        at = steps[-1] * seconds / self.seconds
        found = [float(np.interp(at, steps, curve)) for curve in curves]
        return dict(zip(sorted(self.seeds), found, strict=True))

    def statistics(self, seed: int) -> dict[str, Any]:
        """Return statistics over seeds; `seed` is that of the bootstrap."""
        scores, best = list(self.scores.values()), self.best_scores
        return {
            "mean": float(np.mean(scores)),
            "iqm": float(iqm(scores)),
            "iqm_interval": bootstrap_interval(iqm, [scores], seed),
            "worst": min(scores),
            "best": max(scores),
            "best_peer": None if best is None else float(np.mean(list(best.values()))),
        }


def best_peer(peers: Sequence[EvaluatedPolicy]) -> EvaluatedPolicy | None:
    """Return the peer with the best last evaluation in training; None if one is missing.

    Choosing by the test episodes would favour methods with many peers.
    """
    if len(peers) == 1:
        return peers[0]
    evaluations = [peer.member.evaluation for peer in peers]
    known = [e for e in evaluations if e is not None]
    return peers[evaluations.index(max(known))] if known == evaluations else None


def compare_paths(config: CompareConfig) -> ComparisonOutcome:
    """Evaluate the last policies of all runs, and draw their curves."""
    if not os.access(config.out.parent, os.W_OK):
        raise BadInput(f"cannot write {config.out}: no such directory, or not writable; see --out")
    names = short_names(config.paths)
    runs = [read_run(path, name) for path, name in zip(config.paths, names, strict=True)]
    require_one_env(runs)
    results, notes = evaluate_runs(runs, config), comparison_notes(runs)
    has_curves = any(run.curve for run in runs)
    if has_curves:
        compared_curves([curve_line(r, config.seed) for r in results], config.out, runs[0].env[0])
    else:
        notes.append(f"{config.out} was not drawn: no PATH has learning curves")
    return ComparisonOutcome(
        report=comparison_report(config, results, notes),
        lines=[f"curves  {config.out}"] if has_curves else [],
        curves=config.out if has_curves else None,
    )


def require_one_env(runs: Sequence[Run]) -> None:
    """Raise BadInput unless all policies act in the same environment."""
    seen = [
        (run, m.policy.meta.env_id, m.policy.meta.env_kwargs) for run in runs for m in run.members
    ]
    first, env, kwargs = seen[0]
    for run, other_env, other_kwargs in seen:
        if (other_env, other_kwargs) != (env, kwargs):
            raise BadInput(
                f"{first.name} was trained in {env} {json.dumps(kwargs)}, {run.name} in "
                f"{other_env} {json.dumps(other_kwargs)}; compare runs of one environment"
            )


def evaluate_runs(runs: Sequence[Run], config: CompareConfig | StudyConfig) -> list[RunResult]:
    """Evaluate all policies on test episodes, which all runs share for each seed."""
    results = []
    with Progress(console=make_console(stderr=True, highlight=False), transient=True) as progress:
        task = progress.add_task("", total=sum(len(run.members) for run in runs))
        for run in runs:
            progress.update(task, description=f"evaluating {run.name}")
            result = RunResult(run, {seed: [] for seed in run.seeds})
            for m in run.members:
                seed = episodes_seed(config.seed, m.seed)
                played = evaluate_policy(
                    m.policy, run.env[0], config.episodes, seed, config.threads
                )
                result.seeds[m.seed].append(EvaluatedPolicy(m, nine_digits(played.returns[0])))
                progress.advance(task)
            results.append(result)
    return results


def nine_digits(values: np.ndarray) -> np.ndarray:
    """Round to nine digits, as in metrics.csv: a report then follows exactly from its file."""
    return np.array([float(f"{value:.9g}") for value in values])


def episodes_seed(seed: int, training_seed: int) -> int:
    """Return a seed for episodes that neither training nor its evaluations used."""
    words = np.random.SeedSequence([seed, COMPARE_EPISODES, training_seed]).generate_state(
        1, np.uint64
    )
    return int(words[0])


def comparison_notes(runs: Sequence[Run]) -> list[str]:
    """Return warnings about a weak or unfair comparison."""
    notes = []
    compared = len(runs) - 1
    least = least_seeds(compared)
    few = [f"{run.name} has {len(run.seeds)}" for run in runs if len(run.seeds) < least]
    if few:
        of = "a difference" if compared == 1 else f"{compared} differences"
        notes.append(f"fewer than {least} seeds cannot decide {of}: {', '.join(few)}")
    if any(1 < len(run.seeds) < BOOTSTRAP_SEEDS for run in runs):
        notes.append(NARROW)
    if not uses_equal_steps(runs):
        used = ", ".join(f"{run.name} {steps_text(run)}" for run in runs)
        notes.append(f"unfair: the runs differ in environment steps per seed: {used}")
    notes += [
        f"{run.name} is not finished: {steps_text(run)} of {run.budget:,} steps"
        for run in runs
        if run.is_unfinished
    ]
    if compared > 1:
        notes.append(
            f"p adj. is adjusted by Holm's method for {compared} differences and decides the "
            "verdicts; the intervals are not adjusted"
        )
    return notes


def uses_equal_steps(runs: Sequence[Run]) -> bool:
    """Return whether all runs used the same environment steps per seed, or none recorded them."""
    return len({frozenset(run.steps) for run in runs}) == 1


def steps_text(run: Run) -> str:
    """Format a run's environment steps per seed."""
    if not run.steps:
        return "unknown"
    low, high = min(run.steps), max(run.steps)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def curve_line(result: RunResult, seed: int) -> Line:
    """Return a run's learning curve over seeds, or without one the level of its test episodes."""
    curve, n_seeds = result.run.curve, len(result.run.seeds)
    name = f"{result.run.name} ({n_seeds} seed{'s' * (n_seeds > 1)})"
    if not curve:
        return Line(name, [], [float(np.mean(list(result.scores.values())))], [], "")
    return seeds_line(name, curve, seed)


def comparison_report(
    config: CompareConfig, results: Sequence[RunResult], notes: Sequence[str]
) -> Report:
    """Compare all runs with the first one; the data include raw returns."""
    first, *others = results
    differences = family({r.run.name: difference(first.scores, r.scores) for r in others})
    rows = []
    for name, d, r in zip(differences, differences.values(), others, strict=True):
        pairs = f"{len(r.scores)} pairs" if d.paired else f"{len(r.scores)} and {len(first.scores)}"
        rows.append([name, pairs, *difference_cells(d)])
    title = f"Mean return minus that of {first.run.name}"
    differences_table = Table(title, ["run", "seeds", "difference", *TEST_COLUMNS], rows)
    env, env_kwargs = first.run.env
    runs = [result_json(r, config.seed) for r in results]
    data = {
        "env": env,
        "env_kwargs": env_kwargs,
        "episodes": config.episodes,
        "seed": config.seed,
        "confidence": CONFIDENCE,
        "runs": runs,
        "differences": [
            {"run": run, "minus": first.run.name, **d._asdict()} for run, d in differences.items()
        ],
        "notes": list(notes),
    }
    tables = [run_returns_table(config, [r.run for r in results], runs), differences_table]
    return Report(sections=[Section(tables=tables)], data=data, notes=notes)


def run_returns_table(
    config: CompareConfig, runs: Sequence[Run], results: Sequence[dict[str, Any]]
) -> Table:
    """Return a table of each run's returns over seeds, from its JSON."""
    steps = f", {steps_text(runs[0])} steps per seed" if uses_equal_steps(runs) else ""
    title = f"{runs[0].env[0]}{steps}\n{config.episodes} fresh episodes per policy, "
    figures = ("mean", "iqm", "iqm_interval", "worst", "best", "best_peer")
    columns = ["run", "seeds", "mean", "IQM", "95 % interval", "worst", "best", "best peer"]
    rows = [
        [r["run"], str(len(r["seeds"])), *(format_number(r[k]) for k in figures)] for r in results
    ]
    return Table(title + "mean of a seed's peers", columns, rows)


def difference_cells(d: Difference) -> list[str]:
    """Return the cells of a difference: its mean and TEST_COLUMNS."""
    return [*map(format_number, (d.mean, d.interval, d.p, d.p_adjusted)), d.verdict]


def result_json(result: RunResult, seed: int) -> dict[str, Any]:
    """Return a run's statistics, and the returns and evaluations they are computed from."""
    run, steps = result.run, list(result.run.curve)
    return {
        "run": run.name,
        "path": str(run.path),
        "steps": sorted(run.steps),
        "budget": run.budget,
        "seconds": result.seconds,
        **result.statistics(seed),
        "evaluation_steps": steps,
        "seeds": [
            {
                "seed": s,
                "score": result.scores[s],
                "best_peer": best.member.peer if (best := best_peer(peers)) else None,
                "peers": [
                    peer_json(peer) | {"evaluations": evaluations_of(run, peer.member, steps)}
                    for peer in peers
                ],
            }
            for s, peers in result.seeds.items()
        ],
    }


def peer_json(peer: EvaluatedPolicy) -> dict[str, Any]:
    """Return the returns of a policy."""
    return {
        "peer": peer.member.peer,
        "policy": str(peer.member.file),
        "last_evaluation": peer.member.evaluation,
        "mean": peer.mean,
        "returns": peer.returns.tolist(),
    }


def evaluations_of(run: Run, member: SavedLearner, steps: Sequence[int]) -> list[float]:
    """Return a learner's evaluations in training at some steps."""
    known = {} if run.records is None else run.records.evaluations
    learner = known.get((member.seed, member.peer), {})
    return [learner[step] for step in steps if step in learner]
