"""`dpd report`: one page about a run, or about all runs in a directory, as they are now."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpd.agents.table import ALGORITHMS
from dpd.distill.table import METHODS
from dpd.errors import BadInput
from dpd.files import replacing
from dpd.log.csv import read_table, tables_of
from dpd.log.log import flattened
from dpd.policies.policyfile import Policy
from dpd.report.figures import RETURNS, Curve
from dpd.report.outcome import PageOutcome
from dpd.report.panels import PHONE_WIDTH, draw_metric, draw_seed_returns
from dpd.report.report import (
    Report,
    Section,
    Table,
    Video,
    format_number,
    html_text,
    require_writable,
)
from dpd.run.config import RunConfig
from dpd.run.settings import default_learners
from dpd.run.sources import Place
from dpd.run.stored import StoredRun, find_runs
from dpd.run.summary import EVALUATION
from dpd.run.video import record_video

if TYPE_CHECKING:
    from dpd.report.config import ReportConfig

PAGE = "report.html"
VIDEO_SEED, MAX_ROWS = 0, 12
EXCHANGE_PREFIXES = ("distill/", "share/")
"""Prefixes of the metrics that show the exchange; all others show the learning alone."""
HIDDEN = ("env", "algo", "method")
"""Settings that the page shows in its tiles."""


def write_page(config: ReportConfig) -> PageOutcome:
    """Write the page of a run, or of all runs in a directory."""
    out = config.out or config.path / PAGE
    find_runs(config.path)  # raises BadInput before the directory of --out is asked for
    require_writable(out.parent)
    report = run_report(config.path, config.videos, config.video_seconds)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as draft:
        draft.write_text(html_text(report), encoding="utf-8")
    lines = [*(f"note: {note}" for note in report.notes), f"report  {out}"]
    return PageOutcome(report=report, page=out, lines=lines)


def run_report(path: Path, videos: int = 0, seconds: float = 8.0) -> Report:
    """Report on the run in a directory, or on the runs in it. Raises BadInput if there are none."""
    runs = find_runs(path)
    tasks: dict[str, list[StoredRun]] = {}
    for run in runs:
        tasks.setdefault(str(run.settings.get("env")), []).append(run)
    sections, notes = [], []
    for env, of_env in tasks.items():
        shown, note = task_sections(of_env, env if len(tasks) > 1 else "")
        video, failed = video_section(of_env, videos, seconds, env if len(tasks) > 1 else "")
        sections += [*shown[:2], *video, *shown[2:]]  # below the returns
        notes += [text for text in (*note, *failed) if text not in notes]
    name = runs[0].name if len(runs) == 1 else path.resolve().name
    data = {"path": str(path), "runs": [run_json(run) for run in runs], "notes": notes}
    return Report(title=f"{name}: {', '.join(tasks)}", sections=sections, data=data, notes=notes)


def task_sections(runs: Sequence[StoredRun], env: str) -> tuple[list[Section], list[str]]:
    """Report on the runs of one environment; return sections, and notes on unfinished runs."""
    is_one, where = len(runs) == 1, f" in {env}" if env else ""
    lines = lines_of(runs)
    styles = {name: k for k, name in enumerate(lines["eval/return"] | lines["train/return"])}
    for curves in lines.values():
        for name in curves:
            styles.setdefault(name, len(styles))
    draw = partial(draw_seed_returns, lines["eval/return"], lines["train/return"])
    has_returns = bool(lines["eval/return"] or lines["train/return"])
    first = [
        Section(
            heading=env,
            facts=facts_of(runs[0]).items() if is_one else (),
            tables=[] if is_one else [runs_table(runs)],
        ),
        Section(
            heading=f"Returns{where}",
            prose=[explain(runs)] if has_returns else ["No episode has ended yet."],
            figures=[draw] if has_returns else (),
            narrow_figures=[partial(draw, width=PHONE_WIDTH)] if has_returns else (),
        ),
    ]
    metrics = sorted(lines.keys() - set(RETURNS))
    exchange = [m for m in metrics if m.startswith(EXCHANGE_PREFIXES)]
    learning = [m for m in metrics if m not in exchange]
    health = [
        Section(
            heading=f"{title}{where}",
            panels=[partial(draw_metric, m, lines[m], styles) for m in chosen],
        )
        for title, chosen in (("The exchange", exchange), ("Learning", learning))
        if chosen
    ]
    policies = Section(
        heading=f"Policies{where}",
        tables=[table := policies_table(runs)],
        is_folded=len(table.rows) > MAX_ROWS,
    )
    notes = [
        f"{run.name} has {run.steps:,} of {run.settings['total_steps']:,} steps"
        for run in runs
        if not is_at_end(run)
    ]
    return [*first, *health, policies, *settings_sections(runs, env)], notes


def lines_of(runs: Sequence[StoredRun]) -> dict[str, dict[str, Curve]]:
    """Return curves by metric and name: a line for each peer of one run, or for each of several."""
    lines: dict[str, dict[str, Curve]] = {name: {} for name in RETURNS}
    for run, label in zip(runs, labels(runs), strict=True):
        for metric, peers in run.curves.items():
            own = lines.setdefault(metric, {})
            if len(runs) == 1:
                names = run.peer_names
                own |= {names.get(k, f"peer{k}"): curve for k, curve in sorted(peers.items())}
            elif curve := run.mean_curve(metric):
                own[label] = curve
    return lines


def labels(runs: Sequence[StoredRun]) -> list[str]:
    """Return the names of runs without their folders, if these differ."""
    short = [run.name.rpartition("/")[2] for run in runs]
    return short if len(set(short)) == len(short) else [run.name for run in runs]


def explain(runs: Sequence[StoredRun]) -> str:
    """Explain the lines of the figures."""
    seeds = sorted({run.n_seeds for run in runs})
    of = "" if len(runs) == 1 else ", averaged over the peers of a run"
    n = " or ".join(map(str, seeds))
    over = ""
    if seeds != [1]:
        over = (
            f"Lines are interquartile means over {n} seeds, bands their 95 % bootstrap intervals; "
            "further down, means with 95 % t intervals. Bands of fewer than 6 seeds are ranges."
        )
    return f"Returns of deterministic evaluations{of}; faint: of training episodes. {over}".strip()


def is_at_end(run: StoredRun) -> bool:
    """Return True if another record as long as the last would not fit into the budget."""
    budget = int(run.settings["total_steps"])
    steps = sorted({s for peers in run.curves.values() for c in peers.values() for s in c})
    return bool(steps) and steps[-1] + steps[-1] - [0, *steps][-2] > budget


def facts_of(run: StoredRun) -> dict[str, str]:
    """Return the tiles of a run."""
    s = run.settings
    seeds, peers = s.get("seeds", 1), s.get("peers", 1)
    speed = sum(map(median_speed, tables_of(run.path / "metrics.csv")))  # of all processes
    best = run.best[0] if run.best else None
    facts = {
        "environment": str(Place(s["env"], json.loads(s.get("env_kwargs") or "{}"))),
        "steps per seed": f"{run.steps:,} of {s['total_steps']:,}",
        "learners": f"{peers} peer{'s' * (peers > 1)} × {seeds} seed{'s' * (seeds > 1)}",
        "algorithm": str(s.get("algo")),
        "method": str(s.get("method")),
        "steps per second": f"{speed:,.0f}" if speed else "",
        "device": str(s.get("device", "")),
        "best evaluation": ""
        if best is None
        else f"{format_number(best.evaluation)} ({best.file.stem})",
    }
    return {name: value for name, value in facts.items() if value}


def median_speed(table: Path) -> float:
    """Return the median of the recorded steps per second of a process; 0 before the first."""
    rows = (row for row in read_table(table) if row["metric"] == "time/steps_per_s")
    speeds = [float(row["value"]) for row in rows]
    return float(np.median(speeds)) if speeds else 0.0


def runs_table(runs: Sequence[StoredRun]) -> Table:
    """Tabulate runs: steps, seeds, peers, and the evaluations."""
    rows = []
    for run in runs:
        s, best = run.settings, run.best[0].evaluation if run.best else None
        counts = [f"{run.steps:,}", *(str(s.get(k, 1)) for k in ("seeds", "peers"))]
        evaluations = map(format_number, (run.last_evaluation, best))
        rows.append([run.name, str(s.get("algo")), str(s.get("method")), *counts, *evaluations])
    columns = ["run", "algo", "method", "steps", "seeds", "peers", "last evaluation", "best"]
    return Table("Runs; the last evaluation is a mean over learners", columns, rows)


def policies_table(runs: Sequence[StoredRun]) -> Table:
    """Tabulate all policies: their evaluation in training, and fresh episodes if known."""
    rows, episodes = [], set()
    for run in runs:
        file = run.path / EVALUATION
        fresh = {r["policy"]: r for r in json.loads(file.read_text())} if file.is_file() else {}
        for p in run.policies:
            r = fresh.get(p.file.stem, {})
            name = p.file.stem if len(runs) == 1 else f"{run.name} {p.file.stem}"
            steps = p.policy.meta.provenance.get("steps")
            known = [p.evaluation, *(r.get(k) for k in ("mean", "std", "min", "max", "length"))]
            rows.append([name, "-" if steps is None else f"{steps:,}", *map(format_number, known)])
            episodes |= {r["episodes"]} if r else set()
    columns = ["policy", "steps", "evaluation", "return", "± std", "min", "max", "length"]
    if not episodes:
        columns, rows = columns[:3], [row[:3] for row in rows]
    of = f"; return: of {'/'.join(map(str, sorted(episodes)))} fresh episodes" if episodes else ""
    return Table(f"Evaluation: the last one of the policy in training{of}", columns, rows)


def settings_sections(runs: Sequence[StoredRun], env: str) -> list[Section]:
    """Tabulate the settings that differ from the defaults or between runs, then all others."""
    where = f" in {env}" if env else ""
    each = [flattened(run.settings) for run in runs]
    names = [name for name in dict.fromkeys(n for s in each for n in s) if name not in HIDDEN]
    usual = [flattened(default_settings(run.settings)) for run in runs]

    def differs(name: str) -> bool:
        known = [
            (str(s[name]), str(u.get(name))) for s, u in zip(each, usual, strict=True) if name in s
        ]
        alike = len({value for value, _ in known}) == 1
        everywhere = alike and len(known) == len(runs) > 1
        return not everywhere and (not alike or any(value != default for value, default in known))

    columns = ["setting", *labels(runs)]
    chosen = [[f"{n}", *(str(s.get(n, "-")) for s in each)] for n in names if differs(n)]
    others = {n: next(str(s[n]) for s in each if n in s) for n in names if not differs(n)}
    what = "differ from the defaults" if len(runs) == 1 else "differ between the runs"
    return [
        Section(
            heading=f"Settings{where}",
            tables=[Table(f"Settings that {what}", columns, chosen)] * bool(chosen),
            prose=[] if chosen else [f"No settings {what}."],
        ),
        Section(
            heading=f"All other settings{where}",
            tables=[Table("Settings", ["setting", "value"], [list(x) for x in others.items()])],
            is_folded=True,
        ),
    ]


def default_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default settings of a run's algorithms and method, in the shape of its file."""
    row = METHODS.get(str(settings.get("method")))
    names = str(settings.get("algo")).split(",")
    if row is None or any(name not in ALGORITHMS for name in names):
        return {}
    learners = [asdict(default_learners(name, row.settings)) for name in names]
    of_peers = {f"peer{k}": x for k, x in enumerate(learners)} if learners[1:] else learners[0]
    values = {**asdict(RunConfig()), **of_peers, "distill": asdict(row.settings())}
    as_read: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return as_read


