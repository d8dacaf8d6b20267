"""Peers' samples count as an off-policy learner's should, and nothing else of a peer is read."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Batch, Rollout
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.ppo_loss import variance
from dpd.agents.sharing import effective_share, gae, group_mean, share_weights, shared
from tests.agents.test_ppo import A, O, fill

F64 = torch.float64
SMALL = PPOConfig(n_envs=2, n_steps=8, minibatch_size=8, epochs=2, hidden=(8, 8), lr=1e-2)
SHARE = replace(SMALL, share_experience=True)
NO = torch.zeros(1, 3, 1, dtype=torch.bool)


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


def column(*numbers: float) -> Tensor:
    """Return one learner's numbers in one environment [1, T, 1]."""
    return f64(*numbers).view(1, -1, 1)


def rollout_of(agent: PPO, seed: int = 0) -> Rollout:
    rollout = agent.new_rollout()
    fill(agent, rollout, [10 * seed + n for n in range(agent.n_learners)])
    return rollout


def group(config: PPOConfig, peers: int = 2, groups: int = 1, apart: float = 0.3) -> PPO:
    """Return learners whose policies and normalisers are some way apart."""
    agent = PPO(config, O, A, [(g, p) for g in range(groups) for p in range(peers)], F64)
    for n, (g, p) in enumerate([(g, p) for g in range(groups) for p in range(peers)]):
        noise = torch.Generator().manual_seed(100 * g + p)
        flat = agent.nets.flat.detach()
        flat[n] += apart * 0.1 * torch.randn(flat.shape[1], generator=noise, dtype=F64)
        agent.obs_norm.moments.mean[n] += apart * p
    agent.obs_norm._refresh()
    return agent


def test_own_values_come_first_and_then_those_of_the_peers_in_turn() -> None:
    rows = torch.arange(6).view(6, 1, 1, 1).expand(6, 4, 2, 3)
    expected = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [3, 4, 5], [4, 5, 3], [5, 3, 4]]
    assert shared(rows, 3)[:, 0, ::2, 0].tolist() == expected
    assert torch.equal(shared(rows, 3)[..., 1::2, 0], shared(rows, 3)[..., ::2, 0])


def test_the_mean_of_a_group_is_of_the_same_samples() -> None:
    # Sample s of three peers, one step, one environment; learner i says 100 i + s, in its order.
    # The mean over learners is 100 + s, in each one's order; the second group says 1,000 more.
    samples = torch.arange(3.0).repeat(2).view(6, 1, 1)
    says = shared(samples, 3) + torch.tensor([0, 100, 200, 1000, 1100, 1200.0]).view(6, 1, 1)
    mean = shared(samples, 3) + torch.tensor([100.0] * 3 + [1100.0] * 3).view(6, 1, 1)
    assert torch.equal(group_mean(says, 3), mean)


def test_the_mean_value_is_taken_in_raw_rewards() -> None:
    own, joint = (group(replace(SHARE, share_value=v)) for v in ("own", "mean"))
    for agent in (own, joint):
        agent.return_norm.moments.var[:] = f64(4.0, 9.0).view_as(agent.return_norm.moments.var)
    rollout = rollout_of(own)
    rollout.terminated[:], rollout.done[:] = True, True  # A = r / scale - V, and V + A = r / scale
    values = own.prepare(rollout).data.value * own.reward_scale  # [2, S], peers' samples second
    raw = (values[0] + values[1].unflatten(0, (8, 2, 2)).flip(1).flatten()) / 2
    data = joint.prepare(rollout).data
    reward = own.return_norm(rollout.reward)[0].flatten()
    found = data.adv[0].unflatten(0, (8, 2, 2))[:, 0].flatten()
    own_raw = raw.unflatten(0, (8, 2, 2))[:, 0].flatten()
    torch.testing.assert_close(found, reward - own_raw / own.reward_scale[0])
    assert torch.equal(data.value, own.prepare(rollout).data.value)


