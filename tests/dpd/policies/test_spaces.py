"""Policies of environments whose spaces are no float32 vectors: matrices, and float64 bounds."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

from dpd.errors import BadInput
from dpd.export import FORMATS, put_into, write_checked
from dpd.policies.metadata import NotAPolicy, to_json
from dpd.policies.policyfile import Policy, load
from dpd.run.episodes import evaluate_policy
from dpd.run.sources import Place
from dpd.run.video import record_video, render_episode
from dpd.sb3.statistics import read_statistics
from dpd.sb3.zip import load_zip
from tests.dpd.test_export import RUN
from tests.toy.policies import saved, write
from tests.toy.probe_envs import Float64Bounds, Matrix, registered
from tests.toy.zips import foreign, trained


@pytest.fixture
def matrix(tmp_path):
    return saved(tmp_path, "ppo", registered(Matrix))


def at_the_bounds(policy: Policy, sign: float) -> Policy:
    """Return the policy with a last bias so large that every action is its bound."""
    last = f"actor.{len(policy.meta.hidden)}.bias"
    tensors = policy.tensors | {last: torch.full_like(policy.tensors[last], sign * 1e6)}
    return Policy(tensors, policy.meta)


def test_a_policy_takes_and_gives_the_shapes_of_its_environment(matrix):
    assert (matrix.meta.obs_shape, matrix.meta.act_shape) == ((3, 4), (2, 3))
    obs = np.random.default_rng(0).normal(size=(5, 7, 3, 4))
    acts = matrix.act(obs)
    assert acts.shape == (5, 7, 2, 3) and acts.std() > 0.1
    for i, j in product(range(5), range(7)):
        np.testing.assert_allclose(matrix.act(obs[i, j]), acts[i, j], atol=1e-5)
    # flattened in C order, as Stable-Baselines3 does it
    flat = matrix.act_flat(obs.reshape(35, 12))
    np.testing.assert_array_equal(flat.reshape(5, 7, 2, 3), acts)


@pytest.mark.parametrize("shape", [(12,), (4, 3), (2, 12), (4,), ()])
def test_observations_of_another_shape_are_refused(matrix, shape):
    with pytest.raises(ValueError, match=r"reads observations of shape \(3, 4\), one or a batch"):
        matrix.act(np.zeros(shape))


def test_a_file_without_shapes_still_loads_and_means_vectors(matrix, tmp_path):
    old = replace(matrix.meta, obs_shape=None, act_shape=None)
    assert "shape" not in to_json(old)  # as files of earlier versions, and readable by them
    policy = load(write(tmp_path / "old.safetensors", Policy(matrix.tensors, old)))
    obs = np.random.default_rng(0).normal(size=(5, 3, 4))
    np.testing.assert_array_equal(policy.act(obs.reshape(5, 12)), matrix.act(obs).reshape(5, 6))
    frames, _ = render_episode(policy, Place(policy.meta.env_id, {}), 0)
    assert len(frames) == 21


@pytest.mark.parametrize(
    "shape", [[3, 5], [12.0], [True, 12], [-3, -4], [0, 12], "12", 12, [1] * 40]
)
def test_a_shape_of_another_number_of_entries_is_refused(matrix, tmp_path, shape):
    said: dict[str, Any] = json.loads(to_json(matrix.meta)) | {"obs_shape": shape}
    path = tmp_path / "crafted.safetensors"
    save_file(matrix.tensors, path, metadata={"dpd": json.dumps(said)})
    with pytest.raises(NotAPolicy, match="bad description"):
        load(path)


def test_a_scalar_space_has_the_shape_of_no_axes(matrix, tmp_path):
    meta = replace(matrix.meta, obs_shape=(1, 12, 1))
    assert load(write(tmp_path / "1.safetensors", Policy(matrix.tensors, meta))).meta == meta

    class Scalar(Matrix):
        action_space = spaces.Box(-2, 3, (), np.float32)

    policy = saved(tmp_path, "ppo", registered(Scalar))
    assert policy.meta.act_shape == ()
    assert policy.act(np.zeros((3, 4))).shape == () and policy.act(np.zeros((9, 3, 4))).shape == (
        9,
    )


@pytest.mark.parametrize("env", [Matrix, Float64Bounds])
@pytest.mark.parametrize("sign", [-1, 1])
def test_actions_at_the_bounds_are_in_the_space_wherever_they_go(env, sign, tmp_path):
    # both environments refuse an action outside of their space
    policy = at_the_bounds(saved(tmp_path, "ppo", registered(env)), sign)
    meta = policy.meta
    act = policy.act(np.zeros(meta.full_obs_shape))
    bound = env.action_space.high if sign > 0 else env.action_space.low
    assert env.action_space.contains(act)
    np.testing.assert_allclose(act, bound, rtol=1e-7)
    outcome = evaluate_policy(policy, meta.env_id, 2, 0)
    np.testing.assert_allclose(outcome.returns, 20 * bound.mean(), rtol=1e-5)  # 20 steps
    frames, fps = render_episode(policy, Place(meta.env_id, {}), 0)
    assert len(frames) == 21 and fps == 20
    for name, run in RUN.items():
        path = tmp_path / f"p{FORMATS[name].ending}"
        write_checked(policy, FORMATS[name], path)
        flat = run(path, np.zeros((1, meta.obs_dim), np.float32))
        assert env.action_space.contains(flat.reshape(env.action_space.shape))


def test_a_file_with_bounds_rounded_outwards_is_clipped_in_its_environment(tmp_path):
    # as earlier versions wrote them
    policy = at_the_bounds(saved(tmp_path, "ppo", registered(Float64Bounds)), 1)
    policy.tensors |= {"act_low": torch.full((2,), -0.1), "act_high": torch.full((2,), 0.1)}
    assert policy.act(np.zeros(3))[0].astype(np.float64) > 0.1
    frames, _ = render_episode(policy, Place(policy.meta.env_id, {}), 0)
    assert len(frames) == 21


def test_a_video_of_an_environment_without_images_is_refused_by_name(tmp_path):
    class Blind(Matrix):
        metadata: Any = {"render_modes": []}  # noqa: RUF012

    policy = saved(tmp_path, "ppo", registered(Blind))
    place = Place(policy.meta.env_id, {})
    with pytest.raises(BadInput, match="Blind-v0 does not render images"):
        record_video(policy, place, tmp_path / "x.mp4", 0)


def test_an_exported_file_says_the_shapes_of_the_environment(matrix, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "p.onnx"
    write_checked(matrix, FORMATS["onnx"], path)
    said = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert (said["obs_shape"], said["act_shape"]) == ("[3, 4]", "[2, 3]")
    extra = {"dpd.json": ""}
    write_checked(matrix, FORMATS["torchscript"], tmp_path / "p.pt")
    torch.jit.load(tmp_path / "p.pt", _extra_files=extra)
    assert json.loads(extra["dpd.json"])["obs_shape"] == "[3, 4]"


def test_a_policy_put_into_another_environment_takes_its_shapes(matrix):
    class Row(Matrix):
        observation_space = spaces.Box(-np.inf, np.inf, (12,), np.float32)

    there = put_into(matrix, Place(registered(Row), {}))
    assert there.act(np.zeros(12)).shape == (2, 3)


@pytest.mark.parametrize("form", ["pkl", "npz", "npz in Fortran order"])
def test_a_zip_with_statistics_of_matrices_acts_as_it_does_there(tmp_path, form):
    path, model, norm = trained(tmp_path, registered(Matrix), normalise=True)
    assert norm.obs_rms.mean.shape == (3, 4)
    file = tmp_path / f"statistics.{form[:3]}"
    if form == "pkl":
        norm.save(str(file))
    else:
        order: Any = "F" if "Fortran" in form else "C"
        rms = norm.obs_rms
        arrays: dict[str, Any] = {}
        for name in ("mean", "var", "count"):
            arrays[name] = np.asarray(getattr(rms, name), order=order)
        np.savez(file, **arrays, epsilon=norm.epsilon, clip_obs=norm.clip_obs)
    policy = load_zip(path, foreign(registered(Matrix), vecnormalize=file))
    obs = np.random.default_rng(0).normal(size=(50, 3, 4)) * 3
    expected = model.predict(norm.normalize_obs(obs), deterministic=True)[0]
    np.testing.assert_allclose(policy.act(obs), expected, atol=1e-5)


def test_statistics_of_another_shape_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", mean=np.zeros((4, 3)), var=np.ones((4, 3)), count=9.0)
    with pytest.raises(BadInput, match=r"shape \(4, 3\).*12 observations, of shape \(3, 4\)"):
        read_statistics(tmp_path / "v.npz", 12, (3, 4))


def test_a_zoo_folder_of_matrices_is_checked_in_stable_baselines3(matrix, tmp_path):
    from dpd.sb3.export import export_zoo, read_zoo

    act = read_zoo(export_zoo(matrix, tmp_path / "zoo"))
    obs = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    np.testing.assert_allclose(act(obs), matrix.act_flat(obs), atol=1e-5)
