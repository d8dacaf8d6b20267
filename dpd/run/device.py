"""The device of a run, CPU or GPU, and the code that computes updates on it."""

from __future__ import annotations

from functools import cache

import torch

from dpd.agents.config import PPOConfig, StudentConfig
from dpd.config import StackConfig, TrainConfig
from dpd.envs.physics import n_cores
from dpd.errors import BadInput

MANY_ELEMENTS = 65536
"""Elements of a layer's joint output, above which torch's threads pay off."""
METHODS_WITHOUT_KERNELS = ("retrieval", "scaffold")
"""Methods whose losses have no compiled form."""


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


def learners_of(config: TrainConfig, stack: StackConfig) -> int:
    """Return how many learners of a stack one process trains, at most."""
    return len(config.run.seeds_of(0)) * len(stack.peers)


def joint_elements(config: TrainConfig, stack: StackConfig) -> int:
    """Return the elements of the widest layer's output for the minibatches of a process."""
    return learners_of(config, stack) * stack.algo.minibatch_size * max(stack.algo.hidden)


def learner_threads(config: TrainConfig) -> int:
    """Return how many threads torch can use in an update.

    For small minibatches, a second thread only adds waiting. Measured on two cores: ten 64-64
    learners are 8 % faster with one thread (bench/train.py; ten DDPG learners, by a third:
    bench/learners.py), twenty are 8 % faster with two.
    """
    elements = max(joint_elements(config, stack) for stack in config.stacks)
    return n_cores() if elements > MANY_ELEMENTS else 1


@cache
def why_no_numba() -> str | None:
    """Return why Numba cannot be used; None: it can."""
    try:
        import numba  # noqa: F401  (here: it takes half a second)
    except ModuleNotFoundError:
        return "numba is not installed: pip install numba"
    except ImportError as error:
        return f"numba cannot be imported: {str(error).partition(chr(10))[0]}"
    return None


def why_not_fused(config: TrainConfig, stack: StackConfig) -> str | None:
    """Return why torch computes a stack's updates; None: compiled kernels do."""
    run, algo = config.run, stack.algo
    if run.kernels == "torch":
        return "--kernels torch"
    if run.device != "cpu":
        return "kernels are for the CPU"
    if not isinstance(algo, PPOConfig | StudentConfig):
        return f"there are no kernels for {stack.name}"
    if config.method in METHODS_WITHOUT_KERNELS:
        return f"there are no kernels for method {config.method}"
    threads = run.threads or max(1, n_cores() // run.workers)
    if joint_elements(config, stack) > MANY_ELEMENTS and learners_of(config, stack) < threads:
        return "these minibatches are large enough for more threads than there are learners"
    return why_no_numba()


def update_plan(config: TrainConfig) -> str:
    """Say, for the start-up table, what computes the updates and why."""
    plans = []
    for stack in config.stacks:
        reason = why_not_fused(config, stack)
        of = f"{stack.name}: " if config.stacks[1:] else ""
        plans.append(of + ("fused kernels" if reason is None else f"torch ({reason})"))
    return "; ".join(dict.fromkeys(plans))
