"""The commands: parse, refuse bad input in one line, run."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dpd import __version__
from dpd.commands import CompareConfig, EvaluateConfig, ExportConfig
from dpd.config import (
    ALGORITHMS,
    BadInput,
    RunConfig,
    TrainConfig,
    as_flags,
    choose,
    near,
    preset_settings,
    read_config,
    saved_settings,
)
from dpd.distill import METHODS

USAGE = f"""\
dpd {__version__}: dual policy distillation and its baselines for continuous control

  dpd train [ENV] ...     train peers that teach each other     (dpd train --help)
  dpd evaluate PATH ...   evaluate saved policies and runs      (dpd evaluate --help)
  dpd compare PATH ...    runs side by side, with intervals     (dpd compare --help)
  dpd export PATH ...     to SB3, ONNX or TorchScript           (dpd export --help)

  dpd train HalfCheetah-v5 --peers 2 --total-steps 1000000
  tensorboard --logdir runs
"""


@dataclass(frozen=True)
class Selection:
    """What decides which flags there are."""

    algo: str = "ppo"
    """Algorithm of the learners: ppo, td3, ddpg or sac."""
    method: str = "dpd"
    """Distillation method; `none` trains the peers side by side."""
    preset: str | None = None
    """Named settings of the method: paper, released or modern."""
    config: Path | None = None
    """JSON file of settings; flags go before it."""


def parse(kind: Any, argv: Sequence[str], prog: str, default: Any = None) -> Any:
    """Let tyro parse; its error boxes become one line of BadInput."""
    said = io.StringIO()
    kwargs = {} if default is None else {"default": default}
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=list(argv), **kwargs)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise BadInput(one_line(said.getvalue(), prog)) from None


def one_line(box: str, prog: str) -> str:
    """Return the text of an error box without frame, title and advice."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", x).strip() for x in box.splitlines()[1:]]
    kept: list[str] = []
    for line in lines:
        if line.startswith("For full helptext"):
            break
        if line:
            kept.append(line)
    return re.sub(r"\s+", " ", " ".join(kept)) + f"; see {prog} --help"


def select(argv: Sequence[str]) -> tuple[Selection, dict[str, Any]]:
    """Read the flags that decide on the others, and the configuration file."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("algo", "method", "preset", "config", "resume"):
        peek.add_argument(f"--{name}")
    try:
        given, _ = peek.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise BadInput(str(error)) from error
    if given.resume:
        settings = saved_settings(Path(given.resume))
        for name in ("config", "preset", "algo", "method"):
            if getattr(given, name) not in (None, settings.get(name)):
                raise BadInput(f"--resume goes on with the run's own settings; leave --{name} out")
    else:
        settings = read_config(Path(given.config)) if given.config else {}
    names = {k: settings.pop(k, None) for k in ("algo", "method", "preset")}
    chosen = {k: getattr(given, k) or v for k, v in names.items()}
    return Selection(**{k: v for k, v in chosen.items() if v}), settings


def parse_train(argv: Sequence[str]) -> TrainConfig:
    """Return a run's settings: default < preset < file < flag."""
    selection, settings = select(argv)
    algo = choose("algorithm", selection.algo, ALGORITHMS)
    method = choose("method", selection.method, METHODS)
    words: list[str] = []
    if selection.preset is not None:
        words = as_flags(preset_settings(selection.preset, selection.method, selection.algo))
    run = RunConfig(env=settings.pop("env", RunConfig.env))
    words += as_flags(settings)
    flags = make_dataclass(
        "Train",
        [
            ("run", Annotated[RunConfig, tyro.conf.OmitArgPrefixes]),
            ("selection", Annotated[Selection, tyro.conf.OmitArgPrefixes]),
            ("algo", Annotated[algo, tyro.conf.OmitArgPrefixes]),
            ("distill", method),
        ],
        namespace={"__doc__": "Train peers that teach each other."},
    )
    default = flags(run, selection, algo(), method())
    args = parse(flags, [*words, *argv], "dpd train", default)
    return TrainConfig(
        run=args.run,
        algo_name=selection.algo,
        algo=args.algo,
        method=selection.method,
        distill=args.distill,
    )


def train_command(argv: Sequence[str]) -> int:
    """Train, then print how the policies do and where they are."""
    config = parse_train(argv)
    from dpd.train import train

    return train(config)


def evaluate_command(argv: Sequence[str]) -> int:
    """Evaluate policy files and run directories."""
    config = parse(EvaluateConfig, argv, "dpd evaluate")
    from dpd.evaluate import evaluate_paths

    return evaluate_paths(config)


def export_command(argv: Sequence[str]) -> int:
    """Write a policy in another format."""
    config = parse(ExportConfig, argv, "dpd export")
    from dpd.export import export_policy

    return export_policy(config)


def compare_command(argv: Sequence[str]) -> int:
    """Compare runs and policies."""
    config = parse(CompareConfig, argv, "dpd compare")
    from dpd.compare import compare_paths

    return compare_paths(config)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "export": export_command,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if argv[0] == "--version":
        sys.stdout.write(f"dpd {__version__}\n")
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise BadInput(f"unknown command '{argv[0]}'{near(argv[0], COMMANDS)}")
        return COMMANDS[argv[0]](argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("\ndpd: interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        return 1
    except (ValueError, OSError) as error:
        sys.stderr.write(f"dpd: {describe(error)}\n")
        return 2


def describe(error: Exception) -> str:
    """Return an error as one line."""
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    return re.sub(r"\s+", " ", text)
