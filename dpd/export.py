"""Export a policy to a file that other programs can run, and check that it acts the same."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpd.agents.config import View
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.log.terminal import make_console
from dpd.policies import policyfile
from dpd.policies.c_source import c_source, compiler, identifier, read_c
from dpd.policies.onnx_graph import onnx_model
from dpd.policies.policyfile import (
    ACTIVATION_MODULES,
    N_PROBES,
    ArrayPolicy,
    Policy,
    probes,
    refuse_memory,
    require_fit,
    require_same_actions,
)
from dpd.policies.views import refuse_view, without_view
from dpd.run.sources import Place, find_policies, load_any, place_of

if TYPE_CHECKING:
    from dpd.config import ExportConfig

# Of half an action's range. Two float32 implementations differ by 8e-7 for 17 observations and
# two layers of 64, by 6e-5 for 376 observations at the clip; a mistake differs by far more.
TOLERANCE = 1e-3
# Weights of 8 bits move an action by 1e-2 and more at single observations.
INT8_TOLERANCE = 0.5


class ExportedActor(nn.Module):
    """A policy as a network: raw obs [B, O] -> actions [B, A] in the environment's bounds.

    Of a policy with a view, the input is the stack of frames that it sees [B, H, G].
    """

    obs_mean: Tensor
    obs_scale: Tensor
    act_low: Tensor
    act_high: Tensor
    act_half: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        refuse_memory(policy, "such a file")
        meta, tensors = policy.meta, policy.tensors
        self.norm_obs, self.clip_obs = meta.norm_obs, meta.clip_obs
        self.is_bounded, self.has_view = meta.squashed or meta.tanh_mean, meta.view is not None
        for name in ("obs_mean", "obs_scale", "act_low", "act_high"):
            self.register_buffer(name, tensors[name].clone())
        self.register_buffer("act_half", 0.5 * (tensors["act_high"] - tensors["act_low"]))
        parts: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(pairwise([meta.in_dim, *meta.hidden, meta.act_dim])):
            linear = nn.Linear(n_in, n_out)
            with torch.no_grad():
                linear.weight.copy_(tensors[f"actor.{i}.weight"].T)
                linear.bias.copy_(tensors[f"actor.{i}.bias"][0])
            parts += [linear, ACTIVATION_MODULES[meta.activation]()]
        self.net = nn.Sequential(*parts[:-1])

    def forward(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [B, O], or on frames [B, H, G]."""
        x = obs
        if self.norm_obs:
            x = torch.clamp((x - self.obs_mean) * self.obs_scale, -self.clip_obs, self.clip_obs)
        mean = self.net(x.flatten(1) if self.has_view else x)
        act = torch.tanh(mean) if self.is_bounded else torch.clamp(mean, -1.0, 1.0)
        scaled = self.act_low + (act + 1.0) * self.act_half
        return torch.clamp(scaled, self.act_low, self.act_high)  # rounding may leave the bounds


def facts(policy: Policy) -> dict[str, str]:
    """Return the metadata of an exported file."""
    meta = policy.meta
    return {
        "env_id": meta.env_id,
        "env_kwargs": json.dumps(meta.env_kwargs),
        "algo": meta.algo,
        # The environment's own shapes; the file itself reads and writes flattened arrays, C order.
        "obs_shape": json.dumps(meta.full_obs_shape),
        "act_shape": json.dumps(meta.full_act_shape),
        "provenance": json.dumps(meta.provenance),
    } | ({} if meta.view is None else view_facts(meta.view))


def view_facts(view: View) -> dict[str, str]:
    """Return the metadata that tells a robot how to make the input [B, H, G]."""
    return {
        "groups": json.dumps(view.groups),
        # The numbers of a frame: these columns of a raw observation, then the previous action in
        # [-1, 1] if `prev_action`, which is 0 at an episode's start.
        "columns": json.dumps(view.columns),
        "prev_action": json.dumps(view.prev_action),
        # Oldest frame first; the first frame of an episode stands for those before it.
        "history": json.dumps(view.history),
        # Trained with: sensors are to have these by themselves.
        "noise": json.dumps(view.noise),
        "delay": json.dumps(view.delay),
    }


def example(policy: Policy) -> Tensor:
    """Return inputs [2, ...] to trace with: a batch of one would be taken as a fixed size."""
    return torch.zeros(2, *policy.meta.input_shape)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence TorchScript's notes on its deprecation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_onnx(policy: Policy, path: Path) -> None:
    """Write an ONNX model: `obs` [batch, O] -> `act` [batch, A], flattened, weights inside.

    `obs` is [batch, H, G] for a policy with a view.
    """
    import onnx

    onnx.save(onnx_model(policy, facts(policy)), path)


