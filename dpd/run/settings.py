"""Settings from presets, configuration files and flags."""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from copy import copy
from dataclasses import fields
from itertools import repeat
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from dpd.agents.config import LearnerConfig
from dpd.agents.table import ALGORITHMS, AlgorithmSpec
from dpd.distill.config import MethodConfig
from dpd.distill.presets import DOSE, MethodPresets
from dpd.distill.table import METHODS
from dpd.distill.views import parse_histories
from dpd.errors import BadInput, choose, flag, near

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def saved_settings(run_dir: Path) -> dict[str, Any]:
    """Read the settings of the run to resume."""
    if not (run_dir / "config.json").is_file():
        raise BadInput(f"{run_dir} contains no run to resume: it has no config.json")
    return read_config(run_dir / "config.json")


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file, JSON or TOML: settings by name, in which `distill` is nested.

    Names in TOML may have dashes in place of underscores, as flags do.
    """
    kind = path.suffix.removeprefix(".").upper()
    if kind not in ("JSON", "TOML"):
        raise BadInput(f"{path} must be a .json or a .toml file of settings")
    try:
        text = path.read_text()
        settings = json.loads(text) if kind == "JSON" else underscored(tomllib.loads(text))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not {kind}: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("distill", {}), dict):
        kinds = "a JSON object" if kind == "JSON" else "a TOML table"
        raise BadInput(f"{path} must hold {kinds} of settings, with `distill` nested in it")
    return settings


def underscored(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables whose names have underscores in place of dashes."""
    return {
        name.replace("-", "_"): underscored(value) if isinstance(value, dict) else value
        for name, value in tables.items()
    }


def preset_settings(names: str, method: str, algo: str) -> dict[str, Any]:
    """Return the settings of one or several presets, of a method and of its learners.

    With several names, as in paper,large, later presets override earlier ones, and those of the
    learners alone override those of the method. `algo` may be several names as well, as in ppo,sac.
    """
    merged: dict[str, Any] = {}
    for name in sorted(names.split(","), key=lambda name: name not in _method_presets()):
        merged = merge(merged, _one_preset(name, method, algo))
    distill = merged.get("distill", {})
    # A preset's settings of the dose `step` apply only if no later preset changes the dose.
    if method == "dpd" and distill.get("dose", "step") == "step":
        for name in names.split(","):
            distill = DOSE.get(name, {}) | distill
    return merged | ({"distill": distill} if distill else {})


