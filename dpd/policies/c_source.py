"""A policy as one C99 file, for controllers without Python, a library or a heap."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import textwrap
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from dpd.errors import BadInput
from dpd.policies.policyfile import ArrayPolicy, Policy, refuse_memory
from dpd.policies.views import refuse_view

INT8, INT16, INT32 = 127, 2**15 - 1, 2**31 - 1


class Layer(NamedTuple):
    """The constants of a linear layer y = x weight + bias."""

    weight: np.ndarray  # [in, out]; integers in [-127, 127] if quantized
    bias: np.ndarray  # [out]
    scale: np.ndarray | None  # [out] of a quantized weight
    levels: str  # to which the inputs of a quantized layer are rounded, on either side of zero

    @property
    def n_in(self) -> int:
        """Number of inputs."""
        return self.weight.shape[0]

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return self.weight.shape[1]


def quantize(weight: np.ndarray, bias: np.ndarray) -> Layer:
    """Round weights [in, out] to 8 bits with one scale per output.

    Inputs keep 16 bits, or as many as let a sum of `in` products fit into 32 bits.
    """
    top = np.abs(weight).max(0)
    scale = np.where(top > 0, top / INT8, 1.0).astype(np.float32)
    levels = min(INT16, INT32 // (INT8 * len(weight)) - 1)
    whole = np.rint(weight / scale).astype(np.int8)
    return Layer(whole, bias, scale, number(levels))


def number(x: float) -> str:
    """Write a number as a C literal: nine digits reproduce every float32."""
    return f"{x:.8e}f"


def numbers(x: np.ndarray) -> str:
    """Write an array as a C initializer, wrapped to 100 columns."""
    words = [str(v) if x.dtype == np.int8 else number(v) for v in x.ravel().tolist()]
    lines = textwrap.fill(", ".join(words), 96, initial_indent="    ", subsequent_indent="    ")
    return "{\n" + lines + "\n}"


@cache
def template() -> jinja2.Template:
    """Load the template next to this module."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpd.policies", ""),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("policy.c.j2")


def c_source(policy: Policy, name: str, quantized: bool = False) -> str:
    """Return a C file that defines `void NAME_act(const float obs[O], float act[A])`.

    `quantized`: weights of 8 bits, a quarter of the size. Raises ValueError for a policy with a
    memory.
    """
    refuse_memory(policy, "a C file")
    refuse_view(policy, "a C file")
    meta = policy.meta
    t = {key: x.numpy() for key, x in policy.tensors.items()}
    pairs = [(t[f"actor.{i}.weight"], t[f"actor.{i}.bias"]) for i in range(len(meta.hidden) + 1)]
    layers = [quantize(w, b) if quantized else Layer(w, b, None, "") for w, b in pairs]
    widest = max(*meta.hidden, meta.act_dim, 0)
    buffers = [meta.obs_dim, *meta.hidden, *([widest] if quantized else [])]
    is_bounded = meta.squashed or meta.tanh_mean
    activation = meta.activation if meta.hidden else ""
    uses_tanh = is_bounded or activation == "tanh"
    return template().render(
        title=f"A policy for {plain(meta.env_id)}, by dpd export",
        facts=[
            f"{plain(key)[1:-1]}: {plain(value)}"
            for key, value in (("algorithm", meta.algo), *sorted(meta.provenance.items()))
        ],
        name=name,
        n_obs=meta.obs_dim,
        n_act=meta.act_dim,
        clip=number(meta.clip_obs) if meta.norm_obs else None,
        layers=layers,
        quantized=quantized,
        widest=widest,
        stack_bytes=f"about {4 * sum(buffers):,}",
        activation=activation,
        uses_tanh=uses_tanh,
        uses_exp=uses_tanh or activation == "elu",
        is_bounded=is_bounded,
        numbers=numbers,
        **{key: t[key] for key in ("obs_mean", "obs_scale", "act_low", "act_high")},
    )


def plain(value: Any) -> str:
    """Write a fact of a policy file inside a C comment, which it must not be able to end."""
    return json.dumps(value).replace("*/", "* /")


def identifier(stem: str) -> str:
    """Return a C name made of a file's stem."""
    return re.sub(r"\W", "_", f"_{stem}" if stem[:1].isdigit() else stem, flags=re.ASCII)


def compiler() -> list[str]:
    """Return the command of the C compiler, from CC or PATH. Raises BadInput if there is none."""
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        raise BadInput(
            "a C file is compiled and compared before it is kept, and there is no C compiler: "
            "install gcc or clang, or name yours in CC"
        )
    return command


def compile_library(source: Path, target: Path, *flags: str) -> None:
    """Compile a C file to a shared library. Raises ValueError with the compiler's first error."""
    command = [*compiler(), "-std=c99", "-O3", "-shared", "-fPIC", *flags]
    done = subprocess.run(
        [*command, os.fspath(source), "-o", os.fspath(target)], capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"{command[0]} failed: {done.stderr.strip()[:300]}")


def read_c(path: Path) -> ArrayPolicy:
    """Compile a C file of `c_source` and return its policy."""
    (n_act,) = re.findall(r"^void \w+\(.* act\[(\d+)\]\)$", path.read_text(), re.MULTILINE)
    pointer = ctypes.POINTER(ctypes.c_float)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "policy.so"
        compile_library(path, library)
        function = ctypes.CDLL(os.fspath(library))[f"{identifier(path.stem)}_act"]

    def act(obs: np.ndarray) -> np.ndarray:
        out = np.empty((len(obs), int(n_act)), np.float32)
        for x, a in zip(np.ascontiguousarray(obs, np.float32), out, strict=True):
            function(x.ctypes.data_as(pointer), a.ctypes.data_as(pointer))
        return out

    return act
