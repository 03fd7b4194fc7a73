"""HTML pages that need no network: templates with their style, script and charts inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirec import __version__
from minirec.report.style import Figure, inline

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Chart:
    """A chart of a page: its SVG, and what it shows in a sentence."""

    svg: str
    caption: str


def chart(name: str, figure: Figure, caption: str, tips: Mapping[str, str] | None = None) -> Chart:
    """A picture for a page; name, tips: see `style.inline`."""
    return Chart(inline(name, figure, caption, tips), caption)


def filled(template: str, escape: bool, **values: Any) -> str:
    """A template of the folder `templates` with these values; escape: for HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=escape, undefined=StrictUndefined)
    return environment.get_template(template).render(version=__version__, **values)


def render(template: str, **values: Any) -> str:
    """The page of a template; a browser is told to run no script but the page's own."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    page = filled(
        template,
        escape=True,
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
    return page.lstrip()  # macros leave empty lines
