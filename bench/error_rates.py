"""Measure the error rate of verdicts between equal methods, and the coverage of intervals.

python bench/error_rates.py --json bench/results/error-rates.json        two minutes

The verdicts are those of `dpd compare`, `study` and `cooperate`: dpd/report/stats.py computes p
values, Holm's adjustment and the verdict for thousands of null experiments at once. (This file must
not be called statistics.py, which would hide Python's module from every benchmark.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from marked import report, table

from dpd.report.stats import (
    bootstrap_interval,
    difference_verdict,
    holm,
    iqm,
    mean_interval,
    sign_flip_p,
    welch,
)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SCORES: dict[str, Draw] = {
    "Gaussian": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.gamma(2, size=shape),  # skewness 1.4
    "very skewed": lambda rng, shape: rng.lognormal(size=shape),  # skewness 6.2
}
SEEDS = (6, 10, 20)
NULLS = {6: 40_000, 10: 10_000, 20: 2_000}
FAMILIES = 2_000
ARMS = 7
COVERED = (6, 10, 20)


def verdicts(first: np.ndarray, others: np.ndarray, is_paired: bool) -> np.ndarray:
    """Return the verdicts on others [E, m, n] against first [E, n] of E experiments, [E, m]."""
    first, n = first[:, None], first.shape[-1]
    p = sign_flip_p(others - first) if is_paired else welch(others, first).pvalue
    apart = (others - first).mean(-1)
    m = others.shape[1]
    words = [
        [difference_verdict(mean, q, n, m) for mean, q in zip(*experiment, strict=True)]
        for experiment in zip(apart.tolist(), holm(p).tolist(), strict=True)
    ]
    return np.array(words)


def error_rate(scores: str, n: int, is_paired: bool, nulls: int, arms: int = 1) -> float:
    """Return the share of null experiments in which any arm is called higher or lower."""
    rng, draw = np.random.default_rng(n), SCORES[scores]
    first, others = draw(rng, (nulls, n)), draw(rng, (nulls, arms, n))
    words = verdicts(first, others, is_paired)
    return float(np.isin(words, ("higher", "lower")).any(1).mean())


def coverage(scores: str, n: int, nulls: int) -> dict[str, float]:
    """Return how often 95 % intervals contain the truth: t of a mean, bootstrap of an IQM."""
    rng, draw = np.random.default_rng(n), SCORES[scores]
    many = draw(rng, (1_000_000,))
    mean, middle = float(many.mean()), float(iqm(many))
    held = {"t interval of the mean": 0, "bootstrap interval of the IQM": 0}
    for values in draw(rng, (nulls, n)).tolist():
        intervals = (mean_interval(values), bootstrap_interval(iqm, [values], 0))
        for name, interval, truth in zip(held, intervals, (mean, middle), strict=True):
            held[name] += interval is not None and interval.low <= truth <= interval.high
    return {name: count / nulls for name, count in held.items()}


def measure(nulls: int) -> dict[str, Any]:
    """Return all rates."""
    kinds = {"paired": True, "unpaired": False}
    return {
        "one": [
            {"scores": s, "seeds": kind, **{str(n): error_rate(s, n, p, NULLS[n]) for n in SEEDS}}
            for s in SCORES
            for kind, p in kinds.items()
        ],
        "family": [
            {"scores": s, "seeds": kind, "10": error_rate(s, 10, p, FAMILIES, ARMS)}
            for s in SCORES
            for kind, p in kinds.items()
        ],
        "coverage": [
            {"scores": s, "n": n, **coverage(s, n, nulls)}
            for s in ("Gaussian", "skewed")
            for n in COVERED
        ],
    }


def lines(rates: dict[str, Any]) -> list[str]:
    """Lay out the tables."""
    head = ["scores", "seeds", *(f"{n} seeds" for n in SEEDS), f"{ARMS} arms, 10 seeds: any"]
    rows = []
    for one, of_family in zip(rates["one"], rates["family"], strict=True):
        cells = [f"{one[str(n)]:.1%}" for n in SEEDS] + [f"{of_family['10']:.1%}"]
        rows.append([one["scores"], one["seeds"], *cells])
    coverages = []
    for scores in dict.fromkeys(row["scores"] for row in rates["coverage"]):
        same = [row for row in rates["coverage"] if row["scores"] == scores]
        for name in list(same[0])[2:]:
            coverages.append([scores, name, *(f"{row[name]:.0%}" for row in same)])
    second = ["scores", "interval", *(f"{n} seeds" for n in COVERED)]
    return [*table(head, "llrrrr", rows), "", *table(second, "ll" + "r" * len(COVERED), coverages)]


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="Error rates of verdicts between equal methods.")
    parser.add_argument("--nulls", type=int, default=1_000, help="samples for the coverage")
    parser.add_argument("--json", type=Path, help="write the rates here")
    args = parser.parse_args()
    data = measure(args.nulls)
    report(args.json, data, lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
