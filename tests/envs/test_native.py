"""The native backend against Gymnasium itself."""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from dpd.envs.base import Snapshot, UnsupportedEnv
from dpd.envs.gymnasium import GymnasiumEnv
from dpd.envs.native import NativeEnv, Simulation
from dpd.envs.physics import BatchPhysics, ThreadPhysics
from dpd.envs.task import load_model
from dpd.envs.tasks import TASKS

# 2 of the slow ones, 4 of the others
N_ENVS = {f"{name}-{v}": 2 for name in ("Ant", "Humanoid", "HumanoidStandup") for v in ("v4", "v5")}
# the others have their own time limits, which they pass
LIMITS = {"HumanoidStandup-v5": 80, "InvertedPendulum-v5": 100, "InvertedDoublePendulum-v5": 100}
LIMITS |= {env_id: min(80, task.max_steps) for env_id, task in TASKS.items() if "v4" in env_id}
PLANAR, CONTACT = "Hopper-v5", "Ant-v5"  # one task for each of the two ways to step


def gymnasium_envs(env_id: str, n_envs: int, **kwargs: Any) -> Any:
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return gymnasium.make_vec(
        env_id, num_envs=n_envs, vectorization_mode="sync", vector_kwargs=same_step, **kwargs
    )


def actions(env_id: str, n_steps: int, n_envs: int, seed: int = 0) -> np.ndarray:
    low, high = load_model(TASKS[env_id]).actuator_ctrlrange.T.astype(np.float32)
    shape = (n_steps, n_envs, len(low))
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def unit_actions(env: NativeEnv, n_steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n_steps, env.n_envs, env.spec.act_dim, generator=generator) * 2 - 1


def rollout(env: NativeEnv, acts: torch.Tensor) -> list[torch.Tensor]:
    return [torch.cat([t.float().reshape(-1) for t in env.step(act)]) for act in acts]


def select(snapshot: Snapshot, rows: list[int]) -> Snapshot:
    return {name: array[rows] for name, array in snapshot.items()}


