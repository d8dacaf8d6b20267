"""The two-sided double integrator: each expert on its half becomes one everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.rounds import Round, cooperate
from dpd.cooperate.simulator import Budget, BudgetExceeded
from dpd.policies.policyfile import Policy
from tests.toy.two_experts import HALVES, HORIZON, Plane, expert, returns, starts, steer

CONFIG = CooperateConfig(
    paths=(Path("a"), Path("b")), gamma=1.0, rounds=1, steps=600, trial_episodes=0
)
PLENTY = 10**9


class Run(NamedTuple):
    rounds: list[Round]
    budget: Budget
    spent: BudgetExceeded | None

    @property
    def returns(self) -> list[float]:
        return mean_returns(self.rounds[-1].policies)


def mean_returns(policies: list[Policy]) -> list[float]:
    held_out = starts(2000, 999)
    return [float(returns(p.mode, held_out).mean()) for p in policies]


def run(policies: list[Policy], config: CooperateConfig, total: int = PLENTY) -> Run:
    found: list[Round] = []
    budget = Budget(total)
    try:
        found.extend(cooperate(Plane(budget, config), policies, config))
    except BudgetExceeded as spent:
        return Run(found, budget, spent)
    return Run(found, budget, None)


@pytest.fixture(scope="module")
def experts() -> list[Policy]:
    return [expert(half, 3 + k) for k, half in enumerate(HALVES)]


@pytest.fixture(scope="module")
def focused(experts: list[Policy]) -> Run:
    return run(experts, replace(CONFIG, trial_episodes=1))


def test_both_become_experts_everywhere(experts: list[Policy], focused: Run) -> None:
    best = float(returns(steer, starts(2000, 999)).mean())  # about -10.5
    assert max(mean_returns(experts)) < 50 * best
    assert min(focused.returns) > 2 * best
    assert all(trial.passed for trial in focused.rounds[0].trials or ()) and focused.spent is None
    for pair, drift in zip(focused.rounds[0].pairs, focused.rounds[0].drift, strict=True):
        assert pair.n_deficient > 150  # of 512: about half of them
        assert pair.gap_before is not None and pair.gap_after is not None
        assert pair.gap_after < 0.5 * pair.gap_before
        assert drift is not None and drift < 0.15


def test_imitating_on_all_states_makes_nobody_an_expert(experts: list[Policy]) -> None:
    control = run(experts, replace(CONFIG, control="unfocused", steps=400))
    best = float(returns(steer, starts(2000, 999)).mean())
    assert max(control.returns) < 20 * best
    assert control.budget.used["counterfactual"] == 0
    assert all(pair.cf_success is None for pair in control.rounds[0].pairs)


def test_who_gets_worse_on_trial_stays_as_it_was(experts: list[Policy]) -> None:
    # A clumsy teaching of all states: both get worse, and are given back bit for bit.
    clumsy = replace(CONFIG, control="unfocused", steps=20, lr=0.1, probes=40, trial_episodes=1)
    found = run(experts, clumsy)
    trials = found.rounds[0].trials
    assert trials is not None and not any(trial.passed for trial in trials)
    assert found.budget.used["trial"] == 2 * 2 * 200 * HORIZON  # before and after, both policies
    for old, new in zip(experts, found.rounds[0].policies, strict=True):
        assert all(torch.equal(old.tensors[k], new.tensors[k]) for k in old.tensors)


def test_the_true_gap_rises_at_counterfactuals(focused: Run) -> None:
    for pair in focused.rounds[0].pairs:
        assert pair.proxy_r2 is not None and pair.proxy_r2 > 0.9
        assert pair.n_counterfactuals > 50
        assert pair.cf_success is not None and pair.cf_success > 0.5
        assert pair.cf_gap_up is not None and pair.cf_gap_up >= 0.9


def test_without_counterfactuals_it_works_too_and_costs_less(
    experts: list[Policy], focused: Run
) -> None:
    found = run(experts, replace(CONFIG, counterfactuals=False, steps=300))
    assert found.budget.used["counterfactual"] == 0 < focused.budget.used["counterfactual"]
    assert min(found.returns) > -200
    assert all(p.n_counterfactuals == 0 and p.proxy_r2 is None for p in found.rounds[0].pairs)


def test_the_policies_that_teach_are_left_as_they_were(experts: list[Policy]) -> None:
    before = [{k: v.clone() for k, v in policy.tensors.items()} for policy in experts]
    found = run(experts, replace(CONFIG, steps=20, proxy_steps=20, probes=40))
    for policy, kept, new in zip(experts, before, found.rounds[0].policies, strict=True):
        assert all(torch.equal(policy.tensors[k], v) for k, v in kept.items())
        assert not torch.equal(new.tensors["actor.0.weight"], kept["actor.0.weight"])


def test_the_same_seed_gives_the_same_policies(experts: list[Policy]) -> None:
    short = replace(CONFIG, steps=20, proxy_steps=20, probes=40)
    one, two = run(experts, short), run(experts, short)
    other = run(experts, replace(short, seed=1))
    assert one.rounds[0].pairs == two.rounds[0].pairs != other.rounds[0].pairs
    for a, b in zip(one.rounds[0].policies, two.rounds[0].policies, strict=True):
        assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


def test_equal_policies_teach_each_other_nothing(experts: list[Policy]) -> None:
    found = run([experts[0], experts[0]], replace(CONFIG, probes=40))
    for policy in found.rounds[0].policies:
        assert all(torch.equal(policy.tensors[k], v) for k, v in experts[0].tensors.items())
    assert all(pair.n_deficient == 0 for pair in found.rounds[0].pairs)


def test_of_three_everyone_learns_from_whoever_is_best(experts: list[Policy]) -> None:
    bad = expert(0.0, 9)  # flees everywhere
    found = run([*experts, bad], replace(CONFIG, counterfactuals=False, probes=150, steps=400))
    before = mean_returns([bad])[0]
    assert found.returns[2] > 0.1 * before and min(found.returns[:2]) > -300
    taught = {(p.teacher, p.student): p.n_deficient for p in found.rounds[0].pairs}
    assert min(taught[0, 2], taught[1, 2]) > 100  # each on its own half
    assert max(taught[2, 0], taught[2, 1]) < 60


def test_a_budget_that_ends_in_a_round_leaves_the_round_before(experts: list[Policy]) -> None:
    short = replace(CONFIG, steps=20, counterfactuals=False, probes=40, rounds=5)
    cost = run(experts, replace(short, rounds=1)).budget
    # 2 x 40 states visited; both policies from each of them; students again where deficient
    assert cost.used["probe"] == 80
    assert 2 * 80 * HORIZON < cost.used["competence"] <= (2 * 80 + 2 * 16) * HORIZON
    found = run(experts, short, total=cost.spent + 80 + 10)
    assert len(found.rounds) == 1 and found.spent is not None
    assert str(found.spent) == "competence needs up to 8,000 more steps, and 10 are left"
    assert found.budget.spent == cost.spent + 80
