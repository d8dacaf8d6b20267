"""Saved recurrent policies: they remember each row's episode, in every format that can."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dpd.agents.config import Encoder, View
from dpd.agents.encoders import encoder_shapes
from dpd.cli import main
from dpd.export import FORMATS
from dpd.policies import policyfile
from dpd.policies.metadata import NotAPolicy
from dpd.policies.playing import Playing
from dpd.policies.policyfile import Policy
from tests.dpd.test_export import policy

VIEW = View(obs_dim=3, act_dim=2, columns=(0, 2), groups=("a", "c"), history=2, prev_action=True)
SIZE = 6
KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


def remembering(kind: Any, view: View = VIEW, **changes: Any) -> Policy:
    """Return a recurrent policy of random weights with a view of three numbers."""
    encoder = Encoder(kind=kind, size=SIZE)
    whole = policy(obs_dim=SIZE, **changes)
    meta = replace(whole.meta, obs_dim=3, act_dim=2, view=view, encoder=encoder)
    rng = torch.Generator().manual_seed(0)
    norm = {name: (1, view.frame_dim) for name in ("obs_mean", "obs_scale")}
    drawn = {k: torch.rand(*shape, generator=rng) for k, shape in norm.items()}
    drawn["actor.0.weight"] = torch.randn(SIZE, meta.hidden[0], generator=rng)
    for name, shape in encoder_shapes(encoder, view.frame_dim, view.history).items():
        drawn[name] = torch.randn(*shape, generator=rng) * 0.7
    return Policy(whole.tensors | drawn, meta)


def write(path: Path, made: Policy) -> Path:
    policyfile.save(path, made.tensors, made.meta)
    return path


def observed(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@KINDS
def test_an_action_is_that_of_torchs_own_layer_on_the_episode(kind: Any) -> None:
    made = remembering(kind, replace(VIEW, history=1, prev_action=False))
    t, obs = made.tensors, observed(5, 3)
    module = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[kind](2, SIZE)
    state = {"weight_ih_l0": "input.weight", "weight_hh_l0": "state.weight"}
    state |= {"bias_ih_l0": "input.bias", "bias_hh_l0": "state.bias"}
    module.load_state_dict({k: t[f"encoder.{v}"].T.squeeze(-1) for k, v in state.items()})
    seen = made.normalised(torch.from_numpy(obs[:, [0, 2]]))
    h = module(seen.unsqueeze(1))[0].squeeze(1)
    for i in range(len(made.meta.hidden) + 1):
        h = h @ t[f"actor.{i}.weight"] + t[f"actor.{i}.bias"]
        h = h.tanh() if i < len(made.meta.hidden) else h
    expected = made.scaled(h.detach().clamp(-1, 1))
    found = np.stack([made.act(x) for x in obs])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - made.scaled(torch.zeros(1, 2))).max() > 0.05


@KINDS
def test_rows_remember_by_themselves_and_begin_anew_where_they_are_told(kind: Any) -> None:
    made, obs = remembering(kind), observed(8, 3, 3)
    batch = []
    for t, of_step in enumerate(obs):
        if t == 5:
            made.reset(np.array([False, True, False]))
        batch.append(made.act(of_step))
    for row in range(3):
        made.reset()
        for t in range(8):
            if (row, t) == (1, 5):
                made.reset()
            # one observation is acted on in NumPy, a batch in torch
            np.testing.assert_allclose(made.act(obs[t, row]), batch[t][row], atol=1e-5)


@KINDS
def test_an_evaluation_plays_it_as_it_acts(kind: Any) -> None:
    made, obs = remembering(kind), observed(8, 4, 3)
    playing = Playing(made)
    for t, of_step in enumerate(obs):
        if t == 5:
            playing.begin()
            made.reset()
        expected = made.scaled(playing(torch.from_numpy(of_step)))
        np.testing.assert_allclose(made.act(of_step), expected, atol=1e-5)


def test_one_observation_says_too_little() -> None:
    with pytest.raises(ValueError, match="the policy remembers its episode"):
        remembering("gru").mode(torch.zeros(4, 3))


# --- Files ---


@KINDS
def test_a_file_keeps_the_layer(kind: Any, tmp_path: Path) -> None:
    made = remembering(kind)
    read = policyfile.load(write(tmp_path / "p.safetensors", made))
    assert read.meta == made.meta
    obs = observed(4, 2, 3)
    for of_step in obs:
        np.testing.assert_allclose(read.act(of_step), made.act(of_step), atol=1e-6)
    other = replace(made.meta, encoder=Encoder(kind=kind, size=SIZE + 1))
    assert not read.acts_as(Policy(read.tensors, other))


BAD: dict[str, dict[str, Any]] = {
    "encoder.kind is 'rnn'": {"encoder": Encoder(kind="rnn", size=SIZE)},  # type: ignore[arg-type]
    "encoder.size is 0": {"encoder": Encoder(kind="gru", size=0)},
    "tensor 'actor.0.weight' has shape": {"encoder": Encoder(kind="gru", size=SIZE + 1)},
    "tensor 'encoder.input.bias' has shape": {"encoder": Encoder(kind="lstm", size=SIZE)},
    "an encoder needs a view": {"view": None},
}


@pytest.mark.parametrize(("message", "changes"), BAD.items(), ids=BAD)
def test_a_layer_that_makes_no_sense_is_refused(
    message: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    made = remembering("gru")
    path = tmp_path / "p.safetensors"
    policyfile.save(path, made.tensors, replace(made.meta, **changes))
    with pytest.raises(NotAPolicy, match=message):
        policyfile.load(path)


# --- Other formats ---


class Robot:
    """Makes the inputs of an exported policy from what its metadata says, step by step."""

    def __init__(self, facts: dict[str, str], low: np.ndarray, high: np.ndarray) -> None:
        self.columns, self.history = json.loads(facts["columns"]), json.loads(facts["history"])
        self.names, self.size = json.loads(facts["inputs"]), json.loads(facts["encoder_size"])
        self.low, self.high = low, high
        self.begin()

    def begin(self) -> None:
        self.frames, self.last = list[np.ndarray](), np.zeros(2, np.float32)
        self.states = [np.zeros((1, 1, self.size), np.float32) for _ in self.names[1:]]

    def inputs(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        frame = np.concatenate([obs[self.columns], self.last]).astype(np.float32)
        self.frames = [*(self.frames or [frame] * self.history)[1:], frame]
        return dict(zip(self.names, [np.stack(self.frames)[None], *self.states], strict=True))

    def took(self, act: np.ndarray, states: list[np.ndarray]) -> None:
        self.last = (act - self.low) / (self.high - self.low) * 2 - 1
        self.states = states


Step = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def onnx_step(path: Path) -> tuple[dict[str, str], Step]:
    """Return the metadata of an exported file, and its step in the runtime that robots have."""
    file = path.with_suffix(".onnx")
    facts = {each.key: each.value for each in onnx.load(file).metadata_props}
    session, outputs = onnxruntime.InferenceSession(file), json.loads(facts["outputs"])
    return facts, lambda given: session.run(outputs, given)


def torchscript_step(path: Path) -> tuple[dict[str, str], Step]:
    """Return the same of a TorchScript file."""
    extra = {"dpd.json": ""}
    module = torch.jit.load(path.with_suffix(".pt"), _extra_files=extra)

    def step(given: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [x.detach().numpy() for x in module(*map(torch.tensor, given.values()))]

    return json.loads(extra["dpd.json"]), step


@KINDS
@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_a_file_acts_as_the_policy_over_an_episode_and_the_next(
    name: str, kind: Any, tmp_path: Path
) -> None:
    made = remembering(kind)
    path = write(tmp_path / "p.safetensors", made)
    assert main(["export", str(path), "--format", name]) == 0
    facts, step = (onnx_step if name == "onnx" else torchscript_step)(path)
    robot = Robot(facts, *(made.tensors[k].numpy() for k in ("act_low", "act_high")))
    for t, obs in enumerate(observed(24, 3)):
        if t in (0, 12):  # a robot that begins anew
            made.reset()
            robot.begin()
        actions, *states = step(robot.inputs(obs))
        np.testing.assert_allclose(actions[0], made.act(obs), atol=1e-5)
        robot.took(actions[0], states)


def test_an_onnx_file_has_the_names_and_shapes_of_rsl_rl(tmp_path: Path) -> None:
    path = write(tmp_path / "p.safetensors", remembering("lstm"))
    assert main(["export", str(path), "--format", "onnx"]) == 0
    graph = onnx.load(path.with_suffix(".onnx")).graph
    found = {
        each.name: [d.dim_value or d.dim_param for d in each.type.tensor_type.shape.dim]
        for each in (*graph.input, *graph.output)
    }
    state = [1, "batch", SIZE]
    assert found == {
        "obs": ["batch", 2, 4],
        "h_in": state,
        "c_in": state,
        "actions": ["batch", 2],
        "h_out": state,
        "c_out": state,
    }


@pytest.mark.parametrize("name", ["c", "c-int8", "sb3"])
def test_formats_without_a_memory_refuse_it_in_one_line(
    name: str, tmp_path: Path, capsys: Any
) -> None:
    path = write(tmp_path / "p.safetensors", remembering("gru", replace(VIEW, history=1)))
    assert main(["export", str(path), "--format", name]) == 2
    error = capsys.readouterr().err
    assert f"remembers its episode (gru of {SIZE}); --format {name} has no place" in error
    assert error.count("\n") == 1 and [f.name for f in tmp_path.iterdir()] == [path.name]


# --- Convolutions ---


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_convolutions_are_exported_with_the_frames_as_their_input(
    name: str, tmp_path: Path
) -> None:
    made = remembering("tcn", replace(VIEW, history=5))
    path = write(tmp_path / "p.safetensors", made)
    assert main(["export", str(path), "--format", name]) == 0
    exported = FORMATS[name].read(path.with_suffix(FORMATS[name].ending))
    stacks = observed(7, 5, 4)
    np.testing.assert_allclose(exported(stacks), made.act_flat(stacks), atol=1e-5)
    assert np.abs(made.act_flat(stacks) - made.act_flat(stacks[:, ::-1].copy())).max() > 0.05


def test_a_policy_with_convolutions_acts_on_one_observation_as_on_several() -> None:
    made, obs = remembering("tcn", replace(VIEW, history=5)), observed(9, 2, 3)
    batch = np.stack([made.act(of_step) for of_step in obs])
    made.reset()
    alone = np.stack([made.act(of_step[1]) for of_step in obs])
    np.testing.assert_allclose(alone, batch[:, 1], atol=1e-5)
