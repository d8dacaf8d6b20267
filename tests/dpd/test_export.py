"""Exported policies act as the policy does, and a file that would not is never left behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import dpd.export as export
from dpd.agents.nets import ACTIVATIONS
from dpd.agents.ppo_config import PPOConfig
from dpd.cli import main
from dpd.export import FORMATS, write_checked
from dpd.policies import policyfile
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import ACTIVATION_MODULES, Policy, probes
from dpd.policies.torch_modules import ExportedActor

OBS, ACT = 5, 2
LOW, HIGH = torch.tensor([-0.4, -2.0]), torch.tensor([2.0, -1.0])
HALF = (HIGH - LOW).numpy() / 2


def policy(
    activation: Any = "tanh",
    norm_obs: bool = True,
    hidden: tuple[int, ...] = (16, 16),
    **changes: Any,
) -> Policy:
    """Make a policy whose actions cover their range, with statistics of its own."""
    torch.manual_seed(0)
    config = PPOConfig(hidden=hidden, activation=activation, norm_obs=norm_obs)
    agent = config.build(OBS, ACT, [(0, 0)])
    agent.obs_norm.update(torch.randn(1, 100, OBS) * 3 + 1)
    tensors = agent.export(0) | {"act_low": LOW, "act_high": HIGH}
    tensors[f"actor.{len(hidden)}.weight"] *= 100  # PPO begins with small actions
    fields: dict[str, Any] = {
        "algo": "ppo",
        "env_id": "Some-v0",
        "activation": activation,
        "squashed": False,
        "norm_obs": norm_obs,
        "obs_dim": OBS,
        "act_dim": ACT,
        "hidden": hidden,
        "env_kwargs": {"payload": 2},
        "provenance": {"seed": 3},
    }
    return Policy(tensors, PolicyMeta(**fields | changes))


def saved(tmp_path: Path, **changes: Any) -> Path:
    """Save a policy; return its file."""
    source = policy(**changes)
    path = tmp_path / "policy.safetensors"
    policyfile.save(path, source.tensors, source.meta)
    return path


def run_onnx(path: Path, obs: np.ndarray) -> np.ndarray:
    """Act in ONNX Runtime, which the export itself does not use."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["act"], {"obs": obs})[0])


def run_torchscript(path: Path, obs: np.ndarray) -> np.ndarray:
    """Act in TorchScript."""
    with export.quiet(), torch.no_grad():
        return torch.jit.load(path)(torch.from_numpy(obs)).numpy()


RUN = {"onnx": run_onnx, "torchscript": run_torchscript}
VARIANTS: list[dict[str, Any]] = [
    {"activation": "tanh"},
    {"activation": "relu", "squashed": True},
    {"activation": "relu", "tanh_mean": True},
    {"activation": "elu", "clip_obs": 2.5},
    {"activation": "tanh", "norm_obs": False},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("name", RUN)
def test_a_file_acts_as_the_policy_for_any_batch(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    source, path = policy(**changes), tmp_path / f"p{FORMATS[name].ending}"
    write_checked(source, FORMATS[name], path)
    far = probes(source)
    assert np.abs(source.act(far)).std() > 0.1
    for obs in (far[:1], far[:7], far):
        expected = source.act(obs)
        assert np.abs((RUN[name](path, obs) - expected) / HALF).max() < 1e-6


def test_the_observations_of_the_check_reach_beyond_the_clip() -> None:
    source = policy()
    mean, scale = source.tensors["obs_mean"], source.tensors["obs_scale"]
    normalised = ((torch.from_numpy(probes(source)) - mean) * scale).abs()
    assert normalised[1::2].max() > 30 and (normalised[1::2] > 10).float().mean() > 0.5
    assert normalised[::2].max() < 10


def test_every_activation_of_a_policy_can_be_exported() -> None:
    assert ACTIVATION_MODULES.keys() == ACTIVATIONS.keys()


def test_an_onnx_file_stands_alone_and_says_what_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path)
    assert main(["export", str(path), "--format", "onnx"]) == 0
    assert {f.name for f in tmp_path.iterdir()} == {"policy.safetensors", "policy.onnx"}
    said = capfd.readouterr()
    assert said.err == "" and said.out.count("\n") == 1
    file = tmp_path / "policy.onnx"
    assert said.out.startswith(f"{file}  {file.stat().st_size:,} bytes; ")
    model = onnx.load(file)
    assert ([x.name for x in model.graph.input], [x.name for x in model.graph.output]) == (
        ["obs"],
        ["act"],
    )
    facts = {p.key: p.value for p in model.metadata_props}
    assert (facts["env_id"], facts["algo"]) == ("Some-v0", "ppo")
    assert json.loads(facts["env_kwargs"]) == {"payload": 2}
    assert json.loads(facts["provenance"]) == {"seed": 3}
    assert str(Path(export.__file__).parent).encode() not in file.read_bytes()


def test_a_torchscript_file_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "robot.pt"
    argv = ["export", str(saved(tmp_path)), "--format", "torchscript", "--out", str(out)]
    assert main(argv) == 0
    extra = {"dpd.json": ""}
    with export.quiet():
        torch.jit.load(out, _extra_files=extra)
    assert json.loads(extra["dpd.json"])["env_id"] == "Some-v0"


def test_a_policy_file_written_anew_is_the_same_policy(tmp_path: Path) -> None:
    path, out = saved(tmp_path), tmp_path / "copy.safetensors"
    assert main(["export", str(path), "--format", "dpd", "--out", str(out)]) == 0
    source, copy = policyfile.load(path), policyfile.load(out)
    assert copy.meta == source.meta
    assert all(torch.equal(copy.tensors[k], v) for k, v in source.tensors.items())


def test_a_folder_for_stable_baselines3_stands_beside_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export_zoo(source: Policy, out: Path) -> Path:  # the real one is tested with dpd.sb3.export
        out.mkdir()
        (out / source.meta.env_id).write_bytes(b"1234")
        return out

    monkeypatch.setattr("dpd.sb3.export.export_zoo", export_zoo)
    assert main(["export", str(saved(tmp_path)), "--format", "sb3"]) == 0
    assert (tmp_path / "policy-sb3" / "Some-v0").exists()
    assert f"{tmp_path / 'policy-sb3'}  4 bytes; " in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_file_that_acts_otherwise_is_not_kept(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = saved(tmp_path)
    act = ExportedActor.forward
    monkeypatch.setattr(ExportedActor, "forward", lambda self, obs: act(self, obs) + wrong)
    assert main(["export", str(path), "--format", "torchscript"]) == 2
    assert "not written" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    assert main(["export", str(path), "--format", "dpd"]) == 2
    assert "exists; remove it, or give --out" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}", "--format", "onnx"], "takes one policy"),
        (["{run}/none", "--format", "dpd", "--out", "{run}/x.safetensors"], "no such file"),
        (["{file}", "--format", "onnx", "--out", "{run}/x.pt"], "writes a .onnx file, not 'x.pt'"),
        (["{file}", "--format", "onnx", "--out", "{run}/none/x.onnx"], "none is not a directory"),
        (["{file}", "--format", "onxx"], "invalid choice"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path)
    argv = [w.format(run=tmp_path, file=file) for w in words]
    assert main(["export", *argv]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", str(file), "--format", "onnx"]) == 2
    said = capsys.readouterr().err
    assert said == "dpd: --format onnx needs more packages: pip install onnx\n"
