"""The process that copies, and the trainer's side of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.copies import catalogue, copier, owner
from llmkit.copies.copier import Copier, Message
from llmkit.copies.offer import Offer, Rule
from llmkit.copies.sender import known_of
from llmkit.copies.store import Store, Traffic
from tests.copies.conftest import write_files
from tests.copies.stores import PutServer, copied_steps
from tests.copies.test_sender import name_of, save
from tests.limits import HANG


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_files(folder, {"metrics.jsonl": b'{"step": 1}\n'})
    (folder / "logs").mkdir()
    known_of(folder, "0123456789abcdef")
    return folder


Copies = Callable[[str], Copier]


@pytest.fixture
def copier_of(run: Path) -> Iterator[Copies]:
    """Copiers, each killed at the end."""
    made = list[Copier]()

    def make(url: str) -> Copier:
        made.append(Copier(run, url, "llmkit train a.yaml", os.environ))
        return made[-1]

    yield make
    for each in made:
        if each._process is not None:
            each._process.kill()
            each._process.wait()


def offer_of(run: Path, step: int) -> Offer:
    return Offer(name=name_of(step), files=save(run, step), rule=Rule(keep_last=2))


def until(copies: Copier, event: str) -> Message:
    """Waits for an event."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        for message in copies.messages(wait=1.0):
            if message.get("event") == event:
                return message
    raise AssertionError((copies._folder / "logs/copies.log").read_text())


