"""Stable-Baselines3: the native simulation against its DummyVecEnv, and policies written for it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from foreign import convert
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from dpd import sb3
from dpd.agents.ppo import PPO as Learner
from dpd.agents.ppo_config import PPOConfig
from dpd.cli import parse_train
from dpd.commands import ForeignConfig
from dpd.config import BadInput
from dpd.envs.make import check
from dpd.policies import PolicySaver
from dpd.policyfile import Policy, load
from dpd.sb3 import NativeVecEnv, export_zoo, rounding
from dpd.sources import load_any

SEED = 3


def float32(obs: Any) -> np.ndarray:
    return obs.astype(np.float32)


def test_steps_are_those_of_sb3s_own_vector_environment() -> None:
    ours = NativeVecEnv("Hopper-v5", 3)
    theirs = DummyVecEnv([lambda: gymnasium.make("Hopper-v5")] * 3)
    assert ours.seed(SEED) == theirs.seed(SEED)
    np.testing.assert_array_equal(ours.reset(), float32(theirs.reset()))
    rng, n_done = np.random.default_rng(0), 0
    for _ in range(100):
        act = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        obs, reward, done, infos = ours.step(act)
        their_obs, their_reward, their_done, their_infos = theirs.step(act)
        assert isinstance(obs, np.ndarray) and obs.dtype == reward.dtype == np.float32
        np.testing.assert_array_equal(obs, float32(their_obs))
        np.testing.assert_array_equal(reward, their_reward)
        np.testing.assert_array_equal(done, their_done)
        for i in np.flatnonzero(done):
            n_done += 1
            final = np.float32(their_infos[i]["terminal_observation"])
            np.testing.assert_array_equal(infos[i]["terminal_observation"], final)
            assert infos[i]["TimeLimit.truncated"] is their_infos[i]["TimeLimit.truncated"] is False
    assert n_done


def test_the_time_limit_is_told_from_a_fall() -> None:
    envs = NativeVecEnv("Swimmer-v5", 1, seed=SEED)
    envs.reset()
    for k in range(1, 1001):
        *_, done, infos = envs.step(np.zeros((1, 2), np.float32))
        assert done[0] == (k == 1000)
    assert infos[0]["TimeLimit.truncated"] is True


def test_the_seed_given_at_creation_counts() -> None:
    starts = [NativeVecEnv("Hopper-v5", 2, seed=seed).reset() for seed in (1, 1, 2)]
    np.testing.assert_array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[0][1], starts[2][0])  # environment i has seed + i


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small layers on a busy machine: threads would only wait
    yield
    torch.set_num_threads(n_threads)


def test_ppo_trains_and_logs_episodes(one_torch_thread: None) -> None:
    envs = VecMonitor(NativeVecEnv("Hopper-v5", 4, seed=SEED))
    model = PPO("MlpPolicy", envs, n_steps=64, batch_size=64, seed=SEED, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(512)
    assert model.num_timesteps == 512
    assert len(model.ep_info_buffer or ()) > 4
    after = list(model.policy.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(p.isfinite().all() for p in after)


def policy_of(tmp_path: Path, env_id: str, **settings: Any) -> Policy:
    """Return a policy of ours for an environment, with statistics of some observations."""
    spec = check(env_id)
    config = PPOConfig(hidden=(16, 8), n_envs=2, n_steps=32, **settings)
    agent = Learner(config, spec.obs_dim, spec.act_dim, [(0, 0)])
    agent.obs_norm.update(torch.randn(1, 100, spec.obs_dim) * 3 + 1)
    run = parse_train([env_id, "--hidden", "16", "8", "--activation", config.activation])
    run = replace(run, algo=replace(run.algo, norm_obs=config.norm_obs))
    saver = PolicySaver(tmp_path, run, agent, spec)
    saver.save_last(1000)
    return load(saver.path(0))


def enjoy(out: Path, env_id: str) -> Callable[[np.ndarray], np.ndarray]:
    """Load a folder as rl_zoo3.enjoy does (rl_zoo3 2.9, utils.get_model_path and enjoy.py)."""
    folder = out / "ppo" / f"{env_id}_1"
    custom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = PPO.load(folder / f"{env_id}.zip", custom_objects=custom, device="cpu")
    settings = (folder / env_id / "config.yml").read_text().splitlines()
    statistics = folder / env_id / "vecnormalize.pkl"
    assert statistics.exists() == ("normalize: true" in settings)
    assert statistics.exists() != ("normalize: false" in settings)
    if not statistics.exists():
        return lambda obs: model.predict(obs, deterministic=True)[0]
    norm = VecNormalize.load(str(statistics), DummyVecEnv([lambda: gymnasium.make(env_id)]))
    assert not norm.training and not norm.norm_reward
    return lambda obs: model.predict(norm.normalize_obs(obs), deterministic=True)[0]


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("Hopper-v5", {}),
        ("Pendulum-v1", {"activation": "relu"}),  # bounds of 2
        ("Humanoid-v5", {"activation": "elu"}),  # bounds of 0.4
        ("Pendulum-v1", {"norm_obs": False}),
    ],
)
def test_a_written_zoo_folder_acts_as_the_policy(
    tmp_path: Path, env_id: str, settings: dict[str, Any]
) -> None:
    policy = policy_of(tmp_path, env_id, **settings)
    out = export_zoo(policy, tmp_path / "new" / "zoo")
    act = enjoy(out, env_id)
    obs = np.random.default_rng(1).normal(1, 3, (200, policy.meta.obs_dim)).astype(np.float32)
    half = (policy.tensors["act_high"] - policy.tensors["act_low"]).numpy() / 2
    assert (np.abs(act(obs) - policy.act(obs)) / half).max() < 1e-6
    assert [p.name for p in out.parent.iterdir()] == ["zoo"]  # no draft is left


def test_a_written_zoo_folder_is_read_back_as_the_same_policy(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "Pendulum-v1")
    folder = export_zoo(policy, tmp_path / "zoo") / "ppo" / "Pendulum-v1_1"
    with pytest.raises(BadInput, match=r"vecnormalize\.npz"):  # the statistics are asked for
        load_any(folder / "Pendulum-v1.zip", ForeignConfig(env="Pendulum-v1"))
    npz = convert(folder / "Pendulum-v1" / "vecnormalize.pkl")
    foreign = ForeignConfig(env="Pendulum-v1", vecnormalize=npz)
    again = load_any(folder / "Pendulum-v1.zip", foreign)
    assert again.meta.provenance["steps"] == 1000
    for name, tensor in policy.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-6, atol=1e-7)


def test_the_same_policy_is_written_with_the_same_weights_and_leaves_the_seed_alone(
    tmp_path: Path,
) -> None:
    policy = policy_of(tmp_path, "Pendulum-v1")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for name in ("a", "b"):
        export_zoo(policy, tmp_path / name)
    assert torch.equal(torch.rand(1), expected)
    file = "ppo/Pendulum-v1_1/Pendulum-v1.zip"
    a, b = (PPO.load(tmp_path / n / file, device="cpu").policy.state_dict() for n in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_environment_arguments_are_written_as_the_zoo_reads_them(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "Pendulum-v1")
    policy = Policy(policy.tensors, replace(policy.meta, env_kwargs={"g": 1e-05}))
    folder = export_zoo(policy, tmp_path / "zoo") / "ppo" / "Pendulum-v1_1" / "Pendulum-v1"
    # YAML 1.1 takes 1e-05 for a string
    assert 'env_kwargs: {"g": 1.0e-05}' in (folder / "args.yml").read_text().splitlines()


def test_what_does_not_fit_ppo_or_the_environment_is_not_written(tmp_path: Path) -> None:
    policy, out = policy_of(tmp_path, "Pendulum-v1"), tmp_path / "zoo"

    def refusal(changes: dict[str, Any], **tensors: torch.Tensor) -> str:
        with pytest.raises(ValueError) as caught:
            export_zoo(Policy(policy.tensors | tensors, replace(policy.meta, **changes)), out)
        assert not out.exists()
        return str(caught.value)

    assert "squashes" in refusal({"squashed": True})
    assert "Hopper-v5 has 11 and 3" in refusal({"env_id": "Hopper-v5"})
    assert "act_high is not that of Pendulum-v1" in refusal({}, act_high=torch.ones(1))
    out.mkdir()
    with pytest.raises(BadInput, match="exists"):
        export_zoo(policy, out)


def test_a_folder_that_would_act_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, weights = policy_of(tmp_path, "Pendulum-v1"), sb3._weights
    monkeypatch.setattr(sb3, "_weights", lambda p: {k: v * 1.001 for k, v in weights(p).items()})
    with pytest.raises(ValueError, match=r"not written: .* would differ"):
        export_zoo(policy, tmp_path / "new" / "zoo")
    assert not list((tmp_path / "new").iterdir())


def test_rounding_grows_with_the_sums_a_network_takes(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "Hopper-v5")
    obs = torch.randn(100, 11) * 3 + 1
    bound = rounding(policy, obs)
    assert 1e-7 < bound < 1e-4
    steep = {k: v * 10 if k.endswith("weight") else v for k, v in policy.tensors.items()}
    assert rounding(Policy(steep, policy.meta), obs) > 100 * bound
