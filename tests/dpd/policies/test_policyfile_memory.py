"""Policy files with a memory: they ask it; hostile ones are refused, plain ones are as before."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import dpd.export as export
from dpd.policies import policyfile
from dpd.policies.memory import MemoryMeta, Neighbours, unit
from dpd.policies.policyfile import Policy
from dpd.sb3.export import export_zoo
from tests.dpd.policies.test_policyfile import (
    ACT,
    OBS,
    bounds,
    described,
    learner,
    load_or_refuse,
    meta,
    refused,
    write,
)

M, DIM = 20, 3
SAID: dict[str, Any] = {
    "entries": M,
    "dim": DIM,
    "query": "features",
    "k": 4,
    "tau": 0.1,
    "student_weight": 0.5,
}


def kept(**changes):
    """Return a valid file's tensors and description, with a memory."""
    torch.manual_seed(0)
    tensors, said = described()
    tensors |= {
        "memory.keys": unit(torch.randn(M, DIM)),
        "memory.actions": torch.rand(M, ACT) * 2 - 1,
        "memory.projection": torch.randn(8, DIM),
    }
    return tensors, said | {"memory": SAID | changes}


def by_obs(**changes):
    """Return the same, asked by the observation."""
    tensors, said = kept(query="obs", dim=OBS, **changes)
    del tensors["memory.projection"]
    return tensors | {"memory.keys": torch.randn(M, OBS)}, said


def test_a_policy_mixes_its_action_with_its_neighbours(tmp_path):
    tensors, said = kept(student_weight=0.25)
    policy = policyfile.load(write(tmp_path / "p.safetensors", tensors, said))
    plain = Policy(tensors, meta())
    obs = torch.randn(30, OBS)
    query = unit(plain.features(obs) @ tensors["memory.projection"]).unsqueeze(0)
    memory = Neighbours.of(tensors["memory.keys"][None], tensors["memory.actions"][None], 4, 0.1)
    expected = 0.25 * plain.mode(obs) + 0.75 * memory.answer(query)[0]
    torch.testing.assert_close(policy.mode(obs), expected)
    assert torch.equal(policy.dist(obs).log_std, plain.dist(obs).log_std)


def test_it_may_ask_by_the_observation_alone(tmp_path):
    tensors, said = by_obs(student_weight=0.0, k=1)
    policy = policyfile.load(write(tmp_path / "p.safetensors", tensors, said))
    # the observation whose normalised and scaled form is the seventh key
    obs = tensors["memory.keys"][7] * OBS**0.5 / tensors["obs_scale"] + tensors["obs_mean"]
    torch.testing.assert_close(policy.mode(obs)[0], tensors["memory.actions"][7])


def test_weight_one_is_bit_for_bit_the_plain_policy(tmp_path):
    tensors, said = kept(student_weight=1)
    policy = policyfile.load(write(tmp_path / "p.safetensors", tensors, said))
    obs = torch.randn(30, OBS)
    assert torch.equal(policy.mode(obs), Policy(tensors, meta()).mode(obs))


def test_a_file_is_written_as_it_was_read(tmp_path):
    first = policyfile.load(write(tmp_path / "p.safetensors", *kept()))
    policyfile.save(tmp_path / "q.safetensors", first.tensors, first.meta)
    second = policyfile.load(tmp_path / "q.safetensors")
    assert second.meta == first.meta and second.meta.memory == MemoryMeta(**SAID)
    assert all(torch.equal(x, second.tensors[k]) for k, x in first.tensors.items())


def test_a_policy_without_a_memory_says_nothing_of_one(tmp_path):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(), meta())
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["dpd"])
    assert "memory" not in said
    left_out = {"memory", "obs_shape", "act_shape", "view", "encoder"}
    assert said.keys() == meta().__dict__.keys() - left_out
    assert policyfile.load(path).meta.memory is None


