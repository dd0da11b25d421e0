from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.config import schema
from llmkit.data.sources import unpacked
from llmkit.data.sources.files import list_files, stat_files
from llmkit.data.sources.formats import format_of
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.splits import split_files
from llmkit.data.sources.unpacked import share_before, unpacked_bytes, unpacked_size


def lines(count: int) -> bytes:
    draw = np.random.default_rng(0)
    return b"".join(
        json.dumps({"text": " ".join(map(str, draw.integers(0, 10**6, 40)))}).encode() + b"\n"
        for _ in range(count)
    )


def packed(path: Path, content: bytes) -> Path:
    pack = {".gz": gzip.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    path.write_bytes(pack.get(path.suffix, bytes)(content))
    return path


def reader_of(path: Path, unit_bytes: int = 1 << 30, **more: Any) -> SourceReader:
    kind = "parquet" if path.suffix == ".parquet" else "jsonl"
    spec = schema.Source(type=kind, path=str(path), **more)  # type: ignore[arg-type]
    files = list_files(spec, "data.sources.0")
    return SourceReader(spec, "x", "x", "skip", files, split_files(spec, files, unit_bytes))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_says_its_size_or_its_beginning_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    content = lines(4000)
    path = packed(tmp_path / f"a.jsonl{suffix}", content)
    spec = schema.Source(type="jsonl", path=str(path))
    (file,), form = stat_files([str(path)]), format_of(spec, str(path))
    monkeypatch.setattr(unpacked, "PROBE_BYTES", 200_000)
    assert file.size > 2 * 200_000
    assert unpacked_size(file, form) == len(content)
    # Of two members, or frames, the file says the size of one.
    parts = (content[: len(content) // 8], content[len(content) // 8 :])
    path.write_bytes(b"".join(packed(path, part).read_bytes() for part in parts))
    (file,) = stat_files([str(path)])
    assert unpacked_size(file, form) == pytest.approx(len(content), rel=0.3)


def test_the_first_of_several_frames_is_not_taken_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, path = lines(4000), tmp_path / "a.jsonl.zst"
    spec, cut = schema.Source(type="jsonl", path=str(path)), 6 * len(lines(4000)) // 10
    frames = [pa.compress(part, "zstd", asbytes=True) for part in (content[:cut], content[cut:])]
    path.write_bytes(b"".join(frames))
    (file,), form = stat_files([str(path)]), format_of(spec, str(path))
    monkeypatch.setattr(unpacked, "PROBE_BYTES", file.size * 3 // 4)
    assert unpacked_size(file, form) == pytest.approx(len(content), rel=0.1)  # a cut block is lost
    monkeypatch.setattr(unpacked, "PROBE_BYTES", file.size)
    assert unpacked_size(file, form) == len(content)


def test_a_frame_that_says_more_than_its_beginning_promises_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lines(1000) + b'{"text": "again"}\n' * 500_000
    path = packed(tmp_path / "a.jsonl.zst", content)
    (file,), form = stat_files([str(path)]), format_of(schema.Source(type="jsonl", path="x"), str(path))
    monkeypatch.setattr(unpacked, "PROBE_BYTES", 50_000)
    assert unpacked_size(file, form) == len(content)


def test_the_unpacked_size_of_a_source_is_that_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for index, suffix in enumerate(("", ".gz", ".zst")):
        packed(folder / f"{index}.jsonl{suffix}", lines(50 * (index + 1)))
    sizes = sum(len(lines(count)) for count in (50, 100, 150))
    assert unpacked_bytes(reader_of(folder)) == pytest.approx(sizes, rel=1e-3)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_the_share_before_a_record_is_known(tmp_path: Path, suffix: str) -> None:
    path, content = tmp_path / f"a.{suffix}", lines(300)
    if suffix == "parquet":
        rows = [json.loads(line) for line in content.splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    else:
        packed(path, content)
    reader = reader_of(path, unit_bytes=20_000 if suffix == "jsonl" else 1 << 30)
    for unit, part in enumerate(reader.splits):
        candidates = list(reader.read(unit))
        shares = [share_before(reader, unit, candidate) for candidate in candidates]
        wanted = np.arange(len(candidates)) / len(candidates)
        assert shares == pytest.approx(wanted, abs=0.06), (part, suffix)
