"""Settings of a run from flags, or from the keyword arguments of a function; torch-free."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import tyro

from dpd.agents.config import LearnerConfig, layers_of
from dpd.agents.student_config import StudentConfig
from dpd.agents.table import ALGORITHMS, rl_algorithms
from dpd.config import TrainConfig
from dpd.distill.config import MethodConfig
from dpd.distill.presets import METHOD_OF_PRESET, PLAIN_PRESET
from dpd.distill.table import METHODS, MethodSpec
from dpd.distill.views import ActorViewConfig, ViewConfig
from dpd.errors import BadInput, OtherVersion, choose, flag, near, one_of
from dpd.log.config import WandbConfig
from dpd.run.config import RunConfig, TeacherConfig, absolute_paths, parse_env_kwargs
from dpd.run.settings import (
    default_learners,
    merge,
    parse,
    preset_settings,
    read_config,
    read_histories,
    refuse_lacking,
    refuse_several_kinds,
    saved_settings,
    updated,
    with_default_preset,
)

NOTHING: Mapping[str, Any] = MappingProxyType({})
STUDENT_STEPS = 200_000
"""Default number of environment steps per student; --total-steps overrides the sum."""
Plain = tyro.conf.OmitArgPrefixes
Kinds = TypeVar("Kinds")


def methods_of(command: str) -> dict[str, MethodSpec]:
    """Return the methods that a command offers."""
    return {name: row for name, row in METHODS.items() if command == row.settings.COMMAND}


@dataclass(frozen=True)
class SettingsFile:
    """Files with settings: those of a new run, or a run to resume."""

    config: Path | None = None
    resume: Path | None = None


@dataclass(frozen=True)
class Selection:
    """Options that determine the remaining flags."""

    algo: Annotated[str | None, tyro.conf.arg(metavar=one_of(rl_algorithms()))] = None
    """Algorithm of the learners; None: ppo. To mix algorithms, list one per peer, for example
    ppo,sac; each peer then has its own flags: --peer0.lr, --peer1.hidden."""
    method: Annotated[str, tyro.conf.arg(metavar=one_of(methods_of("train")))] = "dpd"
    """Distillation method, or none to train the peers independently."""
    preset: str | None = None
    """Named settings: paper, released or modern for the method; large for the learners (thousands
    of environments, for a GPU). Separate several with commas: paper,large; later ones win. Without
    one of the method, PPO's peers have modern, and all others the settings of paper."""
    config: Path | None = None
    """JSON or TOML file of settings. Flags on the command line override it."""
    history: str | None = None
    """Frames that policies see, the present one and those before it. None: 1, or those that the
    policy of --init-from sees."""


