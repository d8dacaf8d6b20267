import pytest
import torch
from torch import Tensor

from dpd.distill.independent import Independent
from dpd.distill.method import Context
from dpd.distill.peers_config import DPDConfig, IndependentConfig
from tests.toy.peers import DIVERGENCES, F64, LOSS, SHARED, STEP, A, O, S, Setup, vary


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_gradient_reaches_the_peer_the_weights_or_any_critic(divergence: str) -> None:
    setup = Setup(vary(LOSS, divergence=divergence))
    targets = setup.choose()
    (grad,) = torch.autograd.grad(setup.loss(targets)[0], setup.agent.nets.flat)
    assert grad[1].eq(0).all()
    actor = sum(v[0].numel() for k, v in setup.agent.nets.views.items() if k < "critic")
    assert grad[0, :actor].abs().max() > 1e-4
    assert grad[0, -(setup.flat.shape[1] - actor - A) :].eq(0).all()


def test_the_gradient_is_that_of_the_loss_with_targets_and_weights_held() -> None:
    # Move student 0 a little: the loss changes by gradient times movement (central difference),
    # though its own answers, and with them the gap, would change as well if they were asked again.
    setup = Setup(LOSS)
    targets = setup.choose()
    (grad,) = torch.autograd.grad(setup.loss(targets)[0], setup.agent.nets.flat)
    direction = torch.randn(
        setup.flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=F64
    )
    values = []
    for sign in (1, -1):
        setup.flat[0] += sign * 1e-6 * direction
        values.append(float(setup.loss(targets)[0].detach()))
        setup.flat[0] -= sign * 1e-6 * direction
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(grad[0] @ direction), rel=1e-5)


@pytest.mark.parametrize("divergence", ["mse", "kl_forward", "kl_reverse"])
@pytest.mark.parametrize("gate", ["soft", "hard", "uniform"])
def test_identical_learners_have_nothing_to_teach_each_other(divergence: str, gate: str) -> None:
    setup = Setup(vary(LOSS, divergence=divergence, gate=gate))
    agent = setup.agent
    assert setup.loss(setup.choose()).min() > (-1 if gate == "hard" else 1e-6)
    agent.nets.flat.detach()[1] = agent.nets.flat.detach()[0]
    agent.obs_norm.moments.mean[1] = agent.obs_norm.moments.mean[0]
    agent.obs_norm.moments.var[1] = agent.obs_norm.moments.var[0]
    agent.obs_norm.update(setup.batch.raw_obs, torch.zeros(2, S, dtype=torch.bool))
    agent.return_norm.moments.var[1] = agent.return_norm.moments.var[0]
    targets = setup.choose()
    assert targets.mean.abs().max() < 1  # nothing for the clip of targets to do
    torch.testing.assert_close(setup.loss(targets), torch.zeros(2, dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("ruler", ["value", "centred", "return", "advantage", "common"])
def test_the_gap_is_in_raw_units_whatever_a_peers_rewards_are_scaled_by(ruler: str) -> None:
    # Row 1's rewards scaled by c = 10 more, so its value function says a tenth: the same in raw
    setup, scaled = Setup(vary(LOSS, ruler=ruler)), Setup(vary(LOSS, ruler=ruler))
    var = scaled.agent.return_norm.moments.var
    var[1] = 100 * (var[1] + 1e-8) - 1e-8
    for name in ("critic.2.weight", "critic.2.bias"):
        scaled.agent.nets.views[name][1] /= 10
    for row in range(2):
        before, after = setup.choose().weight[row], scaled.choose().weight[row]
        assert before.std() > 1e-2
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)
    for name in ("distill/xi_mean", "distill/peer_ahead"):
        torch.testing.assert_close(setup.method.metrics[name], scaled.method.metrics[name])


@pytest.mark.parametrize("scale", ["rms", "reward"])
def test_weights_follow_the_gap_in_raw_units(scale: str) -> None:
    # P = 2, so K softmax_K(xi / scale) of the raw values both give at the peer's states
    setup = Setup(vary(LOSS, scale=scale))
    targets = setup.choose()
    moments = setup.agent.obs_norm
    raw = targets.obs / moments.scale + moments.mean  # unclipped: |x| < 10 here
    value = setup.agent.ask(raw).value
    crossed = setup.agent.ask(raw.flip(0)).value
    assert value is not None and crossed is not None
    xi = crossed.flip(0) - value
    rms, deviation = xi.square().mean(1, keepdim=True).sqrt(), setup.agent.return_norm.scale
    assert (rms - deviation).abs().min() > 0.1
    exponent = torch.exp(xi / (rms if scale == "rms" else deviation))
    expected = exponent / exponent.mean(1, keepdim=True)
    torch.testing.assert_close(targets.weight, expected, rtol=1e-6, atol=1e-9)


def test_the_gaps_mean_square_runs_over_the_iterations() -> None:
    # gaps of 1, then 3: 1, then 1 + 0.1 (9 - 1) = 1.8, in both rows
    setup = Setup(LOSS)
    for peer, expected in ((1.0, 1.0), (3.0, 1.8)):
        setup.put_ahead(0.0, peer)
        setup.choose()
        assert setup.method.mean_square.flatten().tolist() == pytest.approx([expected] * 2)


def test_half_the_dose_moves_the_parameters_half_as_far() -> None:
    # Own Adam: its first step is lr g / (|g| + eps), proportional to lr
    full, half = (Setup(vary(STEP, lr=lr, steps=1)).distil() for lr in (1e-3, 5e-4))
    assert full.abs().max() > 1e-4
    torch.testing.assert_close(half, full / 2, rtol=1e-9, atol=1e-15)
    # In the learners' loss: half the coefficient adds half the gradient
    full, half = (Setup(vary(LOSS, coef=c)).extra_grad() for c in (0.5, 0.25))
    assert full.abs().max() > 1e-4
    torch.testing.assert_close(half, full / 2, rtol=1e-12, atol=0)


def test_a_falling_dose_is_halved_halfway() -> None:
    # linear from 1 at the warm-up's end (0.2) to 0 at 1: 0.5 at progress 0.6
    full, half = (Setup(vary(STEP, steps=1, schedule="linear", warmup=w)) for w in (0.0, 0.2))
    torch.testing.assert_close(half.distil(0.6), full.distil() / 2, rtol=1e-9, atol=1e-15)
    early, late = (Setup(vary(LOSS, schedule="linear")).extra_grad(p) for p in (0.0, 0.5))
    torch.testing.assert_close(late, early / 2, rtol=1e-12, atol=0)


def test_a_coefficient_under_an_adam_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="coef under an Adam of its own cancels"):
        DPDConfig(dose="step", coef=0.5)


