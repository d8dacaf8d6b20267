"""Who is better where, from what every policy really gets from a state.

Cooperative knowledge distillation (Livanos et al., AAAI 2024): where the original asks who
classifies an instance correctly, this asks who gets more reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch

from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.counterfactuals import (
    GapProxies,
    are_distinct,
    fit_proxies,
    proxy_r2,
    search_states,
)
from dpd.cooperate.lessons import Lessons, teach
from dpd.cooperate.simulator import BudgetExceeded, SimStates, World, concatenate_states
from dpd.fidelity.states import ActFunction
from dpd.policies.policyfile import Policy

NO_TEACHER = -1


class Competence(NamedTuple):
    """What k policies get from n states, and who is to teach whom."""

    score: np.ndarray  # [k, n] discounted sums of rewards
    threshold: float
    """A gap counts above it."""
    teacher: np.ndarray  # [k, n] whom student j follows at a state, or NOBODY

    def deficient(self, i: int, j: int) -> np.ndarray:
        """Return where j is to learn from i [n] bool: the set R_{i->j}."""
        return self.teacher[j] == i

    def gap(self, i: int, j: int) -> np.ndarray:
        """Return how much more i gets than j [n]."""
        return self.score[i] - self.score[j]


def find_teachers(score: np.ndarray, margin: float) -> Competence:
    """Find each policy's teachers from score [k, n]; of several that are better, the best.

    R_{i->j} = {s: G_i - G_j > margin * std(G)}. With more than two policies every state of a
    student goes to its best peer there alone, so that the sets of a student do not overlap.
    """
    threshold = margin * float(score.std())
    best = score.argmax(0)  # [n]
    ahead = score.max(0) - score > threshold  # [k, n]; the best is not ahead of itself
    return Competence(score, threshold, np.where(ahead, best, NO_TEACHER))


def teacher_student_pairs(k: int) -> list[tuple[int, int]]:
    """Return all (teacher, student) of k policies."""
    return list(permutations(range(k), 2))


class Pair(NamedTuple):
    """What teacher i had for student j in a round. None: there was nothing to measure."""

    teacher: int
    student: int
    n_deficient: int
    """Probe states where the teacher is the better one by more than the threshold."""
    n_counterfactuals: int
    cf_success: float | None
    """Share of the searches that gave a new state whose true gap is above the threshold."""
    cf_gap_up: float | None
    """Share of the new states whose true gap is larger than where the search began."""
    gap_before: float | None
    """Mean gap at the deficient states that nothing learned from."""
    gap_after: float | None
    """There, how much more the teacher as it was gets than the student as it is now."""
    proxy_r2: float | None
    """Of the predicted gap, at probe states that nothing learned from."""


class Trial(NamedTuple):
    """A student's mean returns in the same whole episodes, before and after its lessons."""

    before: float
    after: float

    @property
    def passed(self) -> bool:
        """Whether it got no worse."""
        return self.after >= self.before


@dataclass(frozen=True, kw_only=True)
class Round:
    """What came of a round. Pairs and drift are of the students as they were taught."""

    number: int
    policies: list[Policy]
    """Where a student failed its trial, the one from before. Only the last round's are kept in
    files."""
    trials: list[Trial] | None
    """None: there was no trial."""
    pairs: list[Pair]
    drift: list[float | None]
    """Mean |change| of each one's actions, in halves of their range, where it was competent."""


class Counterfactuals(NamedTuple):
    """The counterfactuals of a pair, and how many were looked for and looked at."""

    states: SimStates | None
    tried: int
    looked_at: int
    risen: int

    @property
    def n(self) -> int:
        """How many are kept."""
        return 0 if self.states is None else len(self.states)


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """A round's world, policies as they were before it, states and judgement."""

    world: World
    policies: Sequence[Policy]
    config: CooperateConfig
    probes: SimStates
    held: np.ndarray  # [n] bool: nothing learns from these
    found: Competence
    generator: torch.Generator

    def modes(self, *which: int) -> list[ActFunction]:
        """Return how some of the policies act."""
        return [self.policies[i].mode for i in which]

    def learns(self, i: int, j: int) -> np.ndarray:
        """Return the states [n] bool that j is to learn from i at."""
        return self.found.deficient(i, j) & ~self.held

    def tests(self, i: int, j: int) -> np.ndarray:
        """Return the deficient states [n] bool that j does not see."""
        return self.found.deficient(i, j) & self.held


