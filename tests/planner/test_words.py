"""Figures and layouts in few letters."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from llmkit.estimate.devices import Hardware
from llmkit.estimate.term import Term
from llmkit.planner import words


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (2**30, "bytes", "1.0 GiB"), (42.5e9, "bytes/s", "42.5 GB/s"), (0.0123, "s", "12.3 ms"),
        (7.589, "s", "7.59 s"), (3700, "s", "1 h 01 min"), (0.0123, "share", "1.23%"),
        (1234.5, "kWh", "1,234 kWh"), (12345.7, "USD", "12,346 USD"),
    ],
)  # fmt: skip
def test_values(number, unit, text):
    assert words.value(Term("x", number, unit, "")) == text


def test_fleets():
    hardware = Hardware()
    assert words.fleet(hardware.fleet("h100", 1)) == "1 x h100 (one node)"
    assert words.fleet(hardware.fleet("h100", 8)) == "8 x h100 (one node; nvlink4 inside)"
    many = words.fleet(hardware.fleet("a100", 8, 128))
    assert many == "1,024 x a100 (128 nodes of 8; nvlink3 inside, ib-hdr between)"


def test_tables_have_columns():
    assert words.table([("a", "1", "x"), ("bcd", "20", "")], right=(1,)) == ["a     1  x", "bcd  20"]
    assert words.table([]) == []


def test_a_column_of_words_goes_on_in_further_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    row = ("a name", "1.5 GiB", "of the memory of a process that has a lot of it and of others")
    lines = words.table([row, ("b", "2 GiB", "short")], right=(1,), words=2)
    assert max(map(len, lines)) <= 60 and lines[0].startswith("a name  1.5 GiB  of the memory")
    assert " ".join(lines[:-1]).split() == " ".join(row).split()
    assert lines[1].startswith(" " * 17) and lines[-1] == "b         2 GiB  short"


def test_a_command_in_several_lines_is_the_same_for_a_shell(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    line = "llmkit train config.yaml 'data.sources=[{type: text, path: DATA}]' a.b=1 " + "c.d=2 " * 20
    lines = words.command(line.strip())
    assert max(map(len, lines)) <= 60 and len(lines) > 3
    joined = "\n".join(lines)
    script = ["sh", "-c", f"printf '%s\\n' {joined}"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == shlex.split(line)


def test_without_a_terminal_lines_have_80_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: (_ for _ in ()).throw(OSError))
    assert words.width() == 80
