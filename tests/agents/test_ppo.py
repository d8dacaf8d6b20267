import math
from collections.abc import Callable
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from dpd.agents.base import Batch, Rollout
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.ppo_loss import Samples, mean_kl
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import Policy, bounds
from tests.toy import probe_envs as probes
from tests.toy.terms import nothing

O, A = 3, 2  # noqa: E741
SEEDS = [(0, 0), (0, 1), (7, 0)]
SMALL = PPOConfig(n_envs=4, n_steps=16, minibatch_size=16, epochs=3, hidden=(16, 16))


def fill(agent: PPO, rollout: Rollout, row_seeds: list[int]) -> None:
    """Let the agent act on random observations; row n's from row_seeds[n] alone."""
    generators = [torch.Generator().manual_seed(s) for s in row_seeds]

    def each(draw: Callable[..., Tensor], x: Tensor) -> Tensor:
        return torch.stack([draw(x.shape[1:], generator=g, dtype=agent.dtype) for g in generators])

    scale = torch.tensor([1.0, 10.0, 0.1], dtype=agent.dtype)
    rollout.obs[:] = each(torch.randn, rollout.obs) * scale + 2
    rollout.next_obs[:] = each(torch.randn, rollout.obs) * scale + 2
    rollout.reward[:] = each(torch.randn, rollout.reward) * 5 - 1
    rollout.terminated[:] = each(torch.rand, rollout.reward) < 0.1
    rollout.truncated[:] = each(torch.rand, rollout.reward) < 0.1
    noise = agent.noise()
    for t in range(rollout.reward.shape[1]):
        rollout.act[:, t] = agent.act(rollout.obs[:, t], noise[:, t])


def filled(agent: PPO, row_seeds: list[int]) -> Rollout:
    rollout = agent.new_rollout()
    fill(agent, rollout, row_seeds)
    return rollout


def test_a_term_of_weight_zero_changes_nothing() -> None:
    # without a term the gradient is taken by hand, with one by autograd
    alone, joint = (PPO(SMALL, O, A, SEEDS, torch.float64) for _ in range(2))
    for agent, extra in ((alone, None), (joint, nothing(joint))):
        batch = agent.prepare(filled(agent, [1, 2, 3]))
        agent.update(batch, 0.0, extra)
    torch.testing.assert_close(alone.nets.flat, joint.nets.flat, rtol=0, atol=1e-14)


def test_kl_of_two_ratios_worked_by_hand() -> None:
    # Schulman's k3: ((2 - 1) - log 2 + (0.5 - 1) - log 0.5) / 2 = 0.5 / 2
    assert mean_kl(torch.tensor([[[2.0], [0.5]]])).tolist() == pytest.approx([0.25])


def test_kl_by_weights_of_the_samples_worked_by_hand() -> None:
    # k3 of 2 is 1 - log 2, of 1/2 it is log 2 - 1/2; weights 3 and 1; the last one does not count
    ratio = torch.tensor([[[2.0, 0.5, torch.inf]]])
    expected = (3 * (1 - math.log(2)) + math.log(2) - 0.5) / 4
    assert mean_kl(ratio, torch.tensor([[[3.0, 1.0, 0.0]]])).tolist() == pytest.approx([expected])


class Nothing(gymnasium.Env[np.ndarray, np.ndarray]):
    """Spaces for Stable-Baselines3; never stepped."""

    observation_space = spaces.Box(-np.inf, np.inf, (O,), np.float32)
    action_space = spaces.Box(-1, 1, (A,), np.float32)


def sb3_ppo(
    samples: int, minibatch: int, epochs: int, dtype: torch.dtype, value_clip: float | None
) -> SB3PPO:
    """Return Stable-Baselines3's PPO."""
    model = SB3PPO(
        "MlpPolicy",
        Nothing(),
        n_steps=samples,
        batch_size=minibatch,
        n_epochs=epochs,
        learning_rate=3e-3,
        ent_coef=0.01,
        clip_range_vf=value_clip,
        policy_kwargs={"net_arch": [64, 64], "log_std_init": -0.5},
        device="cpu",
        seed=3,
    )
    model.policy.to(dtype)
    model.set_logger(configure(None, []))
    return model


