"""Time a policy in every runtime that is at hand: Python, ONNX Runtime, TorchScript and C."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import statistics
import tempfile
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from dpd.errors import BadInput
from dpd.export import FORMATS
from dpd.policies.c_source import c_source, compile_library, compiler
from dpd.policies.hybrid import HybridPolicy
from dpd.policies.policyfile import Policy
from dpd.policies.torch_modules import example_inputs

WARM_UP = 50
ROUNDS, CALLS = 9, 200
C_CALLS = 20_000  # clock() counts in microseconds, and so do most actions

C_TIMER = """
#include <time.h>
double seconds(const float *obs, float *act, int calls) {
    clock_t start = clock();
    for (int i = 0; i < calls; i++) timed_act(obs, act);
    return (double)(clock() - start) / CLOCKS_PER_SEC / calls;
}
"""

Timer = Callable[[Policy, Path], float]
"""Return the seconds that a policy takes for one observation; the folder is free to write to."""


def time_python(policy: Policy, folder: Path) -> float:
    """Time `Policy.act`."""
    obs = np.zeros(policy.meta.full_obs_shape, np.float32)
    return seconds_per_call(lambda: policy.act(obs))


def time_onnx(policy: Policy, folder: Path) -> float:
    """Time ONNX Runtime on one thread."""
    import onnxruntime

    FORMATS["onnx"].write(policy, folder / "policy.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.fspath(folder / "policy.onnx"), options)
    names = [each.name for each in session.get_inputs()]
    given = [x.numpy() for x in example_inputs(policy, 1)]
    inputs = dict(zip(names, given, strict=True))
    return seconds_per_call(lambda: session.run(None, inputs))


def time_torchscript(policy: Policy, folder: Path) -> float:
    """Time a TorchScript module."""
    FORMATS["torchscript"].write(policy, folder / "policy.pt")
    act = FORMATS["torchscript"].read(folder / "policy.pt")
    obs = np.zeros((1, *policy.meta.input_shape), np.float32)
    return seconds_per_call(lambda: act(obs))


def time_c(policy: Policy, folder: Path) -> float:
    """Time the C function in a loop in C, compiled for this machine."""
    source, library = folder / "timed.c", folder / "timed.so"
    source.write_text(c_source(policy, "timed") + C_TIMER)
    compile_library(source, library, "-march=native")
    seconds = ctypes.CDLL(os.fspath(library)).seconds
    seconds.restype = ctypes.c_double
    obs, act = (ctypes.c_float * policy.meta.obs_dim)(), (ctypes.c_float * policy.meta.act_dim)()
    return statistics.median(seconds(obs, act, C_CALLS // ROUNDS) for _ in range(ROUNDS))


PYTHON = "Python"
TIMERS: dict[str, Timer] = {
    PYTHON: time_python,
    "ONNX Runtime": time_onnx,
    "TorchScript": time_torchscript,
    "C": time_c,
}


def latencies(policy: Policy) -> dict[str, float]:
    """Return the median microseconds per action for one observation, on one thread, by runtime.

    A runtime that is not installed is left out; so are those whose formats cannot hold the policy:
    all but Python for a policy with a memory, and C for a hybrid policy or one with a view.
    """
    names = [name for name in TIMERS if is_at_hand(name)]
    if isinstance(policy, HybridPolicy):
        names = [name for name in names if name != "C"]
    if policy.meta.memory is not None:
        names = [PYTHON]
    elif policy.meta.view is not None:
        names = [name for name in names if name != "C"]
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        return {name: 1e6 * TIMERS[name](policy, Path(folder)) for name in names}


def is_at_hand(runtime: str) -> bool:
    """Return True if a runtime and what makes its file are installed."""
    if runtime == "C":
        try:
            return bool(compiler())
        except BadInput:
            return False
    needed = ("onnx", "onnxruntime") if runtime == "ONNX Runtime" else ()
    return all(importlib.util.find_spec(name) is not None for name in needed)


def seconds_per_call(act: Callable[[], object], calls: int = CALLS) -> float:
    """Return the median over rounds of calls, which resists disturbance by other programs."""
    timeit.timeit(act, number=WARM_UP)
    return statistics.median(timeit.repeat(act, number=calls, repeat=ROUNDS)) / calls


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
