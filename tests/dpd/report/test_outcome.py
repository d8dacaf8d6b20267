"""Tables of results are sequences of dataclasses, with pandas and HTML on request."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from dpd.errors import BadInput
from dpd.report.figures import new_figure
from dpd.report.outcome import Outcome, Rows, make_rows
from dpd.report.report import Report, Section, Table


@dataclass(frozen=True)
class Row:
    name: str
    value: float | None
    all: list[float]


ROWS = Rows([Row("<a>", 1234.5, [1.0]), Row("b", None, [])])


def test_rows_are_an_immutable_sequence_of_their_dataclass() -> None:
    assert len(ROWS) == 2 and ROWS[1].name == "b" and [row.name for row in ROWS] == ["<a>", "b"]
    made = make_rows(Row, [{"name": "x", "value": 2.0, "other": 1}])
    assert made == Rows([Row("x", 2.0, None)])  # type: ignore[arg-type]


def test_a_notebook_shows_rows_as_a_table_with_escaped_text() -> None:
    shown = ROWS._repr_html_()
    assert "<th>name</th><th>value</th></tr>" in shown  # no column for lists
    assert "<td>&lt;a&gt;</td><td>1,234</td>" in shown and "<td>b</td><td>-</td>" in shown
    assert Rows[Row]([])._repr_html_() == "<p>no rows</p>"
    assert "<p>50 rows</p>" in Rows([ROWS[0]] * 50)._repr_html_()


def test_pandas_is_used_if_it_is_there_and_named_if_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BadInput, match="pip install pandas"):
        ROWS.to_pandas()
    fake: Any = ModuleType("pandas")
    fake.DataFrame = list
    monkeypatch.setitem(sys.modules, "pandas", fake)
    assert ROWS.to_pandas()[0] == {"name": "<a>", "value": 1234.5, "all": [1.0]}


def test_an_outcome_shows_what_the_command_prints_and_draws_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[int] = []

    def draw() -> Any:
        drawn.append(1)
        return new_figure(1, 1)

    section = Section(figures=[draw], panels=[draw], tables=[Table("t", ["a"], [["1"]])])
    report = Report(sections=[section], data={"x": 1}, notes=["weak"])
    outcome = Outcome(report=report, lines=["report  page.html"])
    outcome.show()
    assert capsys.readouterr().out.splitlines()[-2:] == ["note: weak", "report  page.html"]
    outcome.show(as_json=True)
    assert capsys.readouterr().out == '{\n  "x": 1\n}\n'
    assert outcome.data == {"x": 1} and outcome.notes == ["weak"] and not drawn
    assert len(outcome.figures) == len(drawn) == 2
