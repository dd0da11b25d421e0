"""The picture of a needle test."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from llmkit.evaluation.needle import Cell
from llmkit.evaluation.needle_plot import plot

SVG = "{http://www.w3.org/2000/svg}"


def test_a_cell_shows_its_figures_in_the_colour_of_its_share():
    cells = [Cell(1024, 0.0, 4, 0.0, 3.5), Cell(1024, 1.0, 4, 0.25, 2.0), Cell(2048, 1.0, 4, 1.0, 0.01)]
    root = ElementTree.fromstring(plot(cells, 'runs/<a> & "b"'))
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert 'runs/<a> & "b"' in texts
    for shown in ("1,024", "2,048", "0 %", "100 %", "25 %", "3.50", "2.00", "0.01"):
        assert shown in texts, shown
    _, *drawn = root.iter(f"{SVG}rect")
    assert len(drawn) == 3
    assert [each.get("fill") for each in drawn] == ["#f7fbff", "#bbc8da", "#08306b"]
    places = [(int(each.get("x")), int(each.get("y"))) for each in drawn]
    assert places[0][0] == places[1][0] < places[2][0] and places[0][1] < places[1][1] == places[2][1]
    width, height = (int(root.get(name)) for name in ("width", "height"))
    assert all(x < width and y < height for x, y in places)
    assert not re.search(r"href|script|url\(", plot(cells, "x"))