def drawn_samples(ours: PPO, value_clip: float | None) -> Samples:
    """Draw an iteration of one learner, its old probabilities some way off, so that clips count."""
    g, n, dtype = torch.Generator().manual_seed(0), ours.config.samples, ours.dtype
    obs = torch.randn(1, n, O, generator=g, dtype=dtype)
    obs = obs if value_clip is None else 1 + 0.1 * obs
    act = torch.randn(1, n, A, generator=g).to(dtype)  # SB3 holds actions in float32
    adv = 3 * torch.randn(1, n, generator=g, dtype=dtype) + 1
    ret = 2 * torch.randn(1, n, generator=g, dtype=dtype)
    ret = ret if value_clip is None else 20 + ret
    with torch.no_grad():
        logp, value = ours.dist(obs).logp(act), ours.value(obs)
    logp = logp + 0.3 * torch.randn(1, n, generator=g, dtype=dtype)
    return Samples(obs, act, logp, adv, ret, value)


def give(theirs: SB3PPO, data: Samples) -> None:
    """Put an iteration into Stable-Baselines3's buffer."""
    buffer = theirs.rollout_buffer
    names = ("observations", "actions", "log_probs", "advantages", "returns", "values")
    for name, x in zip(names, data[:-1], strict=True):
        setattr(buffer, name, x[0].unsqueeze(1).numpy())
    buffer.full = True


def sb3_parameters(policy: ActorCriticPolicy) -> dict[str, Tensor]:
    """Return Stable-Baselines3's parameters under our names, in our layout."""
    found = {"log_std": policy.log_std.detach().view(1, -1)}
    actor = [*policy.mlp_extractor.policy_net, policy.action_net]
    critic = [*policy.mlp_extractor.value_net, policy.value_net]
    for name, net in (("actor", actor), ("critic", critic)):
        linear = [m for m in net if isinstance(m, torch.nn.Linear)]
        for i, layer in enumerate(linear):
            found[f"{name}.{i}.weight"] = layer.weight.detach().T
            found[f"{name}.{i}.bias"] = layer.bias.detach().view(1, -1)
    return found


