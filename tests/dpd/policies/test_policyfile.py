"""Policy files: they act as the learner did, and nothing else is taken for one."""

import json
import os
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.policies import metadata as policymeta
from dpd.policies import policyfile
from dpd.policies.metadata import NotAPolicy, PolicyMeta

OBS, ACT = 5, 2


def meta(**changes):
    """Describe a small policy."""
    fields: dict[str, Any] = {
        "algo": "ppo",
        "env_id": "Some-v0",
        "activation": "tanh",
        "squashed": False,
        "obs_dim": OBS,
        "act_dim": ACT,
        "hidden": (8, 8),
        "env_kwargs": {},
        "provenance": {"seed": 0},
    }
    return PolicyMeta(**fields | changes)


def learner():
    """Return a stack of two learners with statistics of their own."""
    agent = PPO(PPOConfig(hidden=(8, 8), n_envs=2, n_steps=32), OBS, ACT, [(0, 0), (0, 1)])
    with torch.no_grad():
        agent.nets.flat.normal_()
    agent.obs_norm.update(torch.randn(2, 100, OBS) * 3 + 1)
    return agent


def bounds(low=-1.0, high=1.0):
    return {"act_low": torch.full((ACT,), low), "act_high": torch.full((ACT,), high)}


def test_a_policy_acts_as_its_learner_did(tmp_path):
    agent = learner()
    obs = torch.randn(2, 50, OBS)
    for n in range(2):
        path = tmp_path / f"{n}.safetensors"
        policyfile.save(path, agent.export(n) | bounds(), meta())
        acted = policyfile.load(path).act(obs[n].numpy())
        np.testing.assert_allclose(acted, agent.mode(obs)[n].numpy(), atol=1e-6)


def test_actions_come_in_the_bounds_of_the_environment(tmp_path):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(-0.4, 2.0), meta())
    unit = torch.randn(200, OBS)
    policy = policyfile.load(path)
    # [-1, 1] onto [-0.4, 2]: a -> -0.4 + (a + 1) * 1.2
    expected = -0.4 + (policy.mode(unit) + 1) * 1.2
    np.testing.assert_allclose(policy.act(unit), expected.numpy(), atol=1e-6)
    assert policy.act(unit).min() >= -0.4 and policy.act(unit).max() <= 2.0


def test_one_observation_and_any_batch_of_them_are_read(tmp_path):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(), meta())
    policy = policyfile.load(path)
    obs = np.random.default_rng(0).normal(size=(3, 4, OBS))
    assert policy.act(obs).shape == (3, 4, ACT)
    np.testing.assert_allclose(policy.act(obs)[1, 2], policy.act(obs[1, 2]), atol=1e-6)
    with pytest.raises(ValueError, match=r"\(6,\); the policy reads observations of shape \(5,\)"):
        policy.act(np.zeros(OBS + 1))


def described(**changes):
    """Return a valid file's tensors and its description as a dictionary."""
    tensors = {k: v.detach().float().clone() for k, v in (learner().export(0) | bounds()).items()}
    said = json.loads(json.dumps({**meta().__dict__}))
    return tensors, said | changes


def write(path, tensors, said):
    """Write a file with a description of any JSON, or of any text."""
    text = said if isinstance(said, str) else json.dumps(said)
    save_file(tensors, path, metadata={"dpd": text})
    return path


def refused(path):
    """Load what is no policy; return what was said, in a second's work at most."""
    start = time.process_time()
    with pytest.raises(NotAPolicy) as caught:
        policyfile.load(path)
    assert time.process_time() - start < 1
    said = str(caught.value)
    assert str(path) in said and len(said) < len(str(path)) + 200
    return said


def test_statistics_and_their_number_of_samples_are_kept(tmp_path):
    path, agent = tmp_path / "p.safetensors", learner()
    policyfile.save(path, agent.export(1) | bounds(), meta())
    kept = policyfile.load(path).tensors
    # 1e-4 to start with, and 100 seen: 100.0001, in float32
    assert kept["obs_count"].tolist() == [[pytest.approx(100.0001)]]
    assert torch.equal(kept["obs_mean"], agent.obs_norm.mean[1])
    assert torch.equal(kept["obs_scale"], agent.obs_norm.scale[1])


