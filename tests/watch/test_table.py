"""Tables for the terminal."""

from __future__ import annotations

from rich.text import Text

from llmkit.watch.table import Column, draw

COLUMNS = [
    Column("name", ["a", "long name"], left=True, shortest=5),
    Column("none", ["", ""]),
    Column("state", ["on", "off"], left=True, styled=True),
    Column("n", ["1", "22"]),
    Column("", ["", "what has happened"], left=True, shortest=8),
]


def test_columns_are_as_wide_as_their_texts_and_empty_ones_are_left_out() -> None:
    assert list(draw(COLUMNS, ["red", "green"])) == [
        "name       state   n",
        "a          on      1",
        "long name  off    22  what has happened",
    ]


def test_the_last_column_is_cut_first() -> None:
    assert list(draw(COLUMNS, ["red", "green"], width=35))[2] == "long name  off    22  what has hap…"
    assert list(draw(COLUMNS, ["red", "green"], width=20))[2] == "long…  off    22  what ha…"


def test_only_what_is_styled_is() -> None:
    painted = list[Text]()
    list(draw(COLUMNS, ["red", "green"], paint=lambda text: painted.append(text) or ""))
    spans = [
        [(text.plain[span.start : span.end].strip(), span.style) for span in text.spans] for text in painted
    ]
    assert spans == [[("name       state   n", "bold")], [("on", "red")], [("off", "green")]]