def test_weights_worked_by_hand() -> None:
    # rho = 2 and 1/2: w = min(1, rho) = 1 and 1/2, their mean 3/4.
    # Effective share: (2 + 1/2)^2 / (2 (4 + 1/4)) = 6.25 / 8.5
    behaviour = f64(-1, -1, -1, -1).view(1, 2, 2)
    logp = behaviour + f64(9, math.log(2), 9, -math.log(2)).view(1, 2, 2)  # own ones do not count
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    weight, used, metrics = share_weights(logp, behaviour, valid, 2, 0.2)
    assert bool(used.all())
    assert weight.flatten().tolist() == pytest.approx([1, 1, 1, 0.5])
    assert metrics["share/ess"].tolist() == pytest.approx([6.25 / 8.5])
    assert metrics["share/weight"].tolist() == pytest.approx([0.75])


def test_a_peer_of_too_few_effective_samples_counts_nothing_and_another_one_does() -> None:
    # Peer 1: rho = (8, 0, 0, 0), effective share 1/4; peer 2: all 1.
    log_rho = torch.full((1, 4, 3), -60.0, dtype=F64)
    log_rho[..., 2], log_rho[0, 0, 1], log_rho[..., 0] = 0, math.log(8), 0
    valid = torch.ones(1, 4, 3, dtype=torch.bool)
    for least, first in ((0.24, 1.0), (0.26, 0.0)):
        weight, used, metrics = share_weights(log_rho, torch.zeros(1, 4, 3), valid, 3, least)
        assert used[0].tolist() == [[True, first == 1, True]] * 4
        assert weight[0, 0].tolist() == [1, first, 1] and weight[0, :, 2].tolist() == [1] * 4
        assert metrics["share/ess"].tolist() == pytest.approx([(0.25 + 1) / 2])
        assert metrics["share/weight"].tolist() == pytest.approx([(first + 4) / 8])


def test_the_effective_share_survives_ratios_beyond_floats_and_counts_valid_ones_only() -> None:
    log_rho = torch.tensor([[900.0, 900.0, 0.0, 2000.0], [1.0, 2.0, 3.0, 4.0]])
    valid = torch.tensor([[True, True, True, False], [False] * 4])
    assert effective_share(log_rho, valid).tolist() == pytest.approx([2 / 3, 0])


def test_vtrace_targets_worked_by_hand() -> None:
    # gamma 1/2, lambda 1, values 0, last successor 0: delta = r = (1, 2, 4), w = (1/2, 1/4, 1/2).
    # A2 = 4; A1 = 2 + 1/2 * 1/2 * 4 = 3; A0 = 1 + 1/2 * 1/4 * 3 = 11/8.
    # v = w A = (11/16, 3/4, 2). As a sum (IMPALA, eq. 1): v0 = w0 (r0 + c0 of the next ones)
    # = 1/2 (1 + 1/2 * 1/4 * 2 + 1/4 * 1/4 * 1/2 * 4) = 1/2 (1 + 1/4 + 1/8) = 11/16.
    weight, zero = column(0.5, 0.25, 0.5), column(0, 0, 0)
    adv = gae(column(1, 2, 4), zero, zero, NO, NO, f64(0.5), f64(1.0), weight)
    assert adv.flatten().tolist() == pytest.approx([11 / 8, 3, 4])
    assert (weight * adv).flatten().tolist() == pytest.approx([11 / 16, 3 / 4, 2])
    plain = gae(column(1, 2, 4), zero, zero, NO, NO, f64(0.5), f64(1.0))
    ones = gae(column(1, 2, 4), zero, zero, NO, NO, f64(0.5), f64(1.0), torch.ones_like(zero))
    assert torch.equal(plain, ones)


def test_an_end_keeps_weights_of_the_next_episode_out() -> None:
    done = torch.tensor([False, True, False]).view(1, 3, 1)
    zero = column(0, 0, 0)
    found = [
        gae(column(1, 2, 4), zero, zero, done, done, f64(0.5), f64(1.0), column(1, 1, w))
        for w in (0.1, 0.9)
    ]
    assert torch.equal(*found)


# A chain of three states; action 0 stays, 1 goes on and from the last state back to the first.
REWARD, GAMMA, T = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]], dtype=F64), 0.8, 4
ACTED = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]], dtype=F64)  # the peer's policy


def next_state(s: int, a: int) -> int:
    return (s + a) % 3


def plain_value(policy: Tensor) -> Tensor:
    """Return the value of a policy on the chain [3], from Bellman's equation."""
    transition = torch.zeros(3, 3, dtype=F64)
    for s, a in product(range(3), range(2)):
        transition[s, next_state(s, a)] += policy[s, a]
    reward = (policy * REWARD).sum(1)
    return torch.linalg.solve(torch.eye(3, dtype=F64) - GAMMA * transition, reward)


