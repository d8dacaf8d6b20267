"""MkDocs hook: write the reference of command-line flags from what `dpd COMMAND --help` prints.

A page gets the tables where it holds MARKER. Nothing on that page is written by hand, so it cannot
disagree with the parser.
"""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from dpd import cli
from dpd.run import flags as run_flags

MARKER = "<!-- flags -->"
WIDTH = "129"  # tyro prints two boxes beside each other from 130 columns on
FRAME = re.compile(r"^[│|]|[│|]$|[╭╮╰╯─]+|^\s*-{9,}\s*$")
TITLE = re.compile(r"\s*((?:[\w.-]+ )*(?:options|arguments))\s*")
OPTION = re.compile(r" {0,3}(\S.*?)(?: {2,}(\S.*))?")
DEFAULT = re.compile(r"(.*?)\s*\(default: (.*)\)", re.DOTALL)
ENTRY_POINTS = ("train", "distill")
"""Commands whose flags depend on the algorithm and the method."""


@dataclass
class Group:
    """Flags that the help text shows in one box."""

    title: str
    about: str = ""
    rows: list[list[str]] = field(default_factory=list)
    """Pairs of a flag with its value's type, and its help text."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables of all commands where a page asks for them."""
    return markdown.replace(MARKER, "\n".join(reference())) if MARKER in markdown else markdown


def reference() -> Iterator[str]:
    """Yield the lines of the reference: all commands, algorithms and methods."""
    for command in cli.COMMANDS:
        groups = groups_of(command)
        yield f"\n## dpd {command}\n"
        yield usage(command)
        special = ("learners", "distill") if command in ENTRY_POINTS else ()
        for group in groups:
            if group.title.partition(" ")[0] not in special:
                yield from table(group, f"### dpd {command}: {group.title}")
    yield "\n## Algorithms\n\nFlags of the learners, chosen by `--algo`.\n"
    yield from choices("algo", run_flags.ALGORITHMS, "learners", lambda _: "none")
    yield "\n## Methods\n\nFlags of the distillation method, chosen by `--method`.\n"
    yield from choices("method", run_flags.METHODS, "distill", str)


def choices(
    flag: str, names: Mapping[str, Any], group: str, method_of: Callable[[str], str]
) -> Iterator[str]:
    """Yield a table for each value of --algo or --method."""
    for name in names:
        method = run_flags.METHODS[method_of(name)]
        words = [f"--{flag}", name] if flag == "method" else ["--method", "none", "--algo", name]
        if name == "student":  # learns only from a teacher, so `dpd train` does not offer it
            method, words = run_flags.METHODS["bc"], ["--method", "bc"]
        found = [g for g in groups_of(method.settings.COMMAND, *words) if g.title.startswith(group)]
        heading = f"### --{flag} {name} {{: #{flag}-{name} }}"
        if not found:
            yield f"\n{heading}\n\nNo flags.\n"
        for each in found:
            yield from table(each, heading)


def table(group: Group, heading: str) -> Iterator[str]:
    """Yield a group as a Markdown table; nothing for one that holds only --help."""
    rows = [row for row in group.rows if not row[0].startswith("-h,")]
    if not rows:
        return
    yield f"\n{heading}\n"
    if group.about:
        yield f"{as_html(group.about)}\n"
    yield "| flag | default | |\n|---|---|---|"
    for flag, text in rows:
        split = DEFAULT.fullmatch(text)
        text, default = split.groups() if split else (text, "")
        shown = f"<code>{escaped(default)}</code>" if default else ""
        yield f"| <code>{escaped(flag)}</code> | {shown} | {as_html(text)} |"


def groups_of(*words: str) -> list[Group]:
    """Read the boxes of a command's help text."""
    groups: list[Group] = []
    for line in help_text(*words).splitlines():
        line = FRAME.sub("", line).rstrip()
        if title := TITLE.fullmatch(line):
            groups.append(Group(title[1]))
        elif groups and line:
            add(groups[-1], line)
    return groups


def add(group: Group, line: str) -> None:
    """Add a line of a box: its description, a flag, or more of the last flag's help text."""
    option = OPTION.fullmatch(line)
    starts_flag = option is not None and (
        option[1].startswith("-") or (group.title.startswith("positional") and option[2])
    )
    if option is not None and starts_flag:
        group.rows.append([option[1], option[2] or ""])
    elif group.rows:
        group.rows[-1][1] = f"{group.rows[-1][1]} {line.strip()}".strip()
    else:
        group.about = f"{group.about} {line.strip()}".strip()


def usage(command: str) -> str:
    """Return the usage line and the description that open a help text."""
    first, _, rest = help_text(command).partition("\n")
    about = rest.strip().partition("\n\n")[0]
    lines = [line.strip() for line in about.splitlines()]
    return f"`{first.removeprefix('usage: ').strip()}`\n\n{as_html(' '.join(lines))}\n"


def help_text(*words: str) -> str:
    """Return what a command prints for --help."""
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=WIDTH), redirect_stdout(out), suppress(SystemExit):
        cli.main([*words, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def escaped(text: str) -> str:
    """Return text that a cell of a Markdown table shows as it is."""
    text = html.escape(text, quote=False)
    return re.sub(r"[|*_\[\]`{}]", lambda sign: f"&#{ord(sign[0])};", text)


def as_html(text: str) -> str:
    """Return help text with its `names` as code."""
    parts = text.split("`")
    return "".join(
        f"<code>{escaped(part)}</code>" if i % 2 else escaped(part) for i, part in enumerate(parts)
    )
