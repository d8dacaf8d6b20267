"""The commands: parse, refuse bad input in one line, run."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from dpd import __version__
from dpd.config import (
    ALGORITHMS,
    AlgoConfig,
    EvaluateConfig,
    ExportConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
    absolute_paths,
    choose,
    flag,
    near,
    sized,
    taught_by,
)
from dpd.cooperate.config import CooperateConfig, require_saved_settings, saved_config
from dpd.distill import METHODS
from dpd.errors import BadInput
from dpd.fidelity.config import FidelityConfig, SweepConfig
from dpd.run.settings import as_flags, parse, preset_settings, read_config, saved_settings
from dpd.study.config import CompareConfig, StudyConfig

USAGE = f"""\
dpd {__version__}: dual policy distillation and its baselines for continuous control

  dpd train [ENV] ...     train peers that teach each other     (dpd train --help)
  dpd distill [ENV] ...   a teacher into smaller students      (dpd distill --help)
  dpd cooperate P P ...   saved policies teach each other     (dpd cooperate --help)
  dpd evaluate PATH ...   evaluate saved policies and runs      (dpd evaluate --help)
  dpd compare PATH ...    runs side by side, with intervals     (dpd compare --help)
  dpd study [ENV] ...     a method against its controls         (dpd study --help)
  dpd fidelity T S ...    does a student follow its teacher?    (dpd fidelity --help)
  dpd sweep TEACHER ...   what makes a student follow?          (dpd sweep --help)
  dpd export PATH ...     to SB3, ONNX or TorchScript           (dpd export --help)

  dpd train HalfCheetah-v5 --peers 2 --total-steps 1000000
  tensorboard --logdir runs
"""


@dataclass(frozen=True)
class Selection:
    """What decides which flags there are."""

    algo: str | None = None
    """Algorithm of the learners: ppo (if none is named), td3, ddpg or sac; or one for each peer, as
    in ppo,sac, whose settings are then --peer0.lr, --peer1.hidden and so on."""
    method: str = "dpd"
    """Distillation method; `none` trains the peers side by side."""
    preset: str | None = None
    """Named settings: paper, released or modern of the method, large of the learners (thousands of
    environments, for a GPU); several as in paper,large."""
    config: Path | None = None
    """JSON file of settings; flags go before it."""


@dataclass(frozen=True)
class DistillSelection(Selection):
    """What decides which flags there are."""

    algo: str | None = None
    """Algorithm of the students: student, which learns from its teacher alone, or ppo, td3, ddpg or
    sac; None: as the method needs."""
    method: str = "dagger"
    """bc, dagger, on-policy, progressive, scaffold, retrieval; with reinforcement learning
    kickstart and ppd; n-distill and reverse-kl, which are gradients."""
    student_sizes: str | None = None
    """Hidden layers of several students, alike in all else: as in 16,32,64x64; a width alone is for
    all layers."""


SELECTIONS = {"train": Selection, "distill": DistillSelection}
HEADINGS = {
    "train": "Train peers that teach each other.",
    "distill": "Distil a trained policy into others.",
}
STUDENT_STEPS = 200_000
"""Environment steps of a student, unless --total-steps says otherwise."""


def select(argv: Sequence[str], command: str) -> tuple[Selection, dict[str, Any]]:
    """Read the flags that decide on the others, and the configuration file."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("algo", "method", "preset", "config", "resume", "student-sizes"):
        peek.add_argument(f"--{name}")
    try:
        given, _ = peek.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise BadInput(str(error)) from error
    if given.resume:
        settings = saved_settings(Path(given.resume))
        refuse_other_command(command, given.resume, settings.get("method"))
        for name in ("config", "preset", "algo", "method", "student_sizes"):
            if getattr(given, name) not in (None, settings.get(name)):
                raise BadInput(
                    f"--resume goes on with the run's own settings; leave {flag(name)} out"
                )
    else:
        settings = read_config(Path(given.config)) if given.config else {}
    kind = SELECTIONS[command]
    names = {f.name: settings.pop(f.name, None) for f in fields(kind) if f.name != "config"}
    chosen = {k: getattr(given, k) or v for k, v in names.items()}
    return kind(**{k: v for k, v in chosen.items() if v}), settings


def refuse_other_command(command: str, run_dir: str, method: object) -> None:
    """Raise BadInput where a run was made by another command than is to go on with it."""
    made_by = METHODS[method].COMMAND if method in METHODS else command
    if made_by != command:
        raise BadInput(
            f"{run_dir} is a run of dpd {made_by}; go on with it by "
            f"dpd {made_by} --resume {shlex.quote(run_dir)}"
        )


def learners(selection: Selection) -> list[tuple[str, AlgoConfig]]:
    """Return the algorithms asked for, with the method's default settings: one, or each peer's."""
    method = choose("method", selection.method, METHODS)
    names = (selection.algo or method.ALGO).split(",")
    if names[1:] and sizes_of(selection):
        raise BadInput("--student-sizes are of one algorithm; name one --algo")
    kinds = [choose("algorithm", name, ALGORITHMS) for name in names]
    return [(name, taught_by(method, kind)) for name, kind in zip(names, kinds, strict=True)]


def sizes_of(selection: Selection) -> list[str]:
    """Return the sizes asked for, if any."""
    words = selection.student_sizes if isinstance(selection, DistillSelection) else None
    return [] if words is None else words.split(",")


