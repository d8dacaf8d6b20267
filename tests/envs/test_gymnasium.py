"""The Gymnasium backend and the choice of a backend, on environments one knows by heart."""

import sys
import types
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from dpd.envs.base import ActionScale, FailedEnv, UnsupportedEnv, inner_bounds
from dpd.envs.gymnasium import GymnasiumEnv
from dpd.envs.make import check, choose_backend, make
from dpd.envs.native import NativeEnv
from dpd.envs.tasks import TASKS
from tests.toy.probe_envs import Float64Bounds, registered


class Counter(gymnasium.Env):
    """Observes [[seed's draw, steps], [action]] and ends after `length` steps."""

    def __init__(self, length: int = 3, act_high: float = 2.0, **_: Any) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2, 2), np.float64)
        self.action_space = spaces.Box(-1.0, act_high, (1, 2), np.float32)
        self.length = length

    def _observe(self) -> np.ndarray:
        return np.array([[self.draw, self.n_steps], self.act])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.draw, self.n_steps, self.act = self.np_random.random(), 0, np.zeros(2)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        assert action.shape == (1, 2) and action.dtype == np.float32
        self.n_steps, self.act = self.n_steps + 1, action[0].astype(np.float64)
        return self._observe(), 1.0, self.n_steps >= self.length, False, {}


class LateCounter(VectorEnv):
    """Observes its step count, ends after 2 steps, resets a step late, its flag still up."""

    mode = AutoresetMode.NEXT_STEP

    def __init__(self, num_envs: int = 1, **_: Any) -> None:
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": self.mode}
        self.single_observation_space = spaces.Box(0, 10, (1,), np.float32)
        self.single_action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.n_steps = np.zeros(self.num_envs)
        return self.n_steps[:, None].astype(np.float32), {}

    def step(self, actions: np.ndarray) -> Any:
        late = self.n_steps == 2
        self.n_steps = np.where(late, 0, self.n_steps + 1)
        over = self.n_steps == 2
        reward = np.where(late, -99.0, 1.0)
        obs = self.n_steps[:, None].astype(np.float32)
        return obs, reward, over | late, np.zeros(self.num_envs, dtype=bool), {}


class Spaces(gymnasium.Env):
    """An environment that is nothing but its spaces."""

    def __init__(self, obs: spaces.Space, act: spaces.Space) -> None:
        self.observation_space, self.action_space = obs, act


class Odd(gymnasium.Env):
    """Gives what a foreign environment may give: see the arguments."""

    def __init__(
        self,
        obs: Any = (0.0, 0.0),
        reward: Any = 1.0,
        bounds: tuple[float, float] = (-1.0, 1.0),
        fails: str = "",
    ) -> None:
        self.obs, self.reward, self.fails = obs, reward, fails
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(*bounds, (1,), np.float32)
        self._fail("make")

    def _fail(self, call: str) -> None:
        if self.fails == call:
            raise ValueError("the robot fell over")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._fail("reset")
        if seed is not None:
            np.random.RandomState(seed)  # refuses seeds of 2^32 and more
        return self.obs, {}

    def step(self, action: np.ndarray) -> Any:
        self._fail("step")
        return self.obs, self.reward, 0, 0, {}


def odd(n_envs: int = 1, seed: int = 0, **kwargs: Any) -> GymnasiumEnv:
    name = register_once("DpdTest/Odd-v0", entry_point=Odd, max_episode_steps=5)
    return GymnasiumEnv(name, n_envs, [seed] * n_envs, kwargs)


def register_once(name: str, **kwargs: Any) -> str:
    if name not in gymnasium.registry:
        gymnasium.register(name, **{"max_episode_steps": 1000} | kwargs)
    return name


@pytest.fixture
def counter() -> str:
    return register_once("DpdTest/Counter-v0", entry_point=Counter)


def zeros(env: GymnasiumEnv) -> torch.Tensor:
    return torch.zeros(env.n_envs, env.spec.act_dim)


