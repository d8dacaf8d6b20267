"""`dpd cooperate`: read policies, let them teach each other, and write the results.

The file cooperative.json and the policies hold all that a resumed cooperation needs.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from dpd.cooperate.config import NOT_SAVED, CooperateConfig, cooperation_file
from dpd.cooperate.rounds import Pair, Round, Trial, cooperate
from dpd.cooperate.simulator import PURPOSES, Budget, BudgetExceeded, Simulator
from dpd.envs.arguments import native_task
from dpd.envs.base import UnsupportedEnv
from dpd.envs.make import check, ranges_of
from dpd.errors import BadInput
from dpd.log.terminal import make_console, steps_progress
from dpd.policies.policyfile import Policy, load, require_bounds, require_fit
from dpd.policies.views import refuse_view
from dpd.report.report import require_writable
from dpd.report.stats import (
    CONFIDENCE,
    Difference,
    family,
    least_seeds,
    mean_interval,
    paired_difference,
)
from dpd.report.studied import CooperationOutcome
from dpd.run.sources import (
    Place,
    load_together,
    moved,
    one_policy,
    require_place,
    short_names,
)


class CooperatingPolicy(NamedTuple):
    """A policy that cooperates, and its origin."""

    name: str
    file: Path
    origin: dict[str, Any]
    """Name, digest, algorithm and steps, stored in the improved policies."""
    policy: Policy


@dataclass(kw_only=True)
class Cooperation:
    """State of a cooperation so far. Letters: k policies · K episodes."""

    subjects: list[CooperatingPolicy]
    env_id: str
    config: CooperateConfig
    budget: Budget
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Simulator steps at the end of each round."""
    before: np.ndarray | None = None  # [k, K]
    after: np.ndarray | None = None  # [k, K], the same episodes
    ended_by: BudgetExceeded | None = None
    """Step that exceeded the budget, if the rounds ended early."""
    stopped: bool = False
    """True if the user interrupted the rounds."""
    is_finished: bool = False
    """True if a saved cooperation includes the evaluation after its last round."""

    @property
    def policies(self) -> list[Policy]:
        """The current policies."""
        return self.rounds[-1].policies if self.rounds else [s.policy for s in self.subjects]

    def name(self, k: int) -> str:
        """Return the name of policy k."""
        return self.subjects[k].name

    @property
    def gains(self) -> list[Difference]:
        """Gains of all policies over the same episodes, as one family; empty before the end."""
        if self.before is None or self.after is None:
            return []
        gaps = (self.after - self.before).tolist()
        return list(family({str(k): paired_difference([g]) for k, g in enumerate(gaps)}).values())

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as stored in cooperative.json."""
        saved = {k: v for k, v in asdict(self.config).items() if k not in NOT_SAVED}
        return {k: str(v) if isinstance(v, Path) else v for k, v in saved.items()}

    def remarks(self) -> Iterator[str]:
        """Yield notes on the steps used, an early end and weak evidence."""
        done = f"the policies are those of round {len(self.rounds)}"
        if not self.rounds:
            done = "no round was completed, and nothing was written"
        resume = f"; resume with: dpd cooperate --resume {shlex.quote(str(self.config.out))}"
        if self.stopped:
            yield f"stopped; {done}{resume if self.rounds else ''}"
        if self.ended_by is not None:
            yield f"the budget ended in round {len(self.rounds) + 1}: {self.ended_by}; {done}"
        used = " · ".join(f"{what} {n:,}" for what, n in self.budget.used.items())
        yield f"simulator steps  {self.budget.spent:,} of {self.budget.total:,}: {used}"
        least = least_seeds(len(self.subjects))
        if self.config.episodes < least:
            yield (
                f"note: fewer than {least} episodes cannot decide the gains of "
                f"{len(self.subjects)} policies"
            )


def cooperate_paths(config: CooperateConfig) -> CooperationOutcome:
    """Run all rounds, and write the policies and the report.

    Ctrl-C keeps the policies of the last completed round.
    """
    outcome = new_cooperation(config) if config.resume is None else read_cooperation(config)
    budget, console = outcome.budget, make_console(stderr=True, highlight=False)
    task = native_task(outcome.env_id, outcome.env_kwargs)
    with closing(Simulator(task, budget, outcome.config)) as world:
        total = min(budget.total, budget.spent + most_steps_left(world, outcome))
        with steps_progress(console, total, budget.spent) as budget.tell:
            status = run_rounds(world, outcome, console)
    return describe_cooperation(outcome, status)


def run_rounds(world: Simulator, outcome: Cooperation, console: Console) -> int:
    """Evaluate, run the remaining rounds and evaluate again; return the exit status."""
    from dpd.cooperate.report import round_line, write_cooperation

    budget, first = outcome.budget, len(outcome.rounds) + 1
    try:
        budget.reserved = len(outcome.subjects) * world.most_steps("evaluation")
        if outcome.before is None:
            outcome.before = world.evaluate([p.repeatable_mode for p in outcome.policies])
        try:
            for finished in cooperate(world, outcome.policies, outcome.config, first):
                outcome.rounds.append(finished)
                outcome.steps.append(budget.spent)
                write_cooperation(outcome)
                console.print(round_line(outcome), soft_wrap=True)
        except BudgetExceeded as spent:
            outcome.ended_by = spent
        if outcome.rounds:
            outcome.after = world.evaluate([p.repeatable_mode for p in outcome.policies])
            write_cooperation(outcome)
    except KeyboardInterrupt:
        outcome.stopped = True
    return 130 if outcome.stopped else 0


def most_steps_left(world: Simulator, outcome: Cooperation) -> int:
    """Return an upper bound on the remaining simulator steps.

    Raises BadInput if all rounds are done or the budget allows none.
    """
    # k: policies; n: probe states of all of them
    c, k, done = outcome.config, len(outcome.subjects), len(outcome.rounds)
    if done and done >= c.rounds and outcome.is_finished:
        raise BadInput(f"all {done} rounds are done; raise --rounds")
    evaluations = (1 if done else 2) * k * world.most_steps("evaluation")
    if outcome.budget.spent + evaluations >= c.total_steps:
        used = f" and the {outcome.budget.spent:,} steps already taken" if done else ""
        when = "after" if done else "before and after"
        raise BadInput(
            f"--total-steps {c.total_steps:,} only covers the evaluations {when}, which take "
            f"{evaluations:,} steps{used}; raise it, or lower --episodes"
        )
    n = k * c.probes
    held = round(c.holdout * n)
    per_round = k * min(c.probe_envs, c.probes) * c.probe_steps + (k * n + k * held) * c.horizon
    if c.wants_counterfactuals:
        per_round += 2 * (n - held) * c.horizon
    per_round += 2 * k * world.most_steps("trial")
    return max(c.rounds - done, 0) * per_round + evaluations


def describe_cooperation(outcome: Cooperation, status: int) -> CooperationOutcome:
    """Return the results and the paths of the files."""
    from dpd.cooperate.report import cooperation_report

    out, lines = outcome.config.out, list(outcome.remarks())
    page = out / "cooperative.html" if outcome.rounds else None
    if page is not None:
        lines += [f"policies  {out / 'policies'}", f"report    {page}"]
    report = cooperation_report(outcome)
    return CooperationOutcome(report=report, page=page, status=status, lines=lines, out=out)


def new_cooperation(config: CooperateConfig) -> Cooperation:
    """Start a cooperation: read policies that fit each other and check the output directory."""
    subjects, (env_id, kwargs) = read_policies(config)
    require_writable(config.out)
    if (config.out / "policies").exists():
        raise BadInput(f"{config.out} already holds policies; choose another --out")
    budget = Budget(config.total_steps)
    return Cooperation(
        subjects=subjects, env_id=env_id, config=config, budget=budget, env_kwargs=kwargs
    )


def read_policies(config: CooperateConfig) -> tuple[list[CooperatingPolicy], Place]:
    """Return all policies and their task.

    Raises BadInput or NotAPolicy if a policy can't be read, or if they do not fit each other and a
    task whose states can be restored.
    """
    files, names = [one_policy(path) for path in config.paths], short_names(config.paths)
    if len({file.resolve() for file in files}) < len(files):
        raise BadInput("a policy is given twice; give each once")
    policies, place = load_together(names, files, config.foreign)
    for policy in policies:
        refuse_view(policy, "dpd cooperate")
    if (kwargs := config.foreign.parsed_env_kwargs()) is not None:
        policies = [moved(policy, Place(policy.meta.env_id, kwargs)) for policy in policies]
    subjects = []
    for name, file, policy in zip(names, files, policies, strict=True):
        digest, meta = hashlib.sha256(file.read_bytes()).hexdigest(), policy.meta
        steps = meta.provenance.get("steps")
        origin = {"name": name, "sha256": digest, "algo": meta.algo, "steps": steps}
        subjects.append(CooperatingPolicy(name, file, origin, policy))
    require_fit_task(place, subjects, config.foreign.env is not None)
    return subjects, place


def require_fit_task(
    place: Place, subjects: list[CooperatingPolicy], is_given: bool = True
) -> None:
    """Raise BadInput unless all policies fit a task whose states can be restored.

    They must have been trained in one environment, unless the user gave one (`is_given`).
    """
    try:
        for subject in subjects:
            if ranges_of(place.env_id, subject.policy.meta.env_kwargs):
                raise UnsupportedEnv(f"{subject.name} acts in episodes of different models")
            # or its arguments would be dropped silently
            require_place(subject.name, subject.policy, place, f"{subjects[0].name} in")
        spec = check(place.env_id, "native", place.env_kwargs)
    except UnsupportedEnv as error:
        raise BadInput(f"cooperation needs restorable states of the task: {error}") from error
    first = subjects[0]
    for name, _, _, policy in subjects:
        require_fit(policy, spec, name)
        if policy.meta.env_id != first.policy.meta.env_id and not is_given:
            raise BadInput(
                f"{name} was trained in {policy.meta.env_id}, {first.name} in "
                f"{first.policy.meta.env_id}; choose one with --env"
            )
        require_bounds(policy, spec, name)


def cooperation_json(outcome: Cooperation) -> dict[str, Any]:
    """Return the contents of cooperative.json: everything measured, raw returns included."""
    rounds = zip(outcome.rounds, outcome.steps, strict=True)
    return {
        "env": outcome.env_id,
        "env_kwargs": outcome.env_kwargs,
        "confidence": CONFIDENCE,
        "settings": outcome.settings,
        "steps": {"total": outcome.budget.spent, **outcome.budget.used},
        "ended_early": None if outcome.ended_by is None else str(outcome.ended_by),
        "policies": policies_json(outcome),
        "rounds": [
            {
                "round": r.number,
                "steps": n,
                "pairs": [p._asdict() for p in r.pairs],
                "trials": r.trials and [{**t._asdict(), "passed": t.passed} for t in r.trials],
                "drift_competent": r.drift,
            }
            for r, n in rounds
        ],
    }


def policies_json(outcome: Cooperation) -> list[dict[str, Any]]:
    """Return the figures of every policy, raw returns included."""
    records: list[dict[str, Any]] = []
    for k, subject in enumerate(outcome.subjects):
        records.append({**subject.origin, "file": str(subject.file)})
        for name, returns in (("before", outcome.before), ("after", outcome.after)):
            if returns is not None:
                records[k][f"return_{name}"] = float(returns[k].mean())
                records[k][f"interval_{name}"] = mean_interval(returns[k])
                records[k][f"returns_{name}"] = returns[k].tolist()
    for policy, gain in zip(records, outcome.gains, strict=False):
        policy |= {
            "gain": gain.mean,
            "interval_gain": gain.interval,
            "p": gain.p,
            "p_adjusted": gain.p_adjusted,
            "verdict": gain_verdict(gain),
        }
    return records


def gain_verdict(gain: Difference) -> str:
    """Return the verdict on a gain, in terms of episodes: they are its replicates."""
    return gain.verdict.replace("seeds", "episodes")


def read_cooperation(config: CooperateConfig) -> Cooperation:
    """Read the cooperation in `config.out` as of its last completed round.

    Resuming it gives bit for bit what the uninterrupted run would have given. Raises BadInput if
    the folder holds no cooperation.
    """
    with cooperation_file(config.out) as saved:
        subjects = []
        for k, record in enumerate(saved["policies"]):
            origin = {name: record[name] for name in ("name", "sha256", "algo", "steps")}
            current = load(config.out / "policies" / f"peer{k}.safetensors")
            subjects.append(
                CooperatingPolicy(record["name"], Path(record["file"]), origin, current)
            )
        place = Place(saved["env"], saved.get("env_kwargs", {}))  # earlier files have none
        require_fit_task(place, subjects)
        budget = Budget(config.total_steps)
        budget.used = {purpose: int(saved["steps"][purpose]) for purpose in PURPOSES}
        rounds = [saved_round(record) for record in saved["rounds"]]
        if rounds:  # only the policies of the last round are in files
            rounds[-1].policies.extend(subject.policy for subject in subjects)
        return Cooperation(
            subjects=subjects,
            env_id=place.env_id,
            env_kwargs=place.env_kwargs,
            config=config,
            budget=budget,
            rounds=rounds,
            steps=[int(record["steps"]) for record in saved["rounds"]],
            before=np.array([p["returns_before"] for p in saved["policies"]], dtype=float),
            is_finished="returns_after" in saved["policies"][0],
        )


def saved_round(record: dict[str, Any]) -> Round:
    """Return a round from its JSON, without policies."""
    trials = record["trials"]
    return Round(
        number=record["round"],
        policies=[],
        trials=None if trials is None else [Trial(t["before"], t["after"]) for t in trials],
        pairs=[Pair(**pair) for pair in record["pairs"]],
        drift=record["drift_competent"],
    )
