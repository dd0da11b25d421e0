"""The journal knows what a line of the W&B run was made of, whatever was cut back or lost in between."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmkit.monitor.wandb_journal import RESERVE, Journal, digest


def digests(*lines: bytes) -> set[str]:
    return {digest(line) for line in lines}


def test_entries_are_told_by_their_kind(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.digests("m") == set()
    for kind, line in (("m", b"1\n"), ("m", b"22\n"), ("a", b"media\n")):
        journal.append(kind, line)
    assert journal.digests("m") == digests(b"1\n", b"22\n") and journal.digests("a") == digests(b"media\n")
    assert len(journal) == 3


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
    again.fill(4)
    assert len(again) == 4 and again.digests("m") == digests(b"1\n", b"2\n")


def test_a_damaged_entry_is_that_of_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for line in (b"1\n", b"2\n", b"3\n"):
        journal.append("m", line)
    data = bytearray((tmp_path / "journal").read_bytes())
    data[19:38] = b"\x00\xff" * 9 + b"m"
    (tmp_path / "journal").write_bytes(data)
    again = Journal(tmp_path / "journal")
    assert len(again) == 3 and again.digests("m") == digests(b"1\n", b"3\n")


def test_wandb_gets_nothing_on_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal")
    with monkeypatch.context() as full:
        full.setattr("os.fstatvfs", lambda _: SimpleNamespace(f_bavail=RESERVE // 4096 - 1, f_frsize=4096))
        with pytest.raises(OSError, match="No space left"):
            journal.append("m", b"1\n")
    assert len(journal) == 0
    journal.append("m", b"1\n")
    assert len(journal) == 1


def test_half_an_entry_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append("m", b"1\n")
    with open(tmp_path / "journal", "ab") as file:
        file.write(b"m 0123")
    again = Journal(tmp_path / "journal")
    assert len(again) == 1
    again.append("m", b"2\n")
    assert again.digests("m") == digests(b"1\n", b"2\n")

    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda file, data, place: write(file, data[:5], place))
    with pytest.raises(OSError, match="No space left"):
        again.append("m", b"3\n")
    assert len(again) == len(Journal(tmp_path / "journal")) == 2