@pytest.mark.parametrize("dose", ["step", "shared", "loss"])
def test_nothing_is_distilled_before_the_warm_up_is_over(dose: str) -> None:
    setup = Setup(vary(STEP, dose=dose, warmup=0.5))
    assert setup.distil(progress=0.49).eq(0).all()
    assert setup.method.loss is None
    moved = setup.distil(progress=0.5)
    assert (setup.method.loss is not None) if dose == "loss" else moved.abs().max() > 0


def test_every_third_iteration_is_every_third_iteration() -> None:
    setup = Setup(vary(STEP, every=3))
    moves = [bool(setup.distil().abs().max() > 0) for _ in range(7)]
    assert moves == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("dose", ["step", "shared"])
def test_one_way_distillation_leaves_the_teacher_bit_for_bit(dose: str) -> None:
    setup = Setup(vary(STEP, dose=dose, students=(0,)), groups=2)
    before = setup.state
    setup.distil()
    for new, old in zip(setup.state[:4] if dose == "shared" else setup.state, before, strict=False):
        assert torch.equal(new[1::2], old[1::2])  # peer 1 of both groups
    assert (setup.flat != before[0])[::2].any(1).all()


def test_one_way_distillation_adds_nothing_to_the_teachers_own_gradient() -> None:
    grad = Setup(vary(LOSS, students=(1,)), groups=2).extra_grad()
    assert grad[::2].eq(0).all()
    assert grad[1::2].abs().amax(1).gt(1e-4).all()


@pytest.mark.parametrize("students", [(2,), (0, -1), ()])
def test_students_that_are_no_peers_are_refused(students: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="students"):
        Setup(vary(STEP, students=students))


@pytest.mark.parametrize("dose", ["step", "shared"])
def test_a_row_whose_gate_is_all_zero_stays_bit_for_bit(dose: str) -> None:
    setup = Setup(vary(STEP, dose=dose, gate="hard"))
    setup.put_ahead(0.0, 1.0)  # the peer is ahead of row 0: it gains momentum
    assert setup.distil()[0].abs().max() > 0
    setup.put_ahead(1.0, 0.0)
    before = setup.state
    moved = setup.distil()
    for new, old in zip(setup.state, before, strict=True):
        assert torch.equal(new[0], old[0])
    assert moved[1].abs().max() > 0


def test_of_three_peers_the_best_other_is_followed_on_states_of_both_others() -> None:
    # Values 0, 5, 3: peer 0 follows 1 (gap 5), peer 1 its best other 2 (gap -2: never ahead),
    # peer 2 follows 1 (gap 2). In both groups.
    setup = Setup(vary(LOSS, gate="hard"), groups=2, peers=3)
    setup.put_ahead(0, 5, 3, 0, 5, 3)
    targets = setup.choose()
    raw = targets.obs / setup.agent.obs_norm.scale + setup.agent.obs_norm.mean
    for n, follows in enumerate((1, 2, 1, 4, 5, 4)):
        asked = raw[n].expand(6, *raw[n].shape)
        expected = setup.agent.ask(asked).dist.mean[follows].clamp(-1, 1)
        torch.testing.assert_close(targets.mean[n], expected, rtol=1e-6, atol=1e-7)
    weights = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert targets.weight.tolist() == [[w] * S for w in weights]
    assert setup.method.metrics["distill/xi_mean"].tolist() == pytest.approx([5, -2, 2, 5, -2, 2])


