"""Randomised tasks: bit for bit Gymnasium's environment with the same model, whatever the batch."""

import copy
from collections.abc import Iterator

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from dpd.envs.base import UnsupportedEnv
from dpd.envs.make import check, choose_backend, make
from dpd.envs.native import NativeEnv, Simulation
from dpd.envs.physics import BatchPhysics, ThreadPhysics
from dpd.envs.randomization import parse_ranges
from dpd.envs.rendering import RandomizedEnv
from dpd.envs.scaling import drawn_factors
from dpd.envs.task import load_model
from dpd.envs.tasks import TASKS, find_task

RANGES = {
    "HalfCheetah-v5": "mass=0.5:1.5,friction=0.4:2,gear=0.8:1.2,damping=0.5:2,stiffness=0.5:2",
    "Hopper-v5": "mass=0.8:1.2,friction=0.5:1.5,damping=0.5:2",
    "Swimmer-v5": "mass=0.5:2,gear=0.5:1.5,fluid=0.5:2",
    "Ant-v5": "mass=0.5:1.5,friction=0.5:1.5,gear=0.8:1.2,damping=0.5:1.5",
    "Humanoid-v5": "mass=0.8:1.2,friction=0.5:1.5,gear=0.8:1.2,stiffness=0.5:2",
}
SHORT = {  # episodes of at most 100 steps with random actions
    "Reacher-v5": "mass=0.5:1.5,gear=0.5:1.5,damping=0.5:2",
    "Pusher-v5": "mass=0.5:1.5,friction=0.5:1.5,damping=0.5:2",
    "InvertedPendulum-v5": "mass=0.5:1.5,gear=0.5:1.5",
    "InvertedDoublePendulum-v5": "mass=0.5:1.5,damping=0.5:2",
}
SEEDS = [11, 12, 13]


def simulations(env_id: str, text: str, *seeds: list[int]) -> Iterator[Simulation]:
    for group in seeds:
        yield Simulation(env_id, len(group), group, 2, ranges=parse_ranges(text))


def actions(model: mujoco.MjModel, n_steps: int, n_envs: int) -> np.ndarray:
    low, high = model.actuator_ctrlrange.T
    size = (n_steps, n_envs, model.nu)
    return np.random.default_rng(5).uniform(low, high, size).astype(np.float32)


@pytest.mark.parametrize("env_id", [*RANGES, *SHORT])
def test_it_is_gymnasium_with_the_same_model_over_several_episodes(env_id: str) -> None:
    text, n_steps = RANGES.get(env_id) or SHORT[env_id], 1500 if env_id in RANGES else 160
    (sim,) = simulations(env_id, text, [7])
    env = RandomizedEnv(gymnasium.make(env_id, max_episode_steps=2000), parse_ranges(text))
    obs, _ = env.reset(seed=7)
    np.testing.assert_array_equal(sim.reset()[0], obs)
    episodes = 0
    for act in actions(sim.model, n_steps, 1):
        done = sim.step(act)
        obs, reward, terminated, _, _ = env.step(act[0])
        np.testing.assert_array_equal(done.next_obs[0], obs)
        # Gymnasium sums float64 controls where Humanoid squares them
        assert done.reward[0] == pytest.approx(reward, rel=1e-13)
        assert done.terminated[0] == terminated
        if len(done.ended):  # by the native time limit, or by a fall
            episodes += 1
            np.testing.assert_array_equal(done.obs[0], env.reset()[0])
    assert episodes >= 1
    env.close()


def test_a_heavier_body_is_the_model_of_the_denser_material() -> None:
    # twice the density: twice the mass and inertia, half the inverse weights that contacts use
    (sim,) = simulations("Ant-v5", "mass=2", [0])
    sim.reset()
    physics = sim._physics
    assert isinstance(physics, ThreadPhysics)
    base, ours = load_model(TASKS["Ant-v5"]), physics._models[0]
    np.testing.assert_array_equal(ours.body_mass, 2 * base.body_mass)
    np.testing.assert_array_equal(ours.body_inertia, 2 * base.body_inertia)
    assert ours.body_subtreemass[0] == pytest.approx(2 * base.body_subtreemass[0])
    free = slice(0, 3)  # the root's translation, which has no armature to hide its mass
    assert (ours.dof_invweight0[free] < 0.9 * base.dof_invweight0[free]).all()


@pytest.mark.parametrize("env_id", RANGES)
def test_environments_of_one_batch_equal_environments_alone(env_id: str) -> None:
    batch, *solo = simulations(env_id, RANGES[env_id], SEEDS, *([seed] for seed in SEEDS))
    starts = batch.reset()
    np.testing.assert_array_equal(starts, np.concatenate([sim.reset() for sim in solo]))
    n_params = len(batch.groups["params"])
    assert len(np.unique(starts[:, -n_params:])) == 3 * n_params  # each has its own
    for act in actions(batch.model, 300, 3):
        done = batch.step(act)
        alone = [sim.step(act[[i]]) for i, sim in enumerate(solo)]
        for name in ("obs", "next_obs", "reward", "terminated"):
            rows = np.concatenate([getattr(one, name) for one in alone])
            np.testing.assert_array_equal(getattr(done, name), rows)


