"""Export a policy to a file that other programs can run, and check that it acts the same."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from dpd.agents.config import View
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.policies import policyfile
from dpd.policies.c_source import c_source, compiler, identifier, read_c
from dpd.policies.hybrid import (
    HybridPolicy,
    probes_of,
    redescribed,
    refuse_hybrid,
)
from dpd.policies.hybrid_file import load_policy, save_hybrid
from dpd.policies.hybrid_onnx import hybrid_onnx
from dpd.policies.memory_io import joint, memory_facts
from dpd.policies.onnx_graph import onnx_model
from dpd.policies.policyfile import (
    ArrayPolicy,
    Policy,
    require_fit,
    require_same_actions,
)
from dpd.policies.torch_modules import as_module, example_inputs
from dpd.policies.views import refuse_view, without_view
from dpd.report.outcome import ExportOutcome
from dpd.report.report import Report
from dpd.run.hybrid_groups import read_groups
from dpd.run.saved import RunReader
from dpd.run.sources import Place, find_policies, load_any, place_of, refuse_zip_settings

if TYPE_CHECKING:
    from dpd.policies.config import ExportConfig

# Of half an action's range. Two float32 implementations differ by 8e-7 for 17 observations and
# two layers of 64, by 6e-5 for 376 observations at the clip; a mistake differs by far more.
TOLERANCE = 1e-3
# Weights of 8 bits move an action by 1e-2 and more at single observations.
INT8_TOLERANCE = 0.5


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
        **({} if meta.view is None else view_facts(meta.view)),
        **memory_facts(meta),
    }


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


@contextmanager
def quiet() -> Iterator[None]:
    """Silence TorchScript's notes on its deprecation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_onnx(policy: Policy, path: Path) -> None:
    """Write an ONNX model: `obs` [batch, O] -> `act` [batch, A], flattened, weights inside.

    `obs` is [batch, H, G] for a policy with a view. A recurrent policy has the inputs and outputs
    of `memory_io`.
    """
    import onnx

    if isinstance(policy, HybridPolicy):
        model = hybrid_onnx(policy, facts(policy))
    else:
        model = onnx_model(policy, facts(policy))
    onnx.save(model, path)


