from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llmkit.data.building.part_file import PartReader, PartWriter, join
from llmkit.data.tokens.encode import Encoded
from llmkit.errors import RunFault

U2 = np.dtype("<u2")


def document(*tokens: int, targets: list[bool] | None = None, end: bool = True) -> Encoded:
    mask = None if targets is None else np.array(targets)
    return Encoded(np.array(tokens, dtype=np.int32), mask, 10 * len(tokens), end)


def plain(documents: list[Encoded]) -> list[tuple[list[int], list[bool] | None, int, bool]]:
    return [
        (one.tokens.tolist(), None if one.targets is None else one.targets.tolist(), *one[2:])
        for one in documents
    ]


def write(path: Path) -> None:
    with PartWriter(path) as writer:
        writer.left_out["empty"] += 3
        writer.candidates = 9
        writer.add_block(join([document(1, 2, 3), document(65535)], U2), join([], U2))
        learned = document(4, 5, targets=[False, True], end=False)
        writer.add_block(join([document(6), learned], U2), join([document(7, 8)], U2))


def test_what_is_written_is_read_block_by_block(tmp_path: Path) -> None:
    write(tmp_path / "part")
    part = PartReader(tmp_path / "part")
    assert (part.left_out, part.candidates) == (Counter(empty=3), 9)
    (first, nothing), (second, held) = part.blocks()
    assert plain(list(first.one_by_one())) == [([1, 2, 3], None, 30, True), ([65535], None, 10, True)]
    assert nothing.count == 0
    assert first.stream_lengths.tolist() == [4, 2]
    # Where one document of a block has targets, all have.
    assert plain(list(second.one_by_one())) == [([6], [True], 10, True), ([4, 5], [False, True], 20, False)]
    assert plain([held.document(0)]) == [([7, 8], None, 20, True)]


def test_nothing_is_there_before_all_is_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), PartWriter(tmp_path / "part") as writer:
        writer.add_block(join([document(1)], U2), join([], U2))
        assert not (tmp_path / "part").exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, -40, -12, -1])
def test_a_damaged_part_is_removed_so_that_it_is_made_again(tmp_path: Path, place: int) -> None:
    path = tmp_path / "part"
    write(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFault, match="was damaged and is removed; run the same command again"):
        list(PartReader(path).blocks())
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 10, 60])
def test_a_part_that_was_cut_is_damaged(tmp_path: Path, size: int) -> None:
    path = tmp_path / "part"
    write(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunFault, match="was damaged"):
        list(PartReader(path).blocks())
