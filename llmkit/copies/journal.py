"""Which files a run has sent to a store: a start that goes on after a kill sends each once."""

from __future__ import annotations

import threading
from pathlib import Path

from llmkit.copies.outgoing import Stored
from llmkit.data.sources.remote import FileStat
from llmkit.monitor.jsonlines import JsonLines


class Journal:
    """Files that a store has taken and that were verified there, one a line of a file. store: its URL, to
    which the lines belong. bytes_sent: since this was opened."""

    def __init__(self, path: Path, store: str) -> None:
        self._file, self._store, self._lock = JsonLines(path), store, threading.Lock()
        self.bytes_sent = 0
        self._sent: dict[str, tuple[str, FileStat]] = {}
        for row in self._file.rows():
            if row.get("store") == store and isinstance(row.get("name"), str):
                head = FileStat(row.get("size", -1), str(row.get("tag", "")))
                self._sent[row["name"]] = (str(row.get("digest")), head)

    def has(self, name: str, file: Stored) -> bool:
        """Whether this very content was sent under this name."""
        with self._lock:
            return name in self._sent and self._sent[name][0] == file.digest and file.size > 0

    def head(self, name: str) -> FileStat:
        """What the store had told of it then."""
        with self._lock:
            return self._sent[name][1]

    def add(self, name: str, file: Stored, head: FileStat) -> None:
        """Notes that a file was sent. Where the disk takes no line, it may be sent once more."""
        with self._lock:
            self.bytes_sent += file.size
            self._sent[name] = (file.digest, head)
            row = {
                "store": self._store,
                "name": name,
                "digest": file.digest,
                "size": head.size,
                "tag": head.tag,
            }
            self._file.append(row)

    def forget(self, name: str) -> None:
        """Forgets a file that was deleted in the store, in the file with the next `tidy`."""
        with self._lock:
            self._sent.pop(name, None)

    def tidy(self) -> None:
        """Drops the lines of files that were forgotten."""
        with self._lock:
            kept = set(self._sent)
            self._file.keep(lambda row: row.get("store") != self._store or row.get("name") in kept)