def expected_target(value: Tensor, policy: Tensor, lam: float) -> Tensor:
    """Return the mean V-trace target at each state [3], over every sequence of T actions."""
    found = torch.zeros(3, dtype=F64)
    for start, actions in product(range(3), product(range(2), repeat=T)):
        states = [start]
        for action in actions:
            states.append(next_state(states[-1], action))
        s, a, then = torch.tensor(states[:-1]), torch.tensor(actions), torch.tensor(states[1:])
        weight = (policy[s, a] / ACTED[s, a]).clamp(max=1)
        r, v, v2 = (x.view(1, T, 1) for x in (REWARD[s, a], value[s], value[then]))
        no = torch.zeros(1, T, 1, dtype=torch.bool)
        adv = gae(r, v, v2, no, no, f64(GAMMA), f64(lam), weight.view(1, T, 1))
        found[start] += ACTED[s, a].prod() * (value[start] + weight[0] * adv[0, 0, 0])
    return found


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("differs", [True, False], ids=["another policy", "the same"])
def test_the_fixed_point_is_the_value_of_the_truncated_policy(lam: float, differs: bool) -> None:
    policy = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], dtype=F64) if differs else ACTED
    value = torch.zeros(3, dtype=F64)
    for _ in range(200):
        value = expected_target(value, policy, lam)
    least = torch.minimum(policy, ACTED)  # IMPALA, eq. 2
    truncated = least / least.sum(1, keepdim=True)
    torch.testing.assert_close(value, plain_value(truncated), rtol=1e-9, atol=1e-9)
    off = (value - plain_value(policy)).abs().max()
    assert off > 0.1 if differs else off < 1e-9


def copied(agent: PPO) -> PPO:
    """Give peer 1 the parameters of peer 0; both have the same normalisers."""
    agent.nets.flat.detach()[1] = agent.nets.flat.detach()[0]
    return agent


def test_samples_of_an_identical_peer_are_as_a_doubled_rollout() -> None:
    whole = replace(SHARE, minibatch_size=16, epochs=1, value_clip=0.2, entropy_coef=0.01)
    sharing = copied(PPO(whole, O, A, [(0, 0), (0, 1)], F64))
    rollout = rollout_of(sharing)
    doubled = replace(whole, n_envs=4, minibatch_size=32, share_experience=False)
    alone = PPO(doubled, O, A, [(0, 0)], F64)
    alone.nets.flat.detach()[0] = sharing.nets.flat.detach()[0]
    both = alone.new_rollout()
    for name, x in vars(rollout).items():
        getattr(both, name)[0] = torch.cat([x[0], x[1]], 1)
    sharing.config = replace(whole, minibatch_size=32, n_envs=4)  # all samples in one minibatch
    theirs, own = sharing.prepare(rollout), alone.prepare(both)
    for x, y in zip(theirs.data[:6], own.data[:6], strict=True):
        torch.testing.assert_close(x[:1], y, rtol=1e-12, atol=1e-12)
    assert theirs.data.weight.allclose(torch.ones_like(theirs.data.weight), rtol=1e-12)
    for agent, batch in ((sharing, theirs), (alone, own)):
        agent.update(batch, 0.0)
    # Adam's first moment is (1 - 0.9) times the clipped gradient
    found, expected = (agent.optimizer.exp_avg[0] for agent in (sharing, alone))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_own_samples_are_those_of_a_learner_that_shares_nothing() -> None:
    sharing, alone = group(SHARE, peers=3), group(SMALL, peers=3)
    rollout = rollout_of(sharing)
    joint, own = sharing.prepare(rollout), alone.prepare(rollout)
    for x, y in zip(joint.data[:6], own.data[:6], strict=True):
        mine = x.unflatten(1, (8, 6))[:, :, :2].flatten(1, 2)
        torch.testing.assert_close(mine, y, rtol=1e-12, atol=1e-12)
    assert joint.returns is not None and own.returns is not None
    torch.testing.assert_close(joint.returns, own.returns, rtol=1e-12, atol=1e-12)
    assert torch.equal(joint.raw_obs, own.raw_obs)


