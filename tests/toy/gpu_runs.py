"""Runs as a GPU would leave them, made of runs on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dpd.run.checkpoint import CHECKPOINT_KEY, read_tensors, write_tensors

GENERATOR_BYTES = 16  # of a CUDA generator: its seed and its offset; the CPU's has 5,056


def as_on_a_gpu(run_dir: Path, device: str = "cuda") -> None:
    """Give a run's checkpoints generators of CUDA's size, and its settings the device."""
    for file in run_dir.glob("checkpoints/**/step-*.safetensors"):
        tensors, facts = read_tensors(file, CHECKPOINT_KEY)
        for name, x in tensors.items():
            if name.endswith("generators"):
                tensors[name] = torch.zeros(len(x), GENERATOR_BYTES, dtype=torch.uint8)
        write_tensors(file, tensors, CHECKPOINT_KEY, facts)
    settings = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(settings | {"device": device}))
