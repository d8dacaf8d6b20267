"""The command line: parse the flags, report bad input in one line, run the command."""

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
    taught_by,
    with_sizes,
)
from dpd.cooperate.config import CooperateConfig, require_saved_settings, saved_config
from dpd.distill import METHODS
from dpd.errors import BadInput, OtherVersion
from dpd.fidelity.config import FidelityConfig, SweepConfig
from dpd.run.settings import as_flags, parse, preset_settings, read_config, saved_settings
from dpd.study.config import CompareConfig, StudyConfig

USAGE = f"""\
dpd {__version__}: dual policy distillation and its baselines for continuous control

commands
  dpd train [ENV] ...          train peers that teach each other while they learn
  dpd distill [ENV] ...        distil a trained policy into students, smaller ones if wanted
  dpd cooperate PATH PATH ...  let saved policies teach each other
  dpd evaluate PATH ...        evaluate saved policies on fresh episodes
  dpd compare PATH ...         compare runs, with confidence intervals
  dpd study [ENV] ...          compare a method with its controls
  dpd fidelity PATH PATH ...   measure how closely students follow a teacher, the first PATH
  dpd sweep TEACHER ...        measure what makes a student follow its teacher
  dpd export PATH ...          write a policy as an SB3, ONNX, TorchScript or dpd file

`dpd COMMAND --help` lists the flags of a command; `dpd --version` prints the version.

example
  dpd train HalfCheetah-v5 --peers 2 --total-steps 1000000
  tensorboard --logdir runs
"""


@dataclass(frozen=True)
class Selection:
    """Options that determine the remaining flags."""

    algo: str | None = None
    """Algorithm of the learners: ppo (the default), td3, ddpg or sac. To mix algorithms, list one
    per peer, for example ppo,sac; each peer then has its own flags: --peer0.lr, --peer1.hidden."""
    method: str = "dpd"
    """Distillation method: dpd, or none to train the peers independently."""
    preset: str | None = None
    """Named settings: paper, released or modern for the method; large for the learners (thousands
    of environments, for a GPU). Separate several with commas: paper,large; later ones win."""
    config: Path | None = None
    """JSON file of settings. Flags on the command line override it."""


@dataclass(frozen=True)
class DistillSelection(Selection):
    """Options that determine the remaining flags."""

    algo: str | None = None
    """Algorithm of the students: student (learns from the teacher only), ppo, td3, ddpg or sac.
    None: the one that the method needs."""
    method: str = "dagger"
    """Distillation method. Supervised: bc, dagger, on-policy, progressive, scaffold, retrieval.
    Combined with reinforcement learning: kickstart, ppd. True gradients of a distillation
    objective: n-distill, reverse-kl."""
    student_sizes: str | None = None
    """Hidden layers of several students that differ in size only, for example 16,32,64x64. A single
    width applies to all layers."""


SELECTIONS = {"train": Selection, "distill": DistillSelection}
HEADINGS = {
    "train": "Train peers that teach each other while they learn.",
    "distill": "Distil a trained policy into students.",
}
STUDENT_STEPS = 200_000
"""Default number of environment steps per student; --total-steps overrides the sum."""


def select(argv: Sequence[str], command: str) -> tuple[Selection, dict[str, Any], Path | None]:
    """Read the flags that determine the others, the configuration file, and the run to resume."""
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
                raise BadInput(f"--resume uses the run's saved settings; leave {flag(name)} out")
    else:
        settings = read_config(Path(given.config)) if given.config else {}
    kind = SELECTIONS[command]
    names = {f.name: settings.pop(f.name, None) for f in fields(kind) if f.name != "config"}
    chosen = {k: getattr(given, k) or v for k, v in names.items()}
    run_dir = Path(given.resume) if given.resume else None
    return kind(**{k: v for k, v in chosen.items() if v}), settings, run_dir


def refuse_other_version(run_dir: Path, flags: Any, saved: Sequence[str], default: Any) -> None:
    """Raise OtherVersion if the saved settings of a run are not settings of this version."""
    try:
        parse(flags, saved, "dpd", default)
    except BadInput as error:
        raise OtherVersion(run_dir, str(error).partition(";")[0]) from error


def refuse_other_command(command: str, run_dir: str, method: object) -> None:
    """Raise BadInput if another command made the run that is being resumed."""
    made_by = METHODS[method].COMMAND if method in METHODS else command
    if made_by != command:
        raise BadInput(
            f"{run_dir} is a run of dpd {made_by}; resume it with "
            f"dpd {made_by} --resume {shlex.quote(run_dir)}"
        )


def learners(selection: Selection) -> list[tuple[str, AlgoConfig]]:
    """Return name and settings of the selected algorithms: one for all peers, or one per peer.

    The settings are the algorithm's defaults, changed to those the method requires.
    """
    method = choose("method", selection.method, METHODS)
    names = (selection.algo or method.ALGO).split(",")
    if names[1:] and sizes_of(selection):
        raise BadInput("--student-sizes needs a single algorithm; give one --algo")
    kinds = [choose("algorithm", name, ALGORITHMS) for name in names]
    return [(name, taught_by(method, kind)) for name, kind in zip(names, kinds, strict=True)]


