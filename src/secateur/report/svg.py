"""matplotlib figures as SVG that belongs to the page: its colours, its font, ids of its own, nothing fetched.

Charts are drawn with the stand-in colours of `PAINT`; here each becomes a CSS variable of the page, which has one value
for light and one for dark. The XML header, metadata, namespaces and fixed size go, so the text can stand inside HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PAINT = {
    "ink": "#000001",
    "muted": "#000002",
    "line": "#000003",
    "track": "#000004",
    "accent": "#000005",
    "warm": "#000006",
    "paper": "#000007",
}
_VARIABLE = {colour: f"var(--{name})" for name, colour in PAINT.items()}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib settings for the charts, and only inside this context: one unit is one CSS pixel."""
    settings: Any = {
        "figure.dpi": 72,
        "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same on every machine
        "font.size": 10.5,
        "text.parse_math": False,  # a layer may be called "$x$"
        "svg.fonttype": "none",
        "axes.unicode_minus": True,
        "path.simplify": False,
    }
    with matplotlib.rc_context(settings):
        yield


def to_html(figure: Figure, name: str, title: str) -> str:
    """`figure` as an <svg> element for the page. `name` makes its ids its own; `title` is read by screen readers.

    The same figure gives the same text, byte for byte.
    """
    stream = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_figure(stream, format="svg", facecolor="none", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _mend(key, value, name) for key, value in element.attrib.items()}
        if element.tag == "text" and element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        element.tail = None
    for parent in root.iter():
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "chart", "role": "img", "aria-labelledby": f"{name}-title"}
    label = ElementTree.Element("title", {"id": f"{name}-title"})
    label.text = title
    root.insert(0, label)
    return ElementTree.tostring(root, encoding="unicode")


def _mend(key: str, value: str, name: str) -> str:
    """One attribute: ids and references prefixed, colours turned into variables, the font left to the page."""
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return f"#{name}-{value[1:]}"
    if key == "style":
        value = re.sub(r"font-family:[^;]*(; )?", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda match: _VARIABLE.get(match[0], match[0]), value)
    if key == "d":
        return " ".join(value.split())
    return value.replace("url(#", f"url(#{name}-")
