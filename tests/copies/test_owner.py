from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.copies import owner
from llmkit.copies.outgoing import Outgoing, stored
from llmkit.copies.owner import CopyOwner, Known, LostError, claimed, require_free, require_mine
from llmkit.copies.store import Store, Traffic
from llmkit.errors import UserError
from llmkit.ownership.owner import Owner

HERE = Owner.of_this_process("llmkit train a.yaml", {})
ELSEWHERE = replace(HERE, host="other", machine="another boot")


@pytest.fixture
def store(tmp_path: Path, traffic: Traffic) -> Store:
    return Store(f"file://{tmp_path}/store", traffic)


def test_the_owner_is_read_back(any_store: Store) -> None:
    assert owner.read(any_store) is None
    for found in (CopyOwner("r", 3, HERE), CopyOwner("r", 3, HERE, 17, True)):
        owner.write(any_store, found)
        assert owner.read(any_store) == found


def test_what_is_no_owner_is_refused(store: Store) -> None:
    for raw in (b"", b"[]", b"{}", b'{"run": 1}', b"\xff"):
        store.put(owner.NAME, Outgoing(stored(owner.NAME, raw), raw))
        with pytest.raises(UserError, match=r"owner\.json: is not as this llmkit writes it"):
            owner.read(store)


def test_a_claim_is_one_higher_than_what_is_known(store: Store) -> None:
    assert claimed(None, Known("r", 0), "c", store).start == 1
    assert claimed(CopyOwner("r", 4, ELSEWHERE), Known("r", 4), "c", store).start == 5
    with pytest.raises(LostError, match=r"another run, last of process \d+ on other"):
        claimed(CopyOwner("other", 1, ELSEWHERE), Known("r", 4), "c", store)
    with pytest.raises(LostError, match="a later start of this run than this folder knows of"):
        claimed(CopyOwner("r", 5, ELSEWHERE), Known("r", 4), "c", store)


def test_starts_of_one_number_are_told_apart(store: Store) -> None:
    """Two that have claimed in the same moment: neither takes the copies from the other later."""
    known = Known("r", 5, HERE)
    assert claimed(CopyOwner("r", 5, HERE, beat=7), known, "c", store).start == 6
    with pytest.raises(LostError, match=r"a later start of this run than this folder .* on other"):
        claimed(CopyOwner("r", 5, ELSEWHERE), known, "c", store)
    assert claimed(CopyOwner("r", 4, ELSEWHERE), known, "c", store).start == 5  # that one was not written
    assert claimed(None, known, "c", store).start == 6


def test_a_start_that_lost_the_copies_is_told(store: Store) -> None:
    mine = CopyOwner("r", 1, HERE)
    with pytest.raises(LostError, match="somebody has deleted them"):
        require_mine(store, mine)
    owner.write(store, replace(mine, beat=5))
    require_mine(store, mine)
    for other in (CopyOwner("r", 2, ELSEWHERE), CopyOwner("r", 1, ELSEWHERE), CopyOwner("x", 1, HERE)):
        owner.write(store, other)
        with pytest.raises(LostError, match="this start copies nothing more there"):
            require_mine(store, mine)


def test_the_living_keep_the_copies_and_the_dead_do_not(store: Store) -> None:
    """Of a process of this machine the kernel tells; of another one a counter that goes on."""
    notes, time = list[str](), [0.0]

    def judge(found: CopyOwner, after: list[CopyOwner], environment: dict[str, str] | None = None) -> None:
        owner.write(store, found)

        def sleep(seconds: float) -> None:
            time[0] += seconds
            if after:
                owner.write(store, after.pop(0))

        require_free(store, found, environment or {}, notes.append, sleep, lambda: time[0])

    alive, far = CopyOwner("r", 1, HERE), CopyOwner("r", 1, ELSEWHERE)
    with pytest.raises(UserError, match="which is alive, in another run folder: stop that one first"):
        judge(alive, [])
    judge(CopyOwner("r", 1, replace(HERE, born="0")), [])
    judge(CopyOwner("r", 1, HERE, ended=True), [])
    assert (notes, time) == ([], [0.0])
    judge(far, [])
    assert time[0] >= owner.SILENT_SECONDS and "looking for 90 s whether it is alive" in notes[0]
    with pytest.raises(UserError, match="which is alive"):
        judge(far, [far, far, replace(far, beat=1)])
    judge(far, [far, replace(far, ended=True)])
    job = replace(far, owner=replace(ELSEWHERE, job="7", restart=0))
    time[0] = 0.0
    judge(job, [], {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    assert time[0] == 0.0


def test_what_a_folder_knows_is_read(tmp_path: Path) -> None:
    assert Known.read(tmp_path) is None
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies/state.json").write_text('{"run": "r", "start": 3}')
    assert Known.read(tmp_path) == Known("r", 3)
    for known in (Known("r", 4, HERE), Known("r", 5)):
        known.write(tmp_path)
        assert Known.read(tmp_path) == known
    Known("r", 4).write(tmp_path)
    assert Known.read(tmp_path) == Known("r", 4)
    (tmp_path / "copies").rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "copies")
    assert Known.read(tmp_path) == Known("r", 4, is_copy=True)
    for damaged in ("", "[]", '{"run": "r"}', '{"run": 1, "start": 3}'):
        (tmp_path / "copies/state.json").write_text(damaged)
        with pytest.raises(UserError, match=r"state\.json: is damaged"):
            Known.read(tmp_path)
