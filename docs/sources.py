"""MkDocs hook: make links from the documentation to files outside docs/ work on the site.

Such links are relative paths, which GitHub resolves. On the site, every linked file becomes a page
of its own; `path.py#name` leads to the line that defines the name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)")
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml"}


def on_files(files: Any, *, config: Any) -> Any:
    """Add a page for every file outside docs/ that a page links to, and for those it links to."""
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


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point links that leave docs/ at the pages made for their targets."""
    uri = page.file.src_uri
    is_source = uri.startswith("source/")
    origin = ROOT / uri.removeprefix("source/") if is_source else DOCS / uri
    return LINK.sub(lambda link: on_site(link, origin, uri), markdown)


def on_site(link: re.Match[str], origin: Path, uri: str) -> str:
    """Return a link as the page `uri`, whose text is in `origin`, must write it."""
    text, path, anchor = link[1], (origin.parent / link[2]).resolve(), link[3] or ""
    if not path.is_relative_to(ROOT) or not path.exists():
        return link[0]  # for MkDocs to report
    if path.is_relative_to(DOCS):
        target = path.relative_to(DOCS).as_posix()
    elif path.is_file():
        target = source_uri(path)
        if path.suffix == ".py" and anchor:
            anchor = f"#__codelineno-0-{line_of(path, anchor.removeprefix('#'))}"
    else:
        return text  # a folder has no page
    return f"[{text}]({os.path.relpath(target, Path(uri).parent)}{anchor})"


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
