"""Zips of SAC, TD3 and DDPG: recognised, and imported as Stable-Baselines3 acts."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG, SAC, TD3
from torch import nn

from dpd.errors import BadInput
from dpd.sb3.zip import load_zip
from tests.toy.zips import (
    OFF_POLICY,
    foreign,
    largest_gap,
    refused,
    rewritten,
    statistics,
    trained,
    weights_with,
)

SMALL = {"net_arch": [32, 16]}


def made(folder, kind, env_id="Pendulum-v1", **settings):
    """Make a model that has not learnt -> its zip, the model, its VecNormalize."""
    network = dict(settings.pop("policy_kwargs", SMALL))  # SB3 writes into it
    return trained(folder, env_id, kind=kind, steps=64, policy_kwargs=network, **settings)


@pytest.fixture(scope="module")
def sac(tmp_path_factory):
    """A zip of SAC with 3 observations and 1 action in [-2, 2]."""
    return made(tmp_path_factory.mktemp("sac"), SAC)[0]


@pytest.fixture(scope="module")
def td3(tmp_path_factory):
    """A zip of TD3 likewise."""
    return made(tmp_path_factory.mktemp("td3"), TD3)[0]


@pytest.mark.parametrize(
    ("network", "activation", "hidden"),
    [
        (SMALL, "relu", (32, 16)),  # SB3's default activation for these
        ({"net_arch": []}, "relu", ()),
        ({"net_arch": {"pi": [12], "qf": [7, 7]}, "activation_fn": nn.ELU}, "elu", (12,)),
        ({"net_arch": [8, 8, 8], "activation_fn": nn.Tanh, "n_critics": 3}, "tanh", (8, 8, 8)),
    ],
)
@pytest.mark.parametrize("kind", OFF_POLICY)
def test_an_imported_policy_acts_as_sb3s_own(tmp_path, kind, network, activation, hidden):
    path, model, _ = made(tmp_path, kind, policy_kwargs=network)
    policy = load_zip(path, foreign())
    assert (policy.meta.activation, policy.meta.hidden) == (activation, hidden)
    assert (policy.meta.algo, policy.meta.norm_obs) == (kind.__name__.lower(), False)
    assert policy.act(np.random.default_rng(0).normal(size=(99, 3))).std() > 0.1
    assert largest_gap(policy, model) < 1e-6


@pytest.mark.parametrize(("kind", "hidden"), [(SAC, (256, 256)), (TD3, (400, 300))])
def test_settings_that_say_nothing_mean_sb3s_defaults(tmp_path, kind, hidden):
    path, model, _ = made(tmp_path, kind, policy_kwargs={})
    policy = load_zip(path, foreign())
    assert policy.meta.hidden == hidden
    assert largest_gap(policy, model) < 1e-5  # sums of 400 terms


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])  # bounds of 2, and of 1
@pytest.mark.parametrize("kind", OFF_POLICY)
def test_normalised_observations_are_read_and_clipped_as_there(tmp_path, kind, env_id):
    path, model, norm = made(tmp_path, kind, env_id, normalise=True)
    file = statistics(norm, tmp_path / "v.npz")
    policy = load_zip(path, foreign(env_id, vecnormalize=file))
    assert policy.meta.norm_obs and policy.meta.clip_obs == 5.0
    assert largest_gap(policy, model, norm) < 1e-6
    far = np.full((1, policy.meta.obs_dim), 900, np.float32)
    assert np.abs(norm.normalize_obs(far)).max() == 5
    assert largest_gap(policy, model, norm, far) < 1e-6


def test_a_sac_policy_is_the_distribution_it_was(tmp_path):
    path, model, _ = made(tmp_path, SAC)
    with torch.no_grad():
        model.actor.log_std.bias += 2.5  # so that some deviations are cut at exp(2)
    model.save(path)
    obs = torch.randn(200, 3) * 3
    with torch.no_grad():
        mean, log_std, _ = model.actor.get_action_dist_params(obs)
    dist = load_zip(path, foreign()).dist(obs)
    assert dist.squashed and 0 < (log_std == 2).float().mean() < 1
    torch.testing.assert_close(dist.mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dist.log_std, log_std, rtol=1e-5, atol=1e-5)


def test_a_td3_policy_gets_the_noise_of_the_paper(td3):
    policy = load_zip(td3, foreign())
    assert policy.tensors["log_std"].tolist() == [[pytest.approx(math.log(0.1))]]
    assert (policy.meta.squashed, policy.meta.tanh_mean) == (False, True)


def test_ddpg_is_td3_without_delay_and_target_noise(tmp_path, td3):
    assert load_zip(made(tmp_path, DDPG)[0], foreign()).meta.algo == "ddpg"
    path = tmp_path / "x.zip"
    same = {"policy_delay": 1, "target_noise_clip": 0.0}
    assert load_zip(rewritten(td3, path, **same), foreign()).meta.algo == "ddpg"
    for less in ({"policy_delay": 1}, {"target_noise_clip": 0.0}):
        assert load_zip(rewritten(td3, path, **less), foreign()).meta.algo == "td3"


def test_statistics_that_lie_beside_a_zip_are_asked_for(tmp_path):
    path, _, norm = made(tmp_path, SAC, normalise=True)
    beside = tmp_path / "model" / "vecnormalize.pkl"  # as rl-baselines3-zoo lays it out
    beside.parent.mkdir()
    norm.save(str(beside))
    assert f"give --vecnormalize {beside}" in refused(path, BadInput, limit=1000)


def test_gsde_is_refused(tmp_path):
    assert "gSDE" in refused(made(tmp_path, SAC, use_sde=True)[0])


@pytest.mark.parametrize(
    ("removed", "says"), [("target_entropy", "no target_entropy"), ("policy_class", "holds a .?;")]
)
def test_an_algorithm_that_only_looks_like_sac_is_refused(sac, tmp_path, removed, says):
    assert says in refused(rewritten(sac, tmp_path / "x.zip", **{removed: ...}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"actor.log_std.weight": None}, "no actor.log_std.weight"),
        ({"actor.log_std": torch.ones(16, 1), "actor.log_std.weight": None}, "no actor.log_std"),
        ({"actor.log_std.weight": torch.ones(1, 15)}, "actor.log_std.weight has shape (1, 15)"),
        ({"actor.log_std.weight": torch.ones(16)}, "actor.log_std.weight has shape (16,)"),
        ({"actor.log_std.bias": torch.ones(2)}, "actor.log_std.bias has shape (2,)"),
        ({"actor.log_std.bias": torch.tensor([float("nan")])}, "contains NaN or infinity"),
        ({"actor.mu.0.weight": torch.ones(1, 16)}, "which plain MLPs lack"),  # a clipped mean
        ({"actor.features_extractor.0.weight": torch.ones(2, 2)}, "which plain MLPs lack"),
        ({"actor.latent_pi.2.weight": torch.ones(16, 31)}, "does not fit the layer"),
        ({"actor.latent_pi.0.weight": torch.tensor(1.0)}, "does not fit the layer"),
        ({"actor.mu.weight": torch.ones(2, 16), "actor.mu.bias": torch.ones(2)}, "log_std"),
    ],
)
def test_weights_that_do_not_fit_sac_are_refused(sac, tmp_path, changes, says):
    assert says in refused(rewritten(sac, tmp_path / "x.zip", weights_with(sac, **changes)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"actor.mu.0.weight": None}, "no actor.mu.0.weight"),
        ({"actor.mu.2.bias": None}, "no actor.mu.2.bias"),
        ({"actor.log_std": torch.ones(1)}, "which plain MLPs lack"),
        ({"actor.mu.1.weight": torch.ones(32)}, "which plain MLPs lack"),  # a normalisation
        ({"actor.mu.4.weight": torch.ones(1, 15)}, "does not fit the layer"),
        ({"actor.mu.4.bias": torch.tensor([float("inf")])}, "contains NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_td3_are_refused(td3, tmp_path, changes, says):
    assert says in refused(rewritten(td3, tmp_path / "x.zip", weights_with(td3, **changes)))
