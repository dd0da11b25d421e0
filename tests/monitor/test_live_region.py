"""Lines that are drawn in place, on an emulated terminal."""

from __future__ import annotations

from llmkit.monitor.live_region import LiveRegion
from tests.monitor.screen import Screen


def test_lines_replace_those_before_also_longer_and_more_of_them() -> None:
    screen = Screen()
    region = LiveRegion(screen.feed)
    for lines in (["a long first line", "second", "third"], ["short"], ["x", "y"]):
        region.show(lines)
        assert screen.lines == lines and (screen.row, screen.column) == (0, 0)
    region.clear()
    assert screen.lines == []


def test_what_stays_is_above_and_survives() -> None:
    screen = Screen()
    region = LiveRegion(screen.feed)
    region.print_above("before\n")
    region.show(["view", "of two lines"])
    region.print_above("one\ntwo\n")
    assert screen.lines == ["before", "one", "two", "view", "of two lines"]
    region.show(["view"])
    region.clear()
    region.print_above("last\n")
    assert screen.lines == ["before", "one", "two", "last"]


def test_what_others_print_in_between_stays_above_the_next_drawing() -> None:
    screen = Screen()
    region = LiveRegion(screen.feed)
    region.show(["", "view", "of two lines"])
    screen.feed("a warning\n")
    region.show(["", "view", "of two lines"])
    assert screen.lines == ["a warning", "", "view", "of two lines"]


def test_a_drawing_is_one_write_so_that_nothing_flickers() -> None:
    written = list[str]()
    region = LiveRegion(written.append)
    region.show(["a", "b"])
    region.print_above("c\n")
    region.clear()
    region.clear()
    assert len(written) == 3
