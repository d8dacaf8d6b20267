"""The warp backend against the native one, on Warp's CPU device; bench/gpu_parity.py does all.

Unoptimised kernels compile in half the time. A run with no cache of them compiles for most of its
time: one planar task, and the one task whose observations hold contact forces.
"""

import dataclasses
import gc
from collections.abc import Iterator
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
import warp as wp
from scipy.stats import ks_2samp, kstest, norm
from torch.utils._python_dispatch import TorchDispatchMode

from dpd.envs.base import ActionScale, Snapshot, Step, UnsupportedEnv
from dpd.envs.native import NativeEnv
from dpd.envs.task import load_model
from dpd.envs.tasks import TASKS
from dpd.envs.warp import WarpEnv
from dpd.envs.warp_physics import _draw_goal, warp_device
from tests.toy.meta_device import NothingFromHost

wp.config.optimization_level = 0

PLANAR, CONTACT = "Hopper-v5", "Ant-v5"
# columns of a Hopper's snapshot: time, 6 positions that begin with x, 6 velocities, ...
HEIGHT, ANGLE, WARMSTART = 2, 3, slice(13, 19)
WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)
FORCES = 27  # columns of Ant's observation: after 13 positions and 14 velocities
# One step in float32; observed are 2e-6 and 1e-6, for Ant 1e-5 and 1e-4.
OBS_TOLERANCE, REWARD_TOLERANCE = 1e-4, 1e-3


def unit_actions(env: Any, n_steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n_steps, env.n_envs, env.spec.act_dim, generator=generator) * 2 - 1


def made(env_id: str = PLANAR, n_envs: int = 3, first_seed: int = 1) -> WarpEnv:
    env = WarpEnv(env_id, n_envs, range(first_seed, first_seed + n_envs), "cpu")
    env.reset()
    return env


def rollout(env: WarpEnv, acts: torch.Tensor) -> list[Step]:
    return [env.step(act) for act in acts]


def assert_same(got: list[Step], want: list[Step], rows: Any = slice(None)) -> None:
    for a, b in zip(got, want, strict=True):
        for name, x, y in zip(Step._fields, a, b, strict=True):
            assert torch.equal(x[rows], y[rows]), name


