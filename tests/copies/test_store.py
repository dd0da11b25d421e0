from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.copies import outgoing as outgoing_module
from llmkit.copies.outgoing import BLOCK, Outgoing, stored
from llmkit.copies.store import NotAsSentError, Store, Traffic
from llmkit.data.sources.retries import RequestError
from llmkit.errors import RunFault, UserError
from tests.copies.conftest import QUICK, content_of, outgoing
from tests.copies.stores import PutServer, S3Store
from tests.limits import HANG

SIZES = [1, 2 * BLOCK, 3 * BLOCK - 7]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_read_back_as_it_was_sent(any_store: Store, size: int) -> None:
    content = content_of(size)
    head = any_store.put("checkpoints/step-00000001/a.bin", outgoing(content))
    assert head.size == size
    assert any_store.head("checkpoints/step-00000001/a.bin") == head
    assert b"".join(any_store.blocks("checkpoints/step-00000001/a.bin", stored("a", content))) == content
    any_store.put("checkpoints/step-00000001/a.bin", outgoing(content_of(size, seed=1)))
    with pytest.raises(NotAsSentError, match=r"a\.bin: bytes 0 to .* are not what was written"):
        list(any_store.blocks("checkpoints/step-00000001/a.bin", stored("a", content)))


def test_reading_begins_at_any_block(any_store: Store) -> None:
    content = content_of(2 * BLOCK + 5)
    any_store.put("a.bin", outgoing(content))
    assert b"".join(any_store.blocks("a.bin", stored("a.bin", content), start=BLOCK)) == content[BLOCK:]


def test_what_is_not_there_is_none(any_store: Store) -> None:
    assert any_store.head("no.json") is None
    assert any_store.text("no.json") is None
    any_store.delete("no.json")
    with pytest.raises(NotAsSentError, match=r"no\.json is not there"):
        list(any_store.blocks("no.json", stored("no.json", b"a")))


def test_a_deleted_file_is_gone(any_store: Store) -> None:
    any_store.put("a.json", outgoing(b"{}"))
    assert any_store.text("a.json") == b"{}"
    any_store.delete("a.json")
    assert any_store.head("a.json") is None