def read_onnx(path: Path) -> ArrayPolicy:
    """Load an ONNX model in ONNX's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    model = ReferenceEvaluator(os.fspath(path))
    return lambda obs: np.asarray(next(iter(model.run(["act"], {"obs": obs}))))


def write_torchscript(policy: Policy, path: Path) -> None:
    """Write a TorchScript module, with `facts` in its extra file dpd.json."""
    with quiet():
        module = torch.jit.trace(ExportedActor(policy).eval(), example(policy))
        torch.jit.save(module, path, _extra_files={"dpd.json": json.dumps(facts(policy))})


def read_torchscript(path: Path) -> ArrayPolicy:
    """Load a TorchScript module."""
    with quiet():
        module = torch.jit.load(path)

    @torch.no_grad()
    def act(obs: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(obs)).numpy()

    return act


def write_c(policy: Policy, path: Path, quantized: bool = False) -> None:
    """Write a C99 file; the function in it is named after the file."""
    compiler()  # raises BadInput before anything is written
    path.write_text(c_source(policy, identifier(path.stem), quantized))


def write_dpd(policy: Policy, path: Path) -> None:
    """Write a policy file of this suite."""
    policyfile.save(path, policy.tensors, policy.meta)


def read_dpd(path: Path) -> ArrayPolicy:
    """Load a policy file of this suite."""
    return policyfile.load(path).act_flat


class Format(NamedTuple):
    """Functions that write a format, and read it back for the check."""

    write: Callable[[Policy, Path], None]
    read: Callable[[Path], ArrayPolicy]
    ending: str
    """Suffix that the default file name adds to the policy's."""
    needs: tuple[str, ...] = ()
    """Packages that dpd does not install itself."""
    tolerance: float = TOLERANCE
    """Largest difference of an action, in halves of its range."""


FORMATS = {  # without sb3: that is a folder, which dpd.sb3.export writes and checks
    "onnx": Format(write_onnx, read_onnx, ".onnx", ("onnx",)),
    "torchscript": Format(write_torchscript, read_torchscript, ".pt"),
    "c": Format(write_c, read_c, ".c"),
    "c-int8": Format(partial(write_c, quantized=True), read_c, ".c", tolerance=INT8_TOLERANCE),
    "dpd": Format(write_dpd, read_dpd, ".safetensors"),
}


WITHOUT_VIEW = ("c", "c-int8", "sb3")
"""Formats whose input is the whole observation."""


def export_policy(config: ExportConfig) -> int:
    """Write a policy in another format and print how much its actions differ."""
    kind = FORMATS.get(config.format)
    if kind is not None:
        require_packages(config.format, kind.needs)
    if config.path.is_dir():
        raise BadInput(
            f"{config.path} is a directory; dpd export takes one policy, for instance "
            f"{find_policies(config.path)[0]}"
        )
    out = target(config, "-sb3" if kind is None else kind.ending)
    policy = load_any(config.path, config.foreign)
    policy = put_into(policy, place_of(config.path, policy, config.foreign))
    if config.format in WITHOUT_VIEW:
        policy = without_view(policy, f"--format {config.format}")
    if kind is None:
        from dpd.sb3.export import export_zoo

        export_zoo(policy, out)
        checked = "Stable-Baselines3 loads it, and it acts as the policy does"
    else:
        checked = write_checked(policy, kind, out)
    line = f"{out}  {size(out):,} bytes; {checked}"
    make_console(markup=False, highlight=False).print(line, soft_wrap=True)
    return 0


def put_into(policy: Policy, place: Place) -> Policy:
    """Describe a policy as one of another environment. Raises BadInput if it does not fit."""
    if place == (policy.meta.env_id, policy.meta.env_kwargs):
        return policy  # so its environment need not be installed
    spec = check(place.env_id, env_kwargs=place.env_kwargs)
    require_fit(policy, spec)
    shapes: dict[str, Any] = {"obs_shape": spec.obs_shape, "act_shape": spec.act_shape}
    refuse_view(policy, f"another environment, {place},")  # whose groups may have other columns
    meta = replace(policy.meta, **place._asdict(), **shapes)
    return Policy(policy.tensors, meta)


def require_packages(name: str, packages: tuple[str, ...]) -> None:
    """Raise BadInput with the install command if a package is missing."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise BadInput(f"--format {name} needs more packages: pip install {' '.join(missing)}")


def target(config: ExportConfig, ending: str) -> Path:
    """Return the path to write. Raises BadInput if it exists, is misnamed or has no folder."""
    out = config.out or config.path.with_name(config.path.stem + ending)
    if ending.startswith(".") and out.suffix != ending:
        raise BadInput(f"--format {config.format} writes a {ending} file, not '{out.name}'")
    if out.exists():
        raise BadInput(f"{out} exists; remove it, or give --out another name")
    if not out.parent.is_dir():
        raise BadInput(f"{out.parent} is not a directory; create it, or give another --out")
    return out


def write_checked(policy: Policy, kind: Format, out: Path) -> str:
    """Write a policy, read it back, compare its actions, and only then move it into place.

    Returns a summary of the comparison. Raises ValueError, and leaves no file, if actions differ by
    more than rounding.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        draft = Path(folder) / out.name
        kind.write(policy, draft)
        difference = require_same_actions(policy, kind.read(draft), probes(policy), kind.tolerance)
        os.replace(draft, out)
    return (
        f"on {N_PROBES} observations its actions differ from the policy's by at most "
        f"{difference:.1g} of half their range"
    )


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files inside a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