def parse_run(argv: Sequence[str], command: str) -> TrainConfig:
    """Return a run's settings: default < preset < file < flag."""
    selection, settings = select(argv, command)
    ours = {name: kind for name, kind in METHODS.items() if command == kind.COMMAND}
    method = METHODS.get(selection.method) or choose("method", selection.method, ours)
    if command != method.COMMAND:
        raise BadInput(f"method {selection.method} is one of dpd {method.COMMAND}")
    algos = learners(selection)
    kinds = ",".join(name for name, _ in algos)
    words = []
    if selection.preset is not None:
        words += as_flags(preset_settings(selection.preset, selection.method, kinds))
    run = replace(defaults(selection, algos), env=settings.pop("env", RunConfig.env))
    words += as_flags(settings)
    flags, default = run_flags(selection, run, algos, method, command)
    args = parse(flags, [*words, *argv], f"dpd {command}", default)
    given = [
        (name, getattr(args, group))
        for group, (name, _) in zip(groups_of(algos), algos, strict=True)
    ]
    return TrainConfig(
        run=travelling(args.run),
        algos=tuple(sized(*given[0], sizes) if (sizes := sizes_of(selection)) else given),
        method=selection.method,
        distill=args.distill,
        teachers=getattr(args, "teachers", None),
    )


def travelling(run: RunConfig) -> RunConfig:
    """Return a new run's settings with the paths in its environment's arguments made absolute.

    A run that goes on keeps them as they are.
    """
    kwargs = run.parsed_env_kwargs()
    absolute = absolute_paths(kwargs)
    if run.resume is not None or absolute == kwargs:
        return run
    return replace(run, env_kwargs=json.dumps(absolute))


def groups_of(algos: Sequence[tuple[str, AlgoConfig]]) -> list[str]:
    """Return what the learners' settings are called: those of all, or of each peer."""
    return [f"peer{k}" for k in range(len(algos))] if algos[1:] else ["learners"]


def defaults(selection: Selection, algos: Sequence[tuple[str, AlgoConfig]]) -> RunConfig:
    """Return what a run's settings are unless they are given, where it depends on the others."""
    several = len(sizes_of(selection)) or len(algos)
    if isinstance(selection, DistillSelection):
        return RunConfig(peers=several, total_steps=several * STUDENT_STEPS)
    return RunConfig(peers=several) if several > 1 else RunConfig()


def run_flags(
    selection: Selection,
    run: RunConfig,
    algos: Sequence[tuple[str, AlgoConfig]],
    method: Any,
    command: str,
) -> tuple[Any, Any]:
    """Return the class of a run's flags, and one of it with the defaults."""
    plain = tyro.conf.OmitArgPrefixes
    kinds: list[tuple[str, Any, Any]] = [("run", Annotated[RunConfig, plain], run)]
    kinds += [("selection", Annotated[type(selection), plain], selection)]
    if command == "distill":
        kinds += [("teachers", Annotated[TeacherConfig, plain], TeacherConfig())]
    for name, (_, config) in zip(groups_of(algos), algos, strict=True):
        kind = type(config)
        kinds += [(name, kind if algos[1:] else Annotated[kind, plain], config)]
    kinds += [("distill", method, method())]
    flags = make_dataclass(
        command.capitalize(),
        [(name, kind) for name, kind, _ in kinds],
        namespace={"__doc__": HEADINGS[command]},
    )
    return flags, flags(*(default for _, _, default in kinds))


def parse_train(argv: Sequence[str]) -> TrainConfig:
    """Return the settings of `dpd train`."""
    return parse_run(argv, "train")


def saved_run(run_dir: Path) -> TrainConfig:
    """Return the settings of the run in a directory, whichever command made it."""
    file = run_dir / "config.json"
    method = choose("method", str(read_config(file).get("method")), METHODS)
    return parse_run(["--config", str(file)], method.COMMAND)


def train_command(argv: Sequence[str], command: str = "train") -> int:
    """Train or distil, then print how the policies do and where they are."""
    config = parse_run(argv, command)
    from dpd.run.train import train

    if command == "train":
        return train(config)
    from dpd.fidelity.sizes import report_students

    return train(config, report_students)


def cooperate_command(argv: Sequence[str]) -> int:
    """Let saved policies teach each other where one is really better."""
    config = parse(CooperateConfig, argv, "dpd cooperate")
    if config.resume is not None:  # parsed again: the saved settings are the flags' defaults
        saved = saved_config(config.resume)
        config = parse(CooperateConfig, argv, "dpd cooperate", saved)
        require_saved_settings(config, saved)
    from dpd.cooperate.command import cooperate_paths

    return cooperate_paths(config)


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
    from dpd.study.compare import compare_paths

    return compare_paths(config)


def study_command(argv: Sequence[str]) -> int:
    """Train a method and its controls, and compare them."""
    end = argv.index("--") if "--" in argv else len(argv)
    config = parse(StudyConfig, argv[:end], "dpd study").with_flags(argv[end + 1 :])
    from dpd.study.study import study

    return study(config, parse_train)


def fidelity_command(argv: Sequence[str]) -> int:
    """Measure how closely students follow their teacher."""
    config = parse(FidelityConfig, argv, "dpd fidelity")
    from dpd.fidelity.report import fidelity_paths

    return fidelity_paths(config, saved_run)


def sweep_command(argv: Sequence[str]) -> int:
    """Measure what makes students follow their teacher."""
    config = parse(SweepConfig, argv, "dpd sweep")
    from dpd.fidelity.sweep import sweep_teacher

    return sweep_teacher(config)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_command,
    "distill": partial(train_command, command="distill"),
    "cooperate": cooperate_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "study": study_command,
    "fidelity": fidelity_command,
    "sweep": sweep_command,
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
    except RuntimeError as error:
        from dpd.envs.errors import FailedEnv

        if not isinstance(error, FailedEnv):
            raise
        # The environment's author needs its own traceback.
        traceback.print_exception(error.__cause__)
        sys.stderr.write(f"dpd: {describe(error)}\n")
        return 2


def describe(error: Exception) -> str:
    """Return an error as one line."""
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    return re.sub(r"\s+", " ", text)
