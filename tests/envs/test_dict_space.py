"""Dict observations as vectors: their order, their refusals, and whole commands on them."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import dpd
from dpd.cli import main
from dpd.envs.base import UnsupportedEnv
from dpd.envs.dict_space import FlatDictEnv
from dpd.envs.groups import columns_of, flat_dict
from dpd.envs.gymnasium import GymnasiumEnv
from dpd.envs.make import check
from tests.toy.dict_env import CART, NOWHERE, Cart

QUICK = ["--n-envs", "2", "--n-steps", "32", "--total-steps", "128", "--hidden", "8"]
QUICK += ["--evals", "1", "--eval-episodes", "1", "--final-episodes", "1", "--threads", "1"]
BOX = spaces.Box(-1, 1, (1,), np.float32)


def test_keys_are_in_sorted_order_within_each_dict() -> None:
    env = GymnasiumEnv(CART, 2, [0, 1])
    obs = env.reset()
    assert (env.spec.obs_dim, env.spec.obs_shape) == (10, None)
    assert list(env.spec.groups.items()) == [
        ("alpha", range(2)),
        ("cart.grid", range(2, 8)),  # in C order
        ("cart.place", range(8, 9)),
        ("terrain", range(9, 10)),
    ]
    assert obs[0, :8].tolist() == [0.5, 0.5, 0, 1, 2, 3, 4, 5]
    assert obs.dtype == torch.float32
    for row, seed in zip(obs, (0, 1), strict=True):
        solo = Cart()
        seen, _ = solo.reset(seed=seed)
        assert row[8] == np.float32(seen["cart"]["place"])
        assert row[9] == seen["terrain"] >= NOWHERE  # the number itself, not counted from its start
        np.testing.assert_array_equal(flat_dict(seen), row)  # for users of a policy file
    env.close()


def test_the_order_is_that_of_gymnasium_s_own_flattening() -> None:
    # without Discrete, which Gymnasium turns into one column for each value
    class Boxes(Cart):
        def __init__(self) -> None:
            super().__init__()
            inner = {k: v for k, v in self.observation_space.spaces.items() if k != "terrain"}  # type: ignore[attr-defined]
            self.observation_space = spaces.Dict(inner)

    ours, theirs = FlatDictEnv(Boxes(), "Boxes"), Boxes()
    seen, _ = ours.reset(seed=3)
    raw, _ = theirs.reset(seed=3)
    inner = {key: raw[key] for key in theirs.observation_space}  # type: ignore[attr-defined]
    truth = spaces.flatten(theirs.observation_space, inner)
    np.testing.assert_array_equal(seen, np.asarray(truth, np.float32))


def test_the_last_observation_of_an_episode_is_flat_too() -> None:
    env = GymnasiumEnv(CART, 1, [0])
    env.reset()
    for _ in range(20):
        step = env.step(torch.ones(1, 1))
    assert step.truncated.all() and not torch.equal(step.obs, step.next_obs)
    assert step.next_obs[0, :8].tolist() == step.obs[0, :8].tolist()
    env.close()


def test_a_name_chooses_all_columns_of_a_nested_dict() -> None:
    groups = check(CART).groups
    assert columns_of("cart", groups, 10) == [2, 3, 4, 5, 6, 7, 8]
    assert columns_of("terrain,alpha", groups, 10) == [0, 1, 9]


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"eye": spaces.Box(0, 255, (8, 8, 3), np.uint8)}, "observes images as 'eye'"),
        ({"a": spaces.Dict({"b": spaces.MultiBinary(3)})}, "observes MultiBinary as 'a.b'"),
        (
            {"word": spaces.Text(3)},
            "observes Text as 'word'; in a Dict, supported are Box that are",
        ),
        ({"n": spaces.Discrete(2**24 + 2)}, "integers up to 16777217, beyond float32's as 'n'"),
        ({"a,b": BOX}, "observes a Dict with the key 'a,b', which cannot be the name of a group"),
        ({"all": BOX}, "the key 'all', which cannot be the name"),
        ({"a.b": BOX, "a": spaces.Dict({"b": BOX})}, "a key of its Dict observation is like a nes"),
        ({}, "observes an empty Dict"),
    ],
)
def test_other_keys_are_refused_by_name(inner: dict[str, spaces.Space], message: str) -> None:
    class Keys(Cart):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict(inner)

    with pytest.raises(UnsupportedEnv, match=message) as error:
        FlatDictEnv(Keys(), "Keys-v0")
    assert str(error.value).startswith("Keys-v0")


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"terrain": 3}, "'cart.grid' is missing"),
        ({"terrain": 3, "cart": {"grid": 1.0}}, r"'cart.grid' has shape \(\); .* has \(2, 3\)"),
        ({"terrain": 3, "cart": {"grid": "x"}}, "'cart.grid' is 'x', not an array"),
        ([1.0], "'alpha' is missing"),
    ],
)
def test_observations_unlike_their_space_name_the_key(obs: Any, message: str) -> None:
    class Liar(Cart):
        def _observe(self) -> Any:
            return {"alpha": np.zeros(2), **obs} if isinstance(obs, dict) else obs

    with pytest.raises(UnsupportedEnv, match=message):
        FlatDictEnv(Liar(), "Liar-v0").reset(seed=0)


def test_a_run_on_a_dict_trains_evaluates_and_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, video = tmp_path / "run", tmp_path / "cart.mp4"
    assert main(["train", CART, *QUICK, "--out", str(out)]) == 0
    capsys.readouterr()
    file = out / "policies" / "seed0-peer0.safetensors"
    argv = ["evaluate", str(file), "--episodes", "2", "--json"]
    argv += ["--video", str(video)] if shutil.which("ffmpeg") else []
    assert main(argv) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["env"] == CART
    assert video.exists() == bool(shutil.which("ffmpeg"))
    assert dpd.load(file).act(np.zeros(10, np.float32)).shape == (1,)


def test_stable_baselines3_gets_no_policy_of_a_dict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("stable_baselines3")
    out = tmp_path / "run"
    train = ["train", CART, *QUICK, "--peers", "1", "--method", "none", "--out", str(out)]
    assert main(train) == 0
    capsys.readouterr()
    policy = str(out / "policies" / "seed0-peer0.safetensors")
    argv = ["export", policy, "--format", "sb3", "--out", str(tmp_path / "zoo")]
    assert main(argv) == 2
    assert "observes a Dict, which Stable-Baselines3's MlpPolicy" in capsys.readouterr().err
    assert main(["export", policy, "--format", "torchscript"]) == 0


def test_a_vector_environment_alone_is_refused() -> None:
    class Many(gymnasium.vector.VectorEnv):
        def __init__(self, num_envs: int = 1, **_: Any) -> None:
            self.num_envs = num_envs
            self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
            self.single_observation_space = spaces.Dict({"a": BOX})
            self.single_action_space = BOX

    gymnasium.register("DpdTest/Many-v0", vector_entry_point=Many, max_episode_steps=5)
    with pytest.raises(UnsupportedEnv, match="observes a Dict, but has no entry_point"):
        GymnasiumEnv("DpdTest/Many-v0", 1, [0])
    gymnasium.registry.pop("DpdTest/Many-v0")
