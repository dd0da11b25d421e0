"""The file is well-formed SVG that holds every line and no markup of names."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from llmkit.planner.svg import Chart, Line, svg

SVG = "{http://www.w3.org/2000/svg}"


def test_lines_and_labels():
    lines = [Line("up", [(8, 100), (16, 200), (32, 400)]), Line("<one>", [(8, 100)], dashed=True)]
    root = ElementTree.fromstring(svg([Chart("A & B", "devices", "tokens/s", lines)]))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"A & B", "devices", "tokens/s", "up", "<one>"} <= set(texts)
    drawn = [path for path in root.iter(f"{SVG}path") if path.get("class") == "l"]
    assert len(drawn) == 2


def test_doublings_are_as_far_apart_as_each_other():
    text = svg([Chart("", "", "", [Line("", [(1, 1), (2, 2), (4, 4)])])])
    (line,) = re.findall(r'class="l"[^>]* d="([^"]+)"', text)
    moves = re.findall(r"l(-?\d+) ?(-?\d+)", line)
    assert len(moves) == 2 and moves[0] == moves[1], "equal moves on logarithmic axes"


def test_charts_without_points_are_left_out():
    flat = Line("x", [(1, 5), (2, 5)])
    text = svg([Chart("empty", "", "", [Line("x", [])]), Chart("full", "", "", [flat])])
    assert "empty" not in text and "full" in text
    assert svg([]).startswith("<svg")
