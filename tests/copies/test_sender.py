from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.copies import catalogue, owner
from llmkit.copies.offer import Rule
from llmkit.copies.outgoing import Stored
from llmkit.copies.owner import Known, LostError
from llmkit.copies.sender import Sender, known_of
from llmkit.copies.store import Store, Traffic
from llmkit.data.sources.retries import RequestError
from llmkit.errors import RunFault, UserError
from tests.copies.conftest import content_of, write_files
from tests.copies.stores import PutServer


def name_of(step: int) -> str:
    return f"step-{step:08d}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_files(folder, {"metrics.jsonl": b'{"step": 1}\n', "manifest.json": b"{}"})
    return folder


def save(run: Path, step: int) -> list[Stored]:
    """A checkpoint, as far as copies know of it."""
    contents = {f"pieces-{rank}.bin": content_of(5000, seed=step + rank) for rank in range(6)}
    return write_files(run / "checkpoints" / name_of(step), {**contents, "manifest.json": b"of %d" % step})


def sender_of(store: Store, run: Path) -> Sender:
    known_of(run, "0123456789abcdef")
    known = Known.read(run)
    assert known is not None
    return Sender(store, run, known, "llmkit train a.yaml")


def copy(sender: Sender, run: Path, *steps: int, keep: int = 2) -> list[int]:
    sender.claim()
    return [sender.copy(name_of(step), save(run, step), Rule(keep_last=keep).kept) for step in steps]


def complete(store: Store) -> list[int]:
    found = catalogue.read(store)
    return [] if found is None else [each.step for each in found.complete]


def bytes_of(files: Sequence[Stored]) -> int:
    return sum(file.size for file in files)


def test_copies_are_complete_and_old_ones_go(any_store: Store, run: Path) -> None:
    sender = sender_of(any_store, run)
    for step in (10, 20, 30):
        assert copy(sender, run, step) == [bytes_of(save(run, step))]
    assert complete(any_store) == [20, 30]
    found = catalogue.read(any_store)
    assert found is not None and found.record is not None
    for each in found.complete:
        for file in each.files:
            local = (run / "checkpoints" / each.name / file.name).read_bytes()
            assert b"".join(any_store.blocks(each.path(file), file)) == local
    assert any_store.head(f"checkpoints/{name_of(10)}/manifest.json") is None
    assert any_store.head(f"checkpoints/{name_of(10)}/pieces-3.bin") is None
    assert any_store.text(found.record.path(found.record.files[0])) == b'{"step": 1}\n'
    assert copy(sender, run, 30) == [0]


def test_nothing_is_called_complete_before_all_of_it_is_there(
    web: PutServer, traffic: Traffic, run: Path
) -> None:
    """Whatever request fails, the copies that are called complete are."""
    store = Store(web.url, traffic)
    sender = sender_of(store, run)
    copy(sender, run, 10)
    begun = len(web.writes)
    copy(sender, run, 20)
    requests = len(web.writes) - begun
    copy(sender, run, 30, keep=1)
    for failing in range(1, requests + 1):
        begun = len(web.writes)
        web.write_trouble = lambda method, number, path, last=begun + failing: 403 if number >= last else None
        again = sender_of(store, run)
        with pytest.raises(RequestError):
            copy(again, run, 40 + failing)
        web.write_trouble = lambda method, number, path: None
        assert complete(store) in ([30], [30, 40 + failing], [40 + failing])
        found = catalogue.read(store)
        assert found is not None
        for each in found.complete:
            for file in each.files:
                assert len(b"".join(store.blocks(each.path(file), file))) == file.size
        copy(sender_of(store, run), run, 30, keep=1)


