"""Exported policies that see a part of the observations: what a robot must give them, and when."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from dpd.agents.config import View
from dpd.cli import main
from dpd.export import FORMATS
from dpd.policies import policyfile
from dpd.policies.c_source import c_source
from dpd.policies.policyfile import Policy
from tests.dpd.test_export import policy

VIEW = View(obs_dim=3, act_dim=2, columns=(0, 2), groups=("a", "c"), history=3, delay=2)


def seeing(view: View = VIEW, **changes: Any) -> Policy:
    """Return a policy of random weights with a view of three numbers and two actions."""
    whole = policy(obs_dim=view.dim, **changes)
    meta = replace(whole.meta, obs_dim=3, act_dim=2, view=view)
    rng = torch.Generator().manual_seed(0)
    shapes = {"actor.0.weight": (view.dim, meta.hidden[0])}
    shapes |= {name: (1, view.frame_dim) for name in ("obs_mean", "obs_scale")}
    drawn = {k: torch.rand(*shape, generator=rng) for k, shape in shapes.items()}
    return Policy(whole.tensors | drawn, meta)


def write(path: Path, made: Policy) -> Path:
    policyfile.save(path, made.tensors, made.meta)
    return path


@pytest.mark.parametrize("prev_action", [False, True])
@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_a_file_acts_as_the_policy_over_an_episode_and_the_next(
    name: str, prev_action: bool, tmp_path: Path
) -> None:
    made = seeing(replace(VIEW, prev_action=prev_action))
    path = write(tmp_path / "p.safetensors", made)
    assert main(["export", str(path), "--format", name]) == 0
    exported = FORMATS[name].read(path.with_suffix(FORMATS[name].ending))
    rng, frames = np.random.default_rng(0), list[np.ndarray]()
    low, high = (made.tensors[k].numpy() for k in ("act_low", "act_high"))
    last = np.zeros(2, np.float32)
    for t in range(24):
        if t in (0, 12):  # a robot that begins anew
            made.reset()
            frames, last = [], np.zeros(2, np.float32)
        obs = rng.normal(size=3).astype(np.float32)
        frame = np.concatenate([obs[[0, 2]], last]) if prev_action else obs[[0, 2]]
        frames = [frame] * 3 if not frames else [*frames[1:], frame]
        expected = made.act(obs)
        found = exported(np.stack(frames)[None].astype(np.float32))[0]
        np.testing.assert_allclose(found, expected, atol=1e-5 * float((high - low).max()))
        last = (expected - low) / (high - low) * 2 - 1


def test_an_onnx_file_says_how_its_input_is_made(tmp_path: Path) -> None:
    path = write(tmp_path / "p.safetensors", seeing(replace(VIEW, noise=(0.1, 0.0))))
    assert main(["export", str(path), "--format", "onnx"]) == 0
    model = onnx.load(path.with_suffix(".onnx"))
    (given,) = model.graph.input
    sizes = [d.dim_value or d.dim_param for d in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 2]
    said = {each.key: each.value for each in model.metadata_props}
    expected = {"groups": ["a", "c"], "columns": [0, 2], "prev_action": False, "history": 3}
    expected |= {"delay": 2, "noise": [0.1, 0.0]}
    assert {name: json.loads(said[name]) for name in expected} == expected


def test_c_holds_a_view_of_the_present_observation(tmp_path: Path) -> None:
    made = seeing(replace(VIEW, history=1, delay=0))
    path = write(tmp_path / "p.safetensors", made)
    assert main(["export", str(path), "--format", "c"]) == 0
    act = FORMATS["c"].read(path.with_suffix(".c"))
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(act(obs), made.act(obs), atol=1e-4)
    obs[:, 1] = 1e6  # nobody looks there
    np.testing.assert_allclose(act(obs), made.act(obs), atol=1e-4)


REFUSED = {
    "a history": ({}, "the policy sees a, c; 3 frames; 2 steps late; --format"),
    "noise": ({"history": 1, "delay": 0, "noise": (0.1, 0.0)}, "with noise; --format"),
}


@pytest.mark.parametrize("name", ["c", "c-int8", "sb3"])
@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_other_formats_have_no_place_for_more(
    changes: dict[str, Any], message: str, name: str, tmp_path: Path, capsys: Any
) -> None:
    path = write(tmp_path / "p.safetensors", seeing(replace(VIEW, **changes)))
    assert main(["export", str(path), "--format", name]) == 2
    error = capsys.readouterr().err
    assert message in error and "give --format onnx, torchscript or dpd" in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_c_file_is_not_made_of_a_policy_with_a_view() -> None:
    with pytest.raises(ValueError, match="which a C file does not support"):
        c_source(seeing(), "some")


@pytest.mark.parametrize("command", [["cooperate"], ["sweep"]])
def test_commands_that_need_single_observations_refuse_views(
    command: list[str], tmp_path: Path, capsys: Any
) -> None:
    paths = [str(write(tmp_path / f"{k}.safetensors", seeing())) for k in range(2)]
    argv = [*command, *paths[: 1 if command == ["sweep"] else 2]]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert f"which dpd {command[0]} does not support" in capsys.readouterr().err
