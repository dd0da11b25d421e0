"""The journal knows what a line of the W&B run was made of, whatever was cut back or lost in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmkit.monitor.wandb_journal import Journal, digest


def ends(*lines: bytes) -> dict[str, int]:
    """As a file of these lines gives them."""
    found, end = {}, 0
    for line in lines:
        end += len(line)
        found[digest(line)] = end
    return found


def test_the_end_is_that_of_the_last_line_of_its_kind(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.end("m", ends(b"1\n")) == 0
    for kind, line in (("m", b"1\n"), ("m", b"22\n"), ("a", b"media\n")):
        journal.append(kind, line)
    assert journal.end("m", ends(b"1\n", b"22\n", b"3\n")) == 5
    assert journal.end("a", ends(b"media\n", b"more\n")) == 6
    assert len(journal) == 3


def test_lines_that_were_cut_off_and_done_again_have_no_entry(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for line in (b"1\n", b"2\n", b"3\n"):
        journal.append("m", line)
    assert journal.end("m", ends(b"1\n", b"B\n", b"C\n", b"D\n")) == 2
    assert journal.end("m", ends(b"A\n")) == 0


def test_entries_outlive_the_process_but_for_those_that_the_server_has_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for line in (b"1\n", b"2\n", b"3\n"):
        journal.append("m", line)
    journal.close()
    again = Journal(tmp_path / "journal")
    assert len(again) == 3
    again.keep(2)
    again.keep(50)
    assert len(again) == len(Journal(tmp_path / "journal")) == 2
    assert again.end("m", ends(b"1\n", b"2\n", b"3\n")) == 4
    again.fill(4)
    assert len(again) == 4 and again.end("m", ends(b"1\n", b"2\n", b"3\n")) == 4


def test_half_an_entry_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append("m", b"1\n")
    with open(tmp_path / "journal", "ab") as file:
        file.write(b"m 0123")
    again = Journal(tmp_path / "journal")
    assert len(again) == 1
    again.append("m", b"2\n")
    assert list(again.last("m")) == [digest(b"2\n"), digest(b"1\n")]

    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda file, data, place: write(file, data[:5], place))
    with pytest.raises(OSError, match="No space left"):
        again.append("m", b"3\n")
    assert len(again) == len(Journal(tmp_path / "journal")) == 2
