"""A checkpoint that many processes write: whole and the same for all, or not there for any."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkpoint_reads
from benchmarks.checkpoint_reads import Ranks, gpt
from llmkit.checkpoint import files, format, index_file, read
from llmkit.parallel.mesh import Mesh
from tests.checkpoint.rank_saves import SHAPES, full, save
from tests.ranks import run_ranks

Seen = list[dict[str, Any]]
FLIPS = 200


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Case -> what each of three ranks saw."""
    root = tmp_path_factory.mktemp("shared") / "checkpoints"
    ranks = run_ranks(3, "tests.checkpoint.rank_saves:cases", root=str(root))
    return {case: [rank[case] for rank in ranks] for case in ranks[0]}


def test_each_rank_writes_its_own_and_all_can_read_the_whole(seen: dict[str, Seen]) -> None:
    assert [Path(each["saved"]).name for each in seen["next"]] == ["step-00000010"] * 3
    assert [each["equal"] for each in seen["read"]] == [True] * 3


@pytest.mark.parametrize(
    ("case", "who", "message"),
    [
        ("full for one", "rank 1 (", "step-00000009: No space left on device (it needs 112 bytes,"),
        ("full for all", "cannot save", "step-00000009: No space left on device (it needs 112 bytes,"),
        ("full for the manifest", "rank 0 (", "step-00000009: No space left on device"),
        ("full for the tokenizer", "rank 0 (", "step-00000009: No space left on device"),
    ],
)
def test_a_disk_that_fails_for_one_fails_the_save_for_all(
    seen: dict[str, Seen], case: str, who: str, message: str
) -> None:
    assert {each["error"] for each in seen[case]} == {"RunFault"}
    (said,) = {each["message"] for each in seen[case]}
    assert said.startswith(who) and "cannot save checkpoint " in said and message in said
    assert all(each["names"] == ["step-00000001"] for each in seen[case])


def test_a_folder_that_is_not_shared_is_named(seen: dict[str, Seen]) -> None:
    (said,) = {each["message"] for each in seen["not shared"]}
    assert said.startswith("rank 2 (") and "elsewhere/.tmp-step-00000009 is not there" in said
    assert all(each["names"] == ["step-00000001"] for each in seen["not shared"])


@pytest.mark.parametrize(
    ("case", "rank", "message"),
    [
        ("bug", 2, "a bug"),
        ("missing slice", 0, "exp_avg embedding: elements 9 to 28 of [0:7, 2:6] are missing"),
        ("missing box", 0, "master embedding: [0:7, 0:2] is missing"),
        ("given twice", 0, "master embedding: element 0 of [0:7, 2:6] is given twice"),
        ("overlap", 0, "master embedding: [3:4, 1:2] is given twice"),
        ("wrong setting", 0, "keep_last is 0, but at least one checkpoint must be kept"),
    ],
)
def test_a_mistake_of_one_is_an_error_there_and_a_fault_on_the_others(
    seen: dict[str, Seen], case: str, rank: int, message: str
) -> None:
    for number, each in enumerate(seen[case]):
        if number == rank:
            assert (each["error"], each["message"]) == ("ValueError", message)
        else:
            assert each["error"] == "RunFault"
            assert (
                each["message"].startswith(f"rank {rank} (") and f"ValueError: {message}" in each["message"]
            )
        assert each["names"] == ["step-00000001"]


def test_older_ones_are_kept_on_the_word_of_any_rank(seen: dict[str, Seen]) -> None:
    for each in seen["turning bad"]:
        assert "the checkpoint just written is bad, older ones are kept: " in each["message"]
        assert "pieces-00002-00000" in each["message"]
        assert each["names"] == ["step-00000001", "step-00000009"]
    assert seen["next"][0]["names"] == ["step-00000010"]


def test_all_ranks_verify_and_take_the_same_checkpoint(seen: dict[str, Seen]) -> None:
    assert [each["saved"] for each in seen["restart"]] == ["11 []"] * 3
    (found,) = {each["saved"] for each in seen["restart from damage"]}
    assert found.startswith("10 ['checkpoint step-00000011 is not usable: ") and "pieces-00002" in found


def test_what_one_rank_may_not_read_ends_the_start_of_all(seen: dict[str, Seen]) -> None:
    for each in seen["restart without access"]:
        assert each["error"] == "UserError" and each["message"].startswith("rank 1 (")
        assert "pieces-00001-00000.safetensors: cannot be read" in each["message"]


def test_a_rank_that_is_killed_ends_the_save_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    said = run_ranks(3, "tests.checkpoint.rank_saves:killed", may_die=[1], root=str(tmp_path))
    assert said[1] is None
    assert all("a process of this run has ended" in each for each in (said[0], said[2]))
    found = read.newest(tmp_path, pytest.fail)
    assert found is not None and found.step == 1
    assert all((found.read(name, "master") == full(name, "master", 1)).all() for name in SHAPES)


def test_one_process_alone_must_give_whole_tensors_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"master embedding: \[0:7, 2:6\] is missing"):
        save(tmp_path, 1, Mesh())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.drill(
    "D19",
    injection="a bit flipped at random in a checkpoint of ZeRO-3 x TP2 that 8 ranks verify together",
    expected="one rank finds it and names the file and the bytes",
)
def test_ranks_that_verify_together_find_every_flipped_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Any
) -> None:
    for module in (format, files, index_file):
        monkeypatch.setattr(module, "BLOCK", 4096)
    writers, readers = Ranks(4, 2), 8
    folder = tmp_path / "step-00000001"
    checkpoint_reads.save(folder, gpt(24, 2), writers)
    paths = sorted(folder.glob("pieces-*"))
    draw = random.Random(0)
    for trial in range(FLIPS):
        path = paths[trial % len(paths)]
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")
        end = header if trial % 2 else len(whole)  # half of them in the header
        raw = bytearray(whole)
        raw[position := draw.randrange(end)] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
        found = [problem for rank in range(readers) for problem in read.verify(folder, rank, readers)]
        block = position // 4096 * 4096
        assert len(found) == 1 and f"{path}: bytes {block} to " in found[0]
        path.write_bytes(whole)
    measured("found", FLIPS, f"of {FLIPS} bits by {readers} ranks")
