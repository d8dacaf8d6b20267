"""Where learners live, and what happens there."""

from __future__ import annotations

import torch

from dpd.errors import BadInput


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


def n_devices(name: str, processes: int) -> int:
    """Return how many GPUs so many processes of a host take, as `nth_device` gives them out."""
    return max(1, min(processes, torch.cuda.device_count())) if name == "cuda" else 1


def memory_of(device: torch.device, n: int = 1) -> int | None:
    """Return the bytes that n such GPUs have; None: the machine's own memory counts."""
    if device.type != "cuda":
        return None
    return n * int(torch.cuda.get_device_properties(device).total_memory)


def prepare(device: torch.device) -> None:
    """Let a GPU multiply in TF32: ten bits of mantissa, several times as fast."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
