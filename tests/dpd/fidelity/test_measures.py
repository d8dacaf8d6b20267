"""Fidelity's measures against numbers worked out by hand, torch.distributions and scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group, pearsonr
from torch.distributions import Independent, Normal, kl_divergence

from dpd.agents.dist import DiagGaussian
from dpd.fidelity.audit import (
    MEASURES,
    agreement,
    cka,
    kl_both_ways,
    r2_per_dimension,
    retained_return,
    score,
    value_gap,
    why_no_kl,
)
from dpd.fidelity.policies import PolicyOutputs
from tests.toy import policies as made

# Two action dimensions on four states; the student is off by 0.04, 0.1, 0.02 and 0.6 at worst.
TEACHER = torch.tensor([[0.0, 0.5], [0.2, 0.5], [0.4, -0.5], [0.6, -0.5]])
STUDENT = TEACHER + torch.tensor([[0.04, 0.0], [0.0, -0.1 + 1e-6], [0.02, 0.02], [0.0, 0.6]])


def answers(act: torch.Tensor, seed: int = 0, value: torch.Tensor | None = None) -> PolicyOutputs:
    """Return outputs with the given actions, and features drawn with a seed."""
    features = torch.randn(len(act), 3, generator=torch.Generator().manual_seed(seed))
    return PolicyOutputs(act, DiagGaussian(act, torch.full_like(act, -1.0)), features, value)


def test_agreement_is_the_share_of_states_whose_worst_action_is_near() -> None:
    gap = (STUDENT - TEACHER).abs()
    assert agreement(gap, 0.05) == 2 / 4  # 0.04 and 0.02 are within it
    assert agreement(gap, 0.1) == 3 / 4
    assert agreement(gap, 0.01) == 0 and agreement(gap, 1.0) == 1


def test_the_action_error_is_in_halves_of_the_range() -> None:
    found = score(answers(TEACHER), answers(STUDENT), has_kl=True)
    # 0.04 + 0.1 + 0.02 + 0.02 + 0.6 = 0.78, over 8 actions
    assert found.values["action_error"] == pytest.approx(0.78 / 8, abs=1e-6)
    # 0.0016 + 0.01 + 0.0004 + 0.0004 + 0.36 = 0.3724
    assert found.values["action_mse"] == pytest.approx(0.3724 / 8, abs=1e-6)
    assert found.n == 4 and found.values.keys() == MEASURES.keys()


def test_r2_is_what_is_explained_of_each_dimension() -> None:
    # dimension 0: mean 0.3, SST = 0.09 + 0.01 + 0.01 + 0.09 = 0.2, SSE = 0.0016 + 0.0004
    # dimension 1: mean 0, SST = 4 · 0.25 = 1, SSE = 0.01 + 0.0004 + 0.36
    assert r2_per_dimension(TEACHER, STUDENT) == pytest.approx(
        [1 - 0.002 / 0.2, 1 - 0.3704], abs=1e-5
    )
    found = score(answers(TEACHER), answers(STUDENT), has_kl=True)
    assert found.values["r2_mean"] == pytest.approx((0.99 + 0.6296) / 2, abs=1e-5)
    assert found.values["r2_min"] == pytest.approx(0.6296, abs=1e-5)


def test_r2_of_the_mean_alone_is_none_of_it_and_a_constant_teacher_has_none() -> None:
    mean = TEACHER.mean(0).expand_as(TEACHER)
    assert r2_per_dimension(TEACHER, mean) == pytest.approx([0, 0], abs=1e-6)
    constant = torch.stack([TEACHER[:, 0], torch.full((4,), 0.7)], 1)
    assert r2_per_dimension(constant, STUDENT)[1] is None
    found = score(answers(constant), answers(STUDENT), has_kl=True)
    assert found.values["r2_mean"] == found.values["r2_min"] == found.r2[0]


@pytest.mark.parametrize("squashed", [False, True])
def test_kl_is_that_of_torch_both_ways(squashed: bool) -> None:
    torch.manual_seed(0)
    means, log_stds = torch.randn(2, 50, 3), torch.randn(2, 50, 3) * 0.5
    ours = [DiagGaussian(m, s, squashed) for m, s in zip(means, log_stds, strict=True)]
    theirs = [
        Independent(Normal(m.double(), s.double().exp()), 1)
        for m, s in zip(means, log_stds, strict=True)
    ]
    # the tanh of both is a bijection, and changes nothing
    expected = [kl_divergence(*theirs).mean(), kl_divergence(*theirs[::-1]).mean()]
    assert kl_both_ways(ours[0], ours[1]) == pytest.approx([float(x) for x in expected])


def test_kl_broadcasts_a_constant_deviation() -> None:
    teacher = DiagGaussian(torch.zeros(5, 2), torch.zeros(1, 2))
    student = DiagGaussian(torch.ones(5, 2), torch.full((1, 2), np.log(2.0)))
    # forward, a dimension: log 2 + (1 + 1) / (2 · 4) - 1/2; reverse: -log 2 + (4 + 1) / 2 - 1/2
    expected = [2 * (np.log(2) - 0.25), 2 * (2 - np.log(2))]
    assert kl_both_ways(teacher, student) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("teacher", "student", "says"),
    [
        ("ppo", "ppo", None),
        ("sac", "sac", None),
        ("ppo", "sac", "no closed form"),
        ("td3", "td3", "of td3 are deterministic"),
        ("sac", "ddpg", "of ddpg are deterministic"),
    ],
)
def test_kl_is_left_out_where_it_would_mean_nothing(
    teacher: str, student: str, says: str | None
) -> None:
    metas = [made.described(a, made.learners(a, 3, 2, 1)) for a in (teacher, student)]
    reason = why_no_kl(metas[0], metas[1])
    assert reason is None if says is None else reason is not None and says in reason


def test_without_kl_the_other_measures_stand() -> None:
    squashed = answers(STUDENT)
    squashed = squashed._replace(dist=squashed.dist._replace(squashed=True))
    found = score(answers(TEACHER), squashed, has_kl=False)
    assert found.values["kl_forward"] is found.values["kl_reverse"] is None
    assert found.values["action_error"] == pytest.approx(0.78 / 8, abs=1e-6)


def test_cka_of_one_feature_is_the_squared_correlation() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 200)) + np.linspace(0, 3, 200)
    found = cka(torch.as_tensor(x)[:, None], torch.as_tensor(y)[:, None])
    assert found == pytest.approx(pearsonr(x, y).statistic ** 2)


def test_cka_by_hand() -> None:
    # X = the identity's rows, centred; Y = its first column: |XᵀY|² / (|XᵀX| |YᵀY|)
    # of centred [[1, 0], [0, 1]] -> ±1/2: XᵀX = [[.5, -.5], [-.5, .5]], norm 1; YᵀY = .5;
    # XᵀY = [.5, -.5], squared norm .5; .5 / (1 · .5) = 1
    eye = torch.eye(2)
    assert cka(eye, eye[:, :1]) == pytest.approx(1)
    # orthogonal contrasts share nothing
    x, y = (
        torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]),
        torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]),
    )
    assert cka(x, y) == pytest.approx(0)
    # beside a second feature of the same size, half is left of √2: 16 / (√(16 + 16) · 4)
    assert cka(torch.cat([x, y], 1), x) == pytest.approx(1 / np.sqrt(2))


def test_cka_does_not_change_when_features_are_turned_moved_or_scaled() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(300, 6).double(), torch.randn(300, 4).double()
    y += x[:, :4]
    turn = torch.as_tensor(ortho_group.rvs(6, random_state=0))
    before = cka(x, y)
    assert before is not None and 0.1 < before < 0.9
    assert cka(x @ turn, y) == pytest.approx(before)
    assert cka(x * 1e6 + 3, y * 1e-6 - 1) == pytest.approx(before)
    assert cka(x, x @ turn * 7) == pytest.approx(1)
    assert cka(y, x) == pytest.approx(before)
    stretch = torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]).double())
    assert cka(x @ stretch, y) != pytest.approx(before, rel=1e-2)


def test_cka_of_constant_features_is_none() -> None:
    assert cka(torch.ones(10, 3), torch.randn(10, 3)) is None


def test_the_value_gap_needs_two_value_functions() -> None:
    v, w = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5, 2.0, 1.0])
    assert value_gap(v, w) == pytest.approx(2.5 / 3)
    assert value_gap(None, w) is value_gap(v, None) is None
    found = score(answers(TEACHER[:3], value=v), answers(STUDENT[:3], value=w), has_kl=True)
    assert found.values["value_gap"] == pytest.approx(2.5 / 3)


def test_a_policy_follows_itself_wholly() -> None:
    same = answers(TEACHER)
    found = score(same, same, has_kl=True).values
    assert found["kl_forward"] == found["kl_reverse"] == 0
    assert found["action_error"] == found["action_mse"] == 0
    assert found["agree_0.05"] == found["agree_0.1"] == found["r2_mean"] == found["r2_min"] == 1
    assert found["cka"] == pytest.approx(1, abs=1e-12)


def test_what_overflows_is_left_out_instead_of_infinite() -> None:
    tight = DiagGaussian(torch.zeros(2, 1), torch.full((1, 1), -500.0))
    wide = DiagGaussian(torch.ones(2, 1), torch.zeros(1, 1))
    assert kl_both_ways(wide, tight)[0] is None


def test_the_return_retained_is_counted_from_random_actions() -> None:
    student, teacher, rand = (
        np.array(x, float) for x in ([-400, -200], [-150, -150], [-1000, -1400])
    )
    # (-300 + 1200) / (-150 + 1200); R_S / R_T would be 2, though the student is worse
    assert retained_return(student, teacher, rand) == pytest.approx(900 / 1050)
    assert retained_return(3 * student + 7, 3 * teacher + 7, 3 * rand + 7) == pytest.approx(
        900 / 1050
    )
    assert (
        retained_return(teacher, teacher, rand) == 1 and retained_return(rand, teacher, rand) == 0
    )
    s, t, r = (np.stack([x, x]) for x in (student, teacher, rand))
    assert retained_return(s, t, r, axis=-1) == pytest.approx([900 / 1050] * 2)
