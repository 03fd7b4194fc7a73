"""MkDocs hook: llms.txt (llmstxt.org), for language models that help users: what this is, its pages and commands.

It links the Markdown of every page, which is written beside the HTML.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minirec.cli.main import TYPED
from minirec.experiment.commands import STAGES, command

_markdown: dict[str, str] = {}  # of every page of this build, by its path
_nav: list[Any] = []


def on_nav(nav: Any, **_: Any) -> None:
    """Keep the navigation (an event of MkDocs)."""
    _nav[:] = nav.items


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Keep the Markdown of a page (an event of MkDocs)."""
    _markdown[page.file.src_uri] = page.markdown


def on_post_build(config: Any) -> None:
    """Write llms.txt and the Markdown of every page (an event of MkDocs)."""
    site = Path(config.site_dir)
    for uri, text in _markdown.items():
        (site / uri).write_text(text, encoding="utf-8")
    (site / "llms.txt").write_text("\n".join(lines(config)) + "\n", encoding="utf-8")


def lines(config: Any) -> Iterator[str]:
    """The lines of llms.txt."""
    yield f"# {config.site_name}\n"
    yield f"> {config.site_description} A Snakemake workflow over a small Python package: a cheap proxy tries every"
    yield "> training sample, a method picks a few of them, and RL (GRPO, LoRA) trains the recommender on these.\n"
    yield "Stages hand over Parquet and safetensors files in `results/`. `make quickstart` runs the whole chain on real"
    yield "data with a small model, `minirec show FILE` explains a file, `minirec COMMAND --help` lists the flags.\n"
    yield "Commands for people:\n"
    yield from (f"- `minirec {name}`: {sentence}" for name, sentence in TYPED.items())
    yield "\nStages, which the workflow runs and which run by hand as well:\n"
    yield from (f"- `minirec {name}`: {command(name).sentence}" for name in STAGES)
    yield "\n## Pages\n"
    for item in _nav:
        yield from entries(item, "")


def entries(item: Any, above: str) -> Iterator[str]:
    """The links of a part of the navigation; above: the titles that it stands under."""
    if item.children:
        for child in item.children:
            yield from entries(child, f"{above}{item.title}: ")
    else:
        yield f"- [{above}{item.title}]({item.file.src_uri})"
