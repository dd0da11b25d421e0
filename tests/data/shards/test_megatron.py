from __future__ import annotations

import os
import struct
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.shards import megatron, megatron_index
from llmkit.data.shards.format import BLOCK_BYTES
from llmkit.data.shards.megatron import MegatronReader
from llmkit.errors import RunFault, UserError
from tests.data.shards.megatron_files import write_megatron

END = 0
DOCUMENTS = [[[5, 6], [7, END]], [[8, END]], [[9, 10, 11, END]]]
STREAM = [5, 6, 7, END, 8, END, 9, 10, 11, END]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Files with the three documents."""
    return write_megatron(tmp_path / "toy_text_document", DOCUMENTS)


def patch(path: Path, place: int, content: bytes) -> None:
    """Write over some bytes."""
    whole = bytearray(path.read_bytes())
    whole[place : place + len(content)] = content
    path.write_bytes(whole)


def documents_of(reader: MegatronReader) -> list[list[int]]:
    """The tokens of each document by the indices, with its end-of-text."""
    documents: list[list[int]] = []
    begin = 0
    for index in reader._indices:
        ends = [0, *np.concatenate(list(index.document_ends())).tolist()]
        documents += [reader.read(begin + a, begin + b).tolist() for a, b in pairwise(ends)]
        begin += index.tokens
    return documents


@given(
    files=st.lists(
        st.lists(
            st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=3), min_size=1, max_size=5
        ),
        min_size=1,
        max_size=3,
    ),
    length=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "int8", "int16", "int32", "int64", "uint16"]),
)
@settings(deadline=None, max_examples=60)
def test_rows_are_the_tokens_of_all_files_in_order(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[list[list[int]]]], length: int, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("megatron")
    documents: list[list[int]] = []
    for number, file in enumerate(files):
        ended = [[*document[:-1], [*document[-1], END]] for document in file]
        write_megatron(folder / f"part-{number}", ended, dtype)
        documents += [[*chain(*document)] for document in ended]
    stream = [*chain(*documents)]
    reader = MegatronReader(folder, 100, END)
    assert (reader.tokens, reader.documents) == (len(stream), len(documents))
    assert (reader.has_mask, reader.text_bytes) == (False, None)
    assert reader.period == len(stream)
    count = (len(stream) - 1) // length
    if count:
        around = np.arange(count, 3 * count + 3)
        places = around[:, None] * length + np.arange(length + 1)
        assert reader.rows(around, length).tolist() == np.array(stream)[places % len(stream)].tolist()
    wanted = [stream[k * length : (k + 1) * length + 1] for k in range(count)][::-1]
    out = np.empty((count, length + 1), dtype=np.int32)
    index = np.arange(count)[::-1]
    assert reader.rows(index, length).tolist() == wanted
    assert reader.rows(index, length, out).tolist() == out.tolist() == wanted
    assert reader.read(0, len(stream)).tolist() == stream
    assert documents_of(reader) == documents
    assert reader.targets(index, length) is None
    assert reader.read_targets(0, 1) is None


@pytest.mark.parametrize(
    "path", ["toy_text_document", "toy_text_document.idx", "toy_text_document.bin", ".", "*", "toy*"]
)
def test_files_are_found_by_prefix_by_name_by_folder_and_by_pattern(prefix: Path, path: str) -> None:
    (prefix.parent / "notes.txt").write_text("of another kind")
    assert MegatronReader(prefix.parent / path, 100, END).read(0, len(STREAM)).tolist() == STREAM


def test_dots_in_a_prefix_are_part_of_it(tmp_path: Path) -> None:
    assert MegatronReader(write_megatron(tmp_path / "v1.5_text", DOCUMENTS), 100, END).documents == 3


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: there is no .*nothing.idx, and no folder of that name"):
        MegatronReader(tmp_path / "nothing", 100, END)


def test_data_without_end_of_text_is_refused(tmp_path: Path) -> None:
    wanted = r"toy.bin: its last document ends with token 8 and not with 0, .* without --append-eod or with"
    with pytest.raises(UserError, match=wanted):
        MegatronReader(write_megatron(tmp_path / "toy", [[[5, END]], [[7, 8]]]), 100, END)
    write_megatron(tmp_path / "a", [[[1, END]]])
    write_megatron(tmp_path / "b", [[[2, END]], [[3]]])
    with pytest.raises(UserError, match=r"b.bin: its last document ends with token 3"):
        MegatronReader(tmp_path / "[ab]", 100, END)


@pytest.mark.parametrize(("dtype", "wrong"), [("int32", 100), ("int32", -1), ("uint16", 60_000)])
def test_an_id_outside_the_vocabulary_is_named_when_its_block_is_first_read(
    tmp_path: Path, dtype: str, wrong: int
) -> None:
    block = BLOCK_BYTES // np.dtype(dtype).itemsize
    ids = np.full(3 * block, 7)
    ids[[0, -1]] = END
    ids[block + 9] = wrong
    reader = MegatronReader(write_megatron(tmp_path / "toy", [[[END]], [ids]], dtype), 100, END)
    assert reader.rows(np.array([0]), 1000).max() == 7
    limits = f"{BLOCK_BYTES} to {2 * BLOCK_BYTES - 1}"
    wanted = rf"toy.bin: holds token id {wrong} \(in bytes {limits}\), the vocabulary has 100 tokens"
    with pytest.raises(UserError, match=wanted):
        reader.rows(np.array([block // 1000]), 1000)
    with pytest.raises(UserError, match=wanted):
        reader.verify()


def test_verify_counts_the_blocks(prefix: Path) -> None:
    assert MegatronReader(prefix, 100, END).verify() == 1


def test_a_file_that_is_cut_while_it_is_read_is_named(prefix: Path) -> None:
    reader = MegatronReader(prefix, 100, END)
    os.truncate(f"{prefix}.bin", 6)
    with pytest.raises(RunFault, match=r"toy_text_document.bin: changed while it is being read"):
        reader.rows(np.array([0]), 4)


@pytest.mark.parametrize("place", [0, -2])
def test_a_file_that_is_written_to_while_it_is_read_is_named_whatever_is_written(
    prefix: Path, place: int
) -> None:
    reader = MegatronReader(prefix, 100, END)
    assert reader.rows(np.array([0]), 4).tolist() == [STREAM[:5]]
    path = Path(f"{prefix}.bin")
    was = path.stat()
    with path.open("r+b") as file:  # another id of the vocabulary
        file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        file.write(b"\x07\x00")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    for read in (lambda: reader.rows(np.array([0]), 4), lambda: reader.read(0, 2), reader.verify):
        with pytest.raises(RunFault, match=r"toy_text_document.bin: changed while .* it was written to and"):
            read()


def test_empty_documents_at_the_ends_of_a_file_are_passed_over(tmp_path: Path) -> None:
    documents = [[], [[]], [[5, 6, END]], [[7, END]], [[]]]
    reader = MegatronReader(write_megatron(tmp_path / "toy", documents), 100, END)
    assert (reader.tokens, reader.documents) == (5, 5)
    assert documents_of(reader) == [[], [], [5, 6, END], [7, END], []]
    reader.check_documents()
    reader = MegatronReader(write_megatron(tmp_path / "toy", [[[]], [[5, 6]], [[7, END]]]), 100, END)
    with pytest.raises(UserError, match=r"1 of its 3 documents .*: document 2, whose last token is 6\)"):
        reader.check_documents()


@given(
    documents=st.lists(
        st.tuples(st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=3), st.booleans()), max_size=12
    )
)
@settings(deadline=None, max_examples=60)
def test_every_document_without_an_end_is_found(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[list[list[int]], bool]]
) -> None:
    folder = tmp_path_factory.mktemp("megatron")
    ended = [[*document, [END]] if has_end else document for document, has_end in documents] + [[[END]]]
    reader = MegatronReader(write_megatron(folder / "toy", ended), 100, END)
    wrong = [
        number for number, (document, has_end) in enumerate(documents, 1) if not has_end and any(document)
    ]
    if not wrong:
        return reader.check_documents()
    wanted = rf"toy.bin: {len(wrong)} of its {len(ended)} documents .the first: document {wrong[0]}, "
    for check in (reader.check_documents, reader.verify):
        with pytest.raises(UserError, match=wanted):
            check()


def test_ends_inside_of_documents_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron, "COUNTED", 3)
    write_megatron(tmp_path / "a", [[[5, END, 6, END]], [[]], [[END, END]]])
    write_megatron(tmp_path / "b", [[[7, END], [END]]])
    assert MegatronReader(tmp_path, 100, END).ends_inside() == 3
    assert MegatronReader(write_megatron(tmp_path / "toy", DOCUMENTS), 100, END).ends_inside() == 0


def test_documents_are_looked_up_in_parts(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(MegatronReader(prefix, 100, END)._indices[0].document_ends()))
    assert whole.tolist() == [4, 6, 10]
    monkeypatch.setattr(megatron_index, "DOCUMENTS_AT_ONCE", 2)
    parts = list(MegatronReader(prefix, 100, END)._indices[0].document_ends())
    assert [part.tolist() for part in parts] == [[4, 6], [10]]


def test_files_of_several_types_are_not_read_as_one(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", DOCUMENTS)
    write_megatron(tmp_path / "b", DOCUMENTS, "int32")
    with pytest.raises(UserError, match=r"ids of several types \(int32, uint16\); make each type a source"):
        MegatronReader(tmp_path, 100, END)


HEADER = 9 + 8 + 1 + 8 + 8
POINTERS = HEADER + 4 * 4
PLACES = POINTERS + 8 * 4


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        (0, b"TNTIDX", r"toy_text_document.idx: is no index of Megatron-LM"),
        (9, struct.pack("<Q", 2), "version 2, this llmkit reads 1"),
        (17, b"\x07", r"type code 7, ids may have 1 \(uint8\), .* 8 \(uint16\)"),
        (18, struct.pack("<Q", 5), r"114 bytes, its 5 sequences and 3 documents take 126"),
        (17, b"\x04", "its sequences do not lie one after the other"),
        (HEADER, struct.pack("<i", -2), "its sequences do not lie one after the other"),
        (
            HEADER,
            struct.pack("<4i4q", 2, -2, 2, 4, 0, 4, 0, 4),
            "its sequences do not lie one after the other",
        ),
        (HEADER, struct.pack("<i", 3), "its sequences do not lie one after the other"),
        (POINTERS + 8, struct.pack("<q", 6), "its sequences do not lie one after the other"),
        (PLACES + 4 * 8, bytes(4), r"118 bytes, its 4 sequences and 3 documents take 114; .* more than text"),
        (PLACES, struct.pack("<q", 1), "its documents are not all of its 4 sequences"),
        (PLACES + 8, struct.pack("<q", 4), "its documents are not in order"),
        (PLACES + 24, struct.pack("<q", 9), "its documents are not all of its 4 sequences"),
    ],
)
def test_a_wrong_index_is_refused(prefix: Path, place: int, content: bytes, message: str) -> None:
    patch(Path(f"{prefix}.idx"), place, content)
    with pytest.raises(UserError, match=message):
        MegatronReader(prefix, 100, END)


def test_no_bit_of_an_index_flips_unseen(prefix: Path) -> None:
    """A document's bounds may be moved to where another sequence ends, which is no fault of the format."""
    path = Path(f"{prefix}.idx")
    whole, digest = path.read_bytes(), MegatronReader(prefix, 100, END).digest
    moved = 0
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            reader = MegatronReader(prefix, 100, END)
            reader.check_documents()
            assert reader.digest != digest and reader.ends_inside() > 0
            moved += 1
        except UserError as error:
            assert path.stem in str(error)
    assert moved == 3