def test_foreign_samples_are_seen_by_the_learners_own_normaliser_value_and_policy() -> None:
    agent = group(SHARE, apart=1.0)
    rollout = rollout_of(agent)
    data = agent.prepare(rollout).data
    weight = data.weight.view(2, 8, 4)
    for i, j in ((0, 1), (1, 0)):
        raw, act = rollout.obs[j].flatten(0, 1), rollout.act[j].flatten(0, 1)
        asked = agent.obs_norm(raw.expand(2, -1, -1))
        theirs = agent.dist(asked).logp(act.expand(2, -1, -1))
        rho = (theirs[i] - theirs[j]).exp().view(8, 2).detach()
        torch.testing.assert_close(weight[i, :, 2:], rho.clamp(max=1), rtol=1e-9, atol=1e-12)
        assert 0 < float(rho.min()) < 0.9 and float(weight[i, :, :2].min()) == 1
        value = agent.value(asked)[i].view(8, 2)
        torch.testing.assert_close(data.value.view(2, 8, 4)[i, :, 2:], value, rtol=1e-9, atol=1e-9)


def test_targets_of_foreign_samples_are_the_sum_that_defines_vtrace() -> None:
    # v_t - V_t = sum_k (gamma lambda)^(k-t) w_t ... w_k delta_k up to the episode's end, all by the
    # learner's own value, reward scale and discount
    agent = group(replace(SHARE, peer_gamma=(0.9, 0.7)))
    agent.return_norm.moments.var[:] = torch.tensor([[4.0], [9.0]])
    rollout = rollout_of(agent)
    batch = agent.prepare(rollout)
    value, weight, ret, adv = (
        x.view(2, 8, 4)[0, :, 2:] for x in (batch.data[k] for k in (5, 6, 4, 3))
    )
    seen = agent.obs_norm(rollout.next_obs[1].flatten(0, 1).expand(2, -1, -1))
    then = agent.value(seen).detach()[0].view(8, 2)
    reward = rollout.reward[1] / (4 + 1e-8) ** 0.5
    delta = reward + 0.9 * then * ~rollout.terminated[1] - value
    for t, e in product(range(8), range(2)):
        total, factor = 0.0, 1.0
        for k in range(t, 8):
            factor *= float(weight[k, e])
            total += factor * float(delta[k, e])
            factor *= 0.9 * 0.95
            if rollout.done[1, k, e]:
                break
        assert float(ret[t, e] - value[t, e]) == pytest.approx(total, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(weight * adv, ret - value, rtol=1e-9, atol=1e-12)


def broken(rollout: Rollout) -> Rollout:
    """Spoil a step of peer 1, in which nothing took place."""
    rollout.terminated[1, 4, 0] = False
    rollout.truncated[1, 4, 0], rollout.valid[1, 4, 0] = True, False
    rollout.truncated[1, 3, 0] = True  # what was before it ended there
    rollout.reward[1, 4, 0], rollout.next_obs[1, 4, 0] = 1e6, torch.nan
    return rollout


@pytest.mark.parametrize("spoil", [0.0, 1e3])
def test_samples_that_are_masked_never_count(spoil: float) -> None:
    agent = group(SHARE)
    rollout = broken(rollout_of(agent))
    clean = agent.prepare(rollout)
    rollout.act[1, 4, 0], rollout.obs[1, 4, 0] = 0.5 + spoil, 0.5 - spoil
    batch = agent.prepare(rollout)
    at = 4 * 4 + 2  # peer 1's first environment is the third of learner 0's joint rollout
    assert not batch.valid[0, at] and batch.valid.sum(1).tolist() == [31, 31]
    keep = batch.valid
    for x, y in zip(batch.data, clean.data, strict=True):
        torch.testing.assert_close(x[keep], y[keep], rtol=1e-12, atol=1e-12)
    found = agent.update(batch, 0.0)
    for name, x in found.items():
        assert x.isfinite().all(), name
    again = group(SHARE)
    again.noise()
    again.update(clean, 0.0)
    torch.testing.assert_close(agent.nets.flat, again.nets.flat, rtol=1e-12, atol=1e-12)


def test_an_update_reads_nothing_of_a_peer_but_what_it_shared() -> None:
    after = []
    for spoil in (False, True):
        agent = group(SHARE)
        rollout = rollout_of(agent)
        batch = agent.prepare(rollout)
        if spoil:
            agent.nets.flat.detach()[1] = torch.nan
            agent.obs_norm.mean[1] = agent.return_norm.moments.var[1] = torch.nan
            rollout.obs[1] = rollout.reward[1] = torch.nan
        agent.update(batch, 0.0)
        after.append(agent.nets.flat.detach()[0])
    assert torch.equal(*after)


def test_the_plan_of_an_iteration_names_the_shared_samples() -> None:
    plan = "2 envs x 8 steps = 16 per learner and those of its peers, 2 epochs of 8"
    assert SHARE.plan == plan and SMALL.plan == plan.replace(" and those of its peers", "")


def test_groups_share_nothing() -> None:
    def trained(agent: PPO, rollout: Rollout) -> Tensor:
        agent.update(agent.prepare(rollout), 0.0)
        return agent.nets.flat.detach()

    together = group(SHARE, peers=3, groups=2)
    rollout = rollout_of(together)
    expected = trained(together, rollout)
    alone = PPO(SHARE, O, A, [(1, p) for p in range(3)], F64)
    alone.nets.flat.detach().copy_(group(SHARE, peers=3, groups=2).nets.flat.detach()[3:])
    alone.obs_norm.mean.copy_(together.obs_norm.mean[3:])
    own = alone.new_rollout()
    for name, x in vars(rollout).items():
        getattr(own, name).copy_(x[3:])
    torch.testing.assert_close(trained(alone, own), expected[3:], rtol=1e-12, atol=1e-12)


def test_samples_of_a_dropped_peer_do_not_count_at_all() -> None:
    after = []
    for spoil in (False, True):
        agent = group(SHARE)
        rollout = rollout_of(agent)
        rollout.act[1] += 40  # far from all that policy 0 does
        batch = agent.prepare(rollout)
        own = torch.tensor([True, True, False, False]).repeat(8)
        assert torch.equal(batch.valid[0], own)
        if spoil:
            for x in batch.data:
                x[0, ~own] = torch.nan
        metrics = agent.update(batch, 0.0)
        assert all(x[0].isfinite() for x in metrics.values())
        after.append((agent.nets.flat.detach()[0], metrics["train/explained_variance"][0]))
    assert all(map(torch.equal, *after))


def test_random_numbers_of_a_learner_do_not_depend_on_what_another_drops() -> None:
    kept, dropping = (group(SHARE, groups=2) for _ in range(2))
    for agent, off in ((kept, 0.0), (dropping, 40.0)):
        rollout = rollout_of(agent)
        rollout.act[3] += off  # the second group's
        batch = agent.prepare(rollout)
        assert bool(batch.valid.all()) == (off == 0)
        agent.update(batch, 0.0)
    assert torch.equal(kept.nets.flat[:2], dropping.nets.flat[:2])
    assert torch.equal(kept.batches.state()["generators"], dropping.batches.state()["generators"])


def test_explained_variance_is_of_valid_samples() -> None:
    # 1 and 3 about 2: (1 + 1) / (2 - 1); one or none has no variance
    x = torch.tensor([[1.0, 9.0, 3.0], [1.0, 2.0, 3.0], [torch.nan, 1.0, 1.0]])
    valid = torch.tensor([[True, False, True], [False, True, False], [False] * 3])
    assert variance(x, valid).tolist() == [2, 0, 0]


def test_samples_too_unlikely_for_any_weight_move_no_policy() -> None:
    agent = group(replace(SHARE, norm_adv=False, epochs=1, minibatch_size=16, share_min_ess=0.0))
    batch = agent.prepare(rollout_of(agent))
    theirs = torch.tensor([False, False, True, True]).repeat(8)
    batch.data.weight[0, theirs] = 0.0  # as by min(1, rho) below all floats
    far: Batch = batch._replace(data=batch.data._replace(logp=batch.data.logp.clone()))
    far.data.logp[0, theirs] -= 1e4  # every ratio of the update overflows
    metrics = agent.update(far, 0.0)
    for name in ("loss/policy", "loss/value", "train/kl", "train/grad_norm"):
        assert metrics[name][0].isfinite(), name
    again = group(agent.config)
    again.noise()
    again.update(batch, 0.0)
    assert torch.equal(agent.nets.flat[0], again.nets.flat[0])