def test_a_step_has_the_true_successor_and_the_next_start(counter: str) -> None:
    env = GymnasiumEnv(counter, 2, [4, 5])
    start = env.reset()
    assert start.shape == (2, 4) and start.dtype == torch.float32
    steps = [env.step(zeros(env)) for _ in range(4)]
    assert [step.next_obs[:, 1].tolist() for step in steps] == [[1, 1], [2, 2], [3, 3], [1, 1]]
    assert [step.obs[:, 1].tolist() for step in steps] == [[1, 1], [2, 2], [0, 0], [1, 1]]
    assert [step.terminated.tolist() for step in steps] == [[False] * 2] * 2 + [
        [True] * 2,
        [False] * 2,
    ]
    assert all(step.valid.all() and not step.truncated.any() for step in steps)
    assert torch.equal(steps[2].next_obs[:, 0], start[:, 0])  # the episode's own draw
    assert not torch.equal(steps[2].obs[:, 0], start[:, 0])


def test_a_lost_mujoco_simulation_is_masked_and_ends_the_episode(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log file
    env = GymnasiumEnv("HalfCheetah-v5", 2, [0, 1])
    env.reset()
    data = env._envs.envs[0].unwrapped.data
    data.qpos[0], data.qvel[2] = 300.0, 1e11  # MuJoCo's limit is 1e10
    step = env.step(zeros(env))
    # from x = 300 back to 0 in a step of 0.05 s, Gymnasium gives -6000
    assert step.reward[0] == 0 and -2 < step.reward[1] < 2
    assert step.valid.tolist() == [False, True]
    assert step.truncated.tolist() == [True, False] and not step.terminated.any()
    after = env.step(zeros(env))
    assert after.valid.all() and abs(after.reward[0]) < 2


def test_each_environment_has_its_own_seed(counter: str) -> None:
    env = GymnasiumEnv(counter, 3, [4, 5, 4])
    draws = env.reset()[:, 0].tolist()
    assert draws[0] == draws[2] != draws[1]
    expected = gymnasium.utils.seeding.np_random(4)[0].random()
    assert draws[0] == np.float32(expected)
    assert env.reset()[:, 0].tolist() != draws  # seeds count once


def test_actions_are_clipped_rescaled_and_given_their_shape(counter: str) -> None:
    env = GymnasiumEnv(counter, 1, [0])
    env.reset()
    # bounds -1 and 2: -1 -> -1, 0 -> 0.5, 1 and beyond -> 2
    got = [env.step(torch.tensor([row])).next_obs[0, 2:] for row in ([-1.0, 0.0], [1.0, 7.0])]
    assert [pair.tolist() for pair in got] == [[-1.0, 0.5], [2.0, 2.0]]


def test_rescaling_hits_uneven_bounds_and_never_exceeds_them() -> None:
    low, high = np.array([[-0.1, 0.3, -1.0], [0.7, 0.9, 1.0]], dtype=np.float32)
    scale = ActionScale(low, high)
    ends = torch.tensor([[-1.0] * 3, [1.0] * 3])
    np.testing.assert_allclose(scale(ends), [low, high], rtol=2e-7)  # two float32 roundings
    inner = scale(torch.cat([ends, torch.rand(1000, 3) * 4 - 2]))
    assert (inner >= low).all() and (inner <= high).all()


def test_float32_actions_stay_within_float64_bounds() -> None:
    env = GymnasiumEnv(registered(Float64Bounds), 2, [0, 1])
    assert np.float32(0.1) > np.float64(0.1)  # what is to be avoided
    env.reset()
    # the environment itself refuses what is beyond its bounds
    step = env.step(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    torch.testing.assert_close(step.reward, torch.tensor([0.1, -0.1]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_inner_bounds_are_the_nearest_float32_inside(dtype: Any) -> None:
    low, high = np.array([[-0.1, 0.3, -1.0, 0.7], [0.1, 0.9, 1.0, 0.8]], dtype=dtype)
    inner_low, inner_high = inner_bounds(low, high)
    assert inner_low.dtype == inner_high.dtype == np.float32
    assert (inner_low >= low).all() and (inner_high <= high).all()
    assert (np.nextafter(inner_low, np.float32(-9)) < low).all()
    assert (np.nextafter(inner_high, np.float32(9)) > high).all()


def test_keyword_arguments_reach_the_environment(counter: str) -> None:
    env = make(counter, 1, [0], env_kwargs={"length": 1, "act_high": 5.0})
    env.reset()
    step = env.step(torch.ones(1, 2))
    assert step.terminated.all()
    assert step.next_obs[0, 2:].tolist() == [5.0, 5.0]


def test_a_time_limit_truncates_and_does_not_terminate() -> None:
    name = register_once("DpdTest/Short-v0", entry_point=Counter, max_episode_steps=2)
    env = GymnasiumEnv(name, 1, [0])
    env.reset()
    env.step(zeros(env))
    step = env.step(zeros(env))
    assert step.truncated.all() and not step.terminated.any()
    assert step.next_obs[0, 1] == 2 and step.obs[0, 1] == 0


def test_a_late_reset_is_masked() -> None:
    name = register_once("DpdTest/Late-v0", vector_entry_point=LateCounter)
    env = GymnasiumEnv(name, 2, [0, 1])
    env.reset()
    steps = [env.step(zeros(env)) for _ in range(4)]
    assert [step.valid.tolist() for step in steps] == [[v] * 2 for v in (True, True, False, True)]
    assert [step.terminated[0].item() for step in steps] == [False, True, False, False]
    assert [step.next_obs[0].item() for step in steps] == [1, 2, 0, 1]
    assert sum((step.reward * step.valid).sum().item() for step in steps) == 6  # no -99


def test_a_vector_environment_that_does_not_reset_is_refused() -> None:
    class Manual(LateCounter):
        mode = AutoresetMode.DISABLED

    name = register_once("DpdTest/Manual-v0", vector_entry_point=Manual)
    with pytest.raises(UnsupportedEnv, match="supported are SAME_STEP and NEXT_STEP"):
        GymnasiumEnv(name, 1, [0])


BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("obs", "act", "message"),
    [
        (spaces.Discrete(4), BOX, "observes Discrete"),
        (spaces.Tuple([BOX]), BOX, "observes Tuple"),
        (spaces.Dict({"a": spaces.Tuple([BOX])}), BOX, "observes Tuple as 'a'"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), BOX, "observes images"),
        (BOX, spaces.Discrete(2), "takes Discrete actions"),
        (BOX, spaces.Box(0, 3, (2,), np.int64), r"takes Box\(int64\) actions"),
        (BOX, spaces.Box(-np.inf, np.inf, (2,), np.float32), "without bounds"),
        (BOX, spaces.Box(-1, np.inf, (2,), np.float32), "without bounds"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value,
)
def test_other_spaces_are_refused_in_one_line(
    obs: spaces.Space, act: spaces.Space, message: str
) -> None:
    name = register_once("DpdTest/Spaces-v0", entry_point=Spaces, disable_env_checker=True)
    with pytest.raises(UnsupportedEnv, match=message) as caught:
        GymnasiumEnv(name, 1, [0], {"obs": obs, "act": act})
    assert "supported are" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_id_is_answered_with_near_matches() -> None:
    with pytest.raises(UnsupportedEnv, match="did you mean HalfCheetah-v5"):
        make("HalfCheeta-v5", 1, [0])
    with pytest.raises(UnsupportedEnv, match="did you mean Pendulum-v1"):
        make("Pendulum-v7", 1, [0])
    with pytest.raises(UnsupportedEnv, match="No module named 'no_such_module'"):
        make("no_such_module:Counter-v0", 1, [0])


def test_a_module_before_the_colon_is_imported(tmp_path: Any, monkeypatch: Any) -> None:
    source = "import gymnasium\n"
    source += "gymnasium.register('DpdTest/Far-v0', 'gymnasium_far:Far', max_episode_steps=9)\n"
    source += "from gymnasium.envs.classic_control.pendulum import PendulumEnv as Far\n"
    (tmp_path / "gymnasium_far.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    spec = check("gymnasium_far:DpdTest/Far-v0")
    assert (spec.obs_dim, spec.act_dim, spec.backend) == (3, 1, "gymnasium")
    assert isinstance(sys.modules["gymnasium_far"], types.ModuleType)


def test_auto_is_native_where_it_can_be() -> None:
    assert [choose_backend(env_id) for env_id in TASKS] == ["native"] * 21
    assert choose_backend("Ant-v5", env_kwargs={"contact_cost_weight": 0.0}) == "native"
    assert choose_backend("Pendulum-v1") == "gymnasium"
    assert isinstance(make("Swimmer-v5", 1, [0]), NativeEnv)
    assert isinstance(make("Swimmer-v5", 1, [0], backend="gymnasium"), GymnasiumEnv)


def test_environments_in_processes_of_their_own_take_the_same_steps() -> None:
    kwargs = {"g": 9.0, "max_episode_steps": 20}
    envs = [make("Pendulum-v1", 2, [3, 4], backend, kwargs) for backend in ("gymnasium", "async")]
    assert [env.spec.backend for env in envs] == ["gymnasium", "async"]
    first, second = (env.reset() for env in envs)
    assert torch.equal(first, second)
    for env in envs:
        env.stagger(np.array([0.75, 0.5]))  # 15 and 10 of 20 steps are over
    ends = []
    for k, act in enumerate(torch.rand(24, 2, 1) * 2 - 1, start=1):
        ours, theirs = (env.step(act) for env in envs)
        for name, a, b in zip(ours._fields, ours, theirs, strict=True):
            assert torch.equal(a, b), name
        ends += [(k, i) for i in range(2) if theirs.truncated[i]]
    assert ends == [(5, 0), (10, 1)]
    for env in envs:
        env.close()


def test_an_older_task_has_a_remark_and_a_vector_environment_no_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = gymnasium.spec("Reacher-v4")  # Gymnasium cannot make its own v3
    monkeypatch.setitem(gymnasium.registry, "Reacher-v3", replace(older, id="Reacher-v3"))
    notes = {}
    for env_id in ("Reacher-v3", "Reacher-v4"):
        env = make(env_id, 1, [0], "async")
        notes[env_id] = env.spec.notes
        env.close()
    remark = "Reacher-v5 has a native simulation, which is many times faster"
    assert notes == {"Reacher-v3": (remark,), "Reacher-v4": ()}
    late = register_once("DpdTest/Late-v0", vector_entry_point=LateCounter)
    with pytest.raises(UnsupportedEnv, match="leave out --backend async"):
        make(late, 1, [0], "async")


def test_native_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UnsupportedEnv, match="no native simulation of Pendulum-v1"):
        make("Pendulum-v1", 1, [0], backend="native")
    with pytest.raises(UnsupportedEnv, match="Ant-v5 takes no 'contact'; it takes xml_file, frame"):
        make("Ant-v5", 1, [0], env_kwargs={"contact": 0.0})
    with pytest.raises(ValueError, match="choose one of auto"):
        make("Ant-v5", 1, [0], backend="warp9")


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Humanoid-v5"])
def test_both_backends_give_the_same_steps(env_id: str) -> None:
    envs = [make(env_id, 2, [8, 3], backend) for backend in ("native", "gymnasium")]
    for field in ("env_id", "obs_dim", "act_dim"):
        assert getattr(envs[0].spec, field) == getattr(envs[1].spec, field)
    np.testing.assert_array_equal(envs[0].spec.act_high, envs[1].spec.act_high)
    assert torch.equal(envs[0].reset(), envs[1].reset())
    n_ended = 0
    for act in torch.rand(80, 2, envs[0].spec.act_dim) * 2.4 - 1.2:
        ours, theirs = (env.step(act) for env in envs)
        n_ended += int(ours.terminated.sum())
        for name, a, b in zip(ours._fields, ours, theirs, strict=True):
            if name == "reward":  # rounded to float32 from values 1e-14 apart
                torch.testing.assert_close(a, b, rtol=2e-7, atol=1e-7)
            else:
                assert torch.equal(a, b), name
    assert n_ended


def test_a_snapshot_is_refused_with_a_way_out(counter: str) -> None:
    env = GymnasiumEnv(counter, 1, [0])
    assert not env.spec.can_snapshot
    with pytest.raises(UnsupportedEnv, match="native backend"):
        env.snapshot()
    with pytest.raises(UnsupportedEnv, match="native backend"):
        env.restore({})


def test_without_a_time_limit_of_gymnasiums_nothing_can_be_staggered() -> None:
    late = register_once("DpdTest/Late-v0", vector_entry_point=LateCounter)
    env = GymnasiumEnv(late, 2, [0, 1])  # limits its episodes itself
    env.reset()
    with pytest.raises(UnsupportedEnv, match=f"{late} has no TimeLimit .* use --no-stagger"):
        env.stagger(np.zeros(2))


def test_an_environment_without_a_time_limit_is_refused_with_the_remedy() -> None:
    name = register_once("DpdTest/Endless-v0", entry_point=Odd, max_episode_steps=None)
    with pytest.raises(UnsupportedEnv, match=r"no time limit.*max_episode_steps.: 1000"):
        GymnasiumEnv(name, 1, [0])
    env = GymnasiumEnv(name, 1, [0], {"max_episode_steps": 2})
    env.reset()
    assert env.spec.max_steps == 2
    ended = [bool(env.step(torch.zeros(1, 1)).truncated) for _ in range(4)]
    assert ended == [False, True, False, True]


def test_lists_and_rewards_of_one_number_are_converted() -> None:
    env = odd(obs=[1, 2.5], reward=np.array([3.0]))
    assert env.reset().tolist() == [[1.0, 2.5]]
    step = env.step(torch.zeros(1, 1))
    assert (step.next_obs.tolist(), step.reward.tolist()) == ([[1.0, 2.5]], [3.0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"obs": [1.0]}, r"reset\(\) of DpdTest/Odd-v0 returned an observation of shape \(1,\)"),
        ({"obs": "up"}, r"reset\(\) of DpdTest/Odd-v0 returned the observation 'up', not an array"),
        ({"reward": [1.0, 2.0]}, r"step\(\) of DpdTest/Odd-v0 returned the reward \[1.0, 2.0\]"),
        ({"reward": None}, r"step\(\) of DpdTest/Odd-v0 returned the reward None"),
        ({"bounds": (0.0, 0.0)}, "action 0 has no room between its bounds, 0 and 0"),
        ({"bounds": (-3e38, 3e38)}, "action 0, -3e.38 and 3e.38, are too far apart for float32"),
    ],
)
def test_what_no_learner_can_use_is_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedEnv, match=words):
        env = odd(**given)
        env.reset()
        env.step(torch.zeros(1, 1))


@pytest.mark.parametrize("call", ["make", "reset", "step"])
def test_an_error_of_the_environments_own_names_the_call_and_keeps_its_cause(call: str) -> None:
    words = rf"{call}\(\) of DpdTest/Odd-v0 raised ValueError: the robot fell over"
    with pytest.raises(FailedEnv, match=words) as caught:
        env = odd(fails=call)
        env.reset()
        env.step(torch.zeros(1, 1))
    assert isinstance(caught.value.__cause__, ValueError)


def test_seeds_fit_numpys_legacy_generators() -> None:
    odd(seed=2**63 + 7).reset()  # RandomState raises from 2^32


class Reusing(gymnasium.Env):
    """Observes its step count in one array, which it writes to again and again."""

    observation_space = spaces.Box(0, 10, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.obs = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.obs[:] = 0
        return self.obs, {}

    def step(self, action: np.ndarray) -> Any:
        self.obs += 1
        return self.obs, 1.0, bool(self.obs[0] == 2), False, {}


def test_the_successor_outlives_a_reset_that_writes_to_the_same_array() -> None:
    env = GymnasiumEnv(register_once("DpdTest/Reusing-v0", entry_point=Reusing), 1, [0])
    env.reset()
    env.step(zeros(env))
    last = env.step(zeros(env))
    assert last.terminated.all()
    assert (last.next_obs.item(), last.obs.item()) == (2, 0)
