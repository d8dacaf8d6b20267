"""Write the types of the keyword arguments of `dpd.train(...)` and others into dpd/api/keywords.py.

They follow from the settings of the commands, so that editors complete and type checkers know every
flag. `make format` runs this script after a flag was added; a test compares the file.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from dpd import cli
from dpd.api.settings import LISTS, groups_apart
from dpd.run import flags

TARGET = Path(__file__).parents[1] / "dpd" / "api" / "keywords.py"
HEAD = '''"""Types of the keyword arguments of dpd.api's functions; written by docs/keywords.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

PathText = str | PathLike[str]
Nested = Mapping[str, Any]
"""Settings of a group of flags with a prefix."""
Listed = str | int | Sequence[str | int | Sequence[int]]
"""Names or numbers, as a text between commas or as a list."""
'''
PLAIN = {int: "int", float: "float", str: "str", bool: "bool", Path: "PathText", NoneType: "None"}
PEERS = [f"peer{k}" for k in range(8)]
GIVEN = {
    "evaluate": {"paths"},
    "compare": {"paths"},
    "cooperate": {"paths"},
    "study": {"envs", "flags"},
    "fidelity": {"teacher", "students"},
    "sweep": {"teacher"},
    "tune": {"env", "space", "ranges", "flags"},
    "export": {"path", "format"},
    "push": {"path", "repo"},
    "watch": {"paths"},
    "groups": {"env"},
    "report": {"path"},
}
"""Settings that the functions have as parameters of their own."""


def written() -> str:
    """Return the contents of the file."""
    blocks = [HEAD]
    view = flags.ActorViewConfig
    learners: list[type] = [row.settings for row in flags.rl_algorithms().values()]
    students: list[type] = [row.settings for row in flags.ALGORITHMS.values()]
    common = {"distill": "Nested", **dict.fromkeys(PEERS, "Nested")}
    train = (
        joined_types(flags.RunConfig, flags.Selection, *learners, view, flags.WandbConfig) | common
    )
    more: tuple[type, ...] = (
        flags.DistillSelection,
        *students,
        flags.TeacherConfig,
        flags.ViewConfig,
        flags.WandbConfig,
    )
    distill = joined_types(flags.RunConfig, *more) | common
    blocks += block("train", train, {"env"})
    blocks += block("distill", distill, {"env"})
    for command, given in GIVEN.items():
        kind = cli.PLAIN_COMMANDS[command][0]
        blocks += block(command, with_groups(kind), given | {"json", *groups_apart(kind)})
    return "\n".join(blocks)


def block(command: str, types: Mapping[str, str], hidden: set[str]) -> Iterator[str]:
    """Yield the lines of a class."""
    yield f"\nclass {command.title()}Keywords(TypedDict, total=False):"
    yield f'    """Keyword arguments of `dpd.{command}`."""\n'
    for name, text in types.items():
        if name not in hidden and not keyword.iskeyword(name):
            yield f"    {name}: {text}"
    yield ""


def joined_types(*kinds: type) -> dict[str, str]:
    """Return the types of the fields of several settings; unlike types become a union."""
    types: dict[str, list[str]] = {}
    for kind in kinds:
        for name, text in typed(kind).items():
            if text not in types.setdefault(name, []):
                types[name].append(text)
    return {name: " | ".join(each) for name, each in types.items()}


def with_groups(kind: type) -> dict[str, str]:
    """Return the types of a command's settings, and of those in a dataclass of their own."""
    return joined_types(kind, *groups_apart(kind).values())


def typed(kind: type) -> dict[str, str]:
    """Return the types that keywords of a dataclass's fields may have."""
    hints = get_type_hints(kind, include_extras=True)
    types = {f.name: text_of(hints[f.name]) for f in fields(kind)}
    listed = {name: "Listed | None" for name in LISTS if name in types and kind_is_run(kind)}
    return types | listed | ({"env_kwargs": "str | Nested"} if "env_kwargs" in types else {})


def kind_is_run(kind: type) -> bool:
    """Return True for settings of `dpd train` and `dpd distill`."""
    return issubclass(kind, flags.Selection)


def text_of(kind: Any) -> str:
    """Return a type as a keyword may have it: any sequence for a tuple, and a single value too."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return text_of(args[0])
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(map(text_of, args)))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]".replace("'", '"')
    if origin is tuple:
        inner = " | ".join(dict.fromkeys(text_of(arg) for arg in args if arg is not ...))
        return f"Sequence[{inner}]" + (f" | {inner}" if args[-1] is ... else "")
    return PLAIN.get(kind, "Any")


if __name__ == "__main__":
    TARGET.write_text(written())
