"""Rounds of cooperation: find where each policy is better, search, teach and test.

Cooperative knowledge distillation (Livanos et al., AAAI 2024): the original compares which model
classifies an instance correctly, this compares the return that each policy gets from a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch

from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.lessons import (
    GapProxies,
    Lessons,
    are_distinct,
    search_states,
    teach,
)
from dpd.cooperate.simulator import SimStates, Simulator, concatenate_states
from dpd.policies.policyfile import Policy

NO_TEACHER = -1


class Competence(NamedTuple):
    """Returns of k policies from n states, and the teacher of each student at each state."""

    score: np.ndarray  # [k, n] discounted sums of rewards
    threshold: float
    """Larger gaps count."""
    teacher: np.ndarray  # [k, n] teacher of student j at a state, or NO_TEACHER

    def deficient(self, i: int, j: int) -> np.ndarray:
        """Return the states [n] bool at which j learns from i: the set R_{i->j}."""
        return self.teacher[j] == i

    def gap(self, i: int, j: int) -> np.ndarray:
        """Return the score of i minus that of j [n]."""
        return self.score[i] - self.score[j]


def find_teachers(score: np.ndarray, margin: float) -> Competence:
    """Choose a teacher for each policy at each state from score [k, n]: the best one, if better.

    R_{i->j} = {s: G_i - G_j > margin * std(G)}. With more than two policies every state of a
    student goes to its best peer there, so that the sets of a student do not overlap.
    """
    threshold = margin * float(score.std())
    best = score.argmax(0)  # [n]
    ahead = score.max(0) - score > threshold  # [k, n]; the best is not ahead of itself
    return Competence(score, threshold, np.where(ahead, best, NO_TEACHER))


class Pair(NamedTuple):
    """Figures of a teacher and a student in one round; None if there was nothing to measure."""

    teacher: int
    student: int
    n_deficient: int
    """Probe states where the student learns from the teacher."""
    n_counterfactuals: int
    cf_success: float | None
    """Share of the searches that gave a new state whose true gap is above the threshold."""
    cf_gap_up: float | None
    """Share of the new states whose true gap is larger than where the search began."""
    gap_before: float | None
    """Mean gap on the deficient states excluded from learning, before the lessons."""
    gap_after: float | None
    """Mean gap there between the teacher before the round and the student after its lessons."""
    proxy_r2: float | None
    """R² of the predicted gap on the probe states excluded from learning."""


class Trial(NamedTuple):
    """A student's mean returns in the same whole episodes, before and after its lessons."""

    before: float
    after: float

    @property
    def passed(self) -> bool:
        """True if the student did not get worse."""
        return self.after >= self.before


@dataclass(frozen=True, kw_only=True)
class Round:
    """Result of one round. `pairs` and `drift` describe the students before the trial."""

    number: int
    policies: list[Policy]
    """Policies after the round; a student that failed its trial is the old one. Empty for all but
    the last round of a resumed cooperation."""
    trials: list[Trial] | None
    """None if the round had no trial."""
    pairs: list[Pair]
    drift: list[float | None]
    """Mean |change| of each policy's actions, in half ranges, where no other was better."""


class Counterfactuals(NamedTuple):
    """Counterfactuals of a pair, and the counts of its searches."""

    states: SimStates
    tried: int = 0
    """Searches started."""
    played: int = 0
    """New states from which both policies were played."""
    risen: int = 0
    """Those of them where the gap is larger than at the start of the search."""


PairIndex = tuple[int, int]
"""Numbers of a teacher and a student."""


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """Inputs of a round: world, policies before the round, probe states and their competence."""

    world: Simulator
    policies: Sequence[Policy]
    config: CooperateConfig
    probes: SimStates
    held: np.ndarray  # [n] bool: excluded from learning
    competence: Competence
    generator: torch.Generator

    @property
    def pairs(self) -> list[PairIndex]:
        """All pairs of a teacher and a student."""
        return list(permutations(range(len(self.policies)), 2))


def cooperate(
    world: Simulator, policies: Sequence[Policy], config: CooperateConfig, first: int = 1
) -> Iterator[Round]:
    """Yield all rounds from `first`. Raises BudgetExceeded if the budget ends in one."""
    for number in range(first, config.rounds + 1):
        finished = run_round(world, policies, config, number)
        policies = finished.policies
        yield finished


def run_round(
    world: Simulator, policies: Sequence[Policy], config: CooperateConfig, number: int
) -> Round:
    """Compare all policies, search, teach and measure again; teachers are the policies before it.

    Raises BudgetExceeded if the budget ends before the round does.
    """
    ctx = judge_policies(world, policies, config, number)
    proxies = None
    if config.wants_counterfactuals:
        free = ~ctx.held
        gaps = torch.from_numpy(np.stack([ctx.competence.gap(*pair)[free] for pair in ctx.pairs]))
        proxies = GapProxies(ctx.probes.coords[free], gaps, config, ctx.generator)
    extra = {pair: find_counterfactuals(ctx, pair, proxies) for pair in ctx.pairs}
    after = [
        teach(p, student_lessons(ctx, j, extra), config, ctx.generator)
        for j, p in enumerate(policies)
    ]
    left = remaining_gaps(ctx, after)
    trials, accepted = None, after
    if config.trial_episodes:
        trials = run_trials(ctx, after)
        tried = zip(policies, after, trials, strict=True)
        accepted = [new if trial.passed else old for old, new, trial in tried]
    return Round(
        number=number,
        policies=accepted,
        trials=trials,
        pairs=[pair_figures(ctx, pair, extra[pair], proxies, left[pair]) for pair in extra],
        drift=[action_drift(ctx, j, new) for j, new in enumerate(after)],
    )


