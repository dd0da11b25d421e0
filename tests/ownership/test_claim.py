"""A start of a run knows whether a later one has taken the run over."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from llmkit.errors import RunFault
from llmkit.ownership import claim as module
from llmkit.ownership.claim import Claim, Ownership, folder_of, newest_generation, owner_of_generation
from llmkit.ownership.owner import Owner
from tests.limits import HANG


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)


def make(path: Path, generation: int) -> Owner:
    owner = Owner.of_this_process("train", {})
    folder_of(path, generation).mkdir(parents=True)
    (folder_of(path, generation) / "owner.json").write_text(json.dumps(owner.to_json()))
    (folder_of(path, generation) / "beat").write_text("0")
    return owner


def test_the_highest_generation_counts(tmp_path: Path) -> None:
    assert newest_generation(tmp_path) == 0
    for generation in (3, 12):
        make(tmp_path, generation)
    (tmp_path / "generations" / ".aside").mkdir()
    assert newest_generation(tmp_path) == 12
    assert owner_of_generation(tmp_path, 12) is not None
    assert owner_of_generation(tmp_path, 13) is None


def test_a_claim_ends_when_there_is_a_higher_generation(tmp_path: Path) -> None:
    make(tmp_path, 1)
    claim = Claim(tmp_path, 1)
    claim.require_current()
    assert claim.is_current()
    make(tmp_path, 2)
    claim.raise_if_lost()  # reads nothing
    with pytest.raises(RunFault, match=r"generation 1\) .* taken over by generation 2 \(process \d+ on"):
        claim.require_current()
    assert not claim.is_current()
    with pytest.raises(RunFault):
        claim.raise_if_lost()
    Claim(tmp_path, 2).require_current()


def test_a_claim_that_is_gone_is_lost_though_no_higher_one_is_seen_yet(tmp_path: Path) -> None:
    """As on NFS, where what a folder holds may be remembered for a minute."""
    make(tmp_path, 1)
    shutil.rmtree(folder_of(tmp_path, 1))
    with pytest.raises(RunFault, match="taken over by a later one: it ends"):
        Claim(tmp_path, 1).require_current()
    shutil.rmtree(tmp_path / "generations")
    Claim(tmp_path, 1).require_current()  # a folder that has vanished belongs to nobody else


def test_where_nothing_can_be_read_nothing_may_be_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 1)

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "listdir", broken)
    with pytest.raises(RunFault, match=r"cannot be read .Input/output error., so another start"):
        Claim(tmp_path, 1).require_current()
    assert not Claim(tmp_path, 1).lost  # a disk that comes back is no loss of the run


def test_an_owner_counts_until_it_lets_go(tmp_path: Path) -> None:
    ownership = Ownership(tmp_path, 1, make(tmp_path, 1), None)
    counted = threading.Event()
    for _ in range(int(HANG / 0.01)):
        if int((folder_of(tmp_path, 1) / "beat").read_text() or 0) > 3:
            break
        counted.wait(0.01)
    else:
        pytest.fail("the counter does not grow")
    ownership.release()
    ownership.release()
    owner = owner_of_generation(tmp_path, 1)
    assert owner is not None and owner.released
    before = (folder_of(tmp_path, 1) / "beat").read_text()
    counted.wait(0.1)
    assert (folder_of(tmp_path, 1) / "beat").read_text() == before


def test_an_owner_notices_by_itself_that_it_has_lost_the_run(tmp_path: Path) -> None:
    ownership = Ownership(tmp_path, 1, make(tmp_path, 1), None)
    make(tmp_path, 2)
    shutil.rmtree(folder_of(tmp_path, 1))
    ownership._thread.join(HANG)
    with pytest.raises(RunFault, match="taken over by generation 2"):
        ownership.raise_if_lost()
    ownership.release()
    assert not folder_of(tmp_path, 1).exists()
    assert owner_of_generation(tmp_path, 2).released is False  # type: ignore[union-attr]