def video_section(
    runs: Sequence[StoredRun], n: int, seconds: float, env: str
) -> tuple[list[Section], list[str]]:
    """Record the best policies; return a section, or a note with the reason why there is none."""
    best = [(run, p) for run in runs for p in (run.best if len(runs) == 1 else run.best[:1])]
    best = sorted(best, key=lambda pair: -(pair[1].evaluation or 0.0))[:n]
    if not best:
        return [], []
    videos = []
    try:
        for run, p in best:
            name = p.file.stem if len(runs) == 1 else f"{run.name} {p.file.stem}"
            title = f"{name}: evaluation {format_number(p.evaluation)}"
            videos.append(Video(title, recorded(p.policy, seconds)))
    except BadInput as error:
        return [], [f"no videos: {str(error).removeprefix('no video: ')}"]
    where = f" in {env}" if env else ""
    return [Section(heading=f"The best policies{where}", videos=videos)], []


def recorded(policy: Policy, seconds: float) -> bytes:
    """Return a video of a policy's first seconds. Raises BadInput if it cannot be made."""
    place = Place(policy.meta.env_id, policy.meta.env_kwargs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.mp4"
        record_video(policy, place, file, VIDEO_SEED, seconds)
        return file.read_bytes()


def run_json(run: StoredRun) -> dict[str, Any]:
    """Return a run's state."""
    return {
        "run": run.name,
        "path": str(run.path),
        "steps": run.steps,
        "total_steps": run.settings["total_steps"],
        "last_evaluation": run.last_evaluation,
        "policies": [str(p.file) for p in run.policies],
    }
