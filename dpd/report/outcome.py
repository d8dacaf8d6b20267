"""Results of a command for Python: rows that are dataclasses, figures, and the paths of files."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dpd.errors import BadInput
from dpd.report.report import Report, format_number, print_line, print_report

if TYPE_CHECKING:
    import pandas
    from _typeshed import DataclassInstance
    from matplotlib.figure import Figure

    Row = TypeVar("Row", bound=DataclassInstance)
else:
    Row = TypeVar("Row")

MAX_SHOWN = 40


class Rows(tuple[Row, ...]):
    """A table: an immutable sequence of dataclasses of one type."""

    __slots__ = ()

    def to_pandas(self) -> pandas.DataFrame:
        """Return a DataFrame with a column for each field. Raises BadInput without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise BadInput("to_pandas() needs pandas: pip install pandas") from error
        return pandas.DataFrame([asdict(row) for row in self])

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows; long lists and dictionaries are left out."""
        if not self:
            return "<p>no rows</p>"
        names = [f.name for f in fields(self[0]) if is_short(getattr(self[0], f.name))]
        lines = [table_line("th", names)]
        lines += [
            table_line("td", [cell_text(getattr(row, name)) for name in names])
            for row in self[:MAX_SHOWN]
        ]
        more = f"<p>{len(self):,} rows</p>" if len(self) > MAX_SHOWN else ""
        return f"<table>{''.join(lines)}</table>{more}"


def is_short(value: object) -> bool:
    """Return True if a value fits into the cell of a table."""
    return not isinstance(value, list | dict)


def cell_text(value: object) -> str:
    """Format a value for a cell."""
    if isinstance(value, bool) or not isinstance(value, float | None):
        return str(value)
    return format_number(value)


def table_line(tag: str, cells: Sequence[str]) -> str:
    """Return a line of an HTML table; text is escaped."""
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def make_rows(kind: type[Row], records: Iterable[Mapping[str, Any]]) -> Rows[Row]:
    """Make rows from records with the names of the fields; None where a record lacks one."""
    names = [f.name for f in fields(kind)]
    return Rows(kind(**{name: record.get(name) for name in names}) for record in records)


def ends_of(interval: Sequence[float] | None) -> dict[str, float | None]:
    """Return the fields `low` and `high` of an interval."""
    low, high = (None, None) if interval is None else interval
    return {"low": low, "high": high}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results of a command. Figures are drawn when they are asked for."""

    report: Report
    page: Path | None = None
    """The HTML page that the command wrote, if any."""
    status: int = 0
    """Exit status of the command: 0, or 128 + the number of the signal that stopped it."""
    lines: Sequence[str] = ()
    """Lines that the command prints below its tables, such as paths."""
    last: Callable[[], None] | None = None
    """The last step of the command, which is taken once the results are shown, as it may fail."""

    @property
    def data(self) -> Any:
        """Everything measured, as `--json` prints it and the .json file holds it."""
        return self.report.data

    @property
    def notes(self) -> list[str]:
        """Warnings about weak or unfair evidence."""
        return list(self.report.notes)

    @property
    def figures(self) -> list[Figure]:
        """The figures of the report, in its order, drawn by matplotlib without pyplot."""
        return [
            draw()
            for section in self.report.sections
            for draw in (*section.figures, *section.panels)
        ]

    def show(self, as_json: bool = False) -> None:
        """Print what the command prints: tables, notes and paths, or JSON."""
        print_report(self.report, as_json)
        if not as_json:
            for line in self.lines:
                print_line(line)


@dataclass(frozen=True)
class DifferenceRow:
    """A difference of mean returns, with its test."""

    env: str | None
    name: str
    """The run or arm that is compared."""
    minus: str
    """The run or arm whose mean is subtracted."""
    mean: float
    low: float | None
    """Lower end of the 95 % interval, which is not adjusted."""
    high: float | None
    p: float | None
    p_adjusted: float | None
    """Adjusted by Holm's method for all differences of the table."""
    verdict: str

    @classmethod
    def of(
        cls, difference: Mapping[str, Any], name: str, minus: str, env: str | None
    ) -> DifferenceRow:
        """Make a row from a difference's JSON."""
        test = [difference[k] for k in ("p", "p_adjusted", "verdict")]
        low, high = ends_of(difference["interval"]).values()
        return cls(env, name, minus, difference["mean"], low, high, *test)


@dataclass(frozen=True)
class PolicyRow:
    """Returns of a policy in deterministic episodes."""

    policy: str
    """Path of its file, or its name in a run."""
    env: str
    env_kwargs: dict[str, Any]
    steps: int | None
    """Environment steps of its training."""
    episodes: int
    mean: float
    std: float
    """Standard deviation over episodes."""
    min: float
    max: float
    length: float
    """Mean steps of an episode."""
    returns: list[float]
    share: float | None
    """Share of the steps of a group's hybrid that this peer acted; else None."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOutcome(Outcome):
    """Results of `dpd.evaluate`."""

    @property
    def policies(self) -> Rows[PolicyRow]:
        """A row for each policy; with `hybrid`, for each peer, the hybrid and its control."""
        records = self.data["policies"] if isinstance(self.data, dict) else self.data
        return make_rows(PolicyRow, records)

    @property
    def differences(self) -> Rows[DifferenceRow]:
        """With `hybrid` and several groups: the hybrids' return minus that of others."""
        found = self.data.get("differences", {}) if isinstance(self.data, dict) else {}
        env = self.policies[0].env
        return Rows(DifferenceRow.of(d, "hybrid", name, env) for name, d in found.items())


@dataclass(frozen=True)
class GroupRow:
    """A named group of an environment's observation."""

    group: str
    columns: str
    size: int
    low: float | None
    """Lowest value under uniform actions; None if it is not finite."""
    high: float | None


@dataclass(frozen=True, kw_only=True)
class GroupsOutcome(Outcome):
    """Results of `dpd.groups`."""

    @property
    def groups(self) -> Rows[GroupRow]:
        """A row for each group."""
        records = self.data["groups"].items()
        return make_rows(GroupRow, ({"group": name, **record} for name, record in records))


@dataclass(frozen=True, kw_only=True)
class PageOutcome(Outcome):
    """Results of `dpd.report`: the page."""

    def show(self, as_json: bool = False) -> None:
        """Print the path of the page, below what could not be shown on it."""
        for line in self.lines:
            print_line(line)


@dataclass(frozen=True, kw_only=True)
class ExportOutcome(Outcome):
    """Results of `dpd.export`."""

    path: Path
    """The file, or the folder of format sb3."""
    bytes: int

    def show(self, as_json: bool = False) -> None:
        """Print the path, the size and the result of the check."""
        for line in self.lines:
            print_line(line)