def sizes_of(selection: Selection) -> list[str]:
    """Return the student sizes given on the command line, if any."""
    words = selection.student_sizes if isinstance(selection, DistillSelection) else None
    return [] if words is None else words.split(",")


def parse_run(argv: Sequence[str], command: str) -> TrainConfig:
    """Return a run's settings. Precedence, lowest first: default, preset, file, flag."""
    selection, settings, run_dir = select(argv, command)
    ours = {name: kind for name, kind in METHODS.items() if command == kind.COMMAND}
    method = METHODS.get(selection.method) or choose("method", selection.method, ours)
    if command != method.COMMAND:
        raise BadInput(f"method {selection.method} belongs to dpd {method.COMMAND}")
    algos = learners(selection)
    kinds = ",".join(name for name, _ in algos)
    words = []
    if selection.preset is not None:
        words += as_flags(preset_settings(selection.preset, selection.method, kinds))
    run = replace(defaults(selection, algos), env=settings.pop("env", RunConfig.env))
    words += as_flags(settings)
    flags, default = run_flags(selection, run, algos, method, command)
    try:
        args = parse(flags, [*words, *argv], f"dpd {command}", default)
    except BadInput:
        if run_dir is not None:
            refuse_other_version(run_dir, flags, words, default)
        raise
    given = [
        (name, getattr(args, group))
        for group, (name, _) in zip(groups_of(algos), algos, strict=True)
    ]
    return TrainConfig(
        run=with_absolute_paths(args.run),
        algos=tuple(with_sizes(*given[0], sizes) if (sizes := sizes_of(selection)) else given),
        method=selection.method,
        distill=args.distill,
        teachers=getattr(args, "teachers", None),
    )


def with_absolute_paths(run: RunConfig) -> RunConfig:
    """Make relative paths in the environment's arguments absolute.

    A resumed run keeps its arguments unchanged.
    """
    kwargs = run.parsed_env_kwargs()
    absolute = absolute_paths(kwargs)
    if run.resume is not None or absolute == kwargs:
        return run
    return replace(run, env_kwargs=json.dumps(absolute))


def groups_of(algos: Sequence[tuple[str, AlgoConfig]]) -> list[str]:
    """Return the flag groups of the learners' settings: one for all peers, or one per peer."""
    return [f"peer{k}" for k in range(len(algos))] if algos[1:] else ["learners"]


def defaults(selection: Selection, algos: Sequence[tuple[str, AlgoConfig]]) -> RunConfig:
    """Return the default run settings, which depend on the number of learners."""
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
    """Return a dataclass with a field per group of flags, and an instance with the defaults."""
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
    """Return the settings of the run in `run_dir`, made by `dpd train` or `dpd distill`."""
    file = run_dir / "config.json"
    method = choose("method", str(read_config(file).get("method")), METHODS)
    return parse_run(["--config", str(file)], method.COMMAND)


def train_command(argv: Sequence[str], command: str = "train") -> int:
    """Train or distil, then print the policies' returns and the paths of the files."""
    config = parse_run(argv, command)
    from dpd.run.train import train

    if command == "train":
        return train(config)
    from dpd.fidelity.sizes import report_students

    return train(config, report_students)


def cooperate_command(argv: Sequence[str]) -> int:
    """Let saved policies imitate each other where another one earns more return."""
    config = parse(CooperateConfig, argv, "dpd cooperate")
    if config.resume is not None:  # parsed again: the saved settings are the flags' defaults
        saved = saved_config(config.resume)
        config = parse(CooperateConfig, argv, "dpd cooperate", saved)
        require_saved_settings(config, saved)
    from dpd.cooperate.cooperation import cooperate_paths

    return cooperate_paths(config)


def evaluate_command(argv: Sequence[str]) -> int:
    """Evaluate policy files and run directories."""
    config = parse(EvaluateConfig, argv, "dpd evaluate")
    from dpd.evaluate import evaluate_paths

    return evaluate_paths(config)


def export_command(argv: Sequence[str]) -> int:
    """Export a policy to another format."""
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
    except BrokenPipeError:  # the reader of our output closed the pipe, as `head` does
        sys.stderr.close()
        return 1
    except (ValueError, OSError) as error:
        sys.stderr.write(f"dpd: {describe(error)}\n")
        return 2
    except RuntimeError as error:
        from dpd.envs.base import FailedEnv

        if not isinstance(error, FailedEnv):
            raise
        # The author of the environment needs the traceback of the original error.
        traceback.print_exception(error.__cause__)
        sys.stderr.write(f"dpd: {describe(error)}\n")
        return 2


def describe(error: Exception) -> str:
    """Format an error as one line."""
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    return re.sub(r"\s+", " ", text)