@dataclass(frozen=True)
class DistillSelection(Selection):
    """Options that determine the remaining flags."""

    algo: Annotated[str | None, tyro.conf.arg(metavar=one_of(ALGORITHMS))] = None
    """Algorithm of the students; `student` learns from the teacher only. None: the one that the
    method needs."""
    method: Annotated[str, tyro.conf.arg(metavar=one_of(methods_of("distill")))] = "dagger"
    """Distillation method; --method NAME --help describes it."""
    preset: str | None = None
    """Named settings: rsl_rl distils as rsl_rl and Isaac Lab do, with --method on-policy; large for
    learners by reward (thousands of environments, for a GPU)."""
    student_sizes: str | None = None
    """Hidden layers of several students that differ in size only, for example 16,32,64x64. A single
    width applies to all layers."""
    history: str | None = None
    """Frames that students see, the present one and those before it. Several numbers, for example
    1,2,4,8, make several students. None: 1."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags(Generic[Kinds]):
    """Train peers that teach each other while they learn."""

    run: Annotated[RunConfig, Plain]
    selection: Annotated[Selection, Plain]
    learners: Kinds
    distill: MethodConfig
    views: Annotated[ActorViewConfig, Plain]
    wandb: Annotated[WandbConfig, Plain]


@dataclass(frozen=True, kw_only=True)
class DistillFlags(TrainFlags[Kinds]):
    """Distil a trained policy into students."""

    selection: Annotated[DistillSelection, Plain]
    teachers: Annotated[TeacherConfig, Plain]
    views: Annotated[ViewConfig, Plain]  # type: ignore[assignment]
    """Parts of the observations that students see and teachers read."""


class Selected(NamedTuple):
    """The flags that determine the others, and the settings of a file."""

    selection: Selection
    settings: dict[str, Any]
    run_dir: Path | None
    """The run to resume."""
    names_method: bool
    """True for a file that names its method, as those of all runs do, which have all settings."""

    def with_preset(self, preset: str | None) -> Selected:
        """Return the same with other presets."""
        return self._replace(selection=replace(self.selection, preset=preset))


def select(argv: Sequence[str], command: str, given: Mapping[str, Any]) -> Selected:
    """Read the flags that determine the others, the configuration file, and the run to resume."""
    prog, kind = f"dpd {command}", DistillSelection if command == "distill" else Selection
    file: SettingsFile = parse(SettingsFile, argv, prog, ignore_others=True)
    file = updated(file, {name: given[name] for name in ("config", "resume") if name in given})
    settings: dict[str, Any] = {}
    if file.resume is not None:
        settings = saved_settings(file.resume)
        row = METHODS.get(str(settings.get("method")))
        if row is not None and command != row.settings.COMMAND:
            made_by = f"dpd {row.settings.COMMAND}"
            run_dir = shlex.quote(str(file.resume))
            raise BadInput(
                f"{file.resume} is a run of {made_by}; resume it with {made_by} --resume {run_dir}"
            )
    elif file.config is not None:
        settings = read_config(file.config)
    names = [f.name for f in fields(kind) if f.name in settings]
    saved = updated(kind(), {name: settings.pop(name) for name in names})
    asked = {f.name: given[f.name] for f in fields(kind) if f.name in given}
    selection: Selection = updated(parse(kind, argv, prog, saved, ignore_others=True), asked)
    if "method" not in names and selection.preset in METHOD_OF_PRESET:
        saved = replace(saved, method=METHOD_OF_PRESET[selection.preset])
        selection = updated(parse(kind, argv, prog, saved, ignore_others=True), asked)
    if file.resume is not None and selection != saved:
        changed = next(k for k, v in vars(saved).items() if getattr(selection, k) != v)
        raise BadInput(f"--resume uses the run's saved settings; leave {flag(changed)} out")
    return Selected(selection, settings, file.resume, "method" in names)


def parse_run(argv: Sequence[str], command: str, given: Mapping[str, Any] = NOTHING) -> TrainConfig:
    """Return a run's settings. Precedence, lowest first: default, preset, file, `given`, flag.

    `given` has the shape of a configuration file, and may have `config` and `resume` too.
    """
    selected = select(argv, command, given)
    selection = selected.selection
    if selection.method not in METHODS:
        choose("method", selection.method, methods_of(command))
    method = METHODS[selection.method].settings
    if command != method.COMMAND:
        raise BadInput(f"method {selection.method} belongs to dpd {method.COMMAND}")
    asked = preset = selection.preset
    if not selected.names_method:
        preset = with_default_preset(asked, selection.method, selection.algo or method.ALGO)
    try:
        return resolved(selected.with_preset(preset), argv, given)
    except ValueError as error:
        plain = ",".join(filter(None, (PLAIN_PRESET, asked)))
        if preset == asked or not is_valid(selected.with_preset(plain), argv, given):
            raise
        raise BadInput(f"{error}; --preset {plain} allows it (the default is {preset})") from error


def resolved(selected: Selected, argv: Sequence[str], given: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a run whose algorithm, method and preset are known."""
    selection, settings, run_dir, _ = selected
    method = METHODS[selection.method].settings
    command = method.COMMAND
    names = (selection.algo or method.ALGO).split(",")
    named_sizes = getattr(selection, "student_sizes", None)
    sizes = [] if named_sizes is None else named_sizes.split(",")
    histories = read_histories(selection.history, command)
    refuse_several_kinds(names, sizes, histories)
    algos = [default_learners(name, method) for name in names]
    refuse_lacking(names, argv, {**settings, **given})
    if selection.preset is not None:
        preset = preset_settings(selection.preset, selection.method, ",".join(names))
        settings = merge(preset, settings)
    kinds = [f"peer{k}" for k in range(len(algos))] if algos[1:] else ["learners"]
    groups = {
        "run": default_run(command, max(len(sizes), len(histories)) or len(names)),
        "selection": selection,
        **command_groups(command),
        **dict(zip(kinds, algos, strict=True)),
        "distill": method(),
    }
    groups = with_stored(groups, settings, run_dir)
    groups = with_settings(groups, {k: v for k, v in given.items() if not hasattr(selection, k)})
    args = parse_groups(groups, kinds, argv, command)
    learners = tuple(zip(names, args.learners.values(), strict=True))
    return TrainConfig(
        run=with_absolute_paths(args.run),
        algos=tuple(with_sizes(*learners[0], sizes)) if sizes else learners,
        method=selection.method,
        preset=selection.preset,
        distill=args.distill,
        teachers=getattr(args, "teachers", None),
        views=args.views,
        histories=histories,
        wandb=args.wandb,
    )


