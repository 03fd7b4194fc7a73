"""One look for all pictures, as files and as SVG inside a page that follows its light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl

from minirec.storage.files import atomic_write

mpl.use("Agg")
INK, GRID = "#30363d", "#d5dae0"  # text and axes, grid lines
ALL, PICKED, POINTS = "#7f8c99", "#d55e00", "#0072b2"  # all samples or those not picked, the picked ones, others
# Okabe and Ito's colours, which colour-blind people can tell apart
LINES = [POINTS, PICKED, "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
MARKERS = ["o", "s", "D", "^", "v", "P"]
mpl.rcParams |= {
    "figure.figsize": (5.0, 3.4),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.rcsetup.cycler(color=LINES),
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "minirec",  # else ids are random, and so are the bytes
    "font.size": 10,
}
from matplotlib import pyplot as plt  # noqa: E402  after the backend is chosen
from matplotlib.figure import Figure  # noqa: E402

# file types, with metadata left out so that the same picture has the same bytes
KINDS: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}}
# colours of a picture and the CSS variables that take their place in a page
VARIABLES = {INK: "--ink", GRID: "--grid", ALL: "--all"}
VARIABLES |= {colour: f"--line{number}" for number, colour in enumerate(LINES)}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
ElementTree.register_namespace("", SVG[1:-1])
ElementTree.register_namespace("xlink", XLINK[1:-1])


def save(folder: Path, name: str, figure: Figure) -> Path:
    """Write a picture as PNG and SVG; returns the PNG file."""
    for kind, metadata in KINDS.items():
        with atomic_write(folder / f"{name}.{kind}") as partial:
            figure.savefig(partial, format=kind, dpi=180, metadata=metadata)
    plt.close(figure)
    return folder / f"{name}.png"


def inline(name: str, figure: Figure, description: str, tips: Mapping[str, str] | None = None) -> str:
    """A picture as an SVG element for an HTML page, with the page's font and CSS variables as colours.

    name: prefix of its ids, which must be unique in the page. description: what a screen reader says. tips: what the
    pointer shows over the points that link to these places of the page, such as `#sample-7`.
    """
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=KINDS["svg"], transparent=True)
    plt.close(figure)
    svg = ElementTree.fromstring(text.getvalue())
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}metadata":
                parent.remove(child)
        _make_ids_unique(parent, name, tips or {})
    for size in ("width", "height"):
        svg.attrib.pop(size, None)
    svg.attrib |= {"role": "img", "aria-label": description}
    html = ElementTree.tostring(svg, encoding="unicode")
    for colour, variable in VARIABLES.items():
        html = html.replace(colour, f"var({variable})")
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", html)


def _make_ids_unique(element: ElementTree.Element, name: str, tips: Mapping[str, str]) -> None:
    """Put `name` before an element's id and its references to ids; give links to keys of `tips` their words."""
    if "id" in element.attrib:
        element.attrib["id"] = f"{name}-{element.attrib['id']}"
    for key, value in element.attrib.items():
        element.attrib[key] = value.replace("url(#", f"url(#{name}-")
    place = element.attrib.get(f"{XLINK}href", "")
    if element.tag == f"{SVG}a":
        element.attrib.pop("target", None)  # which would open another window
        element.attrib["tabindex"] = "-1"  # the page's tables hold the same, in fewer stops for the keyboard
        tip = ElementTree.Element(f"{SVG}title")
        tip.text, tip.tail, element.text = tips.get(place, ""), element.text, None
        element.insert(0, tip)
    elif place.startswith("#"):
        element.attrib[f"{XLINK}href"] = f"#{name}-{place[1:]}"
