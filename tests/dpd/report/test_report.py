"""Reports in all formats: text is escaped, pages load nothing from elsewhere, numbers are short."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dpd.report.figures import new_figure
from dpd.report.report import (
    Report,
    Section,
    Table,
    format_number,
    html_text,
    indented_json,
    markdown_text,
    print_report,
    save_report,
)
from dpd.report.stats import Interval
from tests.toy.html import Reader

EVIL = '<script src="x">&'
BLOCKS = Section(
    prose=[EVIL],
    terms=[(EVIL, f"`{EVIL}`")],
    figures=[lambda: new_figure(1, 1)],
    tables=[Table(EVIL, [EVIL, "b"], [[EVIL, "2"]]), Table("rest", ["x"], [["y"]], detail=True)],
)
REPORT = Report(title=EVIL, sections=[BLOCKS, Section(heading=EVIL)], data={"x": 1}, notes=[EVIL])


def test_a_page_escapes_every_text_and_shows_figures() -> None:
    seen = Reader()
    seen.feed(page := html_text(REPORT))
    assert "script" not in seen.tags and not seen.refers and seen.tags.count("svg") == 1
    assert seen.tags.count("h2") == 1  # a section without a heading has none
    # twice the page's title, a heading, a note, a paragraph, a term, its text; caption, head, cell
    assert seen.text.count(EVIL) == 10
    assert f"Note: {EVIL}." in seen.text
    assert page.count("<dd><code>&lt;script") == 1 and "<td>y</td>" in page


def test_markdown_has_all_but_the_figures() -> None:
    table = Table("t", ["a", "b"], [["x|y", "2"]])
    sections = [Section(heading="h", prose=["<p>"], terms=[("k", "`v`")], tables=[table])]
    text = markdown_text(Report(title="T", sections=sections, data=None, notes=["n"]))
    assert text == (
        "# T\n\nNote: n.\n\n## h\n\n&lt;p>\n\n* **k**: `v`\n\n"
        "t:\n\n| a | b |\n| --- | ---: |\n| x\\|y | 2 |\n"
    )


def test_the_terminal_shows_no_details_and_the_summary_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = Section(tables=[Table("first", ["a"], [["[b]1"]]), Table("no", ["a"], [], detail=True)])
    sections = [first, Section(tables=[Table("second", ["a"], [["2"]])])]
    print_report(Report(sections=sections, data={}, notes=["n"]))
    said = capsys.readouterr().out
    assert said.index("first") < said.index("[b]1") < said.index("second") < said.index("note: n")
    assert "no\n" not in said
    print_report(Report(sections=sections, data={}, summary_last=True))
    said = capsys.readouterr().out
    assert said.index("second") < said.index("first")
    print_report(Report(sections=sections, data={"x": [1]}), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"x": [1]}


def test_a_report_is_saved_in_three_formats_and_figures_are_drawn_for_the_page_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[Figure] = []

    def draw() -> Figure:
        drawn.append(new_figure(1, 1))
        return drawn[-1]

    report = Report(sections=[Section(figures=[draw])], data={"x": 1})
    print_report(report)
    assert not drawn
    assert save_report(report, tmp_path / "out", "r") == tmp_path / "out/r.html"
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"r.html", "r.json", "r.md"}
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (1.0, "1"),
        (0.99996, "<1"),
        (1 - 2e-16, "1"),
        (0.9876, "0.988"),
        (0.01234, "0.012"),
        (-0.0000234, "-2e-05"),
        (1234.5, "1,234"),
        (Interval(0.5, 1.25), "0.5…1.25"),
    ],
)
def test_numbers_are_short_and_nearly_all_is_not_all(
    value: float | Interval | None, text: str
) -> None:
    assert format_number(value) == text


def test_json_has_lists_of_numbers_on_one_line() -> None:
    data = {"a": [1, -2.5, None, 1e-9], "b": [[1, 2], []], "c": ["[\n1,\n 2]", "x"], "d": [{}]}
    text = indented_json(data)
    assert json.loads(text) == data
    assert '"a": [1, -2.5, null, 1e-09],' in text and "    [1, 2],\n    []" in text
    assert "NaN" not in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        indented_json([float("nan")])
