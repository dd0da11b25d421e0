"""The sweep of rates over widths, at the size of a test."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.rate_sweep import main, picture, table

LOSSES = {64: {0.5: [2.0, 2.2], 1.0: [1.9, 1.9]}, 128: {0.5: [1.5, 1.5], 1.0: [1.6, float("inf")]}}


@pytest.mark.exhaustive
def test_a_toy_sweep_writes_a_table_and_a_picture(tmp_path, capsys):
    given = ["--widths", "32,64", "--factors", "0.1,1", "--steps", "12", "--out", str(tmp_path)]
    assert main(given) == 0
    page = (tmp_path / "rate-sweep-32-64.md").read_text()
    assert page in capsys.readouterr().out
    rows = [[cell.strip("* ") for cell in line.split("|")[1:-1]] for line in page.splitlines()[2:]]
    assert [row[0] for row in rows] == ["32", "64"]
    assert all(float(row[2]) < float(row[1]) < 6.0 for row in rows), (
        "a tenth of the rate learns less in 12 steps"
    )
    assert (tmp_path / "rate-sweep-32-64.svg").exists()


def test_the_best_factor_of_a_width_is_bold():
    assert "| 64 | 2.1000 | **1.9000** |" in table(LOSSES)
    assert "| 128 | **1.5000** | inf |" in table(LOSSES)


def test_the_picture_has_a_line_for_each_width():
    lines = ElementTree.fromstring(picture(LOSSES)).findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
