"""The documentation is true: links resolve, commands parse, tables match the measurements."""

import ast
import functools
import importlib
import importlib.util
import itertools
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpd import cli
from dpd.run import flags
from dpd.study.arms import ARMS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
JUDGED = sorted([*RESULTS.glob("study-*.json"), *RESULTS.glob("cooperate-*.json")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ +(.*?)(?: *\{: *#([\w-]+) *\})?$", re.MULTILINE)


def bench(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script of the benchmarks as it is when it runs."""
    patch.syspath_prepend(ROOT / "bench")
    for other in (name, "cooperate", "marked", "timing"):
        patch.delitem(sys.modules, other, raising=False)
    return importlib.import_module(name)


def judged(data: Any) -> list[dict[str, Any]]:
    """Return everything in a file that has a verdict, floats to six digits."""
    if isinstance(data, list):
        return [found for each in data for found in judged(each)]
    if not isinstance(data, dict):
        return []
    own = [rounded(data)] if "verdict" in data else []
    return own + [found for each in data.values() for found in judged(each)]


def rounded(data: Any) -> Any:
    """Round floats to six digits, as another processor may sum in another order."""
    if isinstance(data, dict):
        return {k: rounded(v) for k, v in data.items()}
    if isinstance(data, list):
        return [rounded(each) for each in data]
    return float(f"{data:.6g}") if isinstance(data, float) else data


@pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.stem)
def test_committed_verdicts_are_those_of_todays_code(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads(path.read_text())
    again = bench("rejudge", monkeypatch).rejudged(data)
    # one control has three: the peers' mean, their best, and the mean over the run
    assert judged(again) == judged(data) and len(judged(data)) >= 3


@pytest.mark.parametrize("page", ["benchmarks.md", "results.md"])
def test_the_tables_are_those_of_the_measurements(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench("tables", monkeypatch).written(page) == (ROOT / "docs" / page).read_text()


def test_the_page_on_scaling_computes_from_the_measurements() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    measured = (ROOT / "docs" / "benchmarks.md").read_text()
    speeds = {"PPO, HalfCheetah": 42_169, "PPO, Humanoid": 11_004, "SAC": 580}
    for speed in speeds.values():
        assert f" {speed:,} " in measured and f"{speed:,}" in page
    found = re.findall(r"^\| (\w+, \w+).* ([\d]+)M steps \| (\d+) \|.* (\d\S*) \|$", page, re.M)
    assert len(found) == 4
    for study, millions, runs, hours in found:
        speed = speeds.get(study) or speeds[study.partition(",")[0]]
        # a run has two cores; the page rounds to two digits or to whole hours
        exact = 2 * int(runs) * int(millions) * 1e6 / speed / 3600
        assert float(hours) == pytest.approx(exact, rel=0.05)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def hook(name: str) -> ModuleType:
    """Import a hook of the site, which lies beside the pages and not in a package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


FLAGS, SOURCES = hook("flags"), hook("sources")


def prose(page: Path) -> str:
    """Return a page's text without code blocks, with the parts that hooks generate."""
    return FLAGS.on_page_markdown(FENCE.sub("", page.read_text()))


@functools.cache
def anchors(page: Path) -> set[str]:
    """Return a page's anchors, which are its headings as GitHub and MkDocs write them."""
    found = set()
    for heading, anchor in HEADING.findall(prose(page)):
        words = re.sub(r"[^\w\- ]", "", heading.lower()).strip()
        found.add(anchor or words.replace(" ", "-"))
    return found


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    broken = []
    text = re.sub(r"`[^`]*`", "code", FENCE.sub("", page.read_text()))
    links = [(link[2], link[3] or "") for link in SOURCES.LINK.finditer(text)]
    links += [("", anchor) for anchor in re.findall(r"\]\((#[^)\s]+)\)", text)]
    for path, anchor in links:
        target, name = (page.parent / path if path else page), anchor.removeprefix("#")
        if not target.exists():
            broken.append(path)
        elif name and target.suffix == ".py":
            try:
                SOURCES.line_of(target.resolve(), name)
            except ValueError as error:
                broken.append(str(error))
        elif name and name not in anchors(target):
            broken.append(path + anchor)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A b\n[x](#a-b) [y](gone.md) [z](#c) [`w`](page.md#d)\n```sh\n[v](no.md)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "page.md#d", "#c"]


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def shell_lines(page: Path) -> list[str]:
    """Return the lines of a page's sh blocks, those that end in a backslash joined."""
    blocks = [body for language, body in FENCE.findall(page.read_text()) if language == "sh"]
    return [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every `dpd ...` that a page tells its reader to run."""
    found = []
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        begins = (0, *(k + 1 for k, word in enumerate(words) if word in ("&&", "-m")))
        starts = [k for k in begins if words[k : k + 1] in (["dpd"], [".venv/bin/dpd"])]
        for start in starts:
            ends = [k for k, word in enumerate(words) if k > start and word in ("&&", "|", ">")]
            found.append(words[start + 1 : ends[0] if ends else None])
    return found


class Parsed(Exception):
    """Raised in place of running a command, once its arguments were parsed."""


def parse_only(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command by the real parser; run nothing. Raises BadInput if it is refused."""
    command, *words = argv
    if command in ("train", "distill"):
        cli.parse_run(words, command)
    elif command == "study":
        end = words.index("--") if "--" in words else len(words)
        study = cli.parse(cli.StudyConfig, words[:end], "dpd study").with_flags(words[end + 1 :])
        for arm in study.chosen:
            cli.parse_train(study.words(study.envs[0], arm))
    else:
        parse = cli.parse

        def stop(*args, **kwargs):
            parse(*args, **kwargs)
            raise Parsed

        with monkeypatch.context() as patch, pytest.raises(Parsed):
            patch.setattr(cli, "parse", stop)
            cli.COMMANDS[command](words)


def write_files_that_parsing_reads(argv: list[str]) -> None:
    """Write the settings that --config and --resume read, under the names that a command gives."""
    for flag, name in itertools.pairwise(argv):
        if flag in ("--config", "--resume"):
            file = Path(name, "config.json") if flag == "--resume" else Path(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(cli.parse_train(["HalfCheetah-v5"]).as_json()))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_shown_parses(page: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for argv in commands(page):
        write_files_that_parsing_reads(argv)
        parse_only(argv, monkeypatch)


def test_commands_are_found_and_wrong_ones_refused(tmp_path, monkeypatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\npip install 'dpd[gpu]'\ndpd train \\\n  --pers 3 # x\n"
        "torchrun -m dpd train && .venv/bin/dpd evaluate dpd > x\n```\n"
    )
    assert commands(page) == [["train", "--pers", "3"], ["train"], ["evaluate", "dpd"]]
    with pytest.raises(ValueError, match="--pers"):
        parse_only(["train", "--pers", "3"], monkeypatch)
    with pytest.raises(ValueError, match="--episods"):
        parse_only(["evaluate", "run", "--episods", "3"], monkeypatch)


def test_every_make_target_and_script_shown_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for line in shell_lines(page):
            words = shlex.split(line, comments=True)
            assert not words or words[0] != "make" or set(words[1:]) <= set(targets), line
            scripts = [word for word in words if re.fullmatch(r"bench/\w+\.(py|sh)", word)]
            assert all((ROOT / script).is_file() for script in scripts), line


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_python_example_compiles_and_imports_what_exists(page: Path) -> None:
    blocks = [body for language, body in FENCE.findall(page.read_text()) if language == "python"]
    for body in blocks:
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_every_command_method_and_arm_has_its_place() -> None:
    docs = ROOT / "docs"
    assert {f"{command}.md" for command in cli.COMMANDS} <= {
        guide.name for guide in (docs / "guides").iterdir()
    }
    for page, names in (
        ("concepts.md", flags.METHODS),
        (
            "guides/distill.md",
            [n for n, kind in flags.METHODS.items() if kind.settings.COMMAND == "distill"],
        ),
        ("guides/study.md", [name for name in ARMS if name != "dpd"]),
    ):
        text = (docs / page).read_text()
        assert [name for name in names if f"`{name}`" not in text] == [], page


def test_every_name_of_the_api_reference_exists() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    names = re.findall(r"^::: ([\w.]+)", page, re.MULTILINE)
    assert "dpd.load" in names
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_the_reference_of_flags_is_what_help_prints() -> None:
    text = "\n".join(FLAGS.reference())
    assert "| <code>--total-steps INT</code> | <code>1000000</code> | Environment steps" in text
    assert "### --method dagger" in text and "--distill.beta-start FLOAT" in text
    for command in cli.COMMANDS:
        printed = re.findall(
            r"^\W{1,3}(--[a-z][\w.-]*)[ ,]", FLAGS.help_text(command), re.MULTILINE
        )
        listed = [row[0] for group in FLAGS.groups_of(command) for row in group.rows]
        assert printed == [re.split("[ ,]", flag)[0] for flag in listed if flag.startswith("--")]
        # tyro takes a comment at the end of a field's line for its description.
        assert "type: ignore" not in FLAGS.help_text(command)
