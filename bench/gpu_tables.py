"""Write the GPU section of docs/benchmarks.md from the results of bench/gpu.sh.

python bench/gpu_tables.py            writes the section
python bench/gpu_tables.py --check    exits with an error if it is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- gpu: made by bench/gpu_tables.py -->", "<!-- gpu: end -->"
PUBLISHED = (
    ("mjlab, PPO end to end, HalfCheetah", "450,000", "RTX PRO 5000 Blackwell"),
    ("mjlab, PPO end to end, Ant", "182,000", "RTX PRO 5000 Blackwell"),
    ("mjlab, PPO end to end, Humanoid", "127,000", "RTX PRO 5000 Blackwell"),
    ("mjlab, Ant, simulation alone, 4,096 environments", "313,000", "RTX PRO 5000 Blackwell"),
    ("rl_games and envpool, PPO", "27,000 to 34,000", "Apple M5 Max"),
    ("LeanRL, TD3, one learner and environment, compiled", "936", "H100"),
)
"""Environment steps per second as published by their authors, not measured here."""

UNMEASURED = """
Nothing has been measured on a GPU yet: what `--device cuda` runs is tested on the CPU alone
(tests/agents/test_device.py says how). `bench/gpu.sh parity`, `speed` and `runs` measure, and
`python bench/gpu_tables.py` puts the results here. Goals on one H200: two PPO peers on HalfCheetah
at 1,000,000 environment steps per second end to end; two peers x 10M steps x 5 seeds in five
minutes; 20 stacked TD3 learners at 2,000 updates per second each. That `auto` simulates on the GPU
from 512 environments on is an estimate.
"""

Parts = dict[str, dict[str, Any]]


def section(parts: Parts) -> str:
    """Return the section; without measurements, the plan."""
    lines = ["## On a GPU", ""]
    if not parts:
        lines += textwrap.wrap(UNMEASURED.strip(), 96)
    for name, make in (("speed", speed), ("runs", runs), ("parity", parity)):
        if name in parts:
            lines += [*heading(name, parts[name]), *make(parts[name]["found"]), ""]
    lines += ["", "As published by others (environment steps per second):", ""]
    lines += table(("", "steps/s", "on"), PUBLISHED)
    return "\n".join(lines).rstrip() + "\n"


def heading(name: str, part: dict[str, Any]) -> list[str]:
    """Name the device of a part, and the measurement at which time ran out."""
    host = part["host"]
    text = f"`bench/gpu.sh {name}` on {host['device']}, torch {host['torch']}, "
    text += f"commit {str(host['commit'])[:10]}."
    if stopped := part.get("out_of_time_before"):
        text += f" Out of time before `{stopped}`."
    goals = [goal_line(goal) for goal in part.get("goals", [])]
    return [f"### {name.capitalize()}", "", text, "", *goals, *([""] if goals else [])]


def goal_line(goal: dict[str, Any]) -> str:
    """Format a goal and its measurement."""
    value, bound = goal["measured"], goal.get("least", goal.get("most"))
    if value is None:
        return f"* {goal['goal']}: {bound:,}; not measured"
    met = value >= bound if "least" in goal else value <= bound
    return f"* {goal['goal']}: {bound:,}; measured {value:,.0f}, {'met' if met else 'not met'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a Markdown table with text in the first column and numbers in the others."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def named(found: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the measurements with a prefix, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def number(record: dict[str, Any], key: str) -> str:
    """Format a measurement, or its error."""
    return f"{record[key]:,.0f}" if key in record else record.get("error", "-")[:60]


def speed(found: dict[str, Any]) -> list[str]:
    """Return the tables of speed."""
    ends = [
        (name, number(each, "steps_per_s"), f"{each.get('in_use_gb', float('nan')):.1f}")
        for algo in ("ppo/", "td3/", "sac/")
        for name, each in ((algo + k, v) for k, v in named(found, algo).items())
    ]
    lines = table(("`dpd train`, two peers", "steps/s", "GB in use"), ends)
    updates = [
        (name, number(each, "updates_per_s_each"), number(each, "updates_per_s_all"))
        for name, each in named(found, "updates/").items()
    ]
    lines += ["", *table(("stacked updates, 256-256", "of each /s", "of all /s"), updates), ""]
    sizes = sorted({int(n) for each in named(found, "envs/").values() for n in each if n.isdigit()})
    rows = [
        (env_id, *(number(each, str(n)) for n in sizes))
        for env_id, each in named(found, "envs/").items()
    ]
    lines += table(("simulation alone, environments", *(f"{n:,}" for n in sizes)), rows)
    for env_id, each in named(found, "few/").items():
        rates = {k: v for k, v in each.items() if isinstance(v, dict)}
        few = [(k, *(f"{x:,.0f}" for x in v.values())) for k, v in rates.items()]
        if few:
            counts = next(iter(rates.values()))
            lines += ["", *table((f"few, {env_id}", *(f"{int(n):,}" for n in counts)), few)]
    return lines


def runs(found: dict[str, Any]) -> list[str]:
    """Return the table of returns."""
    rows = []
    for name, each in found.items():
        values = sorted(each.get("returns", {}).values())
        shown = f"{mean(values):,.0f} ({values[0]:,.0f} to {values[-1]:,.0f})" if values else "-"
        steps = number(each, "steps_of_both_peers")
        rows.append((name, steps, number(each, "seconds"), str(len(values)), shown))
    head = ("run", "steps of both peers", "seconds", "learners", "return on the CPU (range)")
    return table(head, rows)


def parity(found: dict[str, Any]) -> list[str]:
    """Return the table of comparisons."""
    rows = []
    for name, each in found.items():
        said = {k: v for k, v in each.items() if k not in ("said", "where", "seconds_taken")}
        rows.append((name, json.dumps(said)[:160].replace("|", "/")))
    return table(("compared", "found"), rows)


def spliced(text: str, section: str) -> str:
    """Replace the section between its marks, or append it if there are none."""
    if BEGIN not in text:
        return f"{text.rstrip()}\n\n{BEGIN}\n{section}{END}\n"
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section}{END}{rest.split(END)[1]}"


def read(folder: Path) -> Parts:
    """Read the measured parts, without smoke runs."""
    found = {file.stem[4:]: json.loads(file.read_text()) for file in folder.glob("gpu-*.json")}
    return {name: part for name, part in found.items() if not part["quick"]}


def main() -> int:
    """Write the section, or check that it is up to date."""
    parser = argparse.ArgumentParser(description="Make the section on GPUs of docs/benchmarks.md.")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = DOCS.read_text()
    page = spliced(text, section(read(HERE / "results")))
    if args.check:
        return (
            0
            if page == text
            else sys.exit("docs/benchmarks.md is out of date; run bench/gpu_tables.py")
        )
    DOCS.write_text(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