def test_observations_are_clipped_where_the_description_says(tmp_path):
    torch.manual_seed(0)
    tensors, said = described(clip_obs=0.5)
    tensors["actor.2.weight"] /= 100  # or all actions are at their bounds
    tensors["actor.2.bias"] /= 100
    policy = policyfile.load(write(tmp_path / "p.safetensors", tensors, said))
    one = tensors["obs_mean"] + 0.5 / tensors["obs_scale"]  # normalised: 0.5
    ten = tensors["obs_mean"] + 10 / tensors["obs_scale"]
    np.testing.assert_allclose(policy.act(ten), policy.act(one), atol=1e-5)
    wide = policyfile.load(write(tmp_path / "q.safetensors", tensors, said | {"clip_obs": 10}))
    assert np.abs(wide.act(ten) - wide.act(one)).max() > 1e-3


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 8 + b"x", b"PK\x03\x04", b"a" * 1000])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "p.safetensors"
    path.write_bytes(content)
    assert "not a policy file" in refused(path)


def test_what_is_no_regular_file_is_refused(tmp_path):
    assert "a directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for a writer
    assert "not a regular file" in refused(tmp_path / "fifo")
    assert "not a regular file" in refused("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop")
    assert "File name too long" in refused(tmp_path / ("x" * 300))


@pytest.mark.parametrize("header", [2**20 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_any_of_ours_is_not_read(tmp_path, header):
    path = tmp_path / "p.safetensors"
    with path.open("wb") as file:
        file.write(header.to_bytes(8, "little") + b"{")
        file.truncate(2**30)  # sparse: claims the bytes without having them
    assert f"claims a header of {header}" in refused(path)


def test_a_file_larger_than_any_of_ours_is_not_read(tmp_path):
    path = write(tmp_path / "p.safetensors", *described())
    with path.open("r+b") as file:
        file.truncate(2**40)
    assert f"{2**40} bytes" in refused(path)


def test_a_tensor_that_claims_terabytes_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    huge = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    header = json.dumps({"__metadata__": {"dpd": json.dumps(described()[1])}, "obs_mean": huge})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(64))
    refused(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(), meta())
    whole = path.read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(NotAPolicy):
            policyfile.load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden": (8, 9)}, "does not fit"),
        ({"obs_dim": 4}, "does not fit"),
        ({"activation": "gelu"}, "unknown activation"),
        ({"format": 99}, "policy format 99"),
        ({"state_std": True}, "tensor 'log_std' has shape"),
        ({"squashed": True, "tanh_mean": True}, "squashed and tanh_mean exclude"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, changes, says):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(), meta(**changes))
    with pytest.raises(NotAPolicy, match=says):
        policyfile.load(path)


def test_tensors_are_not_read_before_they_fit_the_description(tmp_path, monkeypatch):
    tensors, said = described(obs_dim=OBS + 1)
    path = write(tmp_path / "p.safetensors", tensors, said)
    monkeypatch.setattr(policyfile, "check_values", lambda *_: pytest.fail("was read"))
    assert "expected (6, 8)" in refused(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.bool])
def test_tensors_of_another_type_are_refused(tmp_path, dtype):
    tensors, said = described()
    tensors["log_std"] = tensors["log_std"].to(dtype)
    assert "not F32" in refused(write(tmp_path / "p.safetensors", tensors, said))


