"""A leash adapts the coefficient of each learner's divergence, and holds its KL to the peer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dpd.agents.base import ClosedTerm
from dpd.agents.dist import DiagGaussian, kl
from dpd.agents.kernels import Kernels
from dpd.agents.offpolicy_config import SACConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.sharing import effective_share
from dpd.distill.peers import DualDistillation
from dpd.distill.peers_config import DPDConfig
from dpd.distill.targets import LEASH, adapted_coef
from tests.toy.peers import ALGO, F64, LOSS, Setup, vary

HELD = vary(LOSS, divergence="kl_forward", target_kl=0.4)


def test_coefficients_worked_by_hand() -> None:
    # target 0.4: more than 0.6 is too far, less than 0.2667 too near. 0.8 is twice the target; 4 is
    # ten times, of which 3 count; 0.1 is a quarter, of which 2/3 count
    off = torch.tensor([0.8, 0.59, 0.27, 0.1, 4.0])
    found = adapted_coef(torch.tensor([1.0, 1.0, 1.0, 3.0, 2.0]), off, 0.4, 1.0)
    assert found.tolist() == pytest.approx([2.0, 1.0, 1.0, 2.0, 6.0])


def test_a_divergence_that_no_coefficient_reaches_leaves_it_finite() -> None:
    coef = torch.tensor([0.1, 0.1])
    for _ in range(100):
        coef = adapted_coef(coef, torch.tensor([9.0, 0.0]), 0.4, 0.1)
    assert coef.tolist() == pytest.approx([0.1 * LEASH[1], 0.1 * LEASH[0]])


def test_each_learner_has_a_leash_of_its_own_by_its_kl_to_the_peer() -> None:
    setup = Setup(HELD)
    agent, method = setup.agent, setup.method
    # Means equal, deviations 1 and 1/3. KL(0 || 1) = 2 (-log 3 + (9 - 1) / 2), far too much;
    # KL(1 || 0) = 2 (log 3 + (1/9 - 1) / 2) = 1.31, too much for 0.4 and just enough for 1.3
    agent.nets.views["actor.2.weight"].zero_()
    agent.nets.views["log_std"].zero_()
    agent.nets.views["log_std"][1] = -torch.tensor(3.0).log()
    own, other = (DiagGaussian(torch.zeros(2), agent.nets.views["log_std"][n, 0]) for n in (0, 1))
    setup.choose()
    expected = [float(kl(own, other)), float(kl(other, own))]
    assert method.metrics["distill/kl"].tolist() == pytest.approx(expected, rel=1e-6)
    assert method.metrics["distill/coef"].tolist() == pytest.approx([1.5, 1.5])
    method = DualDistillation(vary(HELD, target_kl=1.3), setup.context)
    for _ in range(2):
        method.on_batch(setup.batch, 0.0)
    assert method.coef.tolist() == pytest.approx([0.5 * 3**2, 0.5])
    assert method.step()["distill/dose"].tolist() == pytest.approx(method.coef.tolist())


def test_the_coefficient_multiplies_the_gradient_of_its_learner_alone() -> None:
    plain, held = Setup(vary(HELD, target_kl=None)), Setup(vary(HELD, target_kl=1e9))
    held.method.coef = torch.tensor([0.6, 3.0], dtype=F64)  # divided by 1.5 before its use
    expected = plain.extra_grad() * torch.tensor([[0.4 / 0.5], [2.0 / 0.5]], dtype=F64)
    torch.testing.assert_close(held.extra_grad(), expected, rtol=1e-12, atol=0)


def test_without_a_target_the_coefficient_stays() -> None:
    setup = Setup(vary(HELD, target_kl=None))
    for _ in range(3):
        setup.choose()
    assert setup.method.metrics["distill/coef"].tolist() == [0.5, 0.5]


def test_only_students_have_a_leash() -> None:
    setup = Setup(vary(HELD, students=(1,), target_kl=1e9))
    setup.choose()
    assert setup.method.coef.tolist() == pytest.approx([0.5, 0.5 / 1.5])


def test_a_resumed_leash_goes_on_where_it_was() -> None:
    setup, other = Setup(vary(HELD, target_kl=1e9)), Setup(vary(HELD, target_kl=1e9))
    setup.choose()
    other.method.load_state({name: x.clone() for name, x in setup.method.state().items()})
    assert torch.equal(other.method.coef, setup.method.coef)
    assert other.method.coef[0] < 0.5


def test_a_leash_pulls_peers_together_that_no_leash_leaves_apart() -> None:
    def kl_after(config: DPDConfig) -> float:
        setup = Setup(config)
        for number in range(12):
            batch = setup.iterate(number)
            setup.method.on_batch(batch, 0.0)
            setup.agent.update(batch, 0.0, setup.method.loss)
        return float(setup.method.metrics["distill/kl"].max())

    weak = vary(HELD, coef=0.01, target_kl=None)
    loose, held = kl_after(weak), kl_after(vary(weak, target_kl=0.01))
    assert 0 < held < 0.8 * loose


def test_the_kl_says_how_many_samples_of_a_peer_count() -> None:
    # Gaussians of equal deviation at distance d: KL = d^2 / 2, effective share exp(-d^2) = e^-2KL
    d, act = 0.35**0.5 * 2**0.5, torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    log_rho = ((act - 0) ** 2 - (act - d) ** 2) / 2
    share = effective_share(log_rho, torch.ones_like(log_rho, dtype=torch.bool))
    assert float(share) == pytest.approx(torch.tensor(-0.7).exp().item(), rel=0.03)


@pytest.mark.parametrize("by_kernels", [False, True])
def test_a_leash_at_the_samples_is_one_at_states_of_its_own_that_are_the_same(
    by_kernels: bool,
) -> None:
    # one minibatch of all 4 envs x 16 steps, so that the order of states is of no account
    algo = replace(ALGO, minibatch_size=64, epochs=1)
    config = vary(HELD, states="samples")
    at_samples, apart = (Setup(config, groups=2, algo=algo) for _ in range(2))
    if by_kernels:
        at_samples.agent.kernels = Kernels(1)
    for setup in (at_samples, apart):
        setup.method.on_batch(setup.batch, 0.0)
    targets, term = apart.method.targets, at_samples.method.loss
    assert targets is not None and isinstance(term, ClosedTerm) and term.obs is None
    before = apart.flat.clone()
    at_samples.agent.update(at_samples.batch, 0.0, term)
    apart.agent.update(apart.batch, 0.0, replace(term, obs=targets.obs))
    torch.testing.assert_close(at_samples.flat, apart.flat, rtol=1e-10, atol=1e-12)
    assert not torch.equal(apart.flat, before)


@pytest.mark.parametrize(
    ("algo", "settings", "says"),
    [
        (SACConfig(), {}, "samples is for PPO; with a replay"),
        (PPOConfig(reuse_iterations=2), {}, "knows no samples of past iterations"),
        (PPOConfig(), {"memory": 100}, "leave out distill.memory"),
        (PPOConfig(), {"dose": "step", "coef": 1.0}, "give --distill.dose loss"),
        (PPOConfig(), {"ruler": "advantage"}, "needs the peer's own states"),
    ],
)
def test_samples_that_the_loss_does_not_read_are_refused(
    algo: PPOConfig | SACConfig, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        replace(LOSS, states="samples", **settings).refuse_unfit(algo)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dose": "step", "divergence": "kl_forward"}, "target_kl does nothing with dose step"),
        ({"dose": "loss", "divergence": "mse"}, "target_kl holds a KL, not mse"),
        ({"dose": "loss", "divergence": "kl_reverse", "target_kl": 0.0}, "must be positive"),
    ],
)
def test_a_leash_of_nothing_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DPDConfig(**({"target_kl": 0.3} | settings))


def test_a_unit_of_values_is_for_terms_in_the_loss_of_learners_with_a_replay() -> None:
    with pytest.raises(ValueError, match="coef_unit does nothing with dose step"):
        DPDConfig(coef_unit="value")
    config = DPDConfig(dose="loss", coef_unit="value", ruler="action")
    config.refuse_unfit(SACConfig())
    for learners in ((SACConfig(), PPOConfig()), (PPOConfig(),)):
        with pytest.raises(ValueError):
            config.refuse_unfit(*learners)
    with pytest.raises(ValueError, match="coef_unit value is for learners with a replay"):
        config.refuse_unfit(SACConfig(), PPOConfig())


def test_learners_with_a_replay_have_no_leash() -> None:
    config = DPDConfig(dose="loss", divergence="kl_reverse", target_kl=0.3)
    config.refuse_unfit(PPOConfig())
    with pytest.raises(ValueError, match=r"target_kl is for PPO.*give --distill\.coef"):
        config.refuse_unfit(SACConfig())
