"""A task of one's own: the example of the guide beside a plain Gymnasium environment."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.wrappers import TimeLimit

from dpd.cli import main
from dpd.envs.base import FailedEnv, UnsupportedEnv
from dpd.envs.make import check, choose_backend, make
from dpd.envs.native import NativeEnv
from dpd.envs.rendering import make_renderable
from dpd.envs.task import SimState
from dpd.envs.tasks import is_native
from dpd.envs.user_task import USER_TASKS, MujocoTask, register_task
from dpd.errors import BadInput
from dpd.run.config import RunConfig
from tests.toy.runs import ENDS, TEACHER

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SWING_UP = "swing_up:SwingUp-v0"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the example be imported, and forget what a test registers."""
    monkeypatch.syspath_prepend(EXAMPLES)
    tasks, registry = dict(USER_TASKS), dict(gymnasium.registry)
    yield
    USER_TASKS.clear()
    USER_TASKS.update(tasks)
    gymnasium.registry.clear()
    gymnasium.registry.update(registry)
    sys.modules.pop("swing_up", None)


class PlainSwingUp(MujocoEnv):
    """The example as one writes it for Gymnasium, one state at a time."""

    def __init__(self, force_cost: float = 0.01) -> None:
        space = spaces.Box(-np.inf, np.inf, (5,), np.float64)
        super().__init__(str(EXAMPLES / "swing_up.xml"), 2, space)
        self.force_cost = force_cost

    def _get_obs(self) -> np.ndarray:
        cart, angle = self.data.qpos
        return np.array([cart, np.sin(angle), np.cos(angle), *self.data.qvel])

    def step(self, action: np.ndarray) -> Any:
        self.do_simulation(action, self.frame_skip)
        height = self.data.site("tip").xpos[2] / 0.6
        reward = height - self.force_cost * (action**2).sum()
        return self._get_obs(), reward, bool(abs(self.data.qpos[0]) > 1.7), False, {}

    def reset_model(self) -> np.ndarray:
        noise = self.np_random.uniform(-0.1, 0.1, 2)
        self.set_state(np.array([0.0, np.pi]) + noise, np.zeros(2))
        return self._get_obs()


def pushes(n_steps: int, n_envs: int) -> torch.Tensor:
    """Draw actions that push most carts to the end of the rail."""
    return torch.rand(n_steps, n_envs, 1, generator=torch.Generator().manual_seed(0)) * 2 - 0.7


@pytest.mark.parametrize("kwargs", [{}, {"force_cost": 0.5}])
def test_it_is_bit_for_bit_the_plain_gymnasium_environment(kwargs: dict[str, Any]) -> None:
    env = make(SWING_UP, 2, [4, 9], env_kwargs=kwargs)
    assert isinstance(env, NativeEnv) and env.spec.can_snapshot
    plain: list[Any] = [TimeLimit(PlainSwingUp(**kwargs), 500) for _ in range(2)]
    starts = np.stack([one.reset(seed=seed)[0] for one, seed in zip(plain, (4, 9), strict=True)])
    np.testing.assert_array_equal(env.reset(), starts.astype(np.float32))
    n_terminated = n_truncated = 0
    for act in pushes(620, 2):
        if n_truncated:
            break
        step = env.step(act)
        for i, one in enumerate(plain):
            obs, reward, terminated, truncated, _ = one.step(act[i].clamp(-1, 1).numpy())
            np.testing.assert_array_equal(step.next_obs[i], obs.astype(np.float32))
            assert step.reward[i] == np.float32(reward)
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            n_terminated, n_truncated = n_terminated + terminated, n_truncated + truncated
            if terminated or truncated:
                np.testing.assert_array_equal(step.obs[i], one.reset()[0].astype(np.float32))
    assert n_terminated >= 2


def test_gymnasium_makes_the_same_task_for_videos_and_for_its_backend() -> None:
    ours, theirs = (make(SWING_UP, 2, [1, 2], backend) for backend in ("native", "gymnasium"))
    assert (
        ours.spec.groups
        == theirs.spec.groups
        == {
            "cart": range(1),
            "pole": range(1, 3),
            "qvel": range(3, 5),
        }
    )
    assert torch.equal(ours.reset(), theirs.reset())
    for act in pushes(60, 2):
        step = ours.step(act)
        for name, a, b in zip(step._fields, step, theirs.step(act), strict=True):
            assert torch.equal(a, b), name
    one = make_renderable(SWING_UP, {"randomize": "mass=2", "width": 64})
    obs, _ = one.reset(seed=1)
    factor = make(SWING_UP, 1, [1], env_kwargs={"randomize": "mass=2"}).reset()[0]
    np.testing.assert_array_equal(obs.astype(np.float32), factor)
    one.close()


