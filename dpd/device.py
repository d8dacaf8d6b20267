"""Where learners live, and what happens there."""

from __future__ import annotations

import torch

from dpd.run_config import BadInput


def find_device(name: str) -> torch.device:
    """Return the device called so. Raises BadInput where there is none."""
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise BadInput(
            f"--device {name}: PyTorch {torch.__version__} finds no CUDA device; install the CUDA "
            "build that pytorch.org names, or leave --device out; a run that began on a GPU goes "
            "on on one alone, and --init-from starts a new one from its policies"
        )
    there = torch.cuda.device_count()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= there:
        raise BadInput(f"--device {name}: there are {there} CUDA devices, counted from 0")
    return torch.device("cuda", index)


def nth_device(name: str, n: int) -> str:
    """Return the device of the n-th process of a host; `cuda` alone is for all that there are.

    Where there are none it stays `cuda`, which `find_device` refuses.
    """
    there = torch.cuda.device_count() if name == "cuda" else 0
    return f"cuda:{n % there}" if there else name


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of a GPU's memory; None: the machine's own counts."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def prepare(device: torch.device) -> None:
    """Let a GPU multiply in TF32: ten bits of mantissa, several times as fast."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
