"""Exported hybrids choose as the Python policy does, also where two peers are almost level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dpd.export import FORMATS, quiet, write_checked
from dpd.policies.hybrid import probes_of
from tests.dpd.policies.test_hybrid import GROUPS
from tests.toy.hybrids import near_ties, random_hybrid


def run_onnx(path: Path, obs: np.ndarray) -> np.ndarray:
    """Act in ONNX Runtime, which the export itself does not use."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["act"], {"obs": obs})[0])


def run_torchscript(path: Path, obs: np.ndarray) -> np.ndarray:
    """Act in TorchScript."""
    with quiet(), torch.no_grad():
        return torch.jit.load(path)(torch.from_numpy(obs)).numpy()


@pytest.mark.parametrize(("algos", "settings"), GROUPS)
@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_a_file_chooses_as_the_policy_does_for_any_batch(
    name: str, algos: tuple[str, ...], settings: dict[str, Any], tmp_path: Path
) -> None:
    hybrid, path = random_hybrid(algos, **settings), tmp_path / f"p{FORMATS[name].ending}"
    write_checked(hybrid, FORMATS[name], path)
    run = {"onnx": run_onnx, "torchscript": run_torchscript}[name]
    ties, far = near_ties(hybrid).numpy(), probes_of(hybrid)
    # neighbours in float32 get different actions: a choice in float32 would mix them up
    moved = np.abs(np.diff(hybrid.act(ties).reshape(2, len(ties) // 2, -1), axis=0))
    assert moved.max(-1).mean() > 0.1
    for obs in (far[:1], far[:7], far, ties):
        assert np.abs(run(path, obs) - hybrid.act(obs)).max() < 1e-5


def test_weights_of_a_critic_are_stored_once(tmp_path: Path) -> None:
    hybrid, path = random_hybrid(("td3", "td3", "td3")), tmp_path / "p.onnx"
    write_checked(hybrid, FORMATS["onnx"], path)
    model = onnx.load(path)
    # Three peers with layers 16, 8: each has an actor 5-16-8-2 and two critics 7-16-8-1. Every one
    # of the six critics judges three proposals.
    gemms = sum(node.op_type == "Gemm" for node in model.graph.node)
    assert gemms == 3 * 3 + 3 * 6 * 3
    matrices = [x for x in model.graph.initializer if len(x.dims) == 2 and min(x.dims) > 1]
    assert len([x for x in matrices if tuple(x.dims) in ((7, 16), (16, 8))]) == 6 + 6 + 3
    assert {p.key: p.value for p in model.metadata_props}["algo"] == "hybrid"