def test_a_folder_goes_with_its_last_file(traffic: Traffic, tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store", traffic)
    for name in ("step-1/a.bin", "step-1/b.bin"):
        store.put(name, outgoing(b"abc"))
    store.delete("step-1/a.bin")
    assert [path.name for path in (tmp_path / "store/step-1").iterdir()] == ["b.bin"]
    store.delete("step-1/b.bin")
    assert not (tmp_path / "store/step-1").exists()


def test_a_damaged_file_here_is_not_sent(any_store: Store, tmp_path: Path) -> None:
    content = content_of(2 * BLOCK + 5)
    (tmp_path / "a.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunFault, match=rf"a\.bin: bytes {2 * BLOCK} to {2 * BLOCK + 5} are not what was"):
        any_store.put("a.bin", Outgoing(stored("a.bin", content), tmp_path / "a.bin"))


def test_memory_is_bounded(any_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a part is read at a time, and a file has no more parts than S3 takes."""
    content, read = content_of(4 * BLOCK), list[int]()
    (tmp_path / "a.bin").write_bytes(content)
    whole = outgoing_module._read

    def counted(path: Path, start: int, end: int) -> bytes:
        read.append(end - start)
        return whole(path, start, end)

    monkeypatch.setattr(outgoing_module, "_read", counted)
    any_store.put("a.bin", Outgoing(stored("a.bin", content), tmp_path / "a.bin"))
    assert read == [2 * BLOCK] * 2
    monkeypatch.setattr(outgoing_module, "MAX_PARTS", 1)
    assert Outgoing(stored("a.bin", content), content).count == 1


def test_s3_gets_large_files_in_parts(s3: S3Store, traffic: Traffic) -> None:
    content = content_of(3 * BLOCK)
    Store("s3://bucket/runs", traffic).put("a.bin", outgoing(content))
    assert s3.buckets["bucket"]["runs/a.bin"] == content
    assert [write.partition("?")[0] for write in s3.writes] == [
        "POST /bucket/runs/a.bin", *["PUT /bucket/runs/a.bin"] * 2, "POST /bucket/runs/a.bin"
    ]  # fmt: skip
    assert s3.ranges == []  # the store's own checksums are proof enough
    assert traffic.progress == len(content)


def test_s3_sends_again_what_was_refused_and_no_more(s3: S3Store, traffic: Traffic) -> None:
    s3.write_trouble = lambda method, number, path: {2: 503, 3: "drop", 5: "flip"}.get(number)
    content = content_of(3 * BLOCK)
    Store("s3://bucket/runs", traffic).put("a.bin", outgoing(content))
    assert s3.buckets["bucket"]["runs/a.bin"] == content
    assert len(s3.writes) == 4 + 3
    s3.write_trouble = lambda method, number, path: 403 if number == len(s3.writes) and "=2" in path else None
    with pytest.raises(RequestError, match="PermissionError"):
        Store("s3://bucket/runs", traffic).put("b.bin", outgoing(content))
    assert "runs/b.bin" not in s3.buckets["bucket"] and s3.uploads == {}


def test_the_web_server_is_read_back(web: PutServer, traffic: Traffic) -> None:
    store, content = Store(web.url, traffic), content_of(3 * BLOCK)
    for trouble, problem in (
        ("flip", r"bytes 0 to 4194304 are not what was written"),
        ("lose", "12582912 bytes were sent, and the store has no such file"),
        (403, "HTTP 403"),
    ):
        web.files.clear()
        web.write_trouble = lambda method, number, path, trouble=trouble: trouble
        with pytest.raises(RequestError, match=problem):
            store.put("a.bin", outgoing(content))
    begun = len(web.writes)
    web.write_trouble = lambda method, number, path: {begun + 1: 503, begun + 2: "drop"}.get(number)
    store.put("a.bin", outgoing(content))
    assert web.files["/a.bin"] == content


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_a_store_that_takes_nothing_is_given_up(kind: str, request: pytest.FixtureRequest) -> None:
    server: PutServer | S3Store = request.getfixturevalue(kind)
    url = "s3://bucket" if kind == "s3" else server.url  # type: ignore[union-attr]
    Store(url, Traffic(QUICK)).put("a.bin", outgoing(b"a"))  # makes a client, which may take long
    server.writes.clear()
    server.write_trouble = lambda method, number, path: "stall"
    traffic = Traffic(QUICK._replace(retries=1, stall_seconds=1.0))
    with pytest.raises(RequestError):
        Store(url, traffic).put("a.bin", outgoing(content_of(3 * BLOCK)))
    assert server.writes and traffic.progress < 3 * BLOCK
    server.released.set()


def test_a_file_keeps_its_content_until_the_new_one_is_complete(traffic: Traffic, tmp_path: Path) -> None:
    """A kill in the midst of writing the catalogue leaves the one before; an attempt that hangs changes
    nothing later."""
    store, going = Store(f"file://{tmp_path}/store", traffic), threading.Event()
    store.put("a.json", outgoing(b"old"))
    seen = list[bytes]()

    class Slow(Outgoing):
        def parts(self) -> Iterator[bytes]:
            yield b"n"
            seen.append((tmp_path / "store/a.json").read_bytes())
            yield b"ew"

    store.put("a.json", Slow(stored("a.json", b"new"), b"new"))
    assert seen == [b"old"] and store.text("a.json") == b"new"

    class Hanging(Outgoing):
        def parts(self) -> Iterator[bytes]:
            yield b"lat"
            assert going.wait(HANG)
            yield b"e"

    quick = Store(store.url, Traffic(QUICK._replace(retries=0, stall_seconds=0.1)))
    with pytest.raises(RequestError, match=r"no answer in 0\.1 s"):
        quick.put("a.json", Hanging(stored("a.json", b"late"), b"late"))
    left = [thread for thread in threading.enumerate() if thread.name == "llmkit-fetch"]
    going.set()
    for thread in left:
        thread.join(HANG)
    assert store.text("a.json") == b"new"


def test_progress_counts_each_file_once(web: PutServer, traffic: Traffic) -> None:
    """However often a store takes it, and throws it away: the end of a run would else wait for nothing."""
    store, content = Store(web.url, traffic), content_of(BLOCK)
    web.write_trouble = lambda method, number, path: 503
    for _ in range(3):
        with pytest.raises(RequestError):
            store.put("a.bin", outgoing(content))
        assert len(web.writes) > 1 and traffic.progress <= len(content)
    web.write_trouble = lambda method, number, path: None
    store.put("a.bin", outgoing(content))
    assert traffic.progress == 2 * len(content)  # sent, and read back
    store.put("owner.json", outgoing(b"{}"), is_progress=False)
    assert traffic.progress == 2 * len(content)
    store.put("b.bin", outgoing(content))
    assert traffic.progress == 4 * len(content)


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(web: PutServer, traffic: Traffic) -> None:
    """As the owner of the copies does every 30 s."""
    web.files["/a.json"], seen = b"old", list[int]()

    def replaced(number: int, start: int, end: int) -> None:
        seen.append(number)
        if len(seen) == 1:  # behind the look at its size
            web.files["/a.json"] = b"newer"

    web.trouble = replaced
    assert Store(web.url, traffic).text("a.json") == b"newer"


def test_a_stop_ends_all_attempts(web: PutServer, traffic: Traffic) -> None:
    store = Store(web.url, traffic)
    traffic.stop.set()
    with pytest.raises(RequestError, match="it was given up"):
        store.put("a.bin", outgoing(b"abc"))
    assert web.writes == []


def test_addresses_with_keys_are_refused() -> None:
    with pytest.raises(UserError, match="keys belong in the environment"):
        Store("s3://key:secret@bucket/runs")


def test_messages_have_no_secrets(web: PutServer, traffic: Traffic) -> None:
    assert str(Store("https://user:pass@host/runs/", traffic)) == "https://host/runs"
