"""Pages escape all text, and load nothing from elsewhere."""

from markupsafe import Markup

from dpd.report.page import Block, Section, render_page
from dpd.report.tables import Table
from tests.toy.html import Reader

EVIL = '<script src="x">&'


def test_every_text_is_escaped_and_markup_is_not() -> None:
    table = Table(EVIL, [EVIL, "b"], [[EVIL, "2"]])
    blocks: list[Block] = [table, EVIL, {EVIL: EVIL}.items(), Markup("<svg></svg>")]
    seen = Reader()
    seen.feed(render_page(EVIL, [Section("", blocks), Section(EVIL, [])], [EVIL]))
    assert "script" not in seen.tags and not seen.refers and seen.tags.count("svg") == 1
    assert seen.tags.count("h2") == 1  # a section without a title has no heading
    # twice the page's title, a heading, a note, a paragraph, a term, its text; caption, head, cell
    assert seen.text.count(EVIL) == 10
    assert f"Note: {EVIL}." in seen.text


def test_markup_escapes_the_values_that_are_put_into_it() -> None:
    text = Markup("<code>{}</code>").format(EVIL)
    page = render_page("t", [Section("s", [[("term", text)]])])
    assert f"<dd><code>{Markup.escape(EVIL)}</code></dd>" in page
