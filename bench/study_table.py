"""The tables of `dpd study`'s results for docs/results.md; bench/tables.py writes them."""

from __future__ import annotations

from typing import Any

from marked import table

COLUMNS = ("arm", "mean", "IQM", "worst ¼", "best peer", "{} minus it", "p", "p adj.", "verdict")


def figure(value: float | None, interval: list[float] | None = None) -> str:
    """Format a number and its interval."""
    if value is None:
        return "-"
    low_high = "" if interval is None else " ({} to {})".format(*map(figure, interval))
    text = f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2f}"
    return text.replace("-", "−") + low_high


def rows_of(arms: dict[str, Any]) -> list[list[str]]:
    """Lay out a row per arm."""
    rows = []
    for arm, of_arm in arms.items():
        gap = of_arm.get("gap")
        cells = [figure(of_arm.get("mean")), figure(of_arm["iqm"], of_arm["interval"])]
        cells += [figure(of_arm.get(k)) for k in ("worst_quarter", "best_peer")]
        cells += judged(gap) if gap else [""] * 4
        rows.append([arm, *cells])
    return rows


def judged(gap: dict[str, Any]) -> list[str]:
    """Format a difference, its p values and its verdict."""
    p = [f"{gap[k]:.2g}" for k in ("p", "p_adjusted")]
    return [figure(gap["mean"], gap["interval"]), *p, gap["verdict"]]


def lines(data: dict[str, Any]) -> list[str]:
    """Lay out all tables."""
    head = [column.format(data["subject"]) for column in COLUMNS]
    parts: list[tuple[str, dict[str, Any]]] = [
        (
            f"{task['env']}, {data['algo'].upper()}, {data['total_steps']:,} steps per seed, "
            f"{data['seeds']} seeds; uniform actions get {figure(task['random'])}:",
            {k: v | {"interval": v["iqm_interval"]} for k, v in task["arms"].items()},
        )
        for task in data["tasks"]
    ]
    if data["whole"]:
        title = f"Over {len(parts)} tasks; 0 is uniform actions, 1 the best arm's mean in each:"
        parts.append((title, data["whole"]))
    laid_out: list[str] = []
    for title, arms in parts:
        laid_out += [title, "", *table(head, "l" + "r" * (len(head) - 2) + "l", rows_of(arms)), ""]
    return laid_out[:-1]