@pytest.mark.parametrize("env_id", ["Walker2d-v5", "Humanoid-v5"])
def test_factors_of_one_are_the_plain_task_with_constant_columns(env_id: str) -> None:
    plain = Simulation(env_id, 2, [3, 4], 1)
    (ones,) = simulations(env_id, "mass=1:1,friction=1,gear=1", [3, 4])
    np.testing.assert_array_equal(ones.reset()[:, :-3], plain.reset())
    for act in actions(plain.model, 400, 2):  # over several falls, each of which draws a start
        ours, theirs = ones.step(act), plain.step(act)
        np.testing.assert_array_equal(ours.obs[:, :-3], theirs.obs)
        np.testing.assert_array_equal(ours.reward, theirs.reward)
        assert (ours.obs[:, -3:] == 1).all()


def test_both_kinds_of_physics_scale_alike() -> None:
    task, ranges = find_task("HalfCheetah-v5"), parse_ranges(RANGES["HalfCheetah-v5"])
    model = load_model(task)
    sides = [
        kind(model, 2, 1, task.frame_skip, (), ranges) for kind in (BatchPhysics, ThreadPhysics)
    ]
    ids, start = np.arange(2), np.tile(model.qpos0, (2, 1))
    factors = drawn_factors(ranges, [np.random.default_rng(k) for k in (0, 1)])
    for physics in sides:
        physics.scale(ids, factors)
        physics.reset(ids, start, np.zeros((2, model.nv)))
    for act in actions(model, 100, 2):
        for physics in sides:
            physics.step(act)
        np.testing.assert_array_equal(sides[0].fields["qpos"], sides[1].fields["qpos"])


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5"])
def test_a_snapshot_in_mid_episode_brings_its_model_along(env_id: str) -> None:
    one, other = (NativeEnv(env_id, 3, SEEDS, 1, parse_ranges(RANGES[env_id])) for _ in "ab")
    one.reset()
    other.reset()
    act = torch.rand(120, 3, one.spec.act_dim, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for k in range(15):
        one.step(act[k])
    saved = copy.deepcopy(one.snapshot())
    truth = [one.step(act[k]) for k in range(15, 120)]  # over falls, which draw new factors
    for k in range(100):
        other.step(act[k])
    assert torch.equal(other.restore(saved), torch.from_numpy(saved["obs"]).float())
    for k, step in enumerate(truth):
        for ours, theirs in zip(other.step(act[15 + k]), step, strict=True):
            assert torch.equal(ours, theirs)


def test_rows_of_a_snapshot_can_change_places() -> None:
    one, other = (NativeEnv("Hopper-v5", 3, SEEDS, 1, parse_ranges("mass=0.5:2")) for _ in "ab")
    one.reset()
    other.reset()
    saved, act = one.snapshot(), torch.full((3, 3), 0.3)
    other.restore(saved, [2, 0, 1])
    ours, theirs = other.step(act).obs, one.step(act).obs
    assert torch.equal(ours[[2, 0, 1]], theirs)


def test_the_drawn_factors_are_uniform_in_their_ranges() -> None:
    (sim,) = simulations("Hopper-v5", "mass=0.8:1.2,gear=0.5:0.7", list(range(400)))
    mass, gear = sim.reset()[:, -2:].T
    # the mean of 400 uniform numbers of width w has standard error w / sqrt(12 * 400)
    assert abs(mass.mean() - 1.0) < 4 * 0.4 / np.sqrt(4800)
    assert abs(gear.mean() - 0.6) < 4 * 0.2 / np.sqrt(4800)
    assert mass.min() < 0.82 < 1.18 < mass.max() and 0.5 <= gear.min() < gear.max() <= 0.7
    assert abs(np.corrcoef(mass, gear)[0, 1]) < 0.2  # drawn one after the other


def test_params_are_a_group_after_the_others() -> None:
    spec = check("Hopper-v5", env_kwargs={"randomize": "gear=0.9:1.1,mass=0.5:2"})
    assert spec.obs_dim == 13 and spec.groups["params"] == range(11, 13)
    assert list(spec.groups) == ["qpos", "qvel", "params"]


@pytest.mark.parametrize(
    ("env_id", "backend", "kwargs", "message"),
    [
        ("Hopper-v5", "gymnasium", {}, "randomize needs the native backend, not gymnasium"),
        ("Hopper-v5", "warp", {}, "randomize needs the native backend, not warp"),
        ("Hopper-v5", "auto", {"frame_skip": 0}, "Hopper-v5: frame_skip=0 must be at least 1"),
        ("Hopper-v5", "auto", {"randomize": "size=2"}, "Hopper-v5 with randomize: 'size=2' is no"),
        ("Swimmer-v5", "auto", {}, "Swimmer-v5: a factor of friction would change nothing"),
        ("Hopper-v5", "auto", {"randomize": "stiffness=2"}, "a factor of stiffness would change"),
        ("Hopper-v5", "auto", {"randomize": "fluid=2"}, "a factor of fluid would change nothing"),
    ],
)
def test_combinations_without_effect_are_refused(
    env_id: str, backend: str, kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedEnv, match=message):
        make(env_id, 1, [0], backend, {"randomize": "friction=0.5:1.5", **kwargs})


def test_many_randomized_environments_on_a_gpu_are_simulated_natively() -> None:
    kwargs = {"randomize": "mass=0.5:2"}
    assert choose_backend("Hopper-v5", "auto", kwargs, torch.device("cuda"), 4096) == "native"
