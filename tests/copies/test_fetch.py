from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.copies import catalogue, fetch
from llmkit.copies.catalogue import Catalogue, Copy
from llmkit.copies.offer import Rule
from llmkit.copies.outgoing import BLOCK
from llmkit.copies.store import NotAsSentError, Store, Traffic
from llmkit.data.sources.attempts import FailedError
from llmkit.errors import RunFault
from tests.copies.conftest import content_of, write_files
from tests.copies.stores import PutServer
from tests.copies.test_sender import sender_of

CONTENTS = {"a.bin": content_of(2 * BLOCK + 5), "b.bin": content_of(7), "manifest.json": b"{}"}


def sent(store: Store, folder: Path) -> tuple[Catalogue, Copy]:
    write_files(folder, {"metrics.jsonl": b'{"step": 1}\n', "DONE": b"now\n"})
    sender = sender_of(store, folder)
    sender.claim()
    files = write_files(folder / "checkpoints/step-00000010", CONTENTS)
    sender.copy("step-00000010", files, Rule(keep_last=1).kept)
    found = catalogue.read(store)
    assert found is not None
    return found, found.complete[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_and_the_record_come_back(any_store: Store, tmp_path: Path) -> None:
    found, copy = sent(any_store, tmp_path / "run")
    root = tmp_path / "new/checkpoints"
    folder = fetch.begin(copy, root)
    for share in range(2):
        fetch.fetch_share(any_store, copy, folder, share, 2)
    assert fetch.finish(copy, folder) == root / "step-00000010"
    assert contents(root / "step-00000010") == CONTENTS
    assert [path.name for path in root.iterdir()] == ["step-00000010"]
    (tmp_path / "new/metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n')  # longer than there
    fetch.fetch_record(any_store, found, tmp_path / "new")
    assert (tmp_path / "new/DONE").read_bytes() == b"now\n"
    assert (tmp_path / "new/metrics.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_what_is_here_is_not_fetched_again(web: PutServer, traffic: Traffic, tmp_path: Path) -> None:
    store = Store(web.url, traffic)
    _, copy = sent(store, tmp_path / "run")
    folder = fetch.begin(copy, tmp_path / "checkpoints")
    whole = CONTENTS["a.bin"]
    (folder / "a.bin").write_bytes(whole[:BLOCK] + bytes(BLOCK) + whole[2 * BLOCK :])  # one block is damaged
    (folder / "b.bin").write_bytes(CONTENTS["b.bin"])
    (folder / "foreign").write_bytes(b"x")
    (folder / "manifest.json").symlink_to("/etc/hostname")
    fetch.begin(copy, tmp_path / "checkpoints")
    web.ranges.clear()
    fetch.fetch_share(store, copy, folder)
    assert contents(fetch.finish(copy, folder)) == CONTENTS
    assert min(start for start, end in web.ranges if end > 7) == BLOCK


def test_a_broken_connection_costs_nothing(web: PutServer, traffic: Traffic, tmp_path: Path) -> None:
    store = Store(web.url, traffic)
    _, copy = sent(store, tmp_path / "run")
    web.keep = 1000
    web.ranges.clear()
    web.trouble = lambda number, start, end: "drop" if number % 3 == 1 and end - start > 10 else None
    folder = fetch.begin(copy, tmp_path / "checkpoints")
    fetch.fetch_share(store, copy, folder)
    assert contents(folder) == CONTENTS


def test_a_copy_that_is_not_what_was_sent_is_told(web: PutServer, traffic: Traffic, tmp_path: Path) -> None:
    store = Store(web.url, traffic)
    _, copy = sent(store, tmp_path / "run")
    folder = fetch.begin(copy, tmp_path / "checkpoints")
    path = "/checkpoints/step-00000010/a.bin"
    whole = web.files[path]
    web.files[path] = whole[: BLOCK + 3] + bytes([whole[BLOCK + 3] ^ 1]) + whole[BLOCK + 4 :]
    with pytest.raises(NotAsSentError, match=rf"a\.bin: bytes {BLOCK} to {2 * BLOCK} are not what was"):
        fetch.fetch_share(store, copy, folder)
    web.files[path] = whole[:-1]
    with pytest.raises(NotAsSentError, match=r"a\.bin has \d+ bytes instead of"):
        fetch.fetch_share(store, copy, folder)
    del web.files[path]
    with pytest.raises(NotAsSentError, match=r"a\.bin is not there"):
        fetch.fetch_share(store, copy, folder)
    web.files[path] = whole
    web.trouble = lambda number, start, end: 403
    with pytest.raises(FailedError, match="403") as refused:
        fetch.fetch_share(store, copy, folder)
    assert not isinstance(refused.value, NotAsSentError)


def test_a_disk_that_takes_nothing_is_named(any_store: Store, tmp_path: Path) -> None:
    _, copy = sent(any_store, tmp_path / "run")
    with pytest.raises(RunFault, match=r"cannot write into .*none"):
        fetch.fetch_share(any_store, copy, tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunFault, match="cannot write"):
        fetch.begin(copy, tmp_path / "file")