def read_onnx(path: Path) -> ArrayPolicy:
    """Load an ONNX model in ONNX's own reference implementation."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = ReferenceEvaluator(os.fspath(path))
    names = model.input_names
    if len(names) == 1:
        return lambda obs: np.asarray(next(iter(model.run(["act"], {"obs": obs}))))
    facts = {each.key: each.value for each in onnx.load(path).metadata_props}

    def step(given: list[np.ndarray]) -> list[np.ndarray]:
        return list(map(np.asarray, model.run(None, dict(zip(names, given, strict=True)))))

    return joint(step, facts)


def write_torchscript(policy: Policy, path: Path) -> None:
    """Write a TorchScript module, with `facts` in its extra file dpd.json."""
    with quiet():
        module = torch.jit.trace(as_module(policy), tuple(example_inputs(policy)))
        torch.jit.save(module, path, _extra_files={"dpd.json": json.dumps(facts(policy))})


def read_torchscript(path: Path) -> ArrayPolicy:
    """Load a TorchScript module."""
    extra = {"dpd.json": ""}
    with quiet():
        module = torch.jit.load(path, _extra_files=extra)
    facts = json.loads(extra["dpd.json"])

    @torch.no_grad()
    def act(obs: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(obs)).numpy()

    @torch.no_grad()
    def step(given: list[np.ndarray]) -> list[np.ndarray]:
        return [x.numpy() for x in module(*map(torch.from_numpy, given))]

    return joint(step, facts) if "inputs" in facts else act


def write_c(policy: Policy, path: Path, quantized: bool = False) -> None:
    """Write a C99 file; the function in it is named after the file."""
    refuse_hybrid(policy, "a C file")
    compiler()  # raises BadInput before anything is written
    path.write_text(c_source(policy, identifier(path.stem), quantized))


def write_dpd(policy: Policy, path: Path) -> None:
    """Write a policy file of this suite."""
    if isinstance(policy, HybridPolicy):
        save_hybrid(path, policy)
    else:
        policyfile.save(path, policy.tensors, policy.meta)


def read_dpd(path: Path) -> ArrayPolicy:
    """Load a policy file of this suite."""
    return load_policy(path).step_flat


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


def export_policy(config: ExportConfig, read_settings: RunReader) -> ExportOutcome:
    """Write a policy in another format and say how much its actions differ.

    `read_settings` reads the settings of a run, for its hybrid policy.
    """
    kind = FORMATS.get(config.format)
    if kind is not None:
        require_packages(config.format, kind.needs)
    if config.path.is_dir() and not config.hybrid:
        raise BadInput(
            f"{config.path} is a directory; dpd export takes one policy, for instance "
            f"{find_policies(config.path)[0]}, or --hybrid for that of all peers of a seed"
        )
    policy, default = read_source(config, read_settings)
    out = target(config, default, "-sb3" if kind is None else kind.ending)
    policy = put_into(policy, place_of(config.path, policy, config.foreign))
    if config.format in WITHOUT_VIEW:
        policy = without_view(policy, f"--format {config.format}")
    if kind is None:
        from dpd.sb3.export import export_zoo

        refuse_hybrid(policy, "Stable-Baselines3")
        export_zoo(policy, out)
        checked = "Stable-Baselines3 loads it, and it acts as the policy does"
    else:
        checked = write_checked(policy, kind, out)
    n, data = size(out), {"path": str(out), "format": config.format, "checked": checked}
    line = f"{out}  {n:,} bytes; {checked}"
    report = Report(sections=[], data=data | {"bytes": n})
    return ExportOutcome(report=report, lines=[line], path=out, bytes=n)


def read_source(config: ExportConfig, read_settings: RunReader) -> tuple[Policy, Path]:
    """Return the policy to export, and the path, without suffix, of its default output."""
    path = config.path
    if not config.hybrid:
        policy = load_any(path, config.foreign, with_hybrids=True)
        return policy, path.with_name(path.stem)
    if not path.is_dir():
        raise BadInput(
            f"--hybrid is for run directories; {path} is a file, or does not exist: leave it out"
        )
    refuse_zip_settings(path, config.foreign)
    groups = read_groups(path, read_settings, config.hybrid_seed)
    if len(groups) > 1:
        seeds = ", ".join(str(group.seed) for group in groups)
        raise BadInput(f"{path} has seeds {seeds}; choose the peers of one with --hybrid-seed")
    # Not in policies/, whose files are those of single learners.
    return groups[0].hybrid, path / groups[0].name


def put_into(policy: Policy, place: Place) -> Policy:
    """Describe a policy as one of another environment. Raises BadInput if it does not fit."""
    if place == (policy.meta.env_id, policy.meta.env_kwargs):
        return policy  # so its environment need not be installed
    spec = check(place.env_id, env_kwargs=place.env_kwargs)
    require_fit(policy, spec)
    shapes: dict[str, Any] = {"obs_shape": spec.obs_shape, "act_shape": spec.act_shape}
    refuse_view(policy, f"another environment, {place},")  # whose groups may have other columns
    return redescribed(policy, place._asdict() | shapes)


def require_packages(name: str, packages: tuple[str, ...]) -> None:
    """Raise BadInput with the install command if a package is missing."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise BadInput(f"--format {name} needs more packages: pip install {' '.join(missing)}")


def target(config: ExportConfig, default: Path, ending: str) -> Path:
    """Return the path to write: --out, or `default` with an ending.

    Raises BadInput if it exists, is misnamed or has no folder.
    """
    out = config.out or default.with_name(default.name + ending)
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
        obs = probes_of(policy)
        difference = require_same_actions(policy, kind.read(draft), obs, kind.tolerance)
        os.replace(draft, out)
    return (
        f"on {len(obs):,} observations its actions differ from the policy's by at most "
        f"{difference:.1g} of half their range"
    )


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files inside a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