@pytest.mark.parametrize("config", [STEP, SHARED, LOSS])
def test_two_groups_in_one_stack_equal_two_groups_alone(config: DPDConfig) -> None:
    def train(setup: Setup) -> Tensor:
        for progress in (0.0, 0.5):
            setup.method.on_batch(setup.batch, progress)
            setup.agent.update(setup.batch, progress, setup.method.loss)
            setup.method.step()
        return setup.flat

    together = train(Setup(config, groups=2))
    for group in range(2):
        alone = train(Setup(config, groups=1, first_group=group))
        difference = (together[2 * group : 2 * group + 2] - alone).abs().max()
        assert difference <= 1e-12


def test_shuffled_weights_are_the_same_weights_at_other_states() -> None:
    plain, shuffled = (Setup(vary(LOSS, control=c)).choose() for c in ("none", "shuffled"))
    assert torch.equal(plain.obs, shuffled.obs)
    assert torch.equal(plain.weight.sort(1).values, shuffled.weight.sort(1).values)
    assert not torch.equal(plain.weight, shuffled.weight)


def test_the_return_ruler_compares_what_the_peer_really_got_with_the_own_value() -> None:
    setup = Setup(vary(LOSS, ruler="return", gate="hard"))
    batch = setup.batch
    targets = setup.choose()
    raw = targets.obs / setup.agent.obs_norm.scale + setup.agent.obs_norm.mean
    value = setup.agent.ask(raw).value
    assert value is not None and batch.returns is not None
    for n, peer in ((0, 1), (1, 0)):
        # find each state in the peer's rollout by itself
        position = torch.cdist(raw[n], batch.raw_obs[peer]).argmin(1)
        torch.testing.assert_close(batch.raw_obs[peer][position], raw[n], rtol=1e-6, atol=1e-6)
        assert len(set(position.tolist())) == S
        expected = (batch.returns[peer][position] > value[n]).double()
        assert 0.1 < float(expected.mean()) < 0.9
        assert torch.equal(targets.weight[n], expected)


def test_raw_returns_are_in_the_units_of_the_rewards() -> None:
    # one-step episodes: the return is the reward, whatever scale the learners train on
    setup = Setup(LOSS)
    rollout = setup.agent.new_rollout()
    rollout.reward[:] = 3 * torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    rollout.terminated[:] = True
    assert setup.agent.return_norm.scale.min() > 2
    returns = setup.agent.prepare(rollout).returns
    torch.testing.assert_close(returns, rollout.reward.flatten(1), rtol=1e-9, atol=1e-9)


def test_targets_are_clipped_to_the_action_box_and_the_student_can_come_back() -> None:
    setup = Setup(vary(LOSS, divergence="mse"))
    setup.agent.nets.views["actor.2.bias"][:] = torch.tensor([3.0, -2.0], dtype=F64).view(2, 1, 1)
    targets = setup.choose()
    assert targets.mean[0].eq(-1).all() and targets.mean[1].eq(1).all()
    (grad,) = torch.autograd.grad(setup.loss(targets).sum(), setup.agent.nets.flat)
    assert grad.abs().amax(1).gt(1e-3).all()


def test_log_reports_the_weights_worked_by_hand() -> None:
    setup = Setup(vary(LOSS, gate="hard"))
    setup.put_ahead(2.0, 5.0)
    setup.choose()
    found = {k: v.tolist() for k, v in setup.method.metrics.items()}
    assert found["distill/xi_mean"] == pytest.approx([3, -3])
    assert found["distill/peer_ahead"] == [1, 0]
    assert found["distill/weight_q50"] == [1, 0]
    assert found["distill/ess"] == [1, 0]


def test_the_logged_action_distance_is_euclidean_between_clipped_means() -> None:
    # Means (0.3, 0) and (-0.5, 0.6) everywhere: sqrt(0.8^2 + 0.6^2) = 1, in both rows
    setup = Setup(LOSS)
    setup.agent.nets.views["actor.2.weight"].zero_()
    setup.agent.nets.views["actor.2.bias"][:, 0] = torch.tensor([[0.3, 0], [-0.5, 0.6]], dtype=F64)
    setup.choose()
    assert setup.method.metrics["distill/action_distance"].tolist() == pytest.approx([1, 1])
    independent = Independent(IndependentConfig(), Context(setup.agent, 1, 2, setup.rows))
    independent.on_batch(setup.batch, 0.0)
    assert independent.step()["distill/action_distance"].tolist() == pytest.approx([1, 1])


def test_what_a_checkpoint_holds_grows_with_the_method() -> None:
    setup = Setup(vary(STEP, memory=100))
    setup.distil()
    state = setup.method.state()
    assert int(state["iteration"]) == 1
    assert state["exchange.source0.memory"].shape == (2, S, O)
    assert state["optimizer.steps"].tolist() == [4, 4]
    assert state["mean_square"].gt(0).all()


def test_a_learner_alone_has_no_peer_to_learn_from() -> None:
    with pytest.raises(ValueError, match="--peers 2"):
        Setup(STEP, peers=1)
