"""Zips of Stable-Baselines3: imported they act as there, and nothing in them is run."""

import base64
import io
import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from torch import nn

from dpd.errors import BadInput
from dpd.policies import policyfile
from dpd.policies.config import NO_STATISTICS
from dpd.policies.metadata import NotAPolicy
from dpd.sb3.untrusted import WEIGHT_GLOBALS
from dpd.sb3.zip import load_zip
from tests.toy.zips import (
    Bomb,
    foreign,
    largest_gap,
    refused,
    rewritten,
    statistics,
    torch_file,
    trained,
    weights_with,
)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """A zip of a model with 3 observations, 1 action in [-2, 2] and two layers of 64."""
    return trained(tmp_path_factory.mktemp("pendulum"))[0]


@pytest.fixture(scope="module", params=[PPO, SAC, TD3, DDPG])
def of_any_kind(request, tmp_path_factory):
    """A zip of each algorithm, with 3 observations and 1 action in [-2, 2]."""
    arch = {"net_arch": [8, 8]}
    folder = tmp_path_factory.mktemp("kind")
    return trained(folder, kind=request.param, steps=64, policy_kwargs=arch)[0]


@pytest.mark.parametrize(
    ("settings", "activation", "hidden"),
    [
        ({}, "tanh", (64, 64)),  # SB3's defaults: policy_kwargs say nothing
        ({"policy_kwargs": {"net_arch": [24, 8]}}, "tanh", (24, 8)),
        ({"policy_kwargs": {"net_arch": []}}, "tanh", ()),
        ({"policy_kwargs": {"activation_fn": nn.ReLU}}, "relu", (64, 64)),
        (
            {"policy_kwargs": {"activation_fn": nn.ELU, "net_arch": {"pi": [12], "vf": [7, 7]}}},
            "elu",
            (12,),
        ),
    ],
)
def test_an_imported_policy_acts_as_sb3s_own(tmp_path, settings, activation, hidden):
    path, model, _ = trained(tmp_path, learning_rate=3e-3, **settings)
    policy = load_zip(path, foreign())
    assert (policy.meta.activation, policy.meta.hidden) == (activation, hidden)
    assert policy.meta.norm_obs is False
    assert largest_gap(policy, model) < 1e-6


def test_in_a_large_environment_with_normalised_observations_likewise(tmp_path):
    path, model, norm = trained(tmp_path, "Humanoid-v5", normalise=True)  # acts in [-0.4, 0.4]
    file = statistics(norm, tmp_path / "v.npz")
    policy = load_zip(path, foreign("Humanoid-v5", vecnormalize=file))
    assert policy.meta.clip_obs == 5.0
    # 348 observations far out, where float32 sums in another order: 1e-6 of their sum
    assert largest_gap(policy, model, norm) < 1e-5


def test_where_means_are_thousands_of_deviations_it_acts_as_float32_lets_sb3_itself(tmp_path):
    # Humanoid's inertias hardly move: after training, means are up to 6,000 deviations. Float32
    # rounds such an observation, and its mean, by 6,000 / 2^25 = 2e-4 of a deviation each.
    path, model, norm = trained(tmp_path, "Humanoid-v5", normalise=True, learning_rate=3e-3)
    norm.obs_rms.mean = np.random.default_rng(0).choice([-6000.0, 6000.0], 348)
    norm.obs_rms.var = np.ones(348)
    policy = load_zip(
        path, foreign("Humanoid-v5", vecnormalize=statistics(norm, tmp_path / "v.npz"))
    )
    exact = norm.obs_rms.mean + np.random.default_rng(1).normal(size=(500, 348))
    rounded = exact.astype(np.float32)
    half = model.action_space.high
    in_float64, in_float32 = (
        model.predict(norm.normalize_obs(obs), deterministic=True)[0] / half
        for obs in (exact, rounded)
    )
    own = np.abs(in_float64 - in_float32).max()
    assert 1e-6 < own < 1e-3
    assert np.abs(policy.act(exact) / half - in_float64).max() < 3 * own < 1e-3


