"""MkDocs hook: make links from the documentation to files outside docs/ work on the site.

Such links are relative paths, which GitHub resolves. On the site, every linked file becomes a page
of its own; `path.py#name` leads to the line that defines the name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)")
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml"}


def on_files(files: Any, *, config: Any) -> Any:
    """Add a page for every file outside docs/ that a page links to, and for those it links to."""
    from mkdocs.structure.files import File  # here, because tests use this module without MkDocs

    texts = [(page.content_string, DOCS / page.src_uri) for page in files.documentation_pages()]
    added: set[Path] = set()
    while texts:
        text, origin = texts.pop()
        for path in linked_files(text, origin) - added:
            added.add(path)
            content, uri = source_page(path), source_uri(path)
            files.append(File.generated(config, uri, content=content))
            if path.suffix == ".md":
                texts.append((content, path))
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Any, **_: Any) -> str:
    """Point links that leave docs/ at the pages made for their targets."""
    from mkdocs.utils import get_relative_url

    uri = page.file.src_uri
    is_source = uri.startswith("source/")
    origin = ROOT / uri.removeprefix("source/") if is_source else DOCS / uri

    def rewritten(link: re.Match[str]) -> str:
        path, anchor = (origin.parent / link[2]).resolve(), link[3] or ""
        if not path.is_relative_to(ROOT) or not path.exists():
            return link[0]  # for MkDocs to report
        if path.is_dir():
            return link[1]  # a folder has no page
        inside = path.is_relative_to(DOCS)
        target = path.relative_to(DOCS).as_posix() if inside else source_uri(path)
        if path.suffix == ".py" and anchor:
            line = line_of(path, anchor.removeprefix("#"))
            url = get_relative_url(files.get_file_from_path(target).url, page.file.url)
            # as HTML, since MkDocs does not know the anchors of lines
            return f'<a href="{url}#__codelineno-0-{line}">{link[1]}</a>'
        return f"[{link[1]}]({os.path.relpath(target, Path(uri).parent)}{anchor})"

    return LINK.sub(rewritten, markdown)


def linked_files(text: str, origin: Path) -> set[Path]:
    """Return the files outside docs/ that a page links to."""
    paths = {(origin.parent / link[2]).resolve() for link in LINK.finditer(text)}
    inside = {path for path in paths if path.is_relative_to(ROOT) and path.is_file()}
    return {path for path in inside if not path.is_relative_to(DOCS)}


def source_uri(path: Path) -> str:
    """Return the page that shows a file."""
    name = path.relative_to(ROOT).as_posix()
    return f"source/{name}" if path.suffix == ".md" else f"source/{name}.md"


def source_page(path: Path) -> str:
    """Return the Markdown of a page that shows a file."""
    text = path.read_text()
    if path.suffix == ".md":
        return HIDDEN + text
    language = LANGUAGES.get(path.suffix, "text")
    name = path.relative_to(ROOT).as_posix()
    return f'{HIDDEN}# {name}\n\n``````{language} linenums="1"\n{text}``````\n'


def line_of(path: Path, name: str) -> int:
    """Return the line that defines a function, class or constant, or a method as in `Class.name`.

    Raises ValueError if the file does not define it.
    """
    lines = path.read_text().splitlines()
    start = 0
    for part in name.split("."):
        word = re.escape(part)
        defined = re.compile(rf"\s*(?:def|class)\s+{word}\b|{word}\b.*=")
        found = [k for k, line in enumerate(lines) if k >= start and defined.match(line)]
        if not found:
            raise ValueError(f"{path.relative_to(ROOT)} does not define {name}")
        start = found[0]
    return start + 1