def transplanted(native: NativeEnv, env: WarpEnv) -> Snapshot:
    """Give a native snapshot's states to the warp backend: its physics is a prefix of MuJoCo's."""
    mine, theirs = env.snapshot(), native.snapshot()
    width = mine["physics"].shape[1]
    shared = {name: theirs[name] for name in ("elapsed", "marker", "obs")}
    return {**mine, **shared, "physics": theirs["physics"][:, :width]}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return (ours - theirs).abs() / (1 + theirs.abs())


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make episodes of the planar task 4 steps long, of one frame each."""
    task = dataclasses.replace(TASKS[PLANAR], max_steps=4, frame_skip=1)
    monkeypatch.setitem(TASKS, PLANAR, task)
    return task.max_steps


def test_a_step_from_mid_episode_is_the_native_one() -> None:
    native, env = NativeEnv(PLANAR, 48, range(48)), made(n_envs=48)
    native.reset()
    n_fallen = 0
    for k, act in enumerate(unit_actions(native, 48)):
        if k % 12 == 11:
            env.restore(transplanted(native, env))
            ours = env.step(act)
        step = native.step(act)
        if k % 12 == 11:
            assert relative_error(ours.next_obs, step.next_obs).max() < OBS_TOLERANCE
            assert abs(ours.reward - step.reward).max() < REWARD_TOLERANCE
            assert torch.equal(ours.terminated, step.terminated)
            assert torch.equal(ours.truncated, step.truncated)
            running = ~step.terminated
            assert relative_error(ours.obs, step.obs)[running].max() < OBS_TOLERANCE
            n_fallen += int(step.terminated.sum())
    assert n_fallen >= 2 and env.trouble() == [] and env.n_lost == 0


def test_contact_forces_and_markers_are_the_native_ones() -> None:
    native, env = NativeEnv(CONTACT, 32, range(32)), made(CONTACT, 32)
    native.reset()
    *earlier, act = unit_actions(native, 21)
    for past in earlier:
        native.step(past)
    env.restore(transplanted(native, env))
    ours, step = env.step(act), native.step(act)
    same = relative_error(ours.next_obs, step.next_obs).amax(1) < OBS_TOLERANCE
    touching = (step.next_obs[:, FORCES:] != 0).any(1)
    # where no leg is steep, see DIFFERENCES
    assert int(same.sum()) >= 20 and int((same & touching).sum()) >= 3
    assert abs(ours.reward - step.reward)[same].max() < REWARD_TOLERANCE
    assert torch.equal(ours.terminated, step.terminated)


def test_version_4_of_reacher_is_paid_for_the_native_distance_before_each_step() -> None:
    native, env = NativeEnv("Reacher-v4", 4, range(4)), made("Reacher-v4", 4)
    native.reset()
    *earlier, first, second = unit_actions(native, 12)
    for past in earlier:
        native.step(past)
    env.restore(transplanted(native, env))
    for act in (first, second):  # the first marker is the native one, the second its own
        ours, step = env.step(act), native.step(act)
        assert relative_error(ours.next_obs, step.next_obs).max() < OBS_TOLERANCE
        assert abs(ours.reward - step.reward).max() < REWARD_TOLERANCE


def test_a_restart_clears_contact_forces_and_reads_the_marker_again() -> None:
    env = made(CONTACT, 2)
    rollout(env, torch.zeros(10, 2, 8))  # until both stand on the ground
    state = env.snapshot()
    state["elapsed"][1] = 999
    env.restore(state)
    step = env.step(torch.zeros(2, 8))
    assert step.truncated.tolist() == [False, True]
    assert (step.next_obs[:, FORCES:] != 0).any(1).all()
    assert (step.obs[1, FORCES:] == 0).all()
    assert torch.equal(step.obs[0], step.next_obs[0])  # untouched by the other's restart
    after = env.snapshot()
    # the marker is the torso's x, the first of the free joint's coordinates
    np.testing.assert_allclose(after["marker"][1], after["physics"][1, 1], atol=1e-6)


def test_episodes_end_at_the_limit_and_begin_anew_in_the_same_step(short: int) -> None:
    env = made(n_envs=2)
    state = env.snapshot()
    state["elapsed"][:] = [0, 2]  # the second has two steps left
    env.restore(state)
    steps = rollout(env, torch.zeros(6, 2, 3))
    got = [step.truncated.tolist() for step in steps]
    assert got == [[k % short == short - 1, k % short == 1] for k in range(6)]
    assert not any(step.terminated.any() for step in steps)
    end = steps[short - 1]
    assert not torch.equal(end.obs[0], end.next_obs[0])
    assert torch.equal(end.obs[1], end.next_obs[1])
    # one frame after the reset a Hopper at rest has hardly moved: the marker was read again
    assert steps[short].reward[0].sub(1.0).abs() < 0.1


def test_a_fall_terminates_and_is_no_truncation(short: int) -> None:
    env = made()
    state = env.snapshot()
    state["physics"][1, HEIGHT] = 0.5  # a Hopper below 0.7 has fallen, and stands at 1.25
    env.restore(state)
    step = env.step(torch.zeros(3, 3))
    assert step.terminated.tolist() == [False, True, False] and not step.truncated.any()
    assert step.next_obs[1, 0] < 0.7 and step.obs[1, 0] > 1.2
    assert step.reward[1] < 0.5 < step.reward[0]  # the last step earns no healthy reward
    assert step.valid.all()


def test_a_restored_snapshot_continues_bitwise_also_in_another_instance(short: int) -> None:
    env, other = made(), made(first_seed=7)
    acts = unit_actions(env, 12)
    rollout(env, acts[:3])
    snapshot = env.snapshot()
    expected, end = rollout(env, acts[3:]), env.snapshot()
    for restored in (env, other):
        obs = restored.restore(snapshot)
        np.testing.assert_array_equal(obs.numpy(), snapshot["obs"])
        assert_same(rollout(restored, acts[3:]), expected)
        for name, array in restored.snapshot().items():
            np.testing.assert_array_equal(array, end[name], err_msg=name)


def test_rows_restored_into_chosen_environments_leave_the_others_alone(short: int) -> None:
    env, other, untouched = made(), made(n_envs=4, first_seed=6), made(n_envs=4, first_seed=6)
    acts, other_acts = unit_actions(env, 10, seed=1), unit_actions(other, 8, seed=2)
    rollout(env, acts[:2])
    snapshot = env.snapshot()
    expected = rollout(env, acts[2:])
    other.restore({name: array[[2, 0]] for name, array in snapshot.items()}, ids=[3, 1])
    other_acts[:, [3, 1]] = acts[2:, [2, 0]]
    for step, want, kept in zip(
        rollout(other, other_acts), expected, rollout(untouched, other_acts), strict=True
    ):
        for got, theirs, alone in zip(step, want, kept, strict=True):
            assert torch.equal(got[[3, 1]], theirs[[2, 0]])
            assert torch.equal(got[[0, 2]], alone[[0, 2]])


def test_a_snapshot_that_does_not_fit_is_refused(short: int) -> None:
    env = made(n_envs=2)
    with pytest.raises(ValueError, match="2 rows for 1"):
        env.restore(env.snapshot(), ids=[0])
    with pytest.raises(ValueError, match="distinct"):
        env.restore(env.snapshot(), ids=[0, 2])
    with pytest.raises(ValueError, match="another backend"):
        env.restore(NativeEnv(PLANAR, 2, [1, 2]).snapshot())


def test_a_step_stays_as_it_was_handed_out(short: int) -> None:
    env = made()
    acts = unit_actions(env, 6)
    first = env.step(acts[0])
    copies = [tensor.clone() for tensor in first]
    rollout(env, acts[1:])
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))
    assert [t.dtype for t in first] == [torch.float32] * 3 + [torch.bool] * 3


@pytest.mark.parametrize("env_id", [CONTACT, PLANAR])
def test_starts_are_distributed_as_the_task_says(env_id: str) -> None:
    env = made(env_id, 8)
    task, model = TASKS[env_id], load_model(TASKS[env_id])
    episodes = []
    for _ in range(250):
        env.reset()
        episodes.append(env.snapshot()["physics"][:, 1 : 1 + model.nq + model.nv])
    assert task.qpos_noise is not None
    noise = np.concatenate(episodes) - [*model.qpos0, *[0.0] * model.nv]
    drawn = (noise / task.qpos_noise).T  # 2000 numbers per coordinate
    n_uniform = model.nq if task.normal_qvel else model.nq + model.nv
    assert abs(drawn[:n_uniform]).max() < 1 + 1e-4
    # seeds are fixed; of 29 coordinates, one in 300 choices of them has so small a p-value
    assert all(kstest((x + 1) / 2, "uniform").pvalue > 1e-4 for x in drawn[:n_uniform])
    assert all(kstest(x, norm.cdf).pvalue > 1e-4 for x in drawn[n_uniform:])
    # a correlation of 2000 pairs has a standard error of 0.022: five of them
    between_coordinates = np.corrcoef(drawn) - np.eye(len(drawn))
    between_environments = [np.corrcoef(x[:-1], x[1:])[0, 1] for x in drawn]
    between_episodes = [np.corrcoef(x[:-8], x[8:])[0, 1] for x in drawn]
    for correlations in (between_coordinates, between_environments, between_episodes):
        assert np.abs(correlations).max() < 0.11


@pytest.mark.parametrize("env_id", ["Reacher-v5", "Pusher-v5"])
def test_goals_are_distributed_as_the_native_ones(env_id: str) -> None:
    task, n = TASKS[env_id], 4000
    goal = task.goal
    assert goal is not None
    wp.init()
    mask, key = torch.ones(n, dtype=torch.bool), torch.arange(n)
    mask[-1] = False
    episode, qpos = torch.zeros(n, dtype=torch.int32), torch.full((n, 5), 9.0)
    limits = (wp.vec2(*goal.low), wp.vec2(*goal.high), goal.radius, goal.is_inside)
    views = [wp.from_torch(x, return_ctype=False) for x in (mask, key, episode, qpos)]
    wp.launch(_draw_goal, n, [*views[:3], 11, 2, *limits], outputs=[views[3]], device="cpu")
    assert (qpos[:, [0, 1, 4]] == 9).all() and (qpos[-1] == 9).all()  # only two, only where masked
    ours = qpos[:-1, 2:4].numpy()
    generator = np.random.default_rng(0)
    first = goal.qpos + load_model(task).nq
    native = np.stack([task.draw_start(generator)[0][first : first + 2] for _ in range(n)])
    for radius in (np.linalg.norm(points, axis=1) for points in (ours, native)):
        assert (radius < 0.2).all() if goal.is_inside else (radius > 0.17).all()
    # seeds are fixed; of 6 distributions, one in 1,500 choices of them has so small a p-value
    for direction in ([1.0, 0.0], [0.0, 1.0], [0.6, 0.8]):
        assert ks_2samp(ours @ direction, native @ direction).pvalue > 1e-4


def test_an_environment_starts_where_it_does_whatever_happens_to_the_others(short: int) -> None:
    env, alone = made(), made(n_envs=1, first_seed=2)
    state = env.snapshot()
    state["physics"][0, HEIGHT] = 0.5  # the first falls, and draws before its time
    state["elapsed"][2] = 1
    env.restore(state)
    acts = unit_actions(env, 9)
    assert_same(
        [Step(*(t[1:2] for t in step)) for step in rollout(env, acts)],
        rollout(alone, acts[:, 1:2]),
    )
    # ends after steps 1, 5, 9; 4, 8; 3, 7
    assert env.snapshot()["episode"].tolist() == [3, 2, 2]


def test_unstable_physics_are_masked_and_end_the_episode(short: int) -> None:
    env, healthy = made(), made()
    state = env.snapshot()
    state["physics"][1, ANGLE] = np.nan
    state["physics"][2, HEIGHT] = 1e11  # MuJoCo's limit is 1e10
    env.restore(state)
    acts = unit_actions(env, 3)
    step = env.step(acts[0])
    assert (env.snapshot()["physics"][1:, WARMSTART] == 0).all()
    later = rollout(env, acts[1:])
    assert step.valid.tolist() == [True, False, False]
    assert step.truncated.tolist() == [False, True, True] and not step.terminated.any()
    assert all(tensor.isfinite().all() for tensor in step[:3])
    assert torch.equal(step.next_obs[1:], step.obs[1:]) and step.reward[1:].tolist() == [0, 0]
    assert env.n_lost == 2
    # the others never noticed, and the new episodes are sound
    assert_same([step, *later], rollout(healthy, acts), rows=[0])
    assert all(s.valid.all() and s.next_obs.isfinite().all() for s in later)


def test_a_nan_action_is_an_invalid_step_of_its_environment_alone(short: int) -> None:
    env, healthy = made(), made()
    act = unit_actions(env, 1)[0]
    poisoned = act.clone()
    poisoned[1, 2] = torch.nan
    step, sound = env.step(poisoned), healthy.step(act)
    assert step.valid.tolist() == [True, False, True]
    assert step.truncated.tolist() == [False, True, False]
    assert_same([step], [sound], rows=[0, 2])
    assert env.step(act).valid.all()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leave all that is freed to reference counts."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def parts(env: WarpEnv) -> list[ref[Any]]:
    """Refer weakly to what takes a simulation's memory: worlds, model and recordings."""
    physics = env._physics
    held = (physics, physics._data.qpos, physics._model.geom_rbound, physics._step)
    return [ref(x) for x in (*held, physics._restart)]


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_simulation_frees_its_memory_at_once(how: str, short: int, no_collector: None) -> None:
    env: WarpEnv | None = made()
    assert env is not None
    step = env.step(torch.zeros(3, 3))
    kept = step.next_obs.clone()
    there = parts(env)
    assert all(part() is not None for part in there)
    if how == "close":
        env.close()
        env.close()  # once more does no harm
    else:
        env = None
    assert [part() for part in there] == [None] * len(there)
    assert torch.equal(step.next_obs, kept)  # what was handed out stays