WRONG: dict[str, list[Any]] = {
    "obs_dim": [True, "5", -5, 0, 2.0, 2**70],
    "act_dim": [True, "2", -2, 0, None, [2]],
    "hidden": [8, "88", [True], [8, -8], [8, 0], [8, 8.0], [8] * 100_000],
    "env_kwargs": [[], "x", None, 1],
    "provenance": [[], "x", None, 1],
    "squashed": [0, "no", None],
    "norm_obs": [0, "no", None],
    "tanh_mean": [0, "no", None],
    "state_std": [0, "no", None],
    "algo": [0, None, "a\x1b[2Jb"],
    "env_id": [0, None, "a\nb"],
    "clip_obs": [0, -1, True, "10", float("nan"), float("inf"), 10**300],
    "activation": [0, [], "gelu", "x" * 100_000],
    "format": [True, "1", 1.0, 2, None, [1] * 100_000],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_description_of_the_wrong_type_is_refused(tmp_path, name, value):
    tensors, said = described(**{name: value})
    said_of_it = refused(write(tmp_path / "p.safetensors", tensors, said))
    assert name in said_of_it


def test_a_deeply_nested_description_is_refused(tmp_path):
    tensors, said = described(provenance=0)
    whole = json.dumps(said)
    for depth in (20, 900, 100_000):
        nest = '{"a":' * depth + "1" + "}" * depth
        text = whole.replace('"provenance": 0', f'"provenance": {nest}')
        assert "bad description" in refused(write(tmp_path / "p.safetensors", tensors, text))


def test_a_file_from_before_other_algorithms_is_read_as_ppos(tmp_path):
    tensors, said = described()
    for name in policymeta.DEFAULTS:
        del said[name]
    policy = policyfile.load(write(tmp_path / "p.safetensors", tensors, said))
    assert policy.meta == meta()


def test_missing_and_unknown_fields_are_named(tmp_path):
    tensors, said = described(colour="red")
    del said["obs_dim"]
    path = write(tmp_path / "p.safetensors", tensors, said)
    assert "missing or unknown: colour, obs_dim" in refused(path)


@pytest.mark.parametrize("name", ["actor.1.weight", "log_std", "obs_mean", "obs_scale", "act_low"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, name, value):
    tensors, said = described()
    tensors[name].view(-1)[-1] = value
    path = write(tmp_path / "p.safetensors", tensors, said)
    assert f"{name} contains NaN or infinity" in refused(path)


def test_statistics_and_bounds_that_make_no_sense_are_refused(tmp_path):
    for name, value in (("obs_scale", 0.0), ("obs_scale", -1.0), ("obs_count", 0.0)):
        tensors, said = described()
        tensors[name].view(-1)[0] = value
        path = write(tmp_path / "p.safetensors", tensors, said)
        assert f"{name} is not positive" in refused(path)
    no_room, too_wide = "no room between its bounds", "too far apart for float32"
    for low, high, words in (
        (1.0, 1.0, no_room),
        (1.0, -1.0, no_room),
        (-3e38, 3e38, too_wide),  # the width is infinite
    ):
        tensors, said = described()
        path = write(tmp_path / "p.safetensors", tensors | bounds(low, high), said)
        assert words in refused(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)


def load_or_refuse(path):
    """Load whatever it is: a policy that acts, or NotAPolicy."""
    try:
        policy = policyfile.load(path)
    except NotAPolicy as error:
        assert str(path) in str(error)
        return
    assert policy.act(np.zeros(policy.meta.obs_dim)).shape == (policy.meta.act_dim,)


@given(edits=EDITS, cut=st.floats(0, 1) | st.just(1.0), in_header=st.booleans())
def test_no_damage_to_a_file_makes_anything_but_a_policy_or_a_refusal(
    tmp_path_factory, edits, cut, in_header
):
    path = tmp_path_factory.mktemp("fuzz") / "p.safetensors"
    raw = bytearray(write(path, *described()).read_bytes())
    reach = 8 + int.from_bytes(raw[:8], "little") if in_header else len(raw)
    for place, byte in edits:
        raw[int(place * reach)] = byte
    path.write_bytes(raw[: int(cut * len(raw))])
    load_or_refuse(path)


@given(changes=st.dictionaries(st.sampled_from(sorted(meta().__dict__)), JSON, max_size=3))
def test_no_description_makes_anything_but_a_policy_or_a_refusal(tmp_path_factory, changes):
    tensors, said = described(**changes)
    load_or_refuse(write(tmp_path_factory.mktemp("fuzz") / "p.safetensors", tensors, said))


@given(said=JSON | st.text())
def test_no_metadata_at_all_makes_anything_but_a_refusal(tmp_path_factory, said):
    path = tmp_path_factory.mktemp("fuzz") / "p.safetensors"
    refused(write(path, described()[0], said))


@pytest.mark.parametrize(
    "text", [None, "[1]", "{", json.dumps({"format": 1}), '{"format": 1, "x": 2}']
)
def test_a_safetensors_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "p.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata=None if text is None else {"dpd": text})
    with pytest.raises(NotAPolicy):
        policyfile.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(NotAPolicy, match="no such file"):
        policyfile.load(tmp_path / "none")


def test_a_write_that_fails_leaves_the_older_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    agent = learner()
    policyfile.save(path, agent.export(0) | bounds(), meta())
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policyfile, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        policyfile.save(path, agent.export(1) | bounds(), meta())
    assert path.read_bytes() == before
