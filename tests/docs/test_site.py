"""The documentation site: built strictly without a network, whole links, and a reference that agrees with the code."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT

from minirec.cli.main import TYPED
from minirec.experiment import sections, sources
from minirec.experiment.commands import SECTIONS, STAGES, command, flag
from minirec.experiment.config import Compare, Main
from minirec.selection.methods.registry import methods
from minirec.storage.columns import TABLES

OFFLINE = """
import socket
def refuse(*_): raise OSError("the build used the network")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
MAIN = ("index", "tutorial", "reading", "why", "gpus", "howto/own-data", "reference/settings", "reference/commands")
MAIN += ("reference/methods", "METHOD", "files", "evidence")


class Page(HTMLParser):
    """What a page loads, links to, and the anchors that it has."""

    def __init__(self, file: Path):
        super().__init__()
        self.loads, self.links, self.anchors, self.base = [], [], {""}, file.parent
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if (tag, name) in LOADED:
                self.loads.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built by a process that has no network."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-c", OFFLINE, "build", "--strict", "--site-dir", str(folder)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}


def below(site: Path, page: str, heading: str) -> str:
    """The text of a page of the reference below a heading."""
    html = (site / f"{page}.html").read_text(encoding="utf-8")
    part = re.split(rf'<h2 id="{re.escape(heading)}">', html)
    assert len(part) == 2, f"{page} has no heading {heading}"
    return unescape(re.sub(r"<[^>]+>", " ", part[1].split("<h2 ")[0]))


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site, pages):
    assert len(pages) > 25
    for file, page in pages.items():
        assert [url for url in page.loads if re.match(r"(https?:)?//", url)] == [], file
        assert not re.search(r"@import|url\((?!['\"]?(data:|[#.]))", file.read_text(encoding="utf-8")), file
    for file in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", file.read_text(encoding="utf-8")), file


@pytest.mark.slow
def test_every_link_leads_to_a_file_and_an_anchor_of_the_site(pages):
    for file, page in pages.items():
        for link in page.links:
            path, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            where = (page.base / path).resolve() if path else file
            assert where.exists(), f"{file}: {link}"
            assert where not in pages or anchor in pages[where].anchors or anchor == "__skip", f"{file}: {link}"


@pytest.mark.slow
def test_every_setting_is_in_the_reference_with_its_sentence(site):
    named = {"main": Main, "compare": Compare, "datasetsname": sources.Dataset, "datasetsnamefilter": sources.Filter}
    named |= {"modelsname": sources.Model}
    resources = sections.Resources
    named |= {name: kind for name, kind in SECTIONS.items() if kind not in (resources, sections.Section)}
    assert len(named) > 25
    for name, kind in named.items():
        heading = "resources" if issubclass(kind, resources) else name
        text = " ".join(below(site, "reference/settings", heading).split())
        for setting, field in kind.model_fields.items():
            assert f"{setting} " in text, f"{name}.{setting}"
            assert " ".join((field.description or "").split()) in text, f"{name}.{setting}"


@pytest.mark.slow
def test_bounds_and_defaults_of_a_setting_are_those_that_the_code_checks(site):
    text = " ".join(below(site, "reference/settings", "policy").split())
    assert (
        "only the top n layers get adapters, all of a model that has fewer; null: all whole number or null null ≥ 1"
        in text
    )
    assert "tau temperature of the softmax over items number 0.02 > 0 prompt_history" in text
    assert "last , mean , context last whiten_dim" in text


@pytest.mark.slow
def test_every_column_of_every_table_is_in_the_reference(site):
    for name, table in TABLES.items():
        text = " ".join(below(site, "reference/tables", name).split())
        for column, one in table.columns.items():
            assert f" {column} {one.meaning} {one.type} " in f" {text} ", f"{name}.{column}"


@pytest.mark.slow
def test_every_command_is_in_the_reference_with_all_its_flags(site):
    for name in (*TYPED, *STAGES):
        text = below(site, "reference/commands", name)
        assert f"usage: minirec {name} " in text
        if name in STAGES:
            flags = [one.name for one in command(name).flags] + [setting for _, setting, _ in command(name).settings()]
            for one in flags:
                assert re.search(rf"{flag(one)}\b", text), f"{name} {one}"


@pytest.mark.slow
def test_every_method_is_in_the_reference_with_what_it_reads(site):
    html = (site / "reference" / "methods.html").read_text(encoding="utf-8")
    rows = [[unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<td>(.*?)</td>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]  # fmt: skip
    listed = {row[0]: row[2] for row in rows if row}
    assert listed == {name: ", ".join(one.reads) for name, one in methods().items()}


@pytest.mark.slow
def test_the_text_for_language_models_links_every_page_and_names_every_command(site, pages):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# minirec\n\n> ")
    links = re.findall(r"^- \[.+\]\((.+)\)$", text, re.MULTILINE)
    assert {(site / link).with_suffix(".html") for link in links} == set(pages)
    assert all((site / link).read_text(encoding="utf-8").lstrip().startswith("# ") for link in links)
    assert all(f"`minirec {name}`: " in text for name in (*TYPED, *STAGES))


@pytest.mark.slow
def test_search_finds_a_setting_and_a_method(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    for word in ("lora_targets", "learnalign", "history_age_ms"):
        assert any(word in entry["text"] for entry in index), word


@pytest.mark.slow
def test_no_main_page_is_wider_than_a_phone(site, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed (Debian package chromium)")
    frames = "".join(
        f'<iframe src="{(site / f"{page}.html").as_uri()}" width="390" height="844"></iframe>' for page in MAIN
    )
    script = """<script>onload = () => document.title = [...document.querySelectorAll("iframe")].map(frame =>
      frame.contentWindow.innerWidth + "/" + frame.contentDocument.documentElement.scrollWidth).join(" ");</script>"""
    (tmp_path / "frames.html").write_text(frames + script, encoding="utf-8")
    words = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--allow-file-access-from-files", "--dump-dom"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frames.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    widths = re.search(r"<title>(.*?)</title>", done.stdout)[1].split()
    assert dict(zip(MAIN, widths, strict=True)) == dict.fromkeys(MAIN, "390/390")


TEXTS = [*(ROOT / "docs").glob("*.md"), ROOT / "data" / "README.md"]
TEXTS += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def test_every_link_of_a_text_leads_to_a_file_of_the_repository():
    for file in TEXTS:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text(encoding="utf-8")):
            assert re.match(r"[a-z]+:", link) or (file.parent / link).exists(), f"{file.name}: {link}"


def test_an_empty_line_stands_between_text_and_a_list():
    """Without it a list shows on GitHub, but not on the site."""
    for file in TEXTS:
        text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"^(?!\s|#|[*-] |\d+\. ).+\n(?:[*-]|\d+\.) .*", text, re.MULTILINE) == [], file.name


def test_the_picture_of_the_stages_names_every_stage():
    drawn = re.findall(r"<text [^>]*>(\w+)</text>", (ROOT / "docs/images/stages.svg").read_text(encoding="utf-8"))
    stages = {*drawn} | {name.split("_")[0] for name in drawn}
    assert stages >= {*STAGES} - {"gather", "compare"}  # shards of a rollout, and the grid
