"""Dual policy distillation of learners with a replay; their rulers are in test_rulers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dpd.agents.base import ClosedTerm, Minibatch, ReplayLoss, State
from dpd.agents.dist import STD_FLOOR
from dpd.agents.offpolicy import OffPolicy
from dpd.distill.independent import Independent
from dpd.distill.peers import dose_of
from dpd.distill.peers_config import DPDConfig, IndependentConfig
from tests.toy.peers import DIVERGENCES, F64, LOSS, REPLAYED, SHARED, STEP, A, O, S, Setup, vary

RULERS = ("value", "action", "lcb", "critics")
ALL_KINDS = [("td3", "mse"), ("ddpg", "mse"), ("td3", "huber"), *(("sac", d) for d in DIVERGENCES)]


def everything_else(agent: OffPolicy) -> list[Tensor]:
    """Return a copy of all that distillation must not move.

    Memory of the replay that was never written may hold NaN, which equals nothing.
    """
    parts = {k: x for k, x in agent.state().items() if not k.startswith(("nets.", "optimizer."))}
    rows = agent.replay.rows.nan_to_num()
    return [x.clone() for x in (*parts.values(), rows, agent.replay.live)]


def iteration(setup: Setup, number: int) -> None:
    """Learn by reinforcement and from each other."""
    batch = setup.iterate(number)
    setup.method.on_batch(batch, 0.0)
    setup.agent.update(batch, 0.0, setup.method.loss)
    setup.method.step()


@pytest.mark.parametrize(("algo", "divergence"), ALL_KINDS)
def test_no_gradient_reaches_peers_or_critics(algo: str, divergence: str) -> None:
    setup = Setup(vary(LOSS, divergence=divergence, ruler="action"), algo=algo)
    targets = setup.choose()
    assert not any(x.requires_grad for x in targets)
    agent = setup.agent
    loss = setup.loss(targets)[0]
    grad, of_critics = torch.autograd.grad(
        loss, [agent.nets.flat, agent.critics.flat], allow_unused=True
    )
    assert of_critics is None
    assert grad[1].eq(0).all()
    assert grad[0].abs().max() > 1e-4


@pytest.mark.parametrize("ruler", RULERS)
@pytest.mark.parametrize("config", [STEP, SHARED, LOSS], ids=["step", "shared", "loss"])
@pytest.mark.parametrize("algo", REPLAYED)
def test_only_policies_are_moved_and_they_are(algo: str, config: DPDConfig, ruler: str) -> None:
    setup = Setup(vary(config, ruler=ruler), algo=algo)
    before = everything_else(setup.agent)
    if config.dose == "loss":
        assert setup.extra_grad().abs().amax(1).gt(1e-6).all()
        moved = setup.flat.new_zeros(2)
    else:
        moved = setup.distil().abs().amax(1)
        assert moved.gt(1e-6).all()
    for old, new in zip(before, everything_else(setup.agent), strict=True):
        assert torch.equal(old, new)
    found = setup.method.metrics
    assert found.keys() >= {"distill/xi_mean", "distill/peer_ahead", "distill/action_distance"}
    assert all(x.shape == (2,) for x in found.values())


@pytest.mark.parametrize("ruler", RULERS)
@pytest.mark.parametrize("config", [STEP, SHARED, LOSS], ids=["step", "shared", "loss"])
@pytest.mark.parametrize("algo", REPLAYED)
def test_two_groups_in_one_stack_equal_two_groups_alone(
    algo: str, config: DPDConfig, ruler: str
) -> None:
    config = vary(config, ruler=ruler, memory=100)

    def train(setup: Setup) -> Tensor:
        for number in range(1, 3):
            iteration(setup, number)
        return setup.flat

    together = train(Setup(config, groups=2, algo=algo))
    for group in range(2):
        alone = train(Setup(config, first_group=group, algo=algo))
        assert (together[2 * group : 2 * group + 2] - alone).abs().max() <= 1e-12


@pytest.mark.parametrize("config", [STEP, LOSS], ids=["step", "loss"])
@pytest.mark.parametrize("divergence", ["kl_forward", "kl_reverse", "nll"])
def test_a_nearly_deterministic_peer_teaches_a_deviation_of_the_floor_at_least(
    divergence: str, config: DPDConfig
) -> None:
    # Row 1 answers with deviation exp(-9); a student of deviation 1 whose mean is off by 0.1 would
    # be at KL(student || target) = (1 + 0.01) / (2 exp(-18)) > 1e7; with 0.05 it is
    # log 0.05 + 1.01 / (2 * 0.0025) - 1/2 = 198.5 in each of the two dimensions, times coef 0.5
    setup = Setup(vary(config, divergence=divergence, gate="uniform"), algo="sac")
    last = {k: setup.agent.nets.views[f"actor.2.{k}"] for k in ("weight", "bias")}
    last["weight"].zero_()
    last["bias"][:] = torch.tensor([[[0.1, 0.1, 0.0, 0.0]], [[0.0, 0.0, -9.0, -9.0]]])
    targets = setup.choose()
    assert targets.log_std[0].exp().unique().tolist() == pytest.approx([STD_FLOOR])
    assert targets.log_std[1].eq(0).all()
    loss = setup.loss(targets)[0].item()
    assert loss < 1000
    if divergence == "kl_reverse":
        assert loss == pytest.approx(2 * (math.log(0.05) + 1.01 / 0.005 - 0.5))


@pytest.mark.parametrize("gate", ["soft", "hard", "uniform"])
@pytest.mark.parametrize(("algo", "divergence"), [x for x in ALL_KINDS if x[1] != "nll"])
def test_identical_learners_have_nothing_to_teach_each_other(
    algo: str, divergence: str, gate: str
) -> None:
    setup = Setup(vary(LOSS, ruler="action", divergence=divergence, gate=gate), algo=algo)
    agent = setup.agent
    agent.nets.flat.detach()[1] = agent.nets.flat.detach()[0]
    for x in (agent.obs_norm.moments.mean, agent.obs_norm.moments.var):
        x[1] = x[0]
    agent.obs_norm.update(setup.batch.raw_obs, torch.zeros(2, S, dtype=torch.bool))
    loss = setup.loss(setup.choose())
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-15)


@pytest.mark.parametrize("config", [STEP, SHARED, LOSS], ids=["step", "shared", "loss"])
def test_one_way_distillation_leaves_the_teacher_as_it_would_be(config: DPDConfig) -> None:
    taught = Setup(vary(config, students=(0,)), groups=2, algo="td3")
    alone = Setup(config, groups=2, algo="td3")
    iteration(taught, 1)
    alone.agent.update(alone.iterate(1), 0.0)
    assert torch.equal(taught.flat[1::2], alone.flat[1::2])
    assert (taught.flat != alone.flat)[::2].any(1).all()


# --- When, and how much ---


@pytest.mark.parametrize("dose", ["step", "shared", "loss"])
def test_nothing_is_distilled_while_learners_only_collect(dose: str) -> None:
    algo = replace(REPLAYED["td3"], learning_starts=65)
    setup = Setup(vary(STEP, dose=dose), algo=algo)
    assert setup.distil().eq(0).all()
    assert setup.method.loss is None
    independent = Independent(IndependentConfig(), setup.context)
    independent.on_batch(setup.batch, 0.0)
    assert independent.step() == {}
    setup.batch = setup.iterate(1)  # 128 steps
    moved = setup.distil()
    assert (setup.method.loss is not None) if dose == "loss" else moved.abs().max() > 0
    assert independent.step().keys() >= {"distill/action_distance", "distill/xi_mean"}


def test_by_default_one_step_follows_each_update() -> None:
    setup = Setup(DPDConfig(), algo="td3")  # 64 samples x 0.125 updates
    setup.distil()
    assert setup.method.optimizer.steps.tolist() == [8, 8]
    assert setup.method.optimizer.lr == [1e-4, 1e-4]
    # 8 steps of 64 states, from the 64 there are
    assert setup.choose().weight.shape == (2, 64)


def with_known_actions(setup: Setup, *act: float) -> None:
    """Let row n of a TD3 stack answer act[n] everywhere, and both critics the same value."""
    nets, critics = setup.agent.nets, setup.agent.critics
    nets.views["actor.2.weight"].zero_()
    nets.views["actor.2.bias"][:] = torch.tensor(act, dtype=F64).atanh().view(-1, 1, 1)
    critics.flat.detach().zero_()


@pytest.mark.parametrize("states", ["peer", "own", "mixed"])
def test_the_term_of_every_update_is_on_states_of_its_own(states: str) -> None:
    # 64 states are held of each learner, and 5 minibatches of 16 are asked for
    setup = Setup(vary(LOSS, states=states, memory=None), groups=2, algo="ddpg")
    setup.method.on_batch(setup.batch, 0.0)
    seen = []
    for i in range(5):
        raw_obs = setup.batch.raw_obs[:, 12 * i : 12 * i + 16]
        targets, metrics = setup.choose_beside(raw_obs)
        assert targets.weight.shape == (4, 16)
        assert metrics["distill/ess"].shape == (4,)
        shown = targets.obs / setup.agent.obs_norm.scale + setup.agent.obs_norm.mean
        is_own = (shown - raw_obs).abs().amax(-1) < 1e-9
        share = is_own.double().mean().item()
        # an own state is that of the learner's minibatch at its place
        assert {"peer": share == 0, "own": share == 1, "mixed": 0.2 < share < 0.8}[states]
        for n, peer in ((0, 1), (1, 0), (2, 3), (3, 2)):
            other = shown[n][~is_own[n]]
            if len(other):
                assert torch.cdist(other, setup.batch.raw_obs[peer]).amin(1).max() < 1e-6
        seen.append(shown[0])
    assert len(torch.cat(seen).unique(dim=0)) > 32  # not one minibatch again and again


def test_the_term_of_an_update_worked_by_hand() -> None:
    # Actions 0.5 and -0.1 in both dimensions everywhere, and no critic prefers any: weights are 1.
    # mse = 0.6^2 = 0.36; times coef 0.5. The gradient of row 0's bias by tanh: per dimension
    # 0.5 * 2 * (0.5 + 0.1) / 2 * (1 - 0.5^2) = 0.225.
    setup = Setup(LOSS, algo="ddpg")
    with_known_actions(setup, 0.5, -0.1)
    setup.method.on_batch(setup.batch, 0.0)
    loss, metrics = setup.term()
    assert loss.tolist() == pytest.approx([0.18, 0.18])
    assert metrics["distill/loss"].tolist() == pytest.approx([0.36, 0.36])
    (grad,) = torch.autograd.grad(loss.sum(), setup.agent.nets.flat)
    assert grad[0, -A:].tolist() == pytest.approx([0.225, 0.225])


def test_the_term_of_an_update_in_units_of_the_values_that_the_policy_ascends() -> None:
    # as above, 0.5 * 0.36 = 0.18; the values 3 and -5 have mean size 4, and 2 and 2 have 2
    setup = Setup(vary(LOSS, coef_unit="value"), algo="ddpg")
    with_known_actions(setup, 0.5, -0.1)
    setup.method.on_batch(setup.batch, 0.0)
    q = torch.tensor([[3.0, -5.0], [2.0, 2.0]], dtype=F64).repeat(1, 8)
    loss, metrics = setup.term(q)
    assert loss.tolist() == pytest.approx([0.18 * 4, 0.18 * 2])
    assert metrics["distill/loss"].tolist() == pytest.approx([0.36, 0.36])


@pytest.mark.parametrize("algo", REPLAYED)
def test_peers_that_pool_their_critics_distil_inside_their_loss(algo: str) -> None:
    shared = replace(REPLAYED[algo], share_experience=True)
    config = vary(LOSS, ruler="lcb", gate="hard", states="mixed", coef_unit="value", memory=None)
    setup = Setup(config, algo=shared)
    seen: list[Tensor] = []
    for number in range(2):
        batch = setup.iterate(number)
        setup.method.on_batch(batch, 0.0)
        extra = setup.method.loss
        assert extra is not None and not isinstance(extra, ClosedTerm)

        def spied(
            minibatch: Minibatch, extra: ReplayLoss = extra
        ) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(minibatch.q)
            return extra(minibatch)

        metrics = setup.agent.update(batch, 0.0, spied)
    # 8 updates an iteration and learner, twice as many in a pool of two, every one or every second
    delay = getattr(shared, "policy_delay", 1)
    assert len(seen) == 2 * 16 // delay and seen[0].shape == (2, 16)
    assert {"distill/loss", "distill/peer_ahead", "share/q_own"} <= metrics.keys()


def test_a_pool_takes_as_many_steps_of_distillation_as_it_takes_updates() -> None:
    # 64 steps of two peers at an eighth of an update each
    for shared, steps in ((False, 8), (True, 16)):
        algo = replace(REPLAYED["sac"], share_experience=shared)
        assert dose_of(DPDConfig(), Setup(STEP, algo=algo).agent).steps == steps


def test_targets_of_an_update_are_the_peers_as_they_are_at_it() -> None:
    setup = Setup(LOSS, algo="ddpg")
    with_known_actions(setup, 0.5, -0.1)
    setup.method.on_batch(setup.batch, 0.0)
    for act in (-0.1, 0.3):
        with_known_actions(setup, 0.5, act)
        targets = setup.choose()
        torch.testing.assert_close(targets.mean[0], torch.full_like(targets.mean[0], act))


def test_a_memory_of_own_states_in_the_loss_is_refused_for_it_would_do_nothing() -> None:
    with pytest.raises(ValueError, match=r"distill\.memory does nothing here"):
        Setup(vary(LOSS, states="own", memory=50), algo="sac")
    Setup(vary(LOSS, states="mixed", memory=50), algo="sac")
    Setup(vary(LOSS, states="own", memory=50), algo="ppo")


def test_scale_reward_is_one_raw_unit_where_rewards_are_not_scaled() -> None:
    # alpha 1: weights are K softmax_K of the raw gap
    setup = Setup(vary(LOSS, scale="reward"), algo="ddpg")
    targets = setup.choose()
    moments = setup.agent.obs_norm
    raw = targets.obs / moments.scale + moments.mean
    crossed, own = setup.agent.ask(raw.flip(0)).value.flip(0), setup.agent.ask(raw).value
    expected = (crossed - own).softmax(1) * raw.shape[1]
    torch.testing.assert_close(targets.weight, expected, rtol=1e-9, atol=1e-12)


# --- Going on from a checkpoint ---


@pytest.mark.parametrize("config", [STEP, SHARED, LOSS], ids=["step", "shared", "loss"])
@pytest.mark.parametrize(
    ("algo", "memory"), [("ppo", None), ("ppo", 100), ("td3", None), ("sac", 0), ("ddpg", 70)]
)
def test_going_on_from_a_state_equals_never_having_stopped(
    algo: str, memory: int | None, config: DPDConfig
) -> None:
    # 8 iterations of 64 states overflow the replay of 400
    config = vary(config, memory=memory)
    straight, resumed = Setup(config, algo=algo), Setup(config, algo=algo)
    for number in range(1, 8):
        iteration(straight, number)
    resumed.agent.load_state(copied(straight.agent.state()))
    resumed.method.load_state(copied(straight.method.state()))
    if isinstance(straight.agent, OffPolicy):
        old, new = straight.agent.replay, resumed.agent.replay
        new.restart(old.total - old.held)
        new.extend(old.since(0))
    assert torch.equal(straight.flat, resumed.flat)
    for number in range(8, 10):
        iteration(straight, number)
        iteration(resumed, number)
    for part in ("agent", "method"):
        expected = getattr(straight, part).state()
        for name, x in getattr(resumed, part).state().items():
            assert torch.equal(x, expected[name]), name


def copied(state: State) -> State:
    """Return a state as a file would give it back."""
    return {name: x.clone() for name, x in state.items()}


def test_states_are_shown_raw_and_read_by_each_with_its_own_normaliser() -> None:
    # row 1's normaliser turned about: what it answers changes, what it is shown does not
    setup = Setup(vary(LOSS, ruler="action"), algo="sac")
    targets = setup.choose()
    moments = setup.agent.obs_norm
    raw = targets.obs / moments.scale + moments.mean
    held = setup.agent.replay.rows.flatten(1, 2)[:, :S, :O]
    for n, peer in ((0, 1), (1, 0)):
        assert torch.cdist(raw[n], held[peer]).amin(1).max() < 1e-6