WRONG: dict[str, list[Any]] = {
    "entries": [True, 0, -1, "20", 20.0, None, 2**70],
    "dim": [True, 0, "3", [3], 2**70],
    "query": ["keys", 0, None, [], {}],
    "k": [True, 0, -1, 2.0, None, M + 1],
    "tau": [0, -1, True, "0.1", None, float("nan"), float("inf"), 1e-300, 1e300],
    "student_weight": [-0.1, 1.1, True, "1", None, float("nan"), float("inf")],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_memory_described_wrongly_is_refused(tmp_path, name, value):
    path = write(tmp_path / "p.safetensors", *kept(**{name: value}))
    assert f"memory.{name}" in refused(path)


@pytest.mark.parametrize("said", [0, True, [], "yes", {}, {"entries": 3}, {**SAID, "colour": 1}])
def test_what_is_no_description_of_a_memory_is_refused(tmp_path, said):
    tensors, whole = kept()
    assert "memory" in refused(write(tmp_path / "p.safetensors", tensors, whole | {"memory": said}))


def test_sizes_are_checked_before_tensors_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(policyfile, "check_values", lambda *_: pytest.fail("was read"))
    for changes in ({"entries": M + 1}, {"dim": DIM + 1}, {"entries": 2**24}):
        path = write(tmp_path / "p.safetensors", *kept(**changes))
        assert "does not fit its description: tensor 'memory." in refused(path)
    tensors, said = kept()
    del tensors["memory.projection"]
    assert "memory.projection" in refused(write(tmp_path / "p.safetensors", tensors, said))
    tensors, said = kept()
    assert "memory.actions" in refused(
        write(tmp_path / "p.safetensors", tensors, said | {"memory": None})
    )
    tensors, said = by_obs()
    said["memory"]["dim"] = OBS + 1
    assert "memory.dim" in refused(write(tmp_path / "p.safetensors", tensors, said))


@pytest.mark.parametrize("name", ["keys", "actions", "projection"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_of_a_memory_that_are_not_finite_are_refused(tmp_path, name, value):
    tensors, said = kept()
    tensors[f"memory.{name}"][0, 0] = value
    path = write(tmp_path / "p.safetensors", tensors, said)
    assert f"memory.{name} contains NaN or infinity" in refused(path)


def test_numbers_that_would_give_no_action_are_refused(tmp_path):
    for make, name, value in ((kept, "keys", 2.0), (by_obs, "keys", 1e30), (kept, "actions", 1.5)):
        tensors, said = make()
        tensors[f"memory.{name}"][0, 0] = value
        path = write(tmp_path / "p.safetensors", tensors, said)
        assert f"can't act: memory.{name}" in refused(path)


def test_a_projection_to_nothing_still_acts(tmp_path):
    tensors, said = kept()
    tensors["memory.projection"].zero_()
    policy = policyfile.load(write(tmp_path / "p.safetensors", tensors, said))
    assert np.isfinite(policy.act(np.ones(OBS))).all()


def test_a_squashed_policy_with_a_memory_is_refused(tmp_path):
    tensors, said = kept()
    path = write(tmp_path / "p.safetensors", tensors, said | {"squashed": True})
    assert "squashed and memory exclude" in refused(path)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([1])


@given(changes=st.dictionaries(st.sampled_from(sorted(SAID)), VALUES, max_size=3))
def test_no_description_of_a_memory_makes_anything_but_a_policy_or_a_refusal(
    tmp_path_factory, changes
):
    path = tmp_path_factory.mktemp("fuzz") / "p.safetensors"
    load_or_refuse(write(path, *kept(**changes)))


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_formats_that_hold_no_memory_refuse_it_in_one_line(tmp_path, name):
    tensors, said = kept()
    policy = policyfile.load(write(tmp_path / "p.safetensors", tensors, said))
    out = tmp_path / f"out{export.FORMATS[name].ending}"
    with pytest.raises(ValueError, match=r"memory of 20 states.*give --format dpd") as caught:
        export.write_checked(policy, export.FORMATS[name], out)
    assert "\n" not in str(caught.value) and not out.exists()


def test_stable_baselines3_is_refused_likewise_and_our_own_format_holds_it(tmp_path):
    policy = policyfile.load(write(tmp_path / "p.safetensors", *kept()))
    with pytest.raises(ValueError, match="Stable-Baselines3 cannot hold; give --format dpd"):
        export_zoo(policy, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
    out = tmp_path / "out.safetensors"
    export.write_checked(policy, export.FORMATS["dpd"], out)
    obs = np.ones(OBS)
    assert np.array_equal(policyfile.load(out).act(obs), policy.act(obs))