def test_normalised_observations_are_clipped_as_there(tmp_path):
    path, model, norm = trained(tmp_path, "Pendulum-v1", normalise=True)
    policy = load_zip(path, foreign(vecnormalize=statistics(norm, tmp_path / "v.npz")))
    assert largest_gap(policy, model, norm) < 1e-6
    far = np.array([[1, -1, 900.0]], np.float32)
    assert np.abs(norm.normalize_obs(far)).max() == 5
    assert largest_gap(policy, model, norm, far) < 1e-6
    assert policy.tensors["obs_count"].item() == pytest.approx(norm.obs_rms.count)


def test_bounds_of_one_change_no_weight(tmp_path):
    path, model, _ = trained(tmp_path, "Hopper-v5")
    policy, theirs = load_zip(path, foreign("Hopper-v5")), model.policy.state_dict()
    assert torch.equal(policy.tensors["actor.2.weight"], theirs["action_net.weight"].T)
    assert torch.equal(policy.tensors["actor.2.bias"][0], theirs["action_net.bias"])
    assert torch.equal(policy.tensors["log_std"][0], theirs["log_std"])


def test_exploration_is_rescaled_with_the_actions(pendulum):
    # a standard deviation of exp(0) in [-2, 2] is one of 1/2 in [-1, 1]
    with zipfile.ZipFile(pendulum) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    std = load_zip(pendulum, foreign()).tensors["log_std"].exp()
    assert std.item() == pytest.approx(weights["log_std"].exp().item() / 2)


def test_an_imported_policy_is_saved_and_loaded_with_where_it_comes_from(pendulum, tmp_path):
    policy = load_zip(pendulum, foreign())
    policyfile.save(tmp_path / "p.safetensors", policy.tensors, policy.meta)
    again = policyfile.load(tmp_path / "p.safetensors")
    obs = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_array_equal(again.act(obs), policy.act(obs))
    origin = again.meta.provenance
    assert (origin["source"], origin["file"], origin["steps"]) == (
        "stable-baselines3",
        "model.zip",
        128,
    )
    assert origin["version"].startswith("2.") and len(origin["sha256"]) == 64


def test_other_algorithms_are_refused(tmp_path):
    path, _, _ = trained(tmp_path, kind=A2C, steps=10)
    assert "no clip_range); supported are PPO, SAC, TD3 and DDPG with MlpPolicy" in refused(path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_sde": True}, "gSDE"),
        ({"use_sde": True, "policy_kwargs": {"squash_output": True}}, "gSDE"),
        ({"policy_kwargs": {"activation_fn": nn.LeakyReLU}}, "supported are Tanh, ReLU, ELU"),
    ],
)
def test_what_a_gaussian_mlp_of_ours_cannot_do_is_refused(tmp_path, settings, says):
    assert says in refused(trained(tmp_path, **settings)[0])


