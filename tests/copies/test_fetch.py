from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from llmkit.copies import catalogue, fetch
from llmkit.copies.catalogue import Catalogue, Copy
from llmkit.copies.offer import Rule
from llmkit.copies.outgoing import BLOCK
from llmkit.copies.store import NotAsSentError, Store, Traffic
from llmkit.data.sources.retries import RequestError
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
    with pytest.raises(RequestError, match="403") as refused:
        fetch.fetch_share(store, copy, folder)
    assert not isinstance(refused.value, NotAsSentError)


def test_nothing_is_fetched_of_a_copy_that_is_not_all_there(
    web: PutServer, traffic: Traffic, tmp_path: Path
) -> None:
    """The smallest file comes last; that it is missing is seen before the first is fetched."""
    store = Store(web.url, traffic)
    _, copy = sent(store, tmp_path / "run")
    whole = web.files.pop("/checkpoints/step-00000010/manifest.json")
    folder = fetch.begin(copy, tmp_path / "checkpoints")
    for content, says in ((None, "is not there"), (whole + b" ", r"has 3 bytes instead of 2")):
        if content is not None:
            web.files["/checkpoints/step-00000010/manifest.json"] = content
        with pytest.raises(NotAsSentError, match=rf"manifest\.json {says}"):
            fetch.fetch_share(store, copy, folder)
        assert list(folder.iterdir()) == []
    web.files["/checkpoints/step-00000010/manifest.json"] = whole
    heads = fetch.look(store, copy, 1, 2)
    assert list(heads) == ["b.bin"]
    fetch.fetch_share(store, copy, folder, heads=heads)
    assert contents(folder) == {"b.bin": CONTENTS["b.bin"]}


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    web: PutServer, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is here already needs none."""
    _, copy = sent(Store(web.url, traffic), tmp_path / "run")
    root, free = tmp_path / "checkpoints", [copy.size - 1]
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with pytest.raises(RunFault, match=r"step-00000010 cannot be fetched: the disk of .* make room"):
        fetch.begin(copy, root)
    free[0] += 1
    folder = fetch.begin(copy, root)
    (folder / "a.bin").write_bytes(CONTENTS["a.bin"][:BLOCK])
    free[0] -= BLOCK
    assert fetch.begin(copy, root) == folder
    free[0] -= 1
    with pytest.raises(RunFault, match="make room"):
        fetch.begin(copy, root)


def test_what_is_not_all_here_becomes_no_checkpoint(any_store: Store, tmp_path: Path) -> None:
    """As where another node has fetched its share onto a disk of its own."""
    _, copy = sent(any_store, tmp_path / "run")
    root = tmp_path / "checkpoints"
    folder = fetch.begin(copy, root)
    fetch.fetch_share(any_store, copy, folder, 0, 2)
    with pytest.raises(RunFault, match=r"b\.bin: No such file or directory, though all .* share this disk"):
        fetch.finish(copy, folder)
    (folder / "b.bin").write_bytes(b"short")
    with pytest.raises(RunFault, match=r"b\.bin has 5 bytes instead of 7"):
        fetch.finish(copy, folder)
    assert [path.name for path in root.iterdir()] == [folder.name]


def test_another_checkpoint_of_the_step_gives_way(any_store: Store, tmp_path: Path) -> None:
    _, copy = sent(any_store, tmp_path / "run")
    root = tmp_path / "checkpoints"
    write_files(root / ".fetching-old-step-00000010", {"left": b"of a start that was killed"})
    write_files(root / "step-00000010", {"a.bin": b"another", "c.bin": b"another"})
    folder = fetch.begin(copy, root)
    fetch.fetch_share(any_store, copy, folder)
    assert contents(fetch.finish(copy, folder)) == CONTENTS
    assert [path.name for path in root.iterdir()] == ["step-00000010"]


def test_a_disk_that_takes_nothing_is_named(any_store: Store, tmp_path: Path) -> None:
    _, copy = sent(any_store, tmp_path / "run")
    with pytest.raises(RunFault, match=r"cannot write into .*none"):
        fetch.fetch_share(any_store, copy, tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunFault, match="cannot write"):
        fetch.begin(copy, tmp_path / "file")
