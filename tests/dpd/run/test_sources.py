"""Policies from files of ours and from zips, told apart by what is in them."""

import json

import numpy as np
import pytest

from dpd.cli import main
from dpd.errors import BadInput
from dpd.policies import policyfile
from dpd.policies.config import ForeignConfig
from dpd.policies.metadata import NotAPolicy
from dpd.run.sources import find_policies, is_zip, load_any
from tests.toy.zips import foreign, statistics, trained


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A zip, its statistics, and the same policy in a file of ours."""
    folder = tmp_path_factory.mktemp("model")
    path, _, norm = trained(folder, normalise=True)
    file = statistics(norm, folder / "v.npz")
    policy = load_any(path, foreign(vecnormalize=file))
    policyfile.save(folder / "p.safetensors", policy.tensors, policy.meta)
    return path, file, folder / "p.safetensors"


def test_a_zip_and_a_policy_file_are_told_apart_by_content(model, tmp_path):
    path, file, ours = model
    (tmp_path / "zip-without-a-name").write_bytes(path.read_bytes())
    (tmp_path / "ours-without-a-name").write_bytes(ours.read_bytes())
    theirs = load_any(tmp_path / "zip-without-a-name", foreign(vecnormalize=file))
    same = load_any(tmp_path / "ours-without-a-name", ForeignConfig())
    obs = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_array_equal(theirs.act(obs), same.act(obs))


def test_what_is_called_a_zip_is_read_as_one(tmp_path):
    assert is_zip(tmp_path / "x.zip") and not is_zip(tmp_path / "x")
    (tmp_path / "x.zip").write_bytes(b"none")
    with pytest.raises(NotAPolicy, match="not a Stable-Baselines3 zip"):
        load_any(tmp_path / "x.zip", foreign())


def test_settings_that_would_do_nothing_are_refused(model):
    _, file, ours = model
    for name, value in (("vecnormalize", file), ("activation", "tanh")):
        with pytest.raises(BadInput, match=f"--{name} is for Stable-Baselines3 zips"):
            load_any(ours, foreign(**{name: value}))
    assert load_any(ours, foreign("Other-v0")).meta.env_id == "Pendulum-v1"


def test_policies_are_found_in_runs_and_folders(model, tmp_path):
    path, _, ours = model
    assert find_policies(path) == [path]
    assert find_policies(ours.parent) == [ours]
    (tmp_path / "policies").mkdir()
    with pytest.raises(BadInput, match="is not a run directory"):
        find_policies(tmp_path)
    (tmp_path / "policies" / "a.safetensors").touch()
    assert find_policies(tmp_path) == [tmp_path / "policies" / "a.safetensors"]
    with pytest.raises(BadInput, match="does not exist"):
        find_policies(tmp_path / "none")


def test_a_zip_is_evaluated_from_the_command_line_as_the_policy_it_becomes(model, capsys):
    path, file, ours = model
    said = []
    for words in ([str(path), "--vecnormalize", str(file)], [str(ours)]):
        argv = ["evaluate", *words, "--env", "Pendulum-v1", "--episodes", "2", "--json"]
        assert main(argv) == 0
        said += json.loads(capsys.readouterr().out)
    zipped, own = said
    assert zipped["returns"] == own["returns"] and len(own["returns"]) == 2
    assert (zipped["env"], zipped["steps"]) == ("Pendulum-v1", 128)
    argv = ["evaluate", str(path), "--env", "Pendulum-v1", "--episodes", "1"]
    assert main([*argv, "--vecnormalize", str(file)]) == 0
    assert "model.zip" in capsys.readouterr().out.replace("\n", "")


def test_what_a_zip_lacks_is_asked_for_in_one_line(model, capsys):
    path = str(model[0])
    for argv, says in (
        (["evaluate", path], "give --env"),
        (["evaluate", path, "--env", "Pendulum-v1"], "--vecnormalize"),
        (["evaluate", path, "--env", "Pendulm-v1"], "Pendulum-v1"),
    ):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert says in said and said.startswith("dpd: ") and said.count("\n") == 1