@pytest.mark.parametrize("env_id", TASKS)
def test_native_is_bitwise_what_gymnasium_gives(env_id: str) -> None:
    n_envs = N_ENVS.get(env_id, 4)
    seeds = [11, 5, 77, 2][:n_envs]
    task = replace(TASKS[env_id], max_steps=LIMITS.get(env_id, TASKS[env_id].max_steps))
    theirs = gymnasium_envs(env_id, n_envs, max_episode_steps=task.max_steps)
    ours = Simulation(task, n_envs, seeds)
    their_obs, _ = theirs.reset(seed=seeds)
    np.testing.assert_array_equal(ours.reset(), their_obs)
    n_ended, n_truncated = 0, 0
    for act in actions(env_id, task.max_steps * 3 // 2, n_envs):
        their_obs, reward, terminated, truncated, infos = theirs.step(act)
        step = ours.step(act)
        np.testing.assert_array_equal(step.obs, their_obs)
        np.testing.assert_array_equal(step.terminated, terminated)
        np.testing.assert_array_equal(step.truncated, truncated)
        np.testing.assert_array_equal(step.ended, np.flatnonzero(terminated | truncated))
        np.testing.assert_array_equal(step.reward, reward)
        for i in step.ended:
            np.testing.assert_array_equal(step.next_obs[i], infos["final_obs"][i])
        n_ended, n_truncated = n_ended + len(step.ended), n_truncated + truncated.sum()
    theirs.close()
    ours.close()
    assert n_ended >= n_envs
    assert task.terminates or n_truncated == n_envs


@pytest.mark.parametrize("env_id", [PLANAR, CONTACT])
def test_the_number_of_threads_changes_nothing(env_id: str) -> None:
    envs = [NativeEnv(env_id, 3, [1, 2, 3], threads) for threads in (1, 2)]
    acts = unit_actions(envs[0], 60)
    for env in envs:
        env.reset()
    one, two = (rollout(env, acts) for env in envs)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("env_id", [PLANAR, "Swimmer-v5", "HalfCheetah-v5"])
def test_both_ways_to_step_are_bitwise_equal(env_id: str) -> None:
    task = TASKS[env_id]
    model = load_model(task)
    kinds = [kind(model, 3, 2, task.frame_skip, (), {}) for kind in (BatchPhysics, ThreadPhysics)]
    qpos = model.qpos0 + np.random.default_rng(0).uniform(-0.01, 0.01, (3, model.nq))
    for physics in kinds:
        physics.reset(np.arange(3), qpos, np.zeros((3, model.nv)))
        for act in actions(env_id, 50, 3):
            physics.step(act)
    np.testing.assert_array_equal(kinds[0].get_state(), kinds[1].get_state())


@pytest.mark.parametrize("env_id", TASKS)
def test_a_restored_snapshot_continues_bitwise_also_in_another_instance(env_id: str) -> None:
    env, other = NativeEnv(env_id, 3, [1, 2, 3]), NativeEnv(env_id, 3, [7, 8, 9])
    acts = unit_actions(env, 90)  # long enough for random Hoppers to fall: resets draw again
    env.reset()
    rollout(env, acts[:20])
    snapshot = env.snapshot()
    expected = rollout(env, acts[20:])
    end = env.snapshot()  # float64: solver warm starts show there, and not always in a Step
    for restored in (env, other):
        obs = restored.restore(snapshot)
        np.testing.assert_array_equal(obs.numpy(), snapshot["obs"].astype(np.float32))
        for a, b in zip(rollout(restored, acts[20:]), expected, strict=True):
            assert torch.equal(a, b)
        for name, array in restored.snapshot().items():
            np.testing.assert_array_equal(array, end[name], err_msg=name)


@pytest.mark.parametrize("env_id", [PLANAR, CONTACT])
def test_rows_restored_into_chosen_environments_leave_the_others_alone(env_id: str) -> None:
    env, other = NativeEnv(env_id, 3, [1, 2, 3]), NativeEnv(env_id, 4, [6, 7, 8, 9])
    acts, other_acts = unit_actions(env, 70, seed=1), unit_actions(other, 70, seed=2)
    env.reset()
    rollout(env, acts[:10])
    snapshot = env.snapshot()
    expected = [env.step(act) for act in acts[10:]]
    other.reset()
    untouched = NativeEnv(env_id, 4, [6, 7, 8, 9])
    untouched.reset()
    # rows 2 and 0 of the snapshot go to environments 3 and 1
    other.restore(select(snapshot, [2, 0]), ids=[3, 1])
    for k, act in enumerate(other_acts[10:]):
        act[3], act[1] = acts[10 + k, 2], acts[10 + k, 0]
        step, alone = other.step(act), untouched.step(act)
        for got, want, kept in zip(step, expected[k], alone, strict=True):
            assert torch.equal(got[[3, 1]], want[[2, 0]])
            assert torch.equal(got[[0, 2]], kept[[0, 2]])


def test_a_snapshot_is_plain_numbers_and_does_not_change_afterwards() -> None:
    env = NativeEnv(PLANAR, 2, [1, 2])
    env.reset()
    snapshot = env.snapshot()
    before = {name: array.copy() for name, array in snapshot.items()}
    rollout(env, unit_actions(env, 5))
    for name, array in snapshot.items():
        assert array.dtype != object and len(array) == 2
        np.testing.assert_array_equal(array, before[name])


def test_a_snapshot_of_the_wrong_shape_is_refused() -> None:
    env = NativeEnv(PLANAR, 2, [1, 2])
    env.reset()
    with pytest.raises(ValueError, match="2 rows for 1"):
        env.restore(env.snapshot(), ids=[0])
    with pytest.raises(ValueError, match="distinct"):
        env.restore(env.snapshot(), ids=[1, 1])
    with pytest.raises(ValueError, match="distinct"):
        env.restore(env.snapshot(), ids=[0, 2])
    with pytest.raises(ValueError, match="not one of Swimmer-v5"):
        NativeEnv("Swimmer-v5", 2, [1, 2]).restore(env.snapshot())


def test_an_episode_is_truncated_at_step_1000_and_not_before() -> None:
    env = NativeEnv("HalfCheetah-v5", 1, [0])
    env.reset()
    steps = [env.step(act) for act in unit_actions(env, 1001)]
    assert [k for k, step in enumerate(steps, start=1) if step.truncated.any()] == [1000]
    last = steps[999]
    assert not last.terminated.any()
    assert not torch.equal(last.obs, last.next_obs)
    assert torch.equal(steps[500].obs, steps[500].next_obs)


def test_a_fall_terminates_and_is_no_truncation() -> None:
    env = NativeEnv("Walker2d-v5", 4, [0, 1, 2, 3])
    env.reset()
    steps = [env.step(act) for act in unit_actions(env, 200)]
    fallen = [step for step in steps if step.terminated.any()]
    assert fallen and not any(step.truncated.any() for step in steps)
    for step in fallen:
        # 0.8 is where a Walker2d counts as fallen; a fresh one stands at 1.25
        assert (step.obs[step.terminated, 0] > 1.2).all()
        lying = (step.next_obs[:, 0] <= 0.8) | (step.next_obs[:, 1].abs() >= 1.0)
        assert torch.equal(lying, step.terminated)


def test_a_step_is_float32_and_stays_as_it_was_handed_out() -> None:
    env = NativeEnv(CONTACT, 2, [1, 2])
    env.reset()
    acts = unit_actions(env, 3)
    first = env.step(acts[0])
    copies = [tensor.clone() for tensor in first]
    rollout(env, acts[1:])
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))
    assert [t.dtype for t in first] == [torch.float32] * 3 + [torch.bool] * 3


def test_a_step_before_the_first_reset_is_refused() -> None:
    env = NativeEnv(PLANAR, 1, [0])
    with pytest.raises(RuntimeError, match="reset"):
        env.step(torch.zeros(1, 3))