POLICIES = "stable_baselines3.common.policies"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"policy_class": None}, "holds a .?;"),
        ({"policy_class": {"__module__": "__main__"}}, "holds a __main__.?;"),
        *(
            ({"policy_class": {"__module__": m, "__init__": f"<function {c}.__init__ at 0>"}}, c)
            for m, c in (
                (POLICIES, "ActorCriticCnnPolicy"),
                (POLICIES, "MultiInputActorCriticPolicy"),
                ("sb3_contrib.common.recurrent.policies", "RecurrentActorCriticPolicy"),
                ("sb3_contrib.tqc.policies", "TQCPolicy"),
                ("stable_baselines3.sac.policies", "CnnPolicy"),
                ("stable_baselines3.td3.policies", "Actor"),
                ("mine", "ActorCriticPolicy"),  # whose forward may be anything
            )
        ),
        ({"policy_kwargs": {"squash_output": True}}, "squash_output"),
        ({"policy_kwargs": {"use_sde": True}}, "gSDE"),
        ({"policy_kwargs": {"features_extractor_class": "<class 'mine.E'>"}}, "extractor"),
        ({"observation_space": {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}}, "not a Box"),
        ({"action_space": {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>"}}, "not a Box"),
        ({"policy_kwargs": {"activation_fn": "functools.partial(...)"}}, "supported are"),
    ],
)
def test_settings_that_change_how_a_policy_acts_are_refused(of_any_kind, tmp_path, data, says):
    assert says in refused(rewritten(of_any_kind, tmp_path / "x.zip", **data))


def test_an_activation_that_is_not_readable_is_asked_for(pendulum, tmp_path):
    hidden = {":type:": "<class 'dict'>", ":serialized:": "gAWV"}
    path = rewritten(pendulum, tmp_path / "x.zip", policy_kwargs=hidden)
    assert "give --activation" in refused(path, BadInput)
    assert load_zip(path, foreign(activation="relu")).meta.activation == "relu"
    assert "leave out --activation" in refused(pendulum, BadInput, activation="relu")
    assert load_zip(pendulum, foreign(activation="tanh")).meta.activation == "tanh"


def test_an_environment_must_be_given_and_fit(pendulum, tmp_path):
    assert "give --env" in refused(pendulum, BadInput, env=None)
    assert "HalfCheetah-v5 has 17 and 6" in refused(pendulum, BadInput, env="HalfCheetah-v5")
    space = {":type:": "<class 'gymnasium.spaces.box.Box'>", "low": "[-1.]", "high": "[1.]"}
    path = rewritten(pendulum, tmp_path / "x.zip", action_space=space)
    assert "other bounds than Pendulum-v1: low is [-1.]" in refused(path, BadInput)


def test_a_model_of_normalised_observations_asks_for_their_statistics(tmp_path):
    path, _, norm = trained(tmp_path, normalise=True)
    assert "give its file: --vecnormalize" in refused(path, BadInput)
    beside = tmp_path / "model" / "vecnormalize.pkl"  # as rl-baselines3-zoo lays it out
    beside.parent.mkdir()
    norm.save(str(beside))
    assert f"give --vecnormalize {beside}, or --vecnormalize none" in refused(
        path, BadInput, limit=1000
    )
    assert load_zip(path, foreign(vecnormalize=beside)).meta.norm_obs
    assert not load_zip(path, foreign(vecnormalize=NO_STATISTICS)).meta.norm_obs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"log_std": None}, "no log_std; actions may be discrete"),
        ({"action_net.bias": None}, "no action_net.bias"),
        ({"features_extractor.cnn.0.weight": torch.ones(2, 2)}, "which plain MLPs lack"),
        ({"mlp_extractor.policy_net.2.weight": torch.ones(64, 63)}, "does not fit the layer"),
        ({"mlp_extractor.policy_net.0.bias": torch.ones(63)}, "does not fit the layer"),
        ({"action_net.weight": torch.ones(64)}, "does not fit the layer"),
        ({"mlp_extractor.policy_net.0.weight": torch.tensor(1.0)}, "does not fit the layer"),
        ({"action_net.weight": torch.ones(0, 64), "action_net.bias": torch.ones(0)}, "not fit"),
        ({"log_std": torch.ones(64, 1)}, "log_std has shape (64, 1)"),
        ({"log_std": torch.ones(1, dtype=torch.int32)}, "IntStorage"),
        ({"log_std": torch.ones(1).expand(2**40)}, "not a weight matrix"),  # 4 TB in 4 bytes
        ({"log_std": torch.ones(1).to_sparse()}, "it imports"),
        ({"log_std": torch.ones(1, 1, 1)}, "not a weight matrix"),
        ({"action_net.bias": torch.tensor([float("nan")])}, "contains NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused(pendulum, tmp_path, changes, says):
    members = weights_with(pendulum, **changes)
    assert says in refused(rewritten(pendulum, tmp_path / "x.zip", members))


def test_what_is_no_zip_of_sb3_is_refused(of_any_kind, tmp_path):
    path = tmp_path / "x.zip"
    refused(tmp_path)
    assert "no such file" in refused(path)
    for content in (b"", b"PK\x03\x04", b"x" * 1000, of_any_kind.read_bytes()[:-30]):
        path.write_bytes(content)
        assert "not a Stable-Baselines3 zip" in refused(path)
    for name in ("data", "policy.pth"):
        assert f"holds no {name}" in refused(rewritten(of_any_kind, path, {name: None}))
    for text in (b"", b"\xff", b"[]", b"3", b"[" * 100_000, b"9" * 10_000):
        assert "not a Stable-Baselines3 zip" in refused(
            rewritten(of_any_kind, path, {"data": text})
        )
    for packed in (b"", b"x", pickle.dumps({}), torch_file(b"x"), torch_file(pickle.dumps([], 2))):
        assert "cannot be read" in refused(rewritten(of_any_kind, path, {"policy.pth": packed}))


def zeros(file, name, mebibytes, **members):
    """Write a zip in which a member unpacks to a thousand times its size."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, content in members.items():
            archive.writestr(other, content)
        with archive.open(name, "w") as member:
            for _ in range(mebibytes):
                member.write(bytes(2**20))


def test_members_that_unpack_to_much_more_are_refused(pendulum, tmp_path):
    path, inner = tmp_path / "x.zip", io.BytesIO()
    zeros(path, "data", 17)
    assert "data unpacks to 17825792 bytes" in refused(path)
    zeros(path, "policy.pth", 129, data="{}")
    assert "policy.pth unpacks to" in refused(path)
    zeros(inner, "archive/data/0", 129, **{"archive/data.pkl": "x"})
    rewritten(pendulum, path, {"policy.pth": inner.getvalue()})
    assert "it unpacks to over" in refused(path)


def test_a_zip_of_a_million_members_is_refused_at_once(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "")
    raw, start = path.read_bytes(), path.read_bytes().index(b"PK\x01\x02")
    entry, end = raw[start:-22], raw[-22:]
    whole = end[:12] + (10**6 * len(entry)).to_bytes(4, "little") + end[16:]  # the directory's size
    path.write_bytes(raw[:start] + 10**6 * entry + whole)
    assert "over 1000 members" in refused(path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_unpack_without_a_limit_are_refused(tmp_path, packing):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("data", "{}")
    assert "uses an unsupported compression" in refused(path)


def test_pickles_in_a_zips_settings_are_never_run(of_any_kind, tmp_path):
    trap = tmp_path / "trap"
    payload = base64.b64encode(pickle.dumps(Bomb(trap))).decode()
    with zipfile.ZipFile(of_any_kind) as archive:
        data = json.loads(archive.read("data"))
    # in every place where SB3 itself would unpickle, readable neighbours left as they are
    armed = {
        k: v | {":serialized:": payload} if isinstance(v, dict) and ":serialized:" in v else v
        for k, v in data.items()
    } | {"extra": {":type:": "x", ":serialized:": payload}}
    path = rewritten(of_any_kind, tmp_path / "x.zip", **armed)
    assert path.read_bytes().count(payload.encode()) > 5
    load_zip(path, foreign())
    assert not trap.exists()
    pickle.loads(base64.b64decode(payload)).close()  # the trap does work
    assert trap.exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "pickle"])
def test_pickles_in_the_place_of_weights_are_never_run(of_any_kind, tmp_path, protocol, form):
    trap = tmp_path / "trap"
    if form == "torch legacy":
        file = io.BytesIO()
        torch.save(Bomb(trap), file, _use_new_zipfile_serialization=False)
        packed = file.getvalue()
    else:
        packed = pickle.dumps(Bomb(trap), protocol)
        packed = torch_file(packed) if form == "torch zip" else packed
    said = refused(rewritten(of_any_kind, tmp_path / "x.zip", {"policy.pth": packed}))
    assert "policy.pth" in said
    assert not trap.exists()


def test_weights_may_not_ask_for_memory(of_any_kind, tmp_path):
    # bytearray(2**40), which torch's own weights_only lets through
    index = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."
    path = rewritten(of_any_kind, tmp_path / "x.zip", {"policy.pth": torch_file(index)})
    assert "imports 'builtins bytearray'" in refused(path)
    assert not any("builtins" in name for name in WEIGHT_GLOBALS)


def test_a_list_of_tensors_may_not_claim_more_bytes_than_there_are(pendulum, tmp_path):
    file = io.BytesIO()
    torch.save({"log_std": torch.zeros(200)}, file)
    with zipfile.ZipFile(file) as archive:
        index = archive.read("archive/data.pkl").replace(b"K\xc8", b"J\x00\x00\x00\x40")
    assert b"\x00\x00\x40" in index  # 2**30 floats, over 64 bytes
    path = rewritten(pendulum, tmp_path / "x.zip", {"policy.pth": torch_file(index)})
    assert "cannot be read" in refused(path)


EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)


def import_or_refuse(path):
    """Import whatever it is: a policy, or a refusal."""
    try:
        policy = load_zip(path, foreign())
    except (NotAPolicy, BadInput) as error:
        assert str(path) in str(error)
        return
    assert policy.act(np.zeros(3)).shape == (1,)


@pytest.fixture(scope="module", params=[PPO, SAC, TD3])
def small(request, tmp_path_factory):
    """A zip of a few KiB, so that damage hits something."""
    folder = tmp_path_factory.mktemp("small")
    arch = {"net_arch": [2]}
    path = trained(folder, kind=request.param, steps=64, policy_kwargs=arch)[0]
    unused = {"policy.optimizer.pth": None, "pytorch_variables.pth": None, "system_info.txt": None}
    return rewritten(path, folder / "small.zip", unused)


@given(edits=EDITS, cut=st.floats(0.9, 1) | st.just(1.0))
def test_no_damage_to_a_zip_makes_anything_but_a_policy_or_a_refusal(
    small, tmp_path_factory, edits, cut
):
    raw = bytearray(small.read_bytes())
    for place, byte in edits:
        raw[int(place * len(raw))] = byte
    path = tmp_path_factory.mktemp("fuzz") / "x.zip"
    path.write_bytes(raw[: int(cut * len(raw))])
    import_or_refuse(path)


@given(edits=EDITS, whole=st.booleans())
def test_no_damage_inside_policy_pth_makes_anything_but_a_policy_or_a_refusal(
    small, tmp_path_factory, edits, whole
):
    with zipfile.ZipFile(small) as archive:
        packed = bytearray(archive.read("policy.pth"))
    reach = len(packed) if whole else 1200  # the list of tensors comes first
    for place, byte in edits:
        packed[int(place * reach)] = byte
    path = tmp_path_factory.mktemp("fuzz") / "x.zip"
    import_or_refuse(rewritten(small, path, {"policy.pth": bytes(packed)}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
READ = ["policy_class", "policy_kwargs", "use_sde", "observation_space", "action_space"]
READ += ["num_timesteps", "_last_original_obs", "clip_range", "target_entropy"]
READ += ["policy_delay", "target_noise_clip"]


@given(data=st.dictionaries(st.sampled_from(READ), JSON, max_size=3))
def test_no_settings_make_anything_but_a_policy_or_a_refusal(small, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.zip"
    import_or_refuse(rewritten(small, path, **data))


def test_reading_zips_does_not_import_stable_baselines3():
    program = "import sys, dpd.run.sources; print('stable_baselines3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
