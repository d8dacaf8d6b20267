"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("", "/cooperative", "/distill", "/fidelity", "/study")
SOURCES = sorted(
    path
    for folder in (*(f"dpd{name}" for name in PACKAGES), "agents", "envs")
    for path in (ROOT / folder).glob("*.py")
)
# Lower first: a layer may import itself and the layers below it.
LAYERS = [
    {"dpd.agents", "dpd.envs"},
    {"dpd.distill", "dpd.collect", "dpd.evaluate", "dpd.policyfile", "dpd.policymeta", "dpd.sb3"}
    | {"dpd.log", "dpd.csvlog", "dpd.naming", "dpd.tblog"}
    | {"dpd.memory"}
    | {"dpd.archive", "dpd.sb3kinds", "dpd.sb3zip", "dpd.sources", "dpd.vecnormalize"}
    | {"dpd.clock", "dpd.files", "dpd.intervals", "dpd.plots", "dpd.run_config", "dpd.runs"}
    | {"dpd.settings", "dpd.sheets", "dpd.teachers", "dpd.terminal", "dpd.webpage"},
    {"dpd.stack", "dpd.training", "dpd.policies", "dpd.checkpoint"},
    {"dpd.rundir"},
    {"dpd.train", "dpd.compare", "dpd.cooperative", "dpd.export", "dpd.fidelity", "dpd.study"},
    {"dpd.cli"},
]
NO_TORCH = [
    "dpd/__init__.py",
    "dpd/__main__.py",
    "dpd/cli.py",
    "dpd/clock.py",
    "dpd/commands.py",
    "dpd/config.py",
    "dpd/cooperative/__init__.py",
    "dpd/cooperative/config.py",
    "dpd/distill/__init__.py",
    "dpd/distill/peers_config.py",
    "dpd/distill/presets.py",
    "dpd/distill/retrieval_config.py",
    "dpd/distill/scaffold_config.py",
    "dpd/distill/schedule.py",
    "dpd/distill/teaching_config.py",
    "dpd/naming.py",
    "dpd/run_config.py",
    "dpd/settings.py",
    "dpd/study/__init__.py",
    "dpd/study/config.py",
    "agents/__init__.py",
    "agents/learner_config.py",
    "agents/offpolicy_config.py",
    "agents/ppo_config.py",
    "agents/student_config.py",
]


def module_name(path: Path) -> str:
    """Return a source file's import name: agents and envs are dpd.agents and dpd.envs."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "dpd" else ("dpd", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, at_import_time: bool = False) -> set[str]:
    """Return all modules a file imports; without those inside functions and type checks."""

    def walk(node: ast.AST) -> set[str]:
        found: set[str] = set()
        for child in ast.iter_child_nodes(node):
            if at_import_time and (
                isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            ):
                continue
            if isinstance(child, ast.Import):
                found |= {alias.name for alias in child.names}
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"relative import in {path}"
                found |= {child.module, *(f"{child.module}.{a.name}" for a in child.names)}
            found |= walk(child)
        return found

    return walk(ast.parse(path.read_text()))


def layer(module: str) -> int | None:
    """Return how high a module stands, if it has a place of its own."""
    for height, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return height
    return None


def within(modules: set[str], package: str) -> set[str]:
    return {m for m in modules if m == package or m.startswith(package + ".")}


def test_all_sources_are_read() -> None:
    names = {module_name(path) for path in SOURCES}
    assert {"dpd", "dpd.cli", "dpd.distill.peers", "dpd.agents.ppo", "dpd.envs.base"} <= names
    # the linked folders are the same files, and are not read twice
    assert (ROOT / "dpd/agents").resolve() == ROOT / "agents"
    assert (ROOT / "dpd/envs").resolve() == ROOT / "envs"
    assert "dpd.agents.learners" in imports(ROOT / "dpd/stack.py")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down_only(path: Path) -> None:
    own = layer(module_name(path))
    if own is not None:
        # what only a type checker sees runs no code
        higher = {m for m in imports(path, at_import_time=True) if (layer(m) or 0) > own}
        assert not higher


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "agents"], ids=module_name)
def test_agents_know_of_agents_alone(path: Path) -> None:
    ours = within(imports(path), "dpd")
    assert ours == within(ours, "dpd.agents")


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "envs"], ids=module_name)
def test_environments_know_of_environments_alone(path: Path) -> None:
    ours = within(imports(path), "dpd")
    assert ours == within(ours, "dpd.envs")


def test_only_one_module_imports_stable_baselines3() -> None:
    users = [module_name(path) for path in SOURCES if within(imports(path), "stable_baselines3")]
    assert users == ["dpd.sb3"]


@pytest.mark.parametrize("name", NO_TORCH)
def test_configuration_imports_no_torch(name: str) -> None:
    assert not within(imports(ROOT / name, at_import_time=True), "torch")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("module", ["dpd.cli", "dpd.config", "dpd.distill", "dpd"])
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