def is_valid(selected: Selected, argv: Sequence[str], given: Mapping[str, Any]) -> bool:
    """Return True if these settings can be resolved."""
    try:
        resolved(selected, argv, given)
    except ValueError:
        return False
    return True


def with_sizes(
    name: str, config: LearnerConfig, sizes: Sequence[str]
) -> list[tuple[str, LearnerConfig]]:
    """Return the settings of learners that differ in size only.

    Sizes of equal depth share one stack if the algorithm supports it.
    """
    layers = [layers_of(size, len(config.hidden)) for size in sizes]
    if isinstance(config, StudentConfig) and len({len(hidden) for hidden in layers}) == 1:
        return [(name, replace(config, sizes=tuple(sizes), hidden=layers[0]))]
    return [(name, replace(config, hidden=hidden)) for hidden in layers]


def command_groups(command: str) -> dict[str, Any]:
    """Return the default settings that do not depend on the algorithm or the method."""
    if command == "distill":
        return {"teachers": TeacherConfig(), "views": ViewConfig(), "wandb": WandbConfig()}
    return {"views": ActorViewConfig(), "wandb": WandbConfig()}


def default_run(command: str, learners: int) -> RunConfig:
    """Return the default run settings, which depend on the number of learners."""
    if command == "distill":
        return RunConfig(peers=learners, total_steps=learners * STUDENT_STEPS)
    return RunConfig(peers=learners) if learners > 1 else RunConfig()


def with_stored(
    groups: dict[str, Any], settings: dict[str, Any], run_dir: Path | None
) -> dict[str, Any]:
    """Return groups with the settings of a file. Raises OtherVersion if a run's do not exist."""
    try:
        return with_settings(groups, settings)
    except BadInput as error:
        if run_dir is None:
            raise
        raise OtherVersion(run_dir, str(error).partition(";")[0]) from error


def with_settings(groups: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return groups of settings with the values of a configuration file, or of a preset.

    In it, those of the method and of unlike peers are nested; those of other groups are not.
    """
    nested = {name for name in groups if re.fullmatch(r"distill|peer\d+", name)}
    owners = {f.name: k for k, group in groups.items() if k not in nested for f in fields(group)}
    split: dict[str, dict[str, Any]] = {name: {} for name in groups}
    for name, value in settings.items():
        if name in nested and isinstance(value, dict):
            split[name] = value
        elif name in owners:
            split[owners[name]][name] = value
        else:
            raise BadInput(f"unknown setting {flag(name)}{near(name, [*owners, *nested])}")
    return {
        name: updated(group, split[name], f"{name}." if name in nested else "")
        for name, group in groups.items()
    }


def parse_groups(
    groups: dict[str, Any], kinds: Sequence[str], argv: Sequence[str], command: str
) -> Any:
    """Parse the flags of a run; `kinds` are the groups of its learners."""
    learners = {name: groups[name] for name in kinds}
    others = {name: group for name, group in groups.items() if name not in kinds}
    flags: Any = DistillFlags if command == "distill" else TrainFlags
    kind: Any = Annotated[dict[str, LearnerConfig], tyro.conf.arg(name="")]
    kind = flags[kind if kinds[1:] else Annotated[kind, Plain]]
    args = parse(kind, argv, f"dpd {command}", flags(learners=learners, **others))
    args.wandb.refuse_idle(argv)
    return args


def with_absolute_paths(run: RunConfig) -> RunConfig:
    """Make relative paths in the environment's arguments absolute.

    A resumed run keeps its arguments unchanged.
    """
    kwargs = parse_env_kwargs(run.env_kwargs)
    if run.resume is not None or absolute_paths(kwargs) == kwargs:
        return run
    return replace(run, env_kwargs=json.dumps(absolute_paths(kwargs)))


def parse_train(argv: Sequence[str]) -> TrainConfig:
    """Return the settings of `dpd train`."""
    return parse_run(argv, "train")


def saved_run(run_dir: Path) -> TrainConfig:
    """Return the settings of the run in `run_dir`, made by `dpd train` or `dpd distill`."""
    file = run_dir / "config.json"
    method = choose("method", str(read_config(file).get("method")), METHODS)
    return parse_run(["--config", str(file)], method.settings.COMMAND)