def cooperate(
    world: World,
    policies: Sequence[Policy],
    config: CooperateConfig,
    done: Callable[[Round], None] = lambda found: None,
    first: int = 1,
) -> BudgetExceeded | None:
    """Run all rounds from the first; `done` hears of each. Return why they ended early, if so."""
    try:
        for number in range(first, config.rounds + 1):
            found = run_round(world, policies, config, number)
            policies = found.policies
            done(found)
    except BudgetExceeded as spent:
        return spent
    return None


def run_round(
    world: World, policies: Sequence[Policy], config: CooperateConfig, number: int
) -> Round:
    """Judge, search, teach, and measure again; all policies teach as they were before.

    Raises Spent where the budget ends before the round does.
    """
    s = judge_policies(world, policies, config, number)
    proxies = fit_gap_proxies(s) if config.wants_counterfactuals else None
    extra = {
        pair: find_counterfactuals(s, pair, proxies)
        for pair in teacher_student_pairs(len(policies))
    }
    after = [
        teach(p, student_lessons(s, j, extra), config, s.generator) for j, p in enumerate(policies)
    ]
    gaps = remaining_gaps(s, after)
    trials = run_trials(s, after) if config.trial_episodes else None
    return Round(
        number=number,
        policies=after if trials is None else accepted_policies(policies, after, trials),
        trials=trials,
        pairs=[pair_figures(s, pair, extra[pair], proxies, gaps[pair]) for pair in extra],
        drift=[action_drift(s, j, new) for j, new in enumerate(after)],
    )


def judge_policies(
    world: World, policies: Sequence[Policy], config: CooperateConfig, number: int
) -> RoundContext:
    """Collect states of every policy, and play every policy from all of them."""
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
        found=find_teachers(score, config.margin),
        generator=torch.Generator().manual_seed(first),
    )


def fit_gap_proxies(s: RoundContext) -> GapProxies:
    """Fit the gaps of all pairs on the states that may be learned from."""
    gaps = np.stack([s.found.gap(i, j)[~s.held] for i, j in teacher_student_pairs(len(s.policies))])
    coords = s.probes.coords[torch.as_tensor(~s.held)]
    return fit_proxies(coords, torch.from_numpy(gaps), s.config, s.generator)


def find_counterfactuals(
    s: RoundContext, pair: tuple[int, int], proxies: GapProxies | None
) -> Counterfactuals:
    """Look for states near a pair's deficient ones where the true gap is larger."""
    start = s.learns(*pair)
    if proxies is None or not start.any():
        return Counterfactuals(None, 0, 0, 0)
    number = teacher_student_pairs(len(s.policies)).index(pair)
    z = proxies.standard(s.probes.coords[torch.as_tensor(start)])
    moved = search_states(lambda x: proxies(number, x), z, s.config)
    near = s.world.moved(s.probes.rows(start), proxies.coordinates(moved))
    # compared as the world made them: it may have turned a state back
    keep = are_distinct(proxies.standard(near.coords), z, s.config.cf_distinct).numpy()
    if not keep.any():
        return Counterfactuals(None, len(z), 0, 0)
    near = near.rows(keep)
    score = s.world.score(near, s.modes(*pair), "counterfactual")
    gap = score[0] - score[1]
    risen = int((gap > s.found.gap(*pair)[start][keep]).sum())
    good = gap > s.found.threshold
    return Counterfactuals(near.rows(good) if good.any() else None, len(z), len(near), risen)


