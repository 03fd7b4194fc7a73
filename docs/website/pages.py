"""MkDocs hook: the site also has files from outside docs/, and links between the two lead to their pages.

Nothing is copied into git. Every link is written for a reader of the repository, and rewritten here for the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # file of the repository: its page on the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data/README.md": "howto/own-data.md",
    "config/config.yaml": "reference/config.md",
    "CITATION.cff": "citation.md",
    "tests/selection/published/README.md": "published.md",
}
GENERATED = {  # code that a reader of the repository looks at: the page that `reference` makes of it
    "src/minirec/cli/parser.py": "reference/commands.md",
    "src/minirec/experiment/sections.py": "reference/settings.md",
    "src/minirec/selection/methods": "reference/methods.md",
    "src/minirec/storage/columns.py": "reference/tables.md",
}
SECTIONS = {  # page: the section of the README that it is, or begins with
    "howto/own-data.md": "Your own data",
    "howto/own-model.md": "Your own model",
    "howto/stages.md": "One stage at a time",
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/ (an event of MkDocs)."""
    for page, title in SECTIONS.items():
        parts = [f"# {title}\n", relinked(section(read("README.md"), title), "README.md", page)]
        parts += ["#" + relinked(read(source), source, page) for source, own in PAGES.items() if own == page]
        files.append(File.generated(config, page, content="\n".join(parts)))
    for source, page in PAGES.items():
        if page not in SECTIONS:
            text = relinked(read(source), source, page) if source.endswith(".md") else shown(source)
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links to files outside docs/ rewritten (an event of MkDocs)."""
    return relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def read(source: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / source).read_text(encoding="utf-8")


def shown(source: str) -> str:
    """A page that shows a YAML file as it is."""
    return f"# {source}\n\n```yaml\n{read(source)}```\n"


def section(text: str, title: str) -> str:
    """What stands below the heading `## title`, up to the next of its level."""
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def relinked(text: str, source: str, page: str) -> str:
    """The text of the file `source` with its links as they must be on `page`; links to other sites stay."""
    return LINK.sub(lambda match: match[1] + target(match[2], source, page) + match[3], text)


def target(link: str, source: str, page: str) -> str:
    """One link of `source` as it must be on `page`; unchanged, so that MkDocs complains, if the site lacks its file.

    >>> target("docs/faq.md#x", "README.md", "howto/own-data.md"), target("#measured", "README.md", "howto/stages.md")
    ('../faq.md#x', '../index.md#measured')
    """
    path, hash_sign, anchor = link.partition("#")
    if re.match(r"[a-z]+:", link) or (not path and PAGES.get(source, page) == page):
        return link
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
    uri = PAGES.get(file) or GENERATED.get(file) or file.removeprefix("docs/")
    if uri == file:
        return link
    return posixpath.relpath(uri, posixpath.dirname(page)) + hash_sign + anchor