def merge(settings: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings overridden by later ones, within nested settings as well."""
    nested = {k: settings[k] | v for k, v in later.items() if isinstance(settings.get(k), dict)}
    return {**settings, **later, **nested}


def with_default_preset(names: str | None, method: str, algo: str) -> str | None:
    """Return the presets of a run: the method's default one, unless one of a method is named.

    Presets of the learners alone, such as large, join the default one.
    """
    kind = ALGORITHMS[algo].settings if algo in ALGORITHMS else object  # none for unlike peers
    presets = METHODS[method].default_presets
    default = next((presets[base] for base in kind.__mro__ if base in presets), None)
    named = names.split(",") if names else []
    if default is None or not _method_presets().isdisjoint(named):
        return names
    return ",".join([default, *named])


def _method_presets() -> set[str]:
    return {preset for row in METHODS.values() for preset in row.presets}


def _one_preset(name: str, method: str, algo: str) -> dict[str, Any]:
    rows = [ALGORITHMS[peer] for peer in algo.split(",")]
    presets = METHODS[method].presets
    of_method = [preset for preset in presets if _of_method(presets, preset, rows) is not None]
    of_methods = _method_presets()
    of_learners = [
        preset
        for preset in rows[0].presets
        if preset not in of_methods and all(preset in row.presets for row in rows)
    ]
    if not of_method and name not in of_learners:
        others = f"; known: {', '.join(of_learners)}" if of_learners else ""
        raise BadInput(f"method {method} has no presets for {algo}; leave --preset out{others}")
    if name in presets and name not in of_method:
        raise BadInput(f"preset {name} is not for {algo}; give --preset {' or '.join(of_method)}")
    choose(f"preset of method {method} for {algo}", name, dict.fromkeys(of_method + of_learners))
    # a method's preset for unlike peers says nothing of their own settings
    is_common = len(rows) > 1 and name in of_methods
    learners = [{} if is_common else dict(row.presets.get(name, {})) for row in rows]
    settings = learners[0] if len(rows) == 1 else {f"peer{k}": x for k, x in enumerate(learners)}
    distill = _of_method(presets, name, rows)
    return settings | ({"distill": dict(distill)} if distill else {})


def _of_method(
    presets: MethodPresets, name: str, rows: Sequence[AlgorithmSpec]
) -> Mapping[str, Any] | None:
    """Return a preset of a method for these learners: that of the nearest class of settings."""
    preset = presets.get(name, {})
    if len(rows) > 1:
        return preset.get(None)
    return next((preset[kind] for kind in rows[0].settings.__mro__ if kind in preset), None)


def updated(config: Config, settings: Mapping[str, Any], prefix: str = "") -> Config:
    """Return a dataclass of settings with some values of a configuration file or a preset.

    It is not validated: the flags that follow may complete it, and tyro makes it anew. Raises
    BadInput for an unknown setting and for a value of the wrong type.
    """
    changed = copy(config)
    vars(changed).update(converted(type(config), settings, prefix))
    return changed


def converted(
    kind: type[DataclassInstance], settings: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """Return values as a dataclass of settings declares them: tuples for lists, paths for text.

    Raises BadInput for an unknown setting and for a value of the wrong type.
    """
    kinds, values = get_type_hints(kind, include_extras=True), {}
    declared = {f.name: f.type for f in fields(kind)}
    for name, value in settings.items():
        if name not in declared:
            raise BadInput(f"unknown setting {flag(prefix + name)}{near(name, declared)}")
        try:
            values[name] = _of_kind(value, kinds[name])
        except TypeError:
            shown = f"{declared[name]}, not {json.dumps(value, default=repr)}"
            raise BadInput(f"{flag(prefix + name)} must be {shown}") from None
    return values


def _of_kind(value: Any, kind: Any) -> Any:
    """Return a JSON value as a setting's type. Raises TypeError if it is of another one."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _of_kind(value, args[0])
    if origin in (Union, UnionType):
        for option in args:
            with suppress(TypeError):
                return _of_kind(value, option)
    elif origin is tuple and isinstance(value, list):
        if args[-1] is ... or len(args) == len(value):
            kinds = repeat(args[0]) if args[-1] is ... else args
            return tuple(_of_kind(x, inner) for x, inner in zip(value, kinds, strict=False))
    elif origin is tuple and args[-1] is ...:  # one value, as a flag takes it too
        return (_of_kind(value, args[0]),)
    elif origin is Literal and value in args:
        return value
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind is str and isinstance(value, dict):  # --env-kwargs
        return json.dumps(value)
    elif type(value) is kind or (value is None and kind is NoneType):
        return value
    raise TypeError


def parse(
    kind: Any, argv: Sequence[str], prog: str, default: Any = None, ignore_others: bool = False
) -> Any:
    """Parse flags with tyro. Raises BadInput with one line in place of tyro's error box.

    `ignore_others`: neither refuse nor answer flags that are not of `kind`, such as --help.
    """
    box = io.StringIO()
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    if ignore_others:
        kwargs |= {"add_help": False, "return_unknown_args": True}
    try:
        with redirect_stderr(box):
            made = tyro.cli(kind, prog=prog, args=list(argv), **kwargs)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise BadInput(f"{_unboxed(box.getvalue())}; see {prog} --help") from None
    return made[0] if ignore_others else made


def _unboxed(box: str) -> str:
    """Return the text of tyro's error box, without its frame, title and advice."""
    # tyro uses ASCII if the terminal has no box characters
    text = re.sub(r"[│╭╮╰╯─]+|^[|+]|[|+]$|-{3,}", " ", box.partition("\n")[2], flags=re.MULTILINE)
    text = " ".join(text.partition("For full helptext")[0].split())
    # The group of an error that one of our dataclasses raised says nothing, except for a peer's,
    # because every peer may have its own settings.
    return re.sub(r"^Error parsing (?:[\w.]*\b(peer\d+: )|[\w.]+: )", r"\1", text)


def read_histories(text: str | None, command: str) -> tuple[int, ...]:
    """Return the numbers of --history. Raises BadInput for several ones in `dpd train`."""
    histories = parse_histories(text)
    if len(histories) > 1 and command == "train":
        raise BadInput("dpd train takes one number of --history, which is for all peers")
    return histories


def refuse_several_kinds(
    names: Sequence[str], sizes: Sequence[str], histories: Sequence[int]
) -> None:
    """Raise BadInput if students would differ in more than one of algorithm, size and history."""
    if sizes and len(names) > 1:
        raise BadInput("--student-sizes needs a single algorithm; give one --algo")
    if len(histories) > 1 and len(names) > 1:
        raise BadInput("several numbers of --history need a single algorithm; give one --algo")
    if len(histories) > 1 and sizes:
        raise BadInput(
            "--history and --student-sizes both name students; give one number of --history, or "
            "--hidden for the size of all"
        )


def refuse_lacking(names: Sequence[str], argv: Sequence[str], settings: dict[str, Any]) -> None:
    """Raise BadInput if learners lack rewards to share, or a value function that can see more."""
    asked = any(re.fullmatch(r"--(peer\d+\.)?share-experience", word) for word in argv)
    unfit = [name for name in names if not hasattr(ALGORITHMS[name].settings, "share_experience")]
    if unfit and (asked or settings.get("share_experience")):
        raise BadInput(
            f"--share-experience is for --algo ppo, td3, ddpg or sac, not {unfit[0]}: it shares "
            "rewards, and a student learns from a teacher alone"
        )
    refuse_unfit_start(names, argv, settings)
    refuse_encoders(names, argv, settings)


def refuse_encoders(names: Sequence[str], argv: Sequence[str], settings: dict[str, Any]) -> None:
    """Raise BadInput if settings of students' encoders are given to learners without them."""
    unfit = [name for name in names if not hasattr(ALGORITHMS[name].settings, "encoder")]
    for setting in ("encoder", "encoder_size", "gradient_length"):
        word = re.compile(rf"--(peer\d+\.)?{setting}(=|$)")
        asked = any(word.match("--" + each[2:].replace("-", "_")) for each in argv)
        if unfit and (asked or settings.get(setting)):
            raise BadInput(
                f"{flag(setting)} is for students that learn from a teacher alone (--algo student "
                f"of dpd distill), not {unfit[0]}; leave it out"
            )


OWNERS = {
    "critic_obs": "ppo, td3, ddpg or sac",
    "critic_warmup": "ppo, td3, ddpg or sac",
    "init_std": "ppo",
}
"""Algorithms that have a setting of the value function or of the start from a policy."""


def refuse_unfit_start(names: Sequence[str], argv: Sequence[str], settings: dict[str, Any]) -> None:
    """Raise BadInput if learners lack a setting of OWNERS that is given."""
    for setting, owners in OWNERS.items():
        word = re.compile(f"{flag(setting)}(=|$)")
        asked = any(word.match(each.replace("_", "-")) for each in argv)
        if hasattr(ALGORITHMS[names[0]].settings, setting) or names[1:]:
            continue
        if asked or settings.get(setting):
            raise BadInput(f"{flag(setting)} is for --algo {owners}, not {names[0]}; leave it out")


def default_learners(name: str, method: type[MethodConfig]) -> LearnerConfig:
    """Return an algorithm's default settings, with those that the method requires."""
    kind = choose("algorithm", name, ALGORITHMS).settings
    names = {f.name for f in fields(kind)}
    learners: LearnerConfig = kind(**{k: v for k, v in method.SETTINGS.items() if k in names})
    return learners