def test_actions_are_clipped_and_scaled_to_the_bounds() -> None:
    envs = [NativeEnv("Humanoid-v5", 1, [0]) for _ in range(2)]
    for env in envs:
        env.reset()
    beyond, within = (env.step(torch.full((1, 17), x)) for env, x in zip(envs, (9, 1), strict=True))
    assert torch.equal(beyond.next_obs, within.next_obs)
    ctrl = envs[0]._sim.state["ctrl"]
    np.testing.assert_array_equal(ctrl, np.full((1, 17), np.float64(np.float32(0.4))))


def test_bounds_of_one_pass_actions_unchanged() -> None:
    env = NativeEnv(PLANAR, 2, [0, 1])
    env.reset()
    act = unit_actions(env, 1)[0]
    env.step(act)
    np.testing.assert_array_equal(env._sim.state["ctrl"], act.numpy())


def test_a_nan_action_is_refused_before_it_reaches_the_physics() -> None:
    env = NativeEnv(PLANAR, 2, [0, 1])
    env.reset()
    act = torch.zeros(2, 3)
    act[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"NaN for environments \[1\]"):
        env.step(act)


@pytest.mark.parametrize("env_id", [PLANAR, CONTACT])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_unstable_physics_are_reported_masked_and_end_the_episode(
    env_id: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))  # MuJoCo leaves a log file
    env = NativeEnv(env_id, 3, [0, 1, 2])
    env.reset()
    broken = env.snapshot()
    nq = env._sim.model.nq
    broken["physics"][1, 1 : 1 + nq] = 1e11  # after time comes qpos; MuJoCo's limit is 1e10
    broken["marker"][1] = 300.0  # MuJoCo's own reset would be worth thousands
    env.restore(broken)
    with pytest.warns(RuntimeWarning, match=r"environments \[1\] became unstable"):
        step = env.step(torch.zeros(3, env.spec.act_dim))
    assert step.valid.tolist() == [True, False, True]
    assert step.truncated.tolist() == [False, True, False]
    assert not step.terminated.any()
    assert step.reward[1] == 0 and step.reward[[0, 2]].all()
    after = env.step(torch.zeros(3, env.spec.act_dim))  # a warning would be an error here
    assert after.valid.all() and after.next_obs.isfinite().all()


def test_seeds_and_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 seeds for 3"):
        NativeEnv(PLANAR, 3, [0, 1])
    with pytest.raises(UnsupportedEnv, match="there is one of HalfCheetah-v5"):
        NativeEnv("Pendulum-v1", 1, [0])
    with pytest.raises(ValueError, match="threads=0"):
        NativeEnv(PLANAR, 1, [0], threads=0)


def test_episodes_after_the_first_differ_and_repeat_with_the_seed() -> None:
    first, second = NativeEnv(PLANAR, 1, [3]), NativeEnv(PLANAR, 1, [3])
    starts = [[env.reset() for _ in range(3)] for env in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))
    assert not torch.equal(starts[0][0], starts[0][1])


def test_a_staggered_episode_is_cut_early_once_and_is_otherwise_gymnasiums() -> None:
    # shares of 1,000 steps: after 1000 - 998 = 2 steps, after 1000 - 997 = 3, and not before 1,000
    share, seeds = np.array([0.998, 0.9975, 0.0]), [3, 1, 2]
    theirs, ours = GymnasiumEnv("HalfCheetah-v5", 3, seeds), NativeEnv("HalfCheetah-v5", 3, seeds)
    plain = NativeEnv("HalfCheetah-v5", 3, seeds)
    first = [env.reset() for env in (theirs, ours, plain)]
    assert torch.equal(first[0], first[1]) and torch.equal(first[1], first[2])
    for env in (theirs, ours):
        env.stagger(share)
    ends: list[list[int]] = [[], [], []]
    for k, act in enumerate(unit_actions(ours, 1010), start=1):
        wanted, step = theirs.step(act), ours.step(act)
        for name, x, y in zip(step._fields, step, wanted, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, msg=name)
        if k == 2:
            whole = [plain.step(a) for a in unit_actions(ours, 1010)[:2]][-1]
            # the last step leads where it would have led; time ran out, and nothing terminated
            assert torch.equal(step.next_obs, whole.next_obs)
            assert not step.terminated.any() and step.valid.all()
            assert not torch.equal(step.obs[0], step.next_obs[0])
        for i in range(3):
            ends[i] += [k] if step.truncated[i] else []
    assert ends == [[2, 1002], [3, 1003], [1000]]


def test_ages_outlive_a_snapshot() -> None:
    env, other = (NativeEnv("HalfCheetah-v5", 2, [1, 2]) for _ in range(2))
    env.reset()
    env.stagger(np.array([0.999, 0.998]))
    other.restore(env.snapshot())
    act = torch.zeros(2, 6)
    assert [e.step(act).truncated.tolist() for e in (env, other)] == [[True, False]] * 2