def test_a_reward_sees_the_state_before_the_step_and_the_episode_goes_on_after_a_snapshot() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Forward(MujocoTask):
        xml: str = "swimmer.xml"
        frame_skip: int = 4

        def reward(self, before: SimState, act: np.ndarray, state: SimState) -> np.ndarray:
            assert set(before) == {"qpos", "qvel"} and act.dtype == np.float32
            return (state["qpos"][:, 0] - before["qpos"][:, 0]) / self.dt - 1e-4 * (act**2).sum(1)

    register_task("Forward-v0", Forward)
    # Swimmer's own reward, and its start but for the excluded positions of the observation
    ours, swimmer = NativeEnv("Forward-v0", 2, [3, 4]), NativeEnv("Swimmer-v5", 2, [3, 4])
    assert torch.equal(ours.reset()[:, 2:], swimmer.reset())
    acts = torch.rand(30, 2, 2) * 2 - 1
    for k, act in enumerate(acts):
        if k == 15:
            snapshot = ours.snapshot()
        step, want = ours.step(act), swimmer.step(act)
        torch.testing.assert_close(step.reward, want.reward, rtol=1e-6, atol=1e-6)
        assert torch.equal(step.next_obs[:, 2:], want.next_obs)
    other = NativeEnv("Forward-v0", 2, [7, 8])
    other.restore(snapshot)
    last = [other.step(act) for act in acts[15:]][-1]
    assert torch.equal(last.obs, step.obs) and torch.equal(last.reward, step.reward)
    assert not ours.spec.groups.keys() - {"qpos", "qvel"} and ours.spec.max_steps == 1000


@dataclass(frozen=True, kw_only=True)
class Broken(MujocoTask):
    """A task with one fault of your choice."""

    xml: str = "swimmer.xml"
    fault: str = ""

    def observed_parts(self, state: SimState) -> dict[str, Any]:
        name = "0:3" if self.fault == "name" else "x"
        return {name: state["qpos"][:, 0] if self.fault == "obs" else state["qpos"]}

    def reward(self, before: SimState, act: np.ndarray, state: SimState) -> Any:
        if self.fault == "raises":
            raise KeyError("speed")
        return act if self.fault == "reward" else act.sum(1)

    def terminated(self, state: SimState) -> Any:
        return state["qpos"][:, 0] if self.fault == "terminated" else super().terminated(state)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("name", UnsupportedEnv, "Broken-v0: '0:3' is no name for a group of columns"),
        ("obs", UnsupportedEnv, r"observed_parts\(\) of Broken-v0 returned x of shape \(1,\), not"),
        ("reward", UnsupportedEnv, r"reward\(\) of Broken-v0 returned float32 of shape \(1, 2\)"),
        ("raises", FailedEnv, r"reward\(\) of Broken-v0 raised KeyError: 'speed'"),
        ("terminated", UnsupportedEnv, r"terminated\(\) of Broken-v0 returned float64 of shape"),
    ],
)
def test_faults_in_the_rules_are_reported_by_their_function(
    fault: str, error: type[Exception], message: str
) -> None:
    register_task("Broken-v0", Broken)
    with pytest.raises(error, match=message):
        env = make("Broken-v0", 1, [0], env_kwargs={"fault": fault})
        env.reset()
        env.step(torch.zeros(1, 2))


def test_what_cannot_be_registered_or_made_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy(MujocoTask):
        payload: float

    @dataclass(frozen=True, kw_only=True)
    class Wide(Broken):
        width: float = 1.0

    @dataclass(frozen=True, kw_only=True)
    class Curious(Broken):
        state_fields: tuple[str, ...] = ("xposs",)

    for env_id, kind, message in (
        ("Hopper-v5", Broken, "'Hopper-v5' is no id for a task of your own"),
        ("a:Mine-v0", Broken, "'a:Mine-v0' is no id for a task of your own"),
        ("Mine-v0", Needy, "every field of its class needs a default"),
        ("Mine-v0", MujocoTask, "its class sets no `xml`"),
        ("Mine-v0", Wide, "a field called width has another meaning; rename it"),
    ):
        with pytest.raises(UnsupportedEnv, match=message):
            register_task(env_id, kind)
    assert not is_native("Mine-v0")
    register_task("Curious-v0", Curious)
    with pytest.raises(UnsupportedEnv, match="MjData has no array 'xposs' of its own; did you mea"):
        check("Curious-v0")
    with pytest.raises(UnsupportedEnv, match="its rules are NumPy, which Warp cannot run"):
        choose_backend(SWING_UP, "warp")
    assert choose_backend(SWING_UP, device=torch.device("cuda"), n_envs=4096) == "native"
    with pytest.raises(UnsupportedEnv, match="it takes xml_file, frame_skip, reset_noise_s"):
        check(SWING_UP, env_kwargs={"cost": 1.0})
    with pytest.raises(UnsupportedEnv, match="force_cost='much' must be a number"):
        check(SWING_UP, env_kwargs={"force_cost": "much"})
    with pytest.raises(UnsupportedEnv, match="No module named 'swing_down'"):
        check("swing_down:SwingUp-v0")
    with pytest.raises(BadInput, match="--randomize changes the model of"):
        RunConfig(env="SwingUp-v0", randomize="mass=2").parsed_env_kwargs()


def test_the_example_of_the_guide_trains_and_is_what_the_guide_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    argv = ["train", SWING_UP, *TEACHER, *ENDS, "--kernels", "torch", "--out", str(out)]
    assert main([*argv, "--total-steps", "128", "--randomize", "mass=0.8:1.2"]) == 0
    assert "native" in capsys.readouterr().out
    assert main(["evaluate", str(out), "--episodes", "2"]) == 0
    guide = (EXAMPLES.parent / "guides" / "own-task.md").read_text()
    assert (EXAMPLES / "swing_up.py").read_text() in guide
