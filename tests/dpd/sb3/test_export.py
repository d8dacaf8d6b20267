"""Stable-Baselines3: the native simulation against its DummyVecEnv, and policies written for it."""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from dpd.errors import BadInput
from dpd.policies.config import ForeignConfig
from dpd.policies.policyfile import Policy
from dpd.run.sources import load_any
from dpd.sb3 import export as sb3
from dpd.sb3.export import export_zoo, rounding
from dpd.sb3.vec_env import NativeVecEnv
from tests.toy.policies import IN_SB3, saved

SEED = 3
MODELS: dict[str, Any] = {"ppo": PPO, "sac": SAC, "td3": TD3, "ddpg": DDPG}


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


def enjoy(out: Path, algo: str, env_id: str) -> Callable[[np.ndarray], np.ndarray]:
    """Load a folder as rl_zoo3.enjoy does (rl_zoo3 2.9, utils.get_model_path and enjoy.py)."""
    folder = out / algo / f"{env_id}_1"
    custom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    replay: dict[str, Any] = {"buffer_size": 1} if algo in ("ddpg", "sac", "td3") else {}
    file = folder / f"{env_id}.zip"
    model = MODELS[algo].load(file, custom_objects=custom, device="cpu", **replay)
    settings = (folder / env_id / "config.yml").read_text().splitlines()
    assert f'algo: "{algo}"' in (folder / env_id / "args.yml").read_text().splitlines()
    statistics = folder / env_id / "vecnormalize.pkl"
    assert statistics.exists() == ("normalize: true" in settings)
    assert statistics.exists() != ("normalize: false" in settings)
    if not statistics.exists():
        return lambda obs: model.predict(obs, deterministic=True)[0]
    norm = VecNormalize.load(str(statistics), DummyVecEnv([lambda: gymnasium.make(env_id)]))
    assert not norm.training and not norm.norm_reward
    return lambda obs: model.predict(norm.normalize_obs(obs), deterministic=True)[0]


@pytest.mark.parametrize(
    ("algo", "env_id", "settings"),
    [
        ("ppo", "Hopper-v5", {}),
        ("ppo", "Pendulum-v1", {"activation": "relu"}),  # bounds of 2
        ("ppo", "Humanoid-v5", {"activation": "elu"}),  # bounds of 0.4
        ("ppo", "Pendulum-v1", {"norm_obs": False}),
        ("sac", "Hopper-v5", {}),
        ("sac", "Pendulum-v1", {"activation": "tanh", "norm_obs": False}),
        ("td3", "Pendulum-v1", {}),
        ("td3", "Humanoid-v5", {"activation": "elu", "norm_obs": False}),
        ("ddpg", "Pendulum-v1", {"hidden": (5,)}),
    ],
)
def test_a_written_zoo_folder_acts_as_the_policy(
    tmp_path: Path, algo: str, env_id: str, settings: dict[str, Any]
) -> None:
    policy = saved(tmp_path, algo, env_id, **settings)
    out = export_zoo(policy, tmp_path / "new" / "zoo")
    act = enjoy(out, algo, env_id)
    obs = np.random.default_rng(1).normal(1, 3, (200, policy.meta.obs_dim)).astype(np.float32)
    half = (policy.tensors["act_high"] - policy.tensors["act_low"]).numpy() / 2
    assert (policy.act(obs) / half).std() > 0.1
    # 348 observations are longer sums, which float32 rounds more coarsely
    assert (np.abs(act(obs) - policy.act(obs)) / half).max() < (1e-6 if len(obs.T) < 20 else 5e-6)
    assert [p.name for p in out.parent.iterdir()] == ["zoo"]  # no draft is left


def test_mujocos_warning_about_gymnasiums_half_cheetah_is_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = saved(tmp_path, "ppo", "HalfCheetah-v5")
    capfd.readouterr()
    export_zoo(policy, tmp_path / "zoo")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("algo", IN_SB3)
def test_a_written_zoo_folder_is_read_back_as_the_same_policy(tmp_path: Path, algo: str) -> None:
    policy = saved(tmp_path, algo, "Pendulum-v1")
    folder = export_zoo(policy, tmp_path / "zoo") / algo / "Pendulum-v1_1"
    with pytest.raises(BadInput, match=r"vecnormalize\.pkl"):  # the statistics are asked for
        load_any(folder / "Pendulum-v1.zip", ForeignConfig(env="Pendulum-v1"))
    statistics = folder / "Pendulum-v1" / "vecnormalize.pkl"
    foreign = ForeignConfig(env="Pendulum-v1", vecnormalize=statistics)
    again = load_any(folder / "Pendulum-v1.zip", foreign)
    assert again.meta.provenance["steps"] == 1000
    names = ("algo", "squashed", "tanh_mean", "state_std", "hidden", "activation", "norm_obs")
    assert all(getattr(again.meta, k) == getattr(policy.meta, k) for k in names)
    for name, tensor in policy.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-6, atol=1e-7)