def judge_policies(
    world: Simulator, policies: Sequence[Policy], config: CooperateConfig, number: int
) -> RoundContext:
    """Collect probe states of every policy, and play every policy from all of them."""
    seeds = np.random.SeedSequence([config.seed, number]).generate_state(len(policies) + 2)
    first, *own = seeds.tolist()
    visits = zip(policies, own, strict=False)
    probes = concatenate_states([world.visit(p.mode, config.probes, seed) for p, seed in visits])
    rng = np.random.default_rng(own[-1])
    held = rng.permutation(len(probes)) < round(config.holdout * len(probes))
    score = world.score(probes, [p.mode for p in policies], "competence")
    return RoundContext(
        world=world,
        policies=policies,
        config=config,
        probes=probes,
        held=held,
        competence=find_teachers(score, config.margin),
        generator=torch.Generator().manual_seed(first),
    )


def find_counterfactuals(
    ctx: RoundContext, pair: PairIndex, proxies: GapProxies | None
) -> Counterfactuals:
    """Search near a pair's deficient states for states where the true gap is larger."""
    where = ctx.competence.deficient(*pair) & ~ctx.held
    start = ctx.probes.rows(where)
    if proxies is None or not len(start):
        return Counterfactuals(start.rows(np.arange(0)))
    number, z = ctx.pairs.index(pair), proxies.standard(start.coords)
    moved = search_states(lambda x: proxies(number, x), z, ctx.config)
    near = ctx.world.moved(start, proxies.coordinates(moved))
    # compare the states after the move: the simulator may have put some back where they were
    keep = are_distinct(proxies.standard(near.coords), z, ctx.config.cf_distinct).numpy()
    near = near.rows(keep)
    score = ctx.world.score(near, [ctx.policies[i].mode for i in pair], "counterfactual")
    gap = score[0] - score[1]
    risen = int((gap > ctx.competence.gap(*pair)[where][keep]).sum())
    return Counterfactuals(near.rows(gap > ctx.competence.threshold), len(z), len(near), risen)


@torch.no_grad()
def student_lessons(ctx: RoundContext, j: int, extra: dict[PairIndex, Counterfactuals]) -> Lessons:
    """Return what student j learns, and the states where it must not change."""
    others = [i for i in range(len(ctx.policies)) if i != j]
    if ctx.config.control == "unfocused":
        return unfocused_lessons(ctx, others)
    obs, target = [], []
    for i in others:
        probes = ctx.probes.obs[ctx.competence.deficient(i, j) & ~ctx.held]
        for part in (probes, extra[i, j].states.obs):
            obs.append(part)
            target.append(ctx.policies[i].mode(part))
    own = (ctx.competence.teacher[j] == NO_TEACHER) & ~ctx.held
    return Lessons(torch.cat(obs), torch.cat(target), ctx.probes.obs[own])


def unfocused_lessons(ctx: RoundContext, others: Sequence[int]) -> Lessons:
    """Return lessons that imitate a random one of the other policies at every state."""
    obs = ctx.probes.obs[~ctx.held]
    answers = torch.stack([ctx.policies[i].mode(obs) for i in others])  # [k - 1, n, A]
    drawn = torch.randint(len(others), (len(obs),), generator=ctx.generator)
    return Lessons(obs, answers[drawn, torch.arange(len(obs))], obs[:0])


def remaining_gaps(ctx: RoundContext, after: Sequence[Policy]) -> dict[PairIndex, float | None]:
    """Play the students again where they were deficient -> remaining gap of each pair."""
    c = ctx.competence
    score = np.full_like(c.score, np.nan)
    for j, student in enumerate(after):
        which = (c.teacher[j] != NO_TEACHER) & ctx.held
        score[j, which] = ctx.world.score(ctx.probes.rows(which), [student.mode], "competence")[0]
    return {
        (i, j): mean_or_none((c.score[i] - score[j])[c.deficient(i, j) & ctx.held])
        for i, j in ctx.pairs
    }


def run_trials(ctx: RoundContext, after: Sequence[Policy]) -> list[Trial]:
    """Play whole episodes with all policies before and after the lessons.

    A short horizon does not show that a gait falls later, or that two gaits do not combine.
    """
    modes = [p.mode for p in (*ctx.policies, *after)]
    means = ctx.world.evaluate(modes, "trial").mean(1).tolist()
    return [Trial(*pair) for pair in zip(means[: len(after)], means[len(after) :], strict=True)]


def pair_figures(
    ctx: RoundContext,
    pair: PairIndex,
    new: Counterfactuals,
    proxies: GapProxies | None,
    after: float | None,
) -> Pair:
    """Return the figures of a pair."""
    gap, deficient, held = ctx.competence.gap(*pair), ctx.competence.deficient(*pair), ctx.held
    n, r2 = len(new.states), None
    if proxies:
        tests = ctx.probes.coords[held], torch.from_numpy(gap[held])
        r2 = proxies.r2(ctx.pairs.index(pair), *tests)
    return Pair(
        *pair,
        n_deficient=int(deficient.sum()),
        n_counterfactuals=n,
        cf_success=n / new.tried if new.tried else None,
        cf_gap_up=new.risen / new.played if new.played else None,
        gap_before=mean_or_none(gap[deficient & held]),
        gap_after=after,
        proxy_r2=r2,
    )


@torch.no_grad()
def action_drift(ctx: RoundContext, j: int, new: Policy) -> float | None:
    """Return how much student j's actions changed on unseen states where no other was better."""
    obs = ctx.probes.obs[(ctx.competence.teacher[j] == NO_TEACHER) & ctx.held]
    return mean_or_none((new.mode(obs) - ctx.policies[j].mode(obs)).abs().numpy())


def mean_or_none(values: np.ndarray) -> float | None:
    """Return the mean of values, or None if there are none."""
    return float(values.mean()) if values.size else None
