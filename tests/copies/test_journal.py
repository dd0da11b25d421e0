from __future__ import annotations

from pathlib import Path

from llmkit.copies.journal import Journal
from llmkit.copies.outgoing import stored
from llmkit.data.sources.remote import FileStat

FILE = stored("a", b"abc")


def test_what_was_sent_is_known_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    journal = Journal(path, "s3://bucket/a")
    assert not journal.has("x/a", FILE)
    journal.add("x/a", FILE, FileStat(3, "tag"))
    assert journal.bytes_sent == 3
    again = Journal(path, "s3://bucket/a")
    assert again.has("x/a", FILE) and again.head("x/a") == FileStat(3, "tag") and again.bytes_sent == 0
    assert not again.has("x/a", stored("a", b"abd"))
    assert not Journal(path, "s3://bucket/b").has("x/a", FILE)


def test_what_was_deleted_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    journal = Journal(path, "s")
    for name in ("x/a", "x/b"):
        journal.add(name, FILE, FileStat(3, ""))
    journal.forget("x/a")
    journal.tidy()
    journal.add("x/c", FILE, FileStat(3, ""))
    again = Journal(path, "s")
    assert [again.has(name, FILE) for name in ("x/a", "x/b", "x/c")] == [False, True, True]


def test_torn_lines_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    Journal(path, "s").add("x/a", FILE, FileStat(3, ""))
    path.write_bytes(path.read_bytes() + b'{"store": "s", "name": "x/b", "dig')
    assert Journal(path, "s").has("x/a", FILE) and not Journal(path, "s").has("x/b", FILE)
