"""What an HTML page is made of."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Collects what a page refers to, its tags and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.refers: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.refers += [v or "" for k, v in attrs if k.split(":")[-1] in ("src", "href", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data
