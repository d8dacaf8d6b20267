"""`dpd evaluate`: deterministic episodes of saved policies, and videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpd.policies.policyfile import Policy
from dpd.report.outcome import EvaluationOutcome
from dpd.run.episodes import evaluate_together
from dpd.run.hybrid import hybrid_report, play_group
from dpd.run.hybrid_groups import read_groups
from dpd.run.saved import RunReader
from dpd.run.sources import (
    Place,
    find_policies,
    load_any,
    place_of,
    refuse_shared_statistics,
    refuse_zip_settings,
)
from dpd.run.summary import evaluation_report, summary
from dpd.run.video import record_video

if TYPE_CHECKING:
    from dpd.policies.config import EvaluateConfig

Latencies = Callable[[Policy], dict[str, float]]
"""Measures a policy's microseconds per action, by runtime."""


def evaluate_saved(
    config: EvaluateConfig, read_settings: RunReader, measure: Latencies
) -> EvaluationOutcome:
    """Evaluate policies, or the hybrid policies of groups; a video, if any, is the last step."""
    if config.hybrid:
        return evaluate_hybrids(config, read_settings, measure)
    return evaluate_paths(config)


def evaluate_hybrids(
    config: EvaluateConfig, read_settings: RunReader, measure: Latencies
) -> EvaluationOutcome:
    """Play the hybrid policy of every group beside its peers.

    `measure` times the first group. Raises BadInput for a path that has no hybrid policy.
    """
    groups = []
    for path in config.paths:
        refuse_zip_settings(path, config.foreign)
        groups += read_groups(path, read_settings)
    results = [
        play_group(g, place_of(g.name, g.hybrid, config.foreign), config.episodes, config.seed)
        for g in groups
    ]
    first = groups[0]
    timed = {first.names[0]: first.peers[0], first.name: first.hybrid}
    latency = {name: measure(policy) for name, policy in timed.items()}
    video = video_step(config, first.hybrid, results[0].place)
    return EvaluationOutcome(report=hybrid_report(results, latency), last=video)


def video_step(config: EvaluateConfig, policy: Policy, place: Place) -> Callable[[], None] | None:
    """Return the step that records a video, if it is asked for."""
    if config.video is None:
        return None
    # looked up when it runs
    return lambda: record_video(policy, place, config.video, config.seed)  # type: ignore[arg-type]


def evaluate_paths(config: EvaluateConfig) -> EvaluationOutcome:
    """Evaluate every policy; a video, if asked for, is the last step."""
    files = [f for path in config.paths for f in find_policies(path)]
    refuse_shared_statistics(files, config.foreign)
    policies = {f: load_any(f, config.foreign, with_hybrids=True) for f in files}
    places = {f: place_of(f, policy, config.foreign) for f, policy in policies.items()}
    # Policies of one environment are evaluated side by side in one vector environment.
    groups: dict[str, list[Path]] = {}
    for file, place in places.items():
        groups.setdefault(json.dumps(place, sort_keys=True), []).append(file)
    summaries: dict[Path, dict[str, Any]] = {}
    for group in groups.values():
        together, place = [policies[f] for f in group], places[group[0]]
        outcomes = evaluate_together(
            together, place.env_id, config.episodes, config.seed, env_kwargs=place.env_kwargs
        )
        for file, policy, outcome in zip(group, together, outcomes, strict=True):
            summaries[file] = summary(str(file), place, policy, outcome)
    rows = [summaries[file] for file in policies]
    file, first = next(iter(policies.items()))
    video = video_step(config, first, places[file])
    return EvaluationOutcome(report=evaluation_report(rows), last=video)
