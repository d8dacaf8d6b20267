"""Time the memory's exact search against an approximate index, at realistic sizes.

python bench/neighbours.py runs/teacher/policies/seed0-peer0.safetensors --json bench/results/x.json

Keys are the teacher's last hidden layer at states of its own noisy episodes, randomly projected to
the unit sphere; queries come from other states. Contenders take turns on one thread. A time is the
CPU time of the fastest call, because other programs only slow calls down. Without faiss (pip
install faiss-cpu) only the exact search is timed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from marked import report, table
from timing import require_quiet
from torch import Tensor

from dpd.envs.native import NativeEnv
from dpd.policies.memory import Neighbours, unit
from dpd.policies.policyfile import Policy, load

BATCHES = (1, 20, 256)
K, NOISE, ENVS = 8, 0.3, 50
LINKS, EF = 32, (16, 64)  # HNSW: links per node, widths of the search

Search = Callable[[Tensor], np.ndarray]


def keys_of(policy: Policy, n: int, dim: int, seed: int) -> Tensor:
    """Return keys [n, dim] at states of a policy's noisy episodes."""
    env = NativeEnv(policy.meta.env_id, ENVS, list(range(seed, seed + ENVS)), 1)
    noise, obs, seen = torch.Generator().manual_seed(seed), env.reset(), []
    for _ in range(-(-n // ENVS)):
        act = policy.mode(obs)
        act = (act + NOISE * torch.randn(act.shape, generator=noise)).clamp(-1, 1)
        obs = env.step(act).obs
        seen.append(policy.features(obs))
    features = torch.cat(seen)[:n]
    width = features.shape[1]
    projection = torch.randn(width, dim, generator=torch.Generator().manual_seed(0))
    return unit(features @ projection * width**-0.5)


def exact(keys: Tensor) -> Search:
    """Return the search of a policy file's memory."""
    stored = Neighbours.of(keys.unsqueeze(0), keys[:, :1].unsqueeze(0), K, 0.1)
    return lambda query: stored.find(query.unsqueeze(0))[1][0].numpy()


def graph(keys: Tensor, ef: int) -> Search:
    """Return a search of a neighbour graph (HNSW: Malkov and Yashunin 2018)."""
    import faiss

    index = faiss.IndexHNSWFlat(keys.shape[1], LINKS)
    index.add(keys.numpy())
    index.hnsw.efSearch = ef

    def search(query: Tensor) -> np.ndarray:
        nearest: np.ndarray = index.search(query.numpy(), K)[1]
        return nearest

    return search


def recall(nearest: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the true neighbours [n, K] in a search's result."""
    pairs = zip(nearest, truth, strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in pairs]))


def measure(policy: Policy, entries: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per search and batch size."""
    keys = keys_of(policy, entries, args.dim, 0)
    queries = keys_of(policy, 2000, args.dim, 10_000)
    contenders, built = {"exact": exact(keys)}, {"exact": 0.0}
    if find_spec("faiss"):
        for ef in EF:
            begin = time.thread_time()
            contenders[f"HNSW, ef {ef}"] = graph(keys, ef)
            built[f"HNSW, ef {ef}"] = time.thread_time() - begin
    truth = contenders["exact"](queries)
    recalls = {name: recall(search(queries), truth) for name, search in contenders.items()}
    rows = []
    for batch in BATCHES:
        some = queries[:batch].contiguous()
        times = fastest(contenders, some, args.repeats, args.seconds)
        rows += [
            {
                "entries": entries,
                "search": name,
                "batch": batch,
                "ms": 1e3 * times[name],
                "recall": recalls[name],
                "build_s": built[name],
            }
            for name in contenders
        ]
    return rows


def fastest(
    contenders: Mapping[str, Search], queries: Tensor, repeats: int, seconds: float
) -> dict[str, float]:
    """Time single calls in turns; return the least CPU seconds of each contender."""
    best = dict.fromkeys(contenders, math.inf)
    for _ in range(repeats):
        for name, search in contenders.items():
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                begin = time.thread_time()
                search(queries)
                best[name] = min(best[name], time.thread_time() - begin)
    return best


def lines(data: dict[str, Any]) -> list[str]:
    """Lay out a row per search and size."""
    rows = data["rows"]
    head = ["entries", "search", *(f"{b} at once, ms" for b in BATCHES), "recall", "built in, s"]
    laid_out = []
    for row in (r for r in rows if r["batch"] == BATCHES[0]):
        same = (r for r in rows if (r["entries"], r["search"]) == (row["entries"], row["search"]))
        cells = [f"{row['entries']:,}", row["search"], *(f"{r['ms']:.3g}" for r in same)]
        laid_out.append([*cells, f"{row['recall']:.3f}", f"{row['build_s']:.1f}"])
    return table(head, "rl" + "r" * (len(head) - 2), laid_out)


def main() -> int:
    """Measure on one thread, and print the table."""
    parser = argparse.ArgumentParser(description="Exact and approximate search of a memory.")
    parser.add_argument("policy", type=Path)
    parser.add_argument("--entries", nargs="+", type=int, default=[10_000, 50_000])
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, required=True, help="all times")
    args = parser.parse_args()
    data = require_quiet(args.force)
    torch.set_num_threads(1)
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
    rows = [row for n in args.entries for row in measure(load(args.policy), n, args)]
    data["settings"] = {"k": K, "dim": args.dim, "links": LINKS, "noise": NOISE}
    data["rows"] = rows
    report(args.json, data, lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