@pytest.mark.parametrize("value_clip", [None, 0.05], ids=["", "clipped values"])
@pytest.mark.parametrize("minibatch", [64, 16], ids=["whole", "parts"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
def test_an_update_moves_every_parameter_as_stable_baselines3_does(
    dtype: torch.dtype,
    tolerance: float,
    minibatch: int,
    value_clip: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # SB3 takes the clipped error even where it is the smaller, which the Baselines do not. It is
    # nowhere the smaller here: states are alike and returns far off, so all values move that way.
    samples, epochs = 64, 3
    orders = [torch.randperm(samples, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    given = iter(orders)
    monkeypatch.setattr(np.random, "permutation", lambda n: next(given).numpy())
    if dtype == torch.float64:  # SB3 casts observations to float32 whatever its policy is
        monkeypatch.setattr(
            "stable_baselines3.common.policies.preprocess_obs", lambda obs, *_, **__: obs
        )
    theirs = sb3_ppo(samples, minibatch, epochs, dtype, value_clip)
    config = PPOConfig(
        n_envs=1,
        n_steps=samples,
        minibatch_size=minibatch,
        epochs=epochs,
        lr=3e-3,
        entropy_coef=0.01,
        value_clip=value_clip,
        norm_obs=False,
        norm_reward=False,
    )
    ours = PPO(config, O, A, [(1, 0)], dtype)
    before = {k: v.clone() for k, v in sb3_parameters(theirs.policy).items()}
    assert before.keys() == ours.nets.views.keys()
    for name, value in before.items():
        ours.nets.views[name][0] = value

    data = drawn_samples(ours, value_clip)
    give(theirs, data)
    theirs.train()
    assert next(given, None) is None  # they were asked for as often as there are epochs
    valid, again = torch.ones(1, samples, dtype=torch.bool), iter(orders)
    monkeypatch.setattr(ours.batches, "permutation", lambda n: next(again).unsqueeze(0))
    metrics = ours.update(Batch(data, data.obs, data.ret, valid), 0.0)
    if value_clip is not None:
        moved = ours.value(data.obs).detach() - data.value
        assert (moved > value_clip).any() and (moved > -1e-6).all()

    assert float(metrics["train/grad_norm"]) > config.max_grad_norm  # so does the gradient's bound
    assert 0.2 < float(metrics["train/clip_fraction"]) < 0.9
    for name, expected in sb3_parameters(theirs.policy).items():
        assert (expected - before[name]).abs().max() > 1e-3
        torch.testing.assert_close(
            ours.nets.views[name][0], expected, rtol=0, atol=tolerance, msg=name
        )


def iterate(agent: PPO, row_seeds: list[int], iterations: int = 2) -> None:
    for i in range(iterations):
        rollout = filled(agent, [s + i for s in row_seeds])
        agent.update(agent.prepare(rollout), progress=i / 10)
        agent.observe(rollout)


def test_stacked_learners_equal_learners_alone() -> None:
    # 64 samples / 16 = 4 minibatches x 3 epochs x 2 iterations = 24 optimizer steps
    row_seeds = [100, 200, 300]
    together = PPO(SMALL, O, A, SEEDS, torch.float64)
    start = together.nets.flat.detach().clone()
    iterate(together, row_seeds)
    assert together.optimizer.steps.tolist() == [24, 24, 24]
    for n, seed in enumerate(SEEDS):
        alone = PPO(SMALL, O, A, [seed], torch.float64)
        assert torch.equal(alone.nets.flat[0], start[n])
        iterate(alone, row_seeds[n : n + 1])
        moved = (alone.nets.flat[0] - start[n]).abs().max()
        difference = (alone.nets.flat[0] - together.nets.flat[n]).abs().max()
        assert difference <= 1e-12 < 1e-3 < moved
        torch.testing.assert_close(
            alone.return_norm.scale[0], together.return_norm.scale[n], rtol=1e-12, atol=0
        )


def test_the_first_minibatchs_ratio_is_one_and_statistics_are_frozen_until_then() -> None:
    # The density of mean + std * noise is that of the noise over std, whatever the mean:
    # log p = sum(-noise^2 / 2 - log_std - log(2 pi) / 2)
    agent = PPO(SMALL, O, A, SEEDS)
    iterate(agent, [1, 2, 3], iterations=1)  # from here on the statistics say something
    mean, scale = agent.obs_norm.mean.clone(), agent.return_norm.scale.clone()
    log_std = agent.nets.views["log_std"].clone()
    state = agent.explore.generators[0].get_state()
    noise = agent.noise()
    for generator in agent.explore.generators[:1]:
        generator.set_state(state)
    rollout = filled(agent, [4, 5, 6])
    batch = agent.prepare(rollout)
    expected = (-0.5 * noise[0].square() - log_std[0] - 0.5 * np.log(2 * np.pi)).sum(-1)
    torch.testing.assert_close(batch.data.logp[0], expected.flatten(), rtol=1e-4, atol=1e-4)
    steps = [agent._epoch(batch, epoch, [True] * 3, None) for epoch in range(SMALL.epochs)]
    ratios = torch.cat([ratio for _, ratio, _ in steps], 1)  # of every minibatch [3, M, 16]
    torch.testing.assert_close(ratios[:, 0], torch.ones(3, 16), rtol=0, atol=1e-5)
    assert (ratios[:, -1] - 1).abs().max() > 1e-2  # later ones differ
    assert torch.equal(agent.obs_norm.mean, mean)
    assert torch.equal(agent.return_norm.scale, scale)
    agent.observe(rollout)
    assert not torch.equal(agent.obs_norm.mean, mean)
    assert not torch.equal(agent.return_norm.scale, scale)


def test_invalid_samples_enter_no_minibatch_and_valid_ones_all_do() -> None:
    agent = PPO(SMALL, O, A, SEEDS)
    rollout = filled(agent, [1, 2, 3])
    rollout.valid[0, 3:7, 1] = False
    rollout.valid[2, ::2] = False
    batch = agent.prepare(rollout)
    term = nothing(agent)
    agent.update(batch, 0.0, term)
    assert len(term.seen) == SMALL.epochs * 4
    for epoch in range(SMALL.epochs):
        idx = torch.cat(term.seen[4 * epoch : 4 * epoch + 4], 1)
        for row, valid in zip(idx, batch.valid, strict=True):
            assert set(row.tolist()) == set(valid.nonzero().flatten().tolist())


def test_a_step_in_which_nothing_happened_gives_no_credit_to_those_before() -> None:
    # As if the episode had been cut before it: step 6 bootstraps its successor and no more.
    agent = PPO(SMALL, O, A, SEEDS, torch.float64)
    broken, cut = filled(agent, [1, 2, 3]), agent.new_rollout()
    broken.terminated[:] = broken.truncated[:] = False
    for name, x in vars(broken).items():
        getattr(cut, name).copy_(x)
    broken.reward[0, 7, 2], broken.next_obs[0, 7, 2] = 1e6, torch.nan
    broken.truncated[0, 7, 2], broken.valid[0, 7, 2] = True, False
    cut.truncated[0, 6:8, 2] = True
    for found, expected in zip(
        agent.prepare(broken).data[3:-1], agent.prepare(cut).data[3:-1], strict=True
    ):
        keep = broken.valid.flatten(1)
        torch.testing.assert_close(found[keep], expected[keep], rtol=1e-12, atol=1e-12)


def test_an_epoch_is_a_permutation_of_its_own_for_every_learner() -> None:
    agent = PPO(SMALL, O, A, SEEDS)
    term = nothing(agent)
    agent.update(agent.prepare(filled(agent, [1, 2, 3])), 0.0, term)
    idx = torch.cat(term.seen[:4], 1)
    assert torch.equal(idx.sort(1).values, torch.arange(64).expand(3, 64))
    assert not torch.equal(idx[0], idx[1])


def test_target_kl_stops_one_learner_while_the_others_go_on() -> None:
    config = replace(SMALL, target_kl=0.05, lr=1e-4)
    agent = PPO(config, O, A, SEEDS[:2], torch.float64)
    batch = agent.prepare(filled(agent, [1, 2]))
    # Ratios of e^+-0.5 for row 0: k3 = (e^0.5 - 1 - 0.5 + e^-0.5 - 1 + 0.5) / 2 = 0.128 > 0.075
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(32)
    shifted = batch.data.logp.clone()
    shifted[0] += 0.5 * sign
    batch = batch._replace(data=batch.data._replace(logp=shifted))
    agent.update(batch, 0.0)
    assert agent.optimizer.steps.tolist() == [4, 12]
    once = PPO(replace(config, epochs=1), O, A, SEEDS[:1], torch.float64)
    once.batches = PPO(config, O, A, SEEDS[:1]).batches
    once.update(
        Batch(Samples(*(x[:1] for x in batch.data[:-1])), batch.raw_obs[:1], None, batch.valid[:1]),
        0.0,
    )
    torch.testing.assert_close(agent.nets.flat[0], once.nets.flat[0], rtol=0, atol=1e-12)


def test_the_learning_rate_falls_linearly_with_progress() -> None:
    # Adam's first step is lr g / (|g| + eps): at progress 3/4 a quarter as far
    moved = []
    for progress in (0.0, 0.75):
        agent = PPO(replace(SMALL, epochs=1, minibatch_size=64), O, A, SEEDS, torch.float64)
        before = agent.nets.flat.detach().clone()
        agent.update(agent.prepare(filled(agent, [1, 2, 3])), progress)
        moved.append(agent.nets.flat.detach() - before)
    torch.testing.assert_close(moved[1], moved[0] / 4, rtol=1e-8, atol=1e-14)


def test_values_are_answered_in_raw_reward_units() -> None:
    # Returns of deviation 5 (one-step episodes of reward -5 or 5): 5 raw units per unit of value
    agent = PPO(SMALL, O, A, SEEDS, torch.float64)
    rollout = filled(agent, [1, 2, 3])
    rollout.reward[:] = torch.tensor([-5.0, 5.0]).repeat(8).view(1, 16, 1)
    rollout.terminated[:] = True
    scaled = agent.value(agent.obs_norm(rollout.flat_obs()))
    agent.return_norm.update(rollout.reward, rollout.done, rollout.valid)
    value = agent.ask(rollout.flat_obs()).value
    assert value is not None
    torch.testing.assert_close(value, 5 * scaled.detach(), rtol=1e-4, atol=0)
    # and what was really got is +-5, in every row
    returns = agent.prepare(rollout).returns
    assert returns is not None
    torch.testing.assert_close(returns, rollout.reward.flatten(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm_obs", [True, False])
def test_an_exported_policy_acts_as_the_learner(norm_obs: bool) -> None:
    agent = PPO(replace(SMALL, norm_obs=norm_obs), O, A, SEEDS)
    iterate(agent, [1, 2, 3])
    env = probes.FreeAction(1)
    obs = 30 * torch.randn(20, O, generator=torch.Generator().manual_seed(0))
    expected = agent.mode(obs.expand(3, 20, O))
    meta = PolicyMeta(
        algo="ppo",
        env_id="probe",
        activation=SMALL.activation,
        squashed=False,
        norm_obs=norm_obs,
        obs_dim=O,
        act_dim=A,
        hidden=SMALL.hidden,
        env_kwargs={},
        provenance={},
    )
    for n in range(3):
        policy = Policy(agent.export(n) | bounds(env.spec), meta)
        np.testing.assert_allclose(policy.act(obs), expected[n], atol=1e-6)