def test_nothing_that_is_called_complete_is_deleted(web: PutServer, traffic: Traffic, run: Path) -> None:
    """Whatever request fails, and the one that tries again, too, after it has deleted what it wants."""
    store = Store(web.url, traffic)
    sender = sender_of(store, run)
    copy(sender, run, 10, 20, keep=1)
    begun = len(web.writes)
    copy(sender, run, 30, keep=1)
    for failing in range(len(web.writes) - begun):
        last, step = len(web.writes) + failing, 40 + failing
        (run / "metrics.jsonl").write_bytes(b'{"step": %d}\n' % step)
        web.write_trouble = lambda method, number, path, last=last: 403 if number > last else None
        with suppress(RequestError):
            copy(sender, run, step, keep=1)
        web.write_trouble = lambda method, number, path: 403 if method == "PUT" else None
        with suppress(RequestError):
            copy(sender, run, step, keep=1)
        found = catalogue.read(store)
        assert found is not None and found.complete and found.record is not None
        for each in found.complete:
            for file in each.files:
                assert len(b"".join(store.blocks(each.path(file), file))) == file.size
        for file in found.record.files:
            assert store.head(found.record.path(file)) is not None
        web.write_trouble = lambda method, number, path: None
        copy(sender, run, step, keep=1)
        found = catalogue.read(store)
        assert found is not None
        known = {f"/{path}" for path in found.paths()} | {"/owner.json", "/copies.json"}
        assert known <= set(web.files) <= known | {f"/{path}" for path in found.gone}


def test_files_that_are_there_are_not_sent_again(web: PutServer, traffic: Traffic, run: Path) -> None:
    store = Store(web.url, traffic)
    web.write_trouble = lambda method, number, path: 403 if "pieces-5" in path else None
    with pytest.raises(RequestError):
        copy(sender_of(store, run), run, 10)
    there = {path for path in web.files if "pieces-" in path}
    assert len(there) >= 2 and complete(store) == []
    web.write_trouble = lambda method, number, path: None
    web.writes.clear()
    assert copy(sender_of(store, run), run, 10)[0] < bytes_of(save(run, 10))
    assert not there & {write.removeprefix("PUT ") for write in web.writes}
    assert complete(store) == [10]
    web.files[f"/checkpoints/{name_of(10)}/pieces-0.bin"] = b"of somebody else"
    web.tag = '"two"'  # a change that the store tells of: everything is sent anew
    found = catalogue.read(store)
    assert found is not None
    catalogue.write(store, found.model_copy(update={"copies": []}))
    assert copy(sender_of(store, run), run, 10) == [bytes_of(save(run, 10))]


def test_a_copy_that_was_given_up_is_removed_with_the_next(
    web: PutServer, traffic: Traffic, run: Path
) -> None:
    store = Store(web.url, traffic)
    web.write_trouble = lambda method, number, path: 403 if "pieces-5" in path else None
    with pytest.raises(RequestError):
        copy(sender_of(store, run), run, 10)
    web.write_trouble = lambda method, number, path: None
    copy(sender_of(store, run), run, 20)
    assert complete(store) == [20]
    assert not [path for path in web.files if name_of(10) in path]


def test_a_run_that_went_back_replaces_what_it_left(any_store: Store, run: Path) -> None:
    sender = sender_of(any_store, run)
    copy(sender, run, 10, 20)
    again = write_files(run / "checkpoints" / name_of(10), {"other.bin": b"new", "manifest.json": b"new"})
    sender.copy(name_of(10), again, Rule(keep_last=3).kept)
    assert complete(any_store) == [10]
    assert any_store.text(f"checkpoints/{name_of(10)}/other.bin") == b"new"
    for gone in (f"{name_of(10)}/pieces-0.bin", f"{name_of(20)}/pieces-0.bin"):
        assert any_store.head(f"checkpoints/{gone}") is None


def test_another_start_gets_the_copies_and_this_one_stops(
    any_store: Store, run: Path, tmp_path: Path
) -> None:
    first = sender_of(any_store, run)
    copy(first, run, 10)
    second = sender_of(any_store, run)  # which knows of the first one
    second.claim()
    with pytest.raises(LostError, match="this start copies nothing more there"):
        copy(first, run, 20)
    with pytest.raises(LostError):
        first.beat(1)
    second.beat(1, ended=True)
    second.beat(2)  # of a thread that was late
    found = owner.read(any_store)
    assert found is not None and (found.start, found.beat, found.ended) == (2, 1, True)
    other = tmp_path / "other"
    write_files(other, {"metrics.jsonl": b"{}\n"})
    known_of(other, "f" * 16)
    known = Known.read(other)
    assert known is not None
    with pytest.raises(LostError, match="holds the copies of another run"):
        Sender(any_store, other, known, "c").claim()
    assert complete(any_store) == [10]