def test_it_copies_what_is_offered_and_the_end(run: Path, copier_of: Copies, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    copies, said = copier_of(url), list[Message]()
    copies.offer()
    copies.offer(offer_of(run, 10))
    copied = until(copies, "copied")
    assert copies._process is not None
    os.kill(copies._process.pid, signal.SIGTERM)  # as SLURM does to all processes of a job
    assert copied["path"] == name_of(10) and copied["bytes"] > 30_000
    copies.offer(offer_of(run, 20))  # in the last moment
    (run / "DONE").write_bytes(b"now\n")
    assert copies.finish(said.append, lambda: False)
    assert [message["path"] for message in said if message.get("event") == "copied"] == [name_of(20)]
    assert copied_steps(url) == [10, 20]
    found, has = catalogue.read(Store(url)), owner.read(Store(url))
    assert found is not None and found.record is not None and has is not None and has.ended
    assert [file.name for file in found.record.files] == ["metrics.jsonl", "DONE"]
    assert copies.finish(said.append, lambda: False)  # which does nothing


def test_of_copies_that_fall_behind_the_newest_is_made(run: Path, copier_of: Copies, web: PutServer) -> None:
    """While one is copied others are offered, and the run deletes it: it is copied nevertheless."""
    begun, go_on = threading.Event(), threading.Event()

    def trouble(method: str, number: int, path: str) -> None:
        if "pieces-3" in path:
            begun.set()
            assert go_on.wait(HANG)

    web.write_trouble = trouble
    copies, said = copier_of(web.url), list[Message]()
    copies.offer(offer_of(run, 10))
    assert begun.wait(HANG)
    for step in (20, 30):
        copies.offer(offer_of(run, step))
    for path in (run / "checkpoints" / name_of(10)).iterdir():
        path.unlink()
    go_on.set()
    assert copies.finish(said.append, lambda: True)
    assert [message["path"] for message in said if "event" in message] == [name_of(10), name_of(30)]
    assert copied_steps(web.url) == [10, 30]


@pytest.mark.parametrize(
    "trouble",
    [
        "stall",
        403,
        *(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("drop", 503, "lose", "flip")),
    ],
)
def test_a_bad_store_costs_a_limited_time(
    trouble: str | int, run: Path, copier_of: Copies, web: PutServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer never waits before the end, and then for END_SECONDS; later everything is sent."""
    monkeypatch.setattr(copier, "END_SECONDS", 2.0)
    web.write_trouble = lambda method, number, path: (
        trouble if trouble != "flip" or "pieces" in path else None
    )
    copies, said = copier_of(web.url), list[Message]()
    copies.offer(offer_of(run, 10))
    assert not copies.finish(said.append, lambda: True)
    assert not [message for message in said if message.get("event") == "copied"]
    web.write_trouble = lambda method, number, path: None
    monkeypatch.setattr(copier, "END_SECONDS", HANG)
    again = copier_of(web.url)
    again.offer(copies.offered)
    assert again.finish(said.append, lambda: True)
    assert copied_steps(web.url) == [10]


def test_it_ends_with_the_trainer_and_goes_on_after_a_kill(
    run: Path, copier_of: Copies, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/store"
    copies, said = copier_of(url), list[Message]()
    copies.offer(offer_of(run, 10))
    until(copies, "copied")
    process = copies._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    copies.offer(offer_of(run, 20))  # starts another one
    until(copies, "copied")
    process = copies._process
    assert process is not None and process.stdin is not None
    process.stdin.close()  # as the kernel does where the trainer is killed
    assert process.wait(HANG) == 3
    process.stdin = None
    copies._process = None
    assert copied_steps(url) == [10, 20]
    last = copier_of(url)
    last.offer(offer_of(run, 20))
    assert last.finish(said.append, lambda: True)
    assert said[-1] == {"event": "copied", "path": name_of(20), "bytes": 0, "seconds": said[-1]["seconds"]}


def test_a_start_that_lost_the_copies_says_so_once(
    run: Path, copier_of: Copies, web: PutServer, traffic: Traffic
) -> None:
    copies, said = copier_of(web.url), list[Message]()
    copies.offer(offer_of(run, 10))
    until(copies, "copied")
    mine = owner.read(Store(web.url, traffic))
    assert mine is not None
    owner.write(Store(web.url, traffic), replace(mine, start=2))
    copies.offer(offer_of(run, 20))
    assert "this start copies nothing more there" in until(copies, "copy_failed")["reason"]
    copies.offer(offer_of(run, 30))
    assert not copies.finish(said.append, lambda: True)
    assert [message for message in said if "event" in message] == []
    assert copied_steps(web.url) == [10]


def test_it_needs_little_memory() -> None:
    """Neither torch nor what reads data is imported."""
    program = (
        "import llmkit.copies.process, sys; print([m for m in ('torch', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_offers_are_read_back(run: Path) -> None:
    assert Offer.read(run) is None
    offer_of(run, 10).write(run)
    assert Offer.read(run) == offer_of(run, 10)
    (run / "copies/next.json").write_text("{}")
    assert Offer.read(run) is None
    assert Rule(keep_last=2).kept([1, 5, 7]) == {5, 7}
    assert Rule(keep_last=1, keep_every=5, best=6).kept([4, 5, 6, 10, 12]) == {5, 6, 10, 12}
    assert Rule(keep_last=1, best=3).kept([4]) == {4}


@pytest.mark.exhaustive
def test_what_is_called_complete_is_after_any_kill(
    run: Path, copier_of: Copies, web: PutServer, traffic: Traffic
) -> None:
    """Fifty kills, of copies that would else take half a second; then everything is as it should be."""
    draw, store, seen = random.Random(0), Store(web.url, traffic), set[int]()

    def slowly(method: str, number: int, path: str) -> None:
        time.sleep(0.01)

    web.write_trouble = slowly
    for kill in range(1, 51):
        copies = copier_of(web.url)
        begun = len(web.writes)
        copies.offer(offer_of(run, kill))
        end, after = time.monotonic() + HANG, draw.randrange(40)
        while len(web.writes) < begun + after and time.monotonic() < end:
            if any(message.get("event") == "copied" for message in copies.messages(wait=0.005)):
                break
        assert copies._process is not None
        copies._process.kill()
        copies._process.wait()
        found = catalogue.read(store)
        for copy in found.complete if found is not None else []:
            seen.add(copy.step)
            for file in copy.files:
                assert sum(map(len, store.blocks(copy.path(file), file))) == file.size
    assert len(seen) > 5
    web.write_trouble = lambda method, number, path: None
    last = copier_of(web.url)
    last.offer(offer_of(run, 51))
    assert last.finish(lambda message: None, lambda: True)
    found = catalogue.read(store)
    assert found is not None and found.complete[-1].step == 51
    files = {f"/{copy.path(file)}" for copy in found.copies for file in copy.files}
    assert {path for path in web.files if path.startswith("/checkpoints")} == files
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
