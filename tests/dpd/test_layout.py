"""Rooms of the source tree, who may import whom, and counts that must not grow back."""

from __future__ import annotations

import ast
import os
import re
import resource
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("dpd", "agents", "envs")
    for path in (ROOT / folder).rglob("*.py")
    if path.relative_to(ROOT).parts[:2] not in {("dpd", "agents"), ("dpd", "envs")}  # links
)
# Lower first: a room may import itself and the rooms above it in this list, never one below.
ROOMS = [
    "errors",
    "files",
    "agents",
    "envs",
    "log",
    "policies",
    "distill",
    "config",
    "sb3",
    "report",
    "run",
    "evaluate",
    "export",
    "fidelity",
    "cooperate",
    "study",
    "tune",
    "watch",
    "hub",
    "cli",
    "api",
    "__main__",
]
# Settings import no torch, so that `dpd --help` answers at once; every room may read them.
SETTINGS = {
    "dpd.errors",
    "dpd.config",
    "dpd.agents.config",
    "dpd.agents.offpolicy_config",
    "dpd.agents.ppo_config",
    "dpd.agents.student_config",
    "dpd.agents.table",
    "dpd.agents.presets",
    "dpd.distill",
    "dpd.distill.config",
    "dpd.distill.in_loss_config",
    "dpd.distill.peers_config",
    "dpd.distill.table",
    "dpd.distill.teaching_config",
    "dpd.distill.presets",
    "dpd.distill.schedules",
    "dpd.distill.views",
    "dpd.fidelity.config",
    "dpd.cooperate.config",
    "dpd.study.config",
    "dpd.study.engine_config",
    "dpd.tune.config",
    "dpd.tune.space",
    "dpd.log.config",
    "dpd.hub",
    "dpd.hub.config",
    "dpd.hub.command",
    "dpd.watch",
    "dpd.watch.config",
    "dpd.policies.config",
    "dpd.run.changes",
    "dpd.run.config",
    "dpd.run.settings",
    "dpd.run.flags",
    "dpd.report.config",
}
NO_TORCH = SETTINGS | {"dpd", "dpd.cli", "dpd.__main__", "dpd.agents"}
NO_TORCH |= {"dpd.envs.groups", "dpd.envs.randomization", "dpd.run.callback"}
NO_TORCH |= {"dpd.api", "dpd.api.settings", "dpd.api.keywords"}


def module_name(path: Path) -> str:
    """Return a source file's import name: agents and envs are dpd.agents and dpd.envs."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "dpd" else ("dpd", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports(path: Path, at_import_time: bool = False) -> set[str]:
    """Return all modules that a file imports, without those inside type checks.

    `at_import_time`: without those inside functions too.
    """

    def walk(node: ast.AST) -> set[str]:
        names: set[str] = set()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if at_import_time and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.Import):
                names |= {alias.name for alias in child.names}
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"relative import in {path}"
                names |= {child.module, *(f"{child.module}.{a.name}" for a in child.names)}
            names |= walk(child)
        return names

    return walk(ast.parse(path.read_text()))


def room(module: str) -> str:
    """Return the room of a module: the first name after dpd."""
    return module.split(".")[1] if "." in module else "dpd"


def within(modules: set[str], package: str) -> set[str]:
    return {m for m in modules if m == package or m.startswith(package + ".")}


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in MODULES} - {"dpd"} == set(ROOMS)
    # the linked folders are the same files, and are not read twice
    assert (ROOT / "dpd/agents").resolve() == ROOT / "agents"
    assert (ROOT / "dpd/envs").resolve() == ROOT / "envs"


def test_the_package_has_at_most_22_entries_beside_agents_and_envs() -> None:
    entries = {p.name for p in (ROOT / "dpd").iterdir()} - {"agents", "envs", "__pycache__"}
    assert len(entries) <= 22


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_to_lower_rooms_only(module: str) -> None:
    if module == "dpd":  # `dpd.load` reaches down lazily
        return
    height = ROOMS.index(room(module))
    ours = within(imports(MODULES[module]), "dpd") & MODULES.keys()
    higher = {m for m in ours - SETTINGS - {"dpd"} if ROOMS.index(room(m)) > height}
    assert not higher


@pytest.mark.parametrize("own", ["agents", "envs"])
def test_agents_and_environments_import_nothing_else_of_ours(own: str) -> None:
    for module in within(set(MODULES), f"dpd.{own}"):
        ours = within(imports(MODULES[module]), "dpd")
        assert ours == within(ours, f"dpd.{own}"), module


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {m: imports(p, at_import_time=True) & MODULES.keys() for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in graph[module] - {module}:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_one_room_imports_stable_baselines3() -> None:
    users = {room(m) for m, path in MODULES.items() if within(imports(path), "stable_baselines3")}
    assert users == {"sb3"}


@pytest.mark.parametrize("module", sorted(NO_TORCH))
def test_configuration_imports_no_torch(module: str) -> None:
    assert not within(imports(MODULES[module], at_import_time=True), "torch")


TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}
FUNCTIONS = [
    (module, node)
    for module, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def defined(tree: ast.Module) -> set[str]:
    """Return the functions, classes and constants that a module defines, without dunder names."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("__")}


def test_every_name_has_one_owner() -> None:
    owners = defaultdict(list)
    for module, tree in TREES.items():
        for name in defined(tree):
            if module != "dpd.api":  # its functions have the names of the commands
                owners[name].append(module)
    # every Python program has a main
    shared = {n: where for n, where in owners.items() if len(where) > 1 and n != "main"}
    assert not shared


def test_no_docstring_opens_with_a_question_word() -> None:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kinds) and (doc := ast.get_docstring(node)):
                opening = doc.splitlines()[0]
                assert not re.match(r"(What|Who|Whose|Whether|Of)\b", opening), (
                    f"{module}: {opening}"
                )


def test_functions_have_at_most_45_lines() -> None:
    for module, node in FUNCTIONS:
        size = (node.end_lineno or 0) - node.lineno + 1
        assert size <= 45, f"{module}.{node.name} has {size} lines"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "module", ["dpd.cli", "dpd.config", "dpd.distill", "dpd", "dpd.api", "dpd.watch.watch"]
)
def test_importing_the_command_line_does_not_load_torch(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "print(sorted(m for m in ('torch', 'mujoco', 'gymnasium', 'stable_baselines3')"
        " if m in sys.modules))"
    )
    done = run("-c", program)
    assert done.stdout == "[]\n", done.stderr


def cpu_seconds(*args: str) -> float:
    """Return the processor time of a command, which other processes do not lengthen much."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("-m", "dpd", *args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "dpd train" in done.stdout, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("args", "limit"), [(["--help"], 0.5), (["train", "--help"], 1.5)])
def test_help_answers_at_once(args: list[str], limit: float) -> None:
    assert statistics.median(cpu_seconds(*args) for _ in range(3)) < limit


@pytest.mark.parametrize("folder", ["agents", "envs"])
def test_the_folders_are_refused_under_another_import_name(folder: str) -> None:
    # `agents` is another distribution's name: ours must never be taken for it
    done = run("-c", f"import os, sys; sys.path.insert(0, {os.fspath(ROOT)!r}); import {folder}")
    assert done.returncode == 1
    assert f"ImportError: import dpd.{folder}" in done.stderr