def test_a_start_that_lost_the_copies_writes_and_deletes_nothing(
    web: PutServer, traffic: Traffic, run: Path
) -> None:
    store = Store(web.url, traffic)
    first = sender_of(store, run)
    copy(first, run, 10)
    web.write_trouble = lambda method, number, path: 405 if method == "DELETE" else None
    copy(first, run, 20, keep=1)  # something is left to be deleted
    web.write_trouble = lambda method, number, path: None
    sender_of(store, run).claim()
    web.writes.clear()
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n')
    with pytest.raises(LostError):
        first.keep_record()
    with pytest.raises(LostError):
        copy(first, run, 30)
    assert web.writes == []


def test_a_claim_that_was_broken_off_is_known_as_ones_own(
    web: PutServer, traffic: Traffic, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it has come to the store or not, in the same process or in the next."""
    store, write = Store(web.url, traffic), owner.write
    copy(sender_of(store, run), run, 10)

    def broken_off(store: Store, mine: owner.CopyOwner, arrives: bool) -> None:
        if arrives:
            write(store, mine)
        raise RequestError("no answer", False)

    for arrives in (False, True, True, False):
        sender = sender_of(store, run)
        monkeypatch.setattr(owner, "write", lambda store, mine, a=arrives: broken_off(store, mine, a))
        with pytest.raises(RequestError):
            sender.claim()
        monkeypatch.setattr(owner, "write", write)
    copy(sender, run, 20)
    copy(sender_of(store, run), run, 30)
    assert complete(store) == [20, 30]


def test_two_that_claim_in_the_same_moment(
    any_store: Store, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has written last has the copies, and the other one is refused before it writes more."""
    write = owner.write

    def then_another(store: Store, mine: owner.CopyOwner) -> None:
        monkeypatch.setattr(owner, "write", write)
        write(store, mine)
        write(store, replace(mine, owner=replace(mine.owner, pid=1)))  # which had read before this one wrote

    monkeypatch.setattr(owner, "write", then_another)
    first = sender_of(any_store, run)
    with pytest.raises(LostError, match=r"is now of process 1 on .*: this start copies nothing more there"):
        first.claim()
    with pytest.raises(LostError, match="a later start of this run"):  # nor does it take them back
        sender_of(any_store, run).claim()
    assert catalogue.read(any_store) is None


def test_what_is_no_checkpoint_any_more_has_no_manifest(web: PutServer, traffic: Traffic, run: Path) -> None:
    """Whoever copies the folder by other means does not take a part of it for a checkpoint."""
    store = Store(web.url, traffic)
    sender = sender_of(store, run)
    copy(sender, run, 10)
    web.writes.clear()
    copy(sender, run, 20, keep=1)
    deleted = [path for path in web.writes if path.startswith(f"DELETE /checkpoints/{name_of(10)}")]
    assert deleted[0] == f"DELETE /checkpoints/{name_of(10)}/manifest.json" and len(deleted) == 7
    web.writes.clear()
    again = write_files(run / "checkpoints" / name_of(20), {"pieces-0.bin": b"new", "manifest.json": b"new"})
    sender.copy(name_of(20), again, Rule(keep_last=1).kept)
    assert web.writes.index(f"DELETE /checkpoints/{name_of(20)}/manifest.json") < web.writes.index(
        f"PUT /checkpoints/{name_of(20)}/pieces-0.bin"
    )
    assert complete(store) == [20]
    assert {path for path in web.files if "/checkpoints/" in path} == {
        f"/checkpoints/{name_of(20)}/{file.name}" for file in again
    }


def test_a_kill_before_an_old_manifest_is_deleted_leaves_that_to_the_next_start(
    web: PutServer, traffic: Traffic, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(web.url, traffic)
    copy(sender_of(store, run), run, 10)
    again = write_files(run / "checkpoints" / name_of(10), {"pieces-0.bin": b"new", "manifest.json": b"new"})
    killed, published = sender_of(store, run), catalogue.write
    killed.claim()

    def then_killed(store: Store, content: catalogue.Catalogue) -> None:
        published(store, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(catalogue, "write", then_killed)
        killed.copy(name_of(10), again, Rule(keep_last=1).kept)
    web.writes.clear()
    sender = sender_of(store, run)
    sender.claim()
    sender.copy(name_of(10), again, Rule(keep_last=1).kept)
    place = f"/checkpoints/{name_of(10)}"
    assert web.writes.index(f"DELETE {place}/manifest.json") < web.writes.index(f"PUT {place}/pieces-0.bin")
    assert complete(store) == [10] and store.text(f"{place[1:]}/manifest.json") == b"new"


def test_a_copy_of_the_run_folder_takes_no_copies_from_a_start_that_is_alive(
    any_store: Store, run: Path, tmp_path: Path
) -> None:
    first, other = sender_of(any_store, run), tmp_path / "other"
    copy(first, run, 10)
    shutil.copytree(run, other)
    second = sender_of(any_store, other)
    with pytest.raises(UserError, match="which is alive, in another run folder"):
        second.claim()
    copy(first, run, 20)
    first.beat(1, ended=True)
    copy(second, other, 30)
    assert complete(any_store) == [20, 30]


def test_what_a_store_did_not_delete_is_deleted_later(web: PutServer, traffic: Traffic, run: Path) -> None:
    store = Store(web.url, traffic)
    sender = sender_of(store, run)
    copy(sender, run, 10)
    web.write_trouble = lambda method, number, path: 405 if method == "DELETE" else None
    copy(sender, run, 20, keep=1)
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n')
    sender.keep_record()
    assert sender.not_deleted
    web.write_trouble = lambda method, number, path: None
    copy(sender_of(store, run), run, 30, keep=1)  # another start
    assert not sender_of(store, run).not_deleted
    found = catalogue.read(store)
    assert found is not None and complete(store) == [30]
    kept = {f"/{path}" for path in found.paths()} | {"/owner.json", "/copies.json"}
    assert set(web.files) == kept


def test_the_best_one_is_copied_later_and_kept(any_store: Store, run: Path) -> None:
    sender, best, rule = sender_of(any_store, run), save(run, 10), Rule(keep_last=1, best=10)
    sender.claim()
    for step in (20, 30):
        sender.copy(name_of(step), save(run, step), rule.kept)
        assert not sender.has(name_of(10), best)
        sender.copy(name_of(10), best, rule.kept, step)
        assert sender.has(name_of(10), best) and complete(any_store) == [10, step]
        sender.copy(name_of(step + 5), save(run, step + 5), rule.kept)
        assert complete(any_store) == [10, step + 5]
        sender.copy(name_of(step + 6), save(run, step + 6), Rule(keep_last=1).kept)
        assert complete(any_store) == [step + 6]


def test_a_store_that_deletes_nothing_keeps_copies(web: PutServer, traffic: Traffic, run: Path) -> None:
    store = Store(web.url, traffic)
    web.write_trouble = lambda method, number, path: 405 if method == "DELETE" else None
    sender = sender_of(store, run)
    copy(sender, run, 10, 20, keep=1)
    assert complete(store) == [20]
    assert sender.not_deleted.startswith("HTTP 405")


def test_the_record_follows_the_run(any_store: Store, run: Path) -> None:
    sender = sender_of(any_store, run)
    copy(sender, run, 10)
    before = catalogue.read(any_store)
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n')
    sender.keep_record()
    after = catalogue.read(any_store)
    assert before is not None and after is not None and before.record is not None and after.record is not None
    assert any_store.text(after.record.path(after.record.files[0])) == b'{"step": 1}\n{"step": 2}\n'
    assert any_store.head(before.record.path(before.record.files[0])) is None
    sender.keep_record()
    assert catalogue.read(any_store) == after


def test_what_is_not_as_it_was_written_here_is_no_copy(any_store: Store, run: Path) -> None:
    sender, files = sender_of(any_store, run), save(run, 10)
    sender.claim()
    (run / "checkpoints" / name_of(10) / "pieces-2.bin").write_bytes(bytes(5000))
    with pytest.raises(RunFault, match=r"pieces-2\.bin: bytes 0 to 5000 are not what was written"):
        sender.copy(name_of(10), files, Rule(keep_last=2).kept)
    assert complete(any_store) == []


def test_a_deleted_checkpoint_is_told(any_store: Store, run: Path) -> None:
    sender, files = sender_of(any_store, run), save(run, 10)
    sender.claim()
    shutil.rmtree(run / "checkpoints" / name_of(10))
    with pytest.raises(FileNotFoundError):
        sender.copy(name_of(10), files, Rule(keep_last=2).kept)
    assert complete(any_store) == []