def test_a_closed_simulation_says_so(short: int) -> None:
    env = made()
    snapshot = env.snapshot()
    env.step(torch.zeros(3, 3))
    env.close()
    calls = [env.reset, env.snapshot, env.trouble]
    calls += [lambda: env.step(torch.zeros(3, 3)), lambda: env.restore(snapshot)]
    for call in calls:
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_a_simulation_is_recorded_without_the_collector(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collects = []

    class Capture(wp.ScopedCapture):
        def __enter__(self) -> Any:
            collects.append(gc.isenabled())
            return super().__enter__()

    monkeypatch.setattr(wp, "ScopedCapture", Capture)
    made()
    assert collects == [False, False] and gc.isenabled()  # a step, and a restart


def test_with_an_old_driver_the_solver_does_not_loop_and_a_line_says_so(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, acts = made(), unit_actions(made(), 6)
    expected = rollout(usual, acts)
    assert usual.spec.notes == ()
    monkeypatch.setattr("dpd.envs.warp_physics.loops_on", lambda device: False)
    monkeypatch.setattr("dpd.envs.warp.loops_on", lambda device: False)
    env = made()
    assert not env._physics._model.opt.graph_conditional
    assert_same(rollout(env, acts), expected)  # it only ends later
    assert "older than 12.4" in env.spec.notes[0] and "--backend native" in env.spec.notes[0]


def test_what_warp_can_not_record_is_said_in_one_line(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(wp.ScopedCapture):
        def __exit__(self, *args: Any) -> None:
            super().__exit__(*args)
            raise RuntimeError("CUDA error 900: not permitted\nmore of it")

    monkeypatch.setattr(wp, "ScopedCapture", Refused)
    with pytest.raises(UnsupportedEnv, match=r"Hopper-v5 .* 900: not permitted; --backend native"):
        made()


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        ((12, 2), "built for CUDA 13.0, but the driver supports 12.2: update"),
        (None, "Warp finds no"),
    ],
)
def test_a_driver_too_old_for_warp_is_named(
    driver: tuple[int, int] | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(wp, "get_cuda_driver_version", lambda: driver)
    monkeypatch.setattr(wp, "get_cuda_toolkit_version", lambda: (13, 0))
    with pytest.raises(UnsupportedEnv, match=f"{says}.*--backend native"):
        warp_device("cuda")


class NoWaiting(TorchDispatchMode):
    """Refuse what makes the host wait for a device: values and shapes read from tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("env_id", [PLANAR, CONTACT])
def test_a_step_reads_nothing_back_from_the_device(env_id: str, short: int) -> None:
    env = made(env_id)
    act = unit_actions(env, 1)[0]
    with NoWaiting(), NothingFromHost("cpu"):
        env.step(act)
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        bool(env.step(act).terminated.any())


def test_too_many_contacts_are_noticed(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = made()
    monkeypatch.setattr("dpd.envs.warp_physics._USUAL_CAPACITY", (1, 1))
    narrow = made()
    for env in (roomy, narrow):
        state = env.snapshot()
        state["physics"][:, HEIGHT] -= 0.05  # the feet are in the ground
        env.restore(state)
        assert env.trouble() == []
        env.step(torch.zeros(3, 3))
    assert "contacts were dropped" in narrow.trouble()[0] and roomy.trouble() == []


def test_too_little_memory_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("Failed to allocate 123456 bytes on device 'cpu'")

    monkeypatch.setattr("dpd.envs.warp.WarpPhysics", full)
    with pytest.raises(UnsupportedEnv, match=r"1 environments of Hopper-v5 .* lower --n"):
        WarpEnv(PLANAR, 1, [0], "cpu")


def test_a_step_before_the_first_reset_is_refused(short: int) -> None:
    env = WarpEnv(PLANAR, 1, [0], "cpu")
    with pytest.raises(RuntimeError, match="reset"):
        env.step(torch.zeros(1, 3))


@pytest.mark.parametrize("env_id", TASKS)
def test_actions_are_scaled_on_the_device_as_on_the_host(env_id: str) -> None:
    low, high = load_model(TASKS[env_id]).actuator_ctrlrange.T
    for bounds in ((low, high), (low - 0.3, high * 7.7)):
        scale = ActionScale(*bounds)
        act = torch.randn(1000, len(low), generator=torch.Generator().manual_seed(0))
        act[0], act[1] = -1, 1
        np.testing.assert_array_equal(scale.on(torch.device("cpu"))(act).numpy(), scale(act))


def test_seeds_and_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 seeds for 3"):
        WarpEnv(PLANAR, 3, [0, 1], "cpu")
    with pytest.raises(UnsupportedEnv, match="there is one of HalfCheetah-v5"):
        WarpEnv("Pendulum-v1", 1, [0], "cpu")


def test_a_staggered_episode_is_cut_early_once() -> None:
    env = made()
    env.stagger(np.array([0.999, 0.998, 0.0]))
    steps = rollout(env, unit_actions(env, 2))
    assert [step.truncated.tolist() for step in steps] == [
        [True, False, False],
        [False, True, False],
    ]
    assert not any(step.terminated.any() for step in steps)
    assert not torch.equal(steps[0].obs[0], steps[0].next_obs[0])