@torch.no_grad()
def student_lessons(
    s: RoundContext, j: int, extra: dict[tuple[int, int], Counterfactuals]
) -> Lessons:
    """Put together what student j learns, and where it is to stay as it is."""
    if s.config.control == "unfocused":
        return unfocused_lessons(s, j)
    obs, target = [s.probes.obs[:0]], [s.policies[j].mode(s.probes.obs[:0])]
    for i in (i for i in range(len(s.policies)) if i != j):
        new = extra[i, j].states
        some = [s.probes.obs[torch.as_tensor(s.learns(i, j))], *([] if new is None else [new.obs])]
        obs += some
        target += [s.policies[i].mode(o) for o in some]
    own = torch.as_tensor((s.found.teacher[j] == NO_TEACHER) & ~s.held)
    return Lessons(torch.cat(obs), torch.cat(target), s.probes.obs[own])


def unfocused_lessons(s: RoundContext, j: int) -> Lessons:
    """Let student j follow a randomly drawn other policy at every state, better there or not."""
    obs = s.probes.obs[torch.as_tensor(~s.held)]
    others = [i for i in range(len(s.policies)) if i != j]
    answers = torch.stack([s.policies[i].mode(obs) for i in others])  # [k - 1, n, A]
    drawn = torch.randint(len(others), (len(obs),), generator=s.generator)
    return Lessons(obs, answers[drawn, torch.arange(len(obs))], obs[:0])


def remaining_gaps(s: RoundContext, after: Sequence[Policy]) -> dict[tuple[int, int], float | None]:
    """Play the students again where they were deficient -> each pair's gap that is left."""
    left: dict[tuple[int, int], float | None] = {}
    for j, student in enumerate(after):
        which = (s.found.teacher[j] != NO_TEACHER) & s.held
        score = np.full(len(which), np.nan)
        if which.any():
            score[which] = s.world.score(s.probes.rows(which), [student.mode], "competence")[0]
        for i in (i for i in range(len(after)) if i != j):
            left[i, j] = mean_or_none((s.found.score[i] - score)[s.tests(i, j)])
    return left


def run_trials(s: RoundContext, after: Sequence[Policy]) -> list[Trial]:
    """Play whole episodes with all policies, as they were and as they are now.

    Short horizons do not show a gait that falls later, nor what two gaits are together.
    """
    modes = [p.mode for p in (*s.policies, *after)]
    found = s.world.evaluate(modes, "trial").mean(1).tolist()
    return [Trial(*pair) for pair in zip(found[: len(after)], found[len(after) :], strict=True)]


def accepted_policies(
    before: Sequence[Policy], after: Sequence[Policy], trials: Sequence[Trial]
) -> list[Policy]:
    """Return each student as it is now, or as it was where it got worse."""
    each = zip(before, after, trials, strict=True)
    return [new if trial.passed else old for old, new, trial in each]


def pair_figures(
    s: RoundContext,
    pair: tuple[int, int],
    new: Counterfactuals,
    proxies: GapProxies | None,
    after: float | None,
) -> Pair:
    """Put a pair's figures together."""
    held, gap = torch.as_tensor(s.held), torch.from_numpy(s.found.gap(*pair))
    number = teacher_student_pairs(len(s.policies)).index(pair)
    return Pair(
        *pair,
        n_deficient=int(s.found.deficient(*pair).sum()),
        n_counterfactuals=new.n,
        cf_success=new.n / new.tried if new.tried else None,
        cf_gap_up=new.risen / new.looked_at if new.looked_at else None,
        gap_before=mean_or_none(gap.numpy()[s.tests(*pair)]),
        gap_after=after,
        proxy_r2=proxy_r2(proxies, number, s.probes.coords[held], gap[held]) if proxies else None,
    )


@torch.no_grad()
def action_drift(s: RoundContext, j: int, new: Policy) -> float | None:
    """Return how far student j's actions moved where no other was better, on unseen states."""
    obs = s.probes.obs[torch.as_tensor((s.found.teacher[j] == NO_TEACHER) & s.held)]
    return mean_or_none((new.mode(obs) - s.policies[j].mode(obs)).abs().numpy())


def mean_or_none(values: np.ndarray) -> float | None:
    """Return the mean, or None of nothing."""
    return float(values.mean()) if values.size else None
