"""Play the hybrid policy of a group beside its peers, and beside a choice at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.envs.make import make
from dpd.policies.hybrid import HybridPolicy, Judged
from dpd.policies.policyfile import require_fit
from dpd.report.report import Report, Section, Table, format_number
from dpd.report.stats import Difference, difference, family
from dpd.run.episodes import (
    ActFunction,
    EvalResult,
    episode_seeds,
    run_episodes,
    side_by_side,
)
from dpd.run.hybrid_groups import PeerGroup
from dpd.run.sources import Place
from dpd.run.summary import summary

Chooser = Callable[[Judged], Tensor]
"""Return the peer that acts [B]."""


class ChoosingActor:
    """Acts as one peer at a time, and remembers which."""

    def __init__(self, policy: HybridPolicy, chooser: Chooser) -> None:
        self.policy, self.chooser = policy, chooser
        self.turns: list[np.ndarray] = []  # of every step [K]

    def __call__(self, obs: Tensor) -> Tensor:
        """Act on raw obs [K, O] -> [K, A] in [-1, 1]."""
        judged = self.policy.judge(obs)
        who = self.chooser(judged)
        self.turns.append(who.numpy())
        return judged.chosen(who).float()

    def shares(self, lengths: np.ndarray) -> list[float]:
        """Return the share of steps that each peer acted, in episodes of these lengths [K]."""
        turns = np.stack(self.turns)  # [T, K]
        running = np.arange(len(turns))[:, None] < lengths
        counts = np.bincount(turns[running], minlength=len(self.policy.peers))
        return list(counts / max(1, counts.sum()))


def random_chooser(generator: torch.Generator) -> Chooser:
    """Return the control: every peer is equally likely at every step."""

    def choose(judged: Judged) -> Tensor:
        peers, size = judged.values.shape
        return torch.randint(peers, (size,), generator=generator)

    return choose


class GroupResult(NamedTuple):
    """Episodes of a group: its peers, its hybrid and the control, all on the same ones."""

    group: PeerGroup
    place: Place
    peers: list[EvalResult]
    hybrid: EvalResult
    control: EvalResult
    shares: list[float]
    """Share of the hybrid's steps that each peer acted."""
    random_shares: list[float]


def play_group(group: PeerGroup, place: Place, episodes: int, seed: int) -> GroupResult:
    """Play the same episodes with a group's peers, its hybrid and a choice at random.

    Raises BadInput if they do not fit the environment.
    """
    generator = torch.Generator().manual_seed(seed)
    hybrid = ChoosingActor(group.hybrid, lambda judged: judged.best)
    control = ChoosingActor(group.hybrid, random_chooser(generator))
    acts: list[ActFunction] = [*(peer.repeatable_mode for peer in group.peers), hybrid, control]
    n = len(acts)
    seeds = n * episode_seeds(seed, episodes)
    env = make(place.env_id, n * episodes, seeds, "auto", place.env_kwargs)
    with closing(env):
        require_fit(group.hybrid, env.spec)
        result = run_episodes(env, side_by_side(acts), n)
    *peers, own, theirs = [
        EvalResult(result.returns[i : i + 1], result.lengths[i : i + 1]) for i in range(n)
    ]
    return GroupResult(
        group,
        place,
        peers,
        own,
        theirs,
        hybrid.shares(own.lengths[0]),
        control.shares(theirs.lengths[0]),
    )


def group_rows(result: GroupResult) -> list[dict[str, Any]]:
    """Return the rows of a group for tables and JSON, its peers first."""
    group = result.group
    named = [
        *zip(group.names, group.peers, result.peers, strict=True),
        (group.name, group.hybrid, result.hybrid),
        (f"{group.name}-random", group.hybrid, result.control),
    ]
    rows = [summary(name, result.place, policy, played) for name, policy, played in named]
    for row in rows:
        row["seed"] = group.seed
    for row, share in zip(rows, result.shares, strict=False):
        row["share"] = share
    rows[-2]["shares"], rows[-1]["shares"] = result.shares, result.random_shares
    return rows


def differences(results: Sequence[GroupResult]) -> dict[str, Difference]:
    """Compare hybrids with their peers and the control, seed by seed, as one family.

    The better peer is the one of the better last evaluation in training, not of these episodes;
    without evaluations, that row is left out.
    """
    means = [float(result.hybrid.returns.mean()) for result in results]
    others = {
        "the mean of its peers": [
            float(np.mean([peer.returns.mean() for peer in result.peers])) for result in results
        ],
        "the choice at random": [float(result.control.returns.mean()) for result in results],
    }
    known = [result.group.evaluations for result in results]
    if all(x is not None for evaluations in known for x in evaluations):
        best = [int(np.argmax(np.array(evaluations))) for evaluations in known]
        others["its better peer in training"] = [
            float(result.peers[k].returns.mean()) for result, k in zip(results, best, strict=True)
        ]
    hybrids = dict(enumerate(means))
    return family({name: difference(dict(enumerate(x)), hybrids) for name, x in others.items()})


def hybrid_report(
    results: Sequence[GroupResult], latency: Mapping[str, Mapping[str, float]]
) -> Report:
    """Report on hybrids: returns, who acted, differences over seeds, and microseconds per action.

    `latency` has one dictionary by runtime for a peer and one for its hybrid.
    """
    rows = [row for result in results for row in group_rows(result)]
    places = sorted({str(result.place) for result in results})
    title = (
        f"Hybrid policies: {', '.join(places)}, {rows[0]['episodes']} episodes each, the same ones"
    )
    figures = ("mean", "std", "min", "max", "length")
    cells = [
        [row["policy"], *(f"{row[k]:,.0f}" for k in figures), acted(row.get("share"))]
        for row in rows
    ]
    columns = ["policy", "return", "± std", "min", "max", "length", "acts in the hybrid"]
    tables = [Table(title, columns, cells)]
    data: dict[str, Any] = {"policies": rows, "latency_us": latency}
    if len(results) > 1:
        compared = differences(results)
        data["differences"] = {name: d._asdict() for name, d in compared.items()}
        tables.append(
            Table(
                f"Return of the hybrid minus that of others, over {len(results)} groups",
                ["compared with", "difference", "95 %", "p", "adjusted p", "hybrid is"],
                [
                    [name, *map(format_number, (d.mean, d.interval, d.p, d.p_adjusted)), d.verdict]
                    for name, d in compared.items()
                ],
            )
        )
    notes = [
        f"one action of {name} takes "
        + ", ".join(f"{format_number(us)} µs in {runtime}" for runtime, us in own.items())
        for name, own in latency.items()
    ]
    return Report(sections=[Section(tables=tables)], data=data, framed=True, notes=notes)


def acted(share: float | None) -> str:
    """Format a share of steps."""
    return "" if share is None else f"{share:.1%}"
