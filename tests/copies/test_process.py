"""What the process that copies does, without a process of its own."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from llmkit.copies import owner, process
from llmkit.copies.offer import Listed, Offer, Rule
from llmkit.copies.process import Process
from llmkit.copies.sender import Sender, known_of
from llmkit.copies.store import Store, Traffic
from llmkit.data.sources.retries import RequestError
from tests.copies.conftest import QUICK, outgoing, write_files
from tests.copies.stores import PutServer
from tests.copies.test_sender import complete, name_of, save, sender_of
from tests.limits import HANG


class Told:
    """A process that copies to a web server, and what it has said."""

    def __init__(self, run: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.url, self.said = run, url, list[dict[str, Any]]()
        write_files(run, {"metrics.jsonl": b'{"step": 1}\n'})
        known_of(run, "0123456789abcdef")
        monkeypatch.setattr(process, "say", lambda **fields: self.said.append(fields))
        monkeypatch.setattr(process, "Traffic", lambda: Traffic(QUICK))
        monkeypatch.setattr(process, "BEAT_SECONDS", 0.01)
        self.process = Process(run, url, "llmkit train a.yaml", os.getppid())

    def offer(self, step: int, best: int | None = None) -> Offer:
        other = None if best is None else Listed(name=name_of(best), files=save(self.run, best))
        rule = Rule(keep_last=1, best=best)
        offer = Offer(name=name_of(step), files=save(self.run, step), rule=rule, best=other)
        offer.write(self.run)
        return offer

    def events(self) -> list[tuple[str, str]]:
        """What was said since the last call."""
        found = [(fields["event"], fields.get("path", "")) for fields in self.said]
        self.said.clear()
        return found


@pytest.fixture
def told(tmp_path: Path, web: PutServer, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(tmp_path / "run", web.url, monkeypatch)


def sender_in(told: Told) -> Sender:
    assert told.process._work(False) and told.process._sender is not None
    return told.process._sender


def test_it_shows_that_it_lives_until_all_is_done(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it copies what is left at the end, which may take long."""
    sender, beats = sender_in(told), list[int]()

    def beat(count: int, ended: bool = False) -> None:
        beats.append(count)
        if count == 3:
            told.process._over.set()

    monkeypatch.setattr(sender, "beat", beat)
    told.process._ending = True
    living = threading.Thread(target=told.process._live, daemon=True)
    living.start()
    living.join(HANG)
    assert beats == [1, 2, 3] and not living.is_alive()


def test_a_beat_that_fails_in_whatever_way_is_not_the_last_one(
    told: Told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sender, beats = sender_in(told), list[int]()

    def beat(count: int, ended: bool = False) -> None:
        beats.append(count)
        if count == 3:
            told.process._over.set()
        else:
            raise ValueError("of a library")

    monkeypatch.setattr(sender, "beat", beat)
    living = threading.Thread(target=told.process._live, daemon=True)
    living.start()
    living.join(HANG)
    assert beats == [1, 2, 3]
    assert capsys.readouterr().err.count("owner.json is not written: ValueError") == 1


def test_a_loss_that_shows_beside_a_copy_ends_it_and_is_told_once(told: Told) -> None:
    sender = sender_in(told)
    sender_of(Store(told.url), told.run).claim()  # another start
    living = threading.Thread(target=told.process._live, daemon=True)
    living.start()
    assert told.process._traffic.stop.wait(HANG)
    told.process._over.set()
    living.join(HANG)
    with pytest.raises(RequestError, match="it was given up"):
        sender.store.put("checkpoints/step-00000001/a.bin", outgoing(b"abc"))
    told.offer(20)
    assert not told.process._work(True)
    (fields,) = told.said
    assert fields["final"] and "this start copies nothing more there" in fields["reason"]
    assert complete(Store(told.url)) == []


def test_a_failure_is_told_once_and_so_is_its_end(told: Told, web: PutServer) -> None:
    web.write_trouble = lambda method, number, path: 403
    for _ in range(2):
        assert not told.process._work(False)  # nothing is offered yet: it cannot make itself known
    assert told.events() == [("copy_failed", "")]
    web.write_trouble = lambda method, number, path: None
    assert told.process._work(False)
    assert told.events() == [("recovered", "")]
    told.offer(10)
    web.write_trouble = lambda method, number, path: 403 if "pieces" in path else None
    for _ in range(2):
        assert not told.process._work(False)
    assert told.events() == [("copy_failed", name_of(10))]
    web.write_trouble = lambda method, number, path: None
    assert told.process._work(False)
    assert told.events() == [("copied", name_of(10)), ("recovered", "")]
    web.write_trouble = lambda method, number, path: 403 if "record" in path else None
    write_files(told.run, {"metrics.jsonl": b'{"step": 1}\n{"step": 2}\n'})
    assert not told.process._work(True)
    assert told.events() == [("copy_failed", "")]


def test_a_checkpoint_that_was_deleted_first_is_told_and_the_record_copied(told: Told) -> None:
    told.offer(10)
    shutil.rmtree(told.run / "checkpoints" / name_of(10))
    for ending in (False, False, True):
        assert told.process._work(ending)  # there is nothing to try again
    assert told.events() == [("copy_failed", name_of(10))]
    assert told.process._missing is not None  # from which the exit code follows
    found = owner.read(Store(told.url))
    assert found is not None and found.ended
    told.offer(20)
    assert told.process._work(False) and told.process._missing is None
    assert told.events() == [("copied", name_of(20)), ("recovered", "")]


def test_the_best_one_is_copied_if_it_was_passed_over(told: Told) -> None:
    told.offer(20, best=10)
    assert told.process._work(False)
    assert told.events() == [("copied", name_of(20)), ("copied", name_of(10))]
    assert complete(Store(told.url)) == [10, 20]
    told.offer(30, best=10)
    assert told.process._work(False)
    assert told.events() == [("copied", name_of(30))]
    assert complete(Store(told.url)) == [10, 30]
    offer = told.offer(40, best=35)
    shutil.rmtree(told.run / "checkpoints" / name_of(35))
    assert told.process._work(False) and told.process._copied == offer
    assert told.events() == [("copied", name_of(40))]
    assert complete(Store(told.url)) == [40]


def test_an_offer_that_cannot_be_read_ends_nothing(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    place = told.run / "copies/next.json"
    place.mkdir()
    assert not told.process._work(False)
    (fields,) = told.said
    assert fields["reason"].startswith("IsADirectoryError")
    assert "in read\n" in capsys.readouterr().err  # where, for who mends the program
    told.events()
    place.rmdir()
    assert told.process._work(False)
    assert told.events() == [("recovered", "")]