def test_cut_missing_and_empty_files_are_refused(prefix: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"empty.idx: holds no tokens"):
        MegatronReader(write_megatron(tmp_path / "empty", [[[]]]), 100, END)
    os.truncate(f"{prefix}.bin", 18)
    with pytest.raises(UserError, match=r"toy_text_document.bin: 18 bytes, toy_text_document.idx says 20"):
        MegatronReader(prefix, 100, END)
    os.remove(f"{prefix}.bin")
    with pytest.raises(UserError, match=r"toy_text_document.bin: cannot be read \(No such file"):
        MegatronReader(prefix, 100, END)
    os.truncate(f"{prefix}.idx", 20)
    with pytest.raises(UserError, match=r"toy_text_document.idx: is no index of Megatron-LM"):
        MegatronReader(prefix, 100, END)


def test_the_digest_changes_with_the_documents_the_size_and_the_ids_at_the_ends(tmp_path: Path) -> None:
    changed = [
        DOCUMENTS,
        [[[5, 6, 7, END]], [[8, END]], [[9, 10, 11, END]]],
        [[[5], [6, 7, END]], [[8, END]], [[9, 10, 11, END]]],
        [*DOCUMENTS, [[END]]],
        [[[1, 6], [7, END]], *DOCUMENTS[1:]],
        [*DOCUMENTS[:2], [[9, 10, 12, END]]],
    ]
    digests = [
        MegatronReader(write_megatron(tmp_path / str(i), d), 100, END).digest for i, d in enumerate(changed)
    ]
    assert len(set(digests)) == len(changed)
    assert MegatronReader(write_megatron(tmp_path / "again", DOCUMENTS), 100, END).digest == digests[0]