def test_the_same_policy_is_written_with_the_same_weights_and_leaves_the_seed_alone(
    tmp_path: Path,
) -> None:
    policy = saved(tmp_path, "sac", "Pendulum-v1")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for name in ("a", "b"):
        export_zoo(policy, tmp_path / name)
    assert torch.equal(torch.rand(1), expected)
    file = "sac/Pendulum-v1_1/Pendulum-v1.zip"
    a, b = (
        SAC.load(tmp_path / n / file, device="cpu", buffer_size=1).policy.state_dict()
        for n in ("a", "b")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_sb3_trains_on_from_a_written_policy_with_its_noise_and_targets(tmp_path: Path) -> None:
    policy = saved(tmp_path, "td3", "Pendulum-v1", noise_std=0.25, norm_obs=False)
    file = export_zoo(policy, tmp_path / "zoo") / "td3" / "Pendulum-v1_1" / "Pendulum-v1.zip"
    model = TD3.load(file, gymnasium.make("Pendulum-v1"), buffer_size=1000, device="cpu")
    assert isinstance(model.action_noise, NormalActionNoise)
    assert model.action_noise._sigma == pytest.approx(0.25)
    target = model.actor_target.state_dict()
    assert all(torch.equal(target[k], x) for k, x in model.actor.state_dict().items())
    model.learn(8, reset_num_timesteps=False)
    assert model.num_timesteps == 1008 and model._n_updates == 8
    # without a word on the replay's size it is Stable-Baselines3's own
    assert json.loads(zipfile.ZipFile(file).read("data"))["buffer_size"] == 1_000_000


def test_environment_arguments_are_written_as_the_zoo_reads_them(tmp_path: Path) -> None:
    policy = saved(tmp_path, "ppo", "Pendulum-v1")
    policy = Policy(policy.tensors, replace(policy.meta, env_kwargs={"g": 1e-05}))
    folder = export_zoo(policy, tmp_path / "zoo") / "ppo" / "Pendulum-v1_1" / "Pendulum-v1"
    # YAML 1.1 takes 1e-05 for a string
    assert 'env_kwargs: {"g": 1.0e-05}' in (folder / "args.yml").read_text().splitlines()


def test_numbers_that_only_python_calls_json_are_written_as_yaml_has_them() -> None:
    # read back with PyYAML: {'r': [0.2, inf, -inf, nan, 1e-05, -1e+22], 's': 'Infinity NaN 1e5'}
    kwargs = {"r": [0.2, np.inf, -np.inf, np.nan, 1e-5, -1e22], "s": "Infinity NaN 1e5"}
    text = '{"r": [0.2, .inf, -.inf, .nan, 1.0e-05, -1.0e+22], "s": "Infinity NaN 1e5"}'
    assert sb3._yaml(kwargs) == text


def test_what_does_not_fit_sb3_or_the_environment_is_not_written(tmp_path: Path) -> None:
    policy, out = saved(tmp_path, "ppo", "Pendulum-v1"), tmp_path / "zoo"

    def refusal(changes: dict[str, Any], **tensors: torch.Tensor) -> str:
        with pytest.raises(ValueError) as caught:
            export_zoo(Policy(policy.tensors | tensors, replace(policy.meta, **changes)), out)
        assert not out.exists()
        return str(caught.value)

    assert "Stable-Baselines3's ppo: squashed is True, not False" in refusal({"squashed": True})
    assert "Stable-Baselines3's td3: tanh_mean is False" in refusal({"algo": "td3"})
    assert "Stable-Baselines3's sac: squashed is False" in refusal({"algo": "sac"})
    assert "no counterpart of ../mine" in refusal({"algo": "../mine"})
    assert "Hopper-v5 has 11 and 3" in refusal({"env_id": "Hopper-v5"})
    assert "other bounds than Pendulum-v1: act_high" in refusal({}, act_high=torch.ones(1))
    out.mkdir()
    with pytest.raises(BadInput, match="exists"):
        export_zoo(policy, out)


@pytest.mark.parametrize("algo", IN_SB3)
def test_a_folder_that_would_act_otherwise_is_not_kept(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, weights = saved(tmp_path, algo, "Pendulum-v1"), sb3._weights
    monkeypatch.setattr(
        sb3, "_weights", lambda *given: {k: v * 1.001 for k, v in weights(*given).items()}
    )
    with pytest.raises(ValueError, match=r"not written: .* would differ"):
        export_zoo(policy, tmp_path / "new" / "zoo")
    assert not list((tmp_path / "new").iterdir())


def test_rounding_grows_with_the_sums_a_network_takes(tmp_path: Path) -> None:
    policy = saved(tmp_path, "ppo", "Hopper-v5")
    obs = torch.randn(100, 11) * 3 + 1
    bound = rounding(policy, obs)
    assert 1e-7 < bound < 1e-4
    steep = {k: v * 10 if k.endswith("weight") else v for k, v in policy.tensors.items()}
    assert rounding(Policy(steep, policy.meta), obs) > 100 * bound
