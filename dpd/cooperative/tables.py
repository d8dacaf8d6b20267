"""What the terminal shows of cooperation: a line per round, and two tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpd.cooperative.report import Outcome, policy_json
from dpd.fidelity.tables import shown


def round_line(outcome: Outcome) -> str:
    """Say in one line what came of the last round."""
    found, total = outcome.rounds[-1], outcome.budget.total
    words = [f"round {found.number}/{outcome.config.rounds}"]
    for p in found.pairs:
        gap = f", gap {shown(p.gap_before)} → {shown(p.gap_after)}" if p.n_deficient else ""
        words.append(f"{p.teacher}→{p.student}: {p.n_deficient}+{p.n_counterfactuals} states{gap}")
    return "  ".join([*words, f"{outcome.budget.spent:,}/{total:,} steps"])


def print_tables(outcome: Outcome, console: Console) -> None:
    """Print every policy's returns, and every pair's figures in every round."""
    episodes = outcome.config.episodes
    title = f"{outcome.env_id}: the same {episodes} deterministic episodes before and after"
    names = ["", "policy", "before", "95 %", "after", "95 %", "gain", "95 %"]
    lay_out(console, title, names, return_rows(outcome))
    names = ["round", "pair", "states", "new", "success", "gap up", "gap", "left", "R²", "drift"]
    lay_out(console, "Who taught whom (teacher→student)", names, pair_rows(outcome))


def return_rows(outcome: Outcome) -> Iterator[list[str]]:
    """Lay out a row per policy."""
    for k in range(len(outcome.subjects)):
        known = policy_json(outcome, k)
        row = [str(k), outcome.name(k)]
        for figure, spread in (
            ("return_before", "interval_before"),
            ("return_after", "interval_after"),
            ("gain", "interval_gain"),
        ):
            row += [shown(known.get(figure)), shown(known.get(spread))]
        yield row


def pair_rows(outcome: Outcome) -> Iterator[list[str]]:
    """Lay out a row per pair and round."""
    for found in outcome.rounds:
        for p in found.pairs:
            figures = [p.cf_success, p.cf_gap_up, p.gap_before, p.gap_after, p.proxy_r2]
            figures.append(found.drift[p.student])
            head = [str(found.number), f"{p.teacher}→{p.student}"]
            counts = [str(p.n_deficient), str(p.n_counterfactuals)]
            yield [*head, *counts, *map(shown, figures)]


def lay_out(console: Console, title: str, names: list[str], rows: Iterator[list[str]]) -> None:
    """Print a table; names are folded, figures are not."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in names:
        is_text = name in ("", "policy", "pair")
        table.add_column(
            name,
            overflow="fold",
            justify="left" if is_text else "right",
            no_wrap=name != "policy",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
