"""The command line: parse the flags, report bad input in one line, run the command."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from dpd import __version__
from dpd.config import TrainConfig
from dpd.cooperate.config import CooperateConfig, require_saved_settings, saved_config
from dpd.errors import BadInput, near
from dpd.fidelity.config import FidelityConfig, SweepConfig
from dpd.hub.config import PullConfig, PushConfig
from dpd.policies.config import EvaluateConfig, ExportConfig, GroupsConfig
from dpd.report.config import ReportConfig
from dpd.run.flags import parse_run, parse_train, saved_run
from dpd.run.settings import parse
from dpd.study.config import CompareConfig, StudyConfig
from dpd.tune.config import TuneConfig
from dpd.watch.config import WatchConfig

if TYPE_CHECKING:
    from rich.console import Console

    from dpd.report.outcome import Outcome
    from dpd.run.callback import Callback
    from dpd.run.outcome import TrainOutcome

LATENCIES = "dpd.fidelity.latency:latencies"
STUDENT_REPORT = "dpd.fidelity.sizes:report_students"

USAGE = f"""\
dpd {__version__}: dual policy distillation and its baselines for continuous control

commands
  dpd train [ENV] ...          train peers that teach each other while they learn
  dpd distill [ENV] ...        distil a trained policy into students, smaller ones if wanted
  dpd cooperate PATH PATH ...  let saved policies teach each other
  dpd evaluate PATH ...        evaluate saved policies on fresh episodes
  dpd watch PATH ...           show the progress of runs in the terminal
  dpd compare PATH ...         compare runs, with confidence intervals
  dpd study [ENV] ...          compare a method with its controls
  dpd tune [ENV] --space FILE  search flags of dpd train
  dpd fidelity PATH PATH ...   measure how closely students follow a teacher, the first PATH
  dpd sweep TEACHER ...        measure what makes a student follow its teacher
  dpd export PATH ...          write a policy as an ONNX, TorchScript, C, SB3 or dpd file
  dpd push PATH OWNER/NAME     publish policies on the Hugging Face hub, with a model card
  dpd pull OWNER/NAME          download policies from the Hugging Face hub
  dpd groups ENV               print the named groups of an environment's observation
  dpd report PATH              write one page about a run or a study: curves, health, videos

`dpd COMMAND --help` lists the flags of a command; `dpd --version` prints the version.

example
  dpd train HalfCheetah-v5 --peers 2 --total-steps 1000000
  tensorboard --logdir runs
"""


def train_command(argv: Sequence[str], command: str) -> int:
    """Train or distil, then print the policies' returns and the paths of the files."""
    return train_run(parse_run(argv, command)).status


def train_run(
    config: TrainConfig, callbacks: Sequence[Callback] = (), console: Console | None = None
) -> TrainOutcome:
    """Train or distil; print to a console, by default the terminal's."""
    from dpd.run.directory import run_path
    from dpd.run.outcome import TrainOutcome
    from dpd.run.train import train

    report = resolve_name(STUDENT_REPORT) if config.command == "distill" else None
    path = run_path(config)  # its name has the time, so that asking again gives another one
    config = replace(config, run=replace(config.run, out=path))
    status = train(config, report, callbacks, console)
    return TrainOutcome(path, status)


def parse_cooperate(argv: Sequence[str]) -> CooperateConfig:
    """Return the settings of `dpd cooperate`; with --resume, the saved ones are the defaults."""
    config: CooperateConfig = parse(CooperateConfig, argv, "dpd cooperate")
    if config.resume is not None:
        saved = saved_config(config.resume)
        config = parse(CooperateConfig, argv, "dpd cooperate", saved)
        require_saved_settings(config, saved)
    return config


def parse_passing(argv: Sequence[str], name: str) -> Any:
    """Return the settings of a command whose flags after a lone -- go to `dpd train`."""
    end = argv.index("--") if "--" in argv else len(argv)
    return parse(PLAIN_COMMANDS[name][0], argv[:end], f"dpd {name}").with_flags(argv[end + 1 :])


PLAIN_COMMANDS: dict[str, tuple[type, str, tuple[object, ...]]] = {
    "cooperate": (CooperateConfig, "dpd.cooperate.cooperation:cooperate_paths", ()),
    "study": (StudyConfig, "dpd.study.study:study", (parse_train,)),
    "tune": (TuneConfig, "dpd.tune.tune:tune", (parse_train,)),
    "evaluate": (EvaluateConfig, "dpd.evaluate:evaluate_saved", (saved_run, LATENCIES)),
    "compare": (CompareConfig, "dpd.study.compare:compare_paths", ()),
    "fidelity": (FidelityConfig, "dpd.fidelity.report:fidelity_paths", (saved_run,)),
    "sweep": (SweepConfig, "dpd.fidelity.sweep:sweep_teacher", ()),
    "export": (ExportConfig, "dpd.export:export_policy", (saved_run,)),
    "push": (PushConfig, "dpd.hub.push:push_path", (saved_run, parse_run)),
    "pull": (PullConfig, "dpd.hub.pull:pull_repo", ()),
    "watch": (WatchConfig, "dpd.watch.watch:watch_paths", (saved_run,)),
    "groups": (GroupsConfig, "dpd.run.groups:list_groups", ()),
    "report": (ReportConfig, "dpd.run.dashboard:write_page", ()),
}
"""A row for each command: its settings, its function, and what that needs beside the settings.

The function returns an Outcome. A string of the form `module:name` is imported when the command
runs.
"""
PARSERS: dict[str, Callable[[Sequence[str]], Any]] = {
    "cooperate": parse_cooperate,
    **{name: partial(parse_passing, name=name) for name in ("study", "tune")},
}
"""Commands whose flags take more than one parsing."""


def run_plain(name: str, config: Any, show: Callable[[Outcome], None]) -> Outcome:
    """Run a command of PLAIN_COMMANDS with its settings, and show its results."""
    _, function, given = PLAIN_COMMANDS[name]
    needs = [resolve_name(x) if isinstance(x, str) else x for x in given]
    result: Outcome = resolve_name(function)(config, *needs)
    show(result)
    if result.last is not None:
        result.last()
    return result


def plain_command(argv: Sequence[str], name: str) -> int:
    """Parse the flags of a command of PLAIN_COMMANDS, run it and print its results."""
    if name in PARSERS:
        config = PARSERS[name](argv)
    else:
        config = parse(PLAIN_COMMANDS[name][0], argv, f"dpd {name}")
    return run_plain(name, config, lambda got: got.show(getattr(config, "json", False))).status


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    **{name: partial(train_command, command=name) for name in ("train", "distill")},
    **{name: partial(plain_command, name=name) for name in PLAIN_COMMANDS},
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
