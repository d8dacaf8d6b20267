"""The device of a run: CPU or GPU."""

from __future__ import annotations

import torch

from dpd.errors import BadInput


def require_device(name: str) -> torch.device:
    """Return the device with this name. Raises BadInput if the machine has none."""
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise BadInput(
            f"--device {name}: PyTorch {torch.__version__} finds no CUDA device; install the CUDA "
            "build from pytorch.org, or leave --device out. A run that began on a GPU can only be "
            "resumed on a GPU; --init-from starts a new run from its policies"
        )
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise BadInput(f"--device {name}: there are {count} CUDA devices, counted from 0")
    return torch.device("cuda", index)


def nth_device(name: str, n: int) -> str:
    """Return the device of a host's n-th process; plain `cuda` spreads them over all GPUs.

    On a machine without GPUs it stays `cuda`, which `require_device` rejects.
    """
    count = torch.cuda.device_count() if name == "cuda" else 0
    return f"cuda:{n % count}" if count else name


def n_devices(name: str, processes: int) -> int:
    """Return how many GPUs `nth_device` assigns to a host's processes."""
    return max(1, min(processes, torch.cuda.device_count())) if name == "cuda" else 1


def gpu_memory_bytes(device: torch.device, n: int = 1) -> int | None:
    """Return the total memory of n such GPUs; None for the CPU."""
    if device.type != "cuda":
        return None
    return n * int(torch.cuda.get_device_properties(device).total_memory)


def configure_device(device: torch.device) -> None:
    """Let a GPU multiply in TF32, which has ten bits of mantissa and is several times faster."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
