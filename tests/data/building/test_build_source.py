from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.config import schema
from llmkit.data.building import build_source, parts, progress, write_shards
from llmkit.data.building.build_source import Builder
from llmkit.data.building.parts import PartMaker
from llmkit.data.building.prepare import prepare
from llmkit.data.prepared import PreparedData
from llmkit.data.source import Source
from llmkit.errors import UserError
from tests.data.building import killed
from tests.data.building.test_packing import cut_by_walking
from tests.data.toy import folders


def silent(line: str) -> None:
    pass


def settings(tmp_path: Path, **changes: Any) -> schema.Data:
    fields: dict[str, Any] = {
        "tokenizer": schema.Tokenizer(type="bytes"),
        "sources": [schema.Source(type="jsonl", path=str(tmp_path / "r.jsonl"))],
        "sequence_length": 16,
        "cache_dir": str(tmp_path / "cache"),
    }
    return schema.Data(**fields | changes)


def write_records(tmp_path: Path, records: list[Any]) -> None:
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def texts(prepared: PreparedData) -> tuple[list[str], list[str]]:
    """Documents to train on, and those held out."""
    found = []
    for sources in ([one.stored for one in prepared.sources], [*prepared.heldout.values()]):
        readers = [reader for reader in sources if reader is not None]
        decode = prepared.tokenizer.decode
        found.append([decode(reader.document(n)) for reader in readers for n in range(reader.documents)])
    return found[0], found[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of a few KB are built in many parts, by several processes where there may be some."""
    monkeypatch.setattr(parts, "PART_BYTES", (killed.PART_BYTES, killed.PART_BYTES))
    monkeypatch.setattr(build_source, "SMALL", 0)


def test_every_document_is_in_the_training_or_in_the_held_out_text(tmp_path: Path) -> None:
    wanted = [f"record {number}" for number in range(100)]
    write_records(tmp_path, [{"text": text} for text in wanted])
    prepared = prepare(settings(tmp_path), silent)
    train, heldout = texts(prepared)
    assert len(heldout) == 5
    assert sorted(train + heldout) == sorted(wanted)
    assert prepared.train_bytes + prepared.heldout_bytes == sum(map(len, wanted))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_the_number_of_workers_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    write_records(tmp_path, [{"text": f"record {i} {'word ' * (i % 23)}"} for i in range(200)])
    built = []
    for workers in (0, 1, 2, 3) if packing == "concatenate" else (0, 2):
        config = settings(tmp_path, cache_dir=str(tmp_path / f"cache-{workers}"), packing=packing)
        monkeypatch.setattr(build_source, "SMALL", 0 if workers else 1 << 20)
        prepared = prepare(config, silent, workers=workers or None)
        built.append((prepared.fingerprint, contents(folders(prepared)["jsonl-0"])))
    assert all(one == built[0] for one in built)


@pytest.mark.usefixtures("small_parts")
def test_a_killed_build_goes_on_with_the_parts_that_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path, [{"text": f"record {number}"} for number in range(2000)])
    command = [sys.executable, "-m", "tests.data.building.killed", str(tmp_path)]
    root = Path(killed.__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as process:
        assert process.stdout is not None
        while "half way" not in (line := process.stdout.readline()):
            assert line, "the build ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.stdout.read()  # until its workers are gone too
    (tmp,) = (tmp_path / "cache").glob(".building-jsonl-0-*")
    (folder,) = tmp.glob("parts-*")
    finished = {path.name for path in folder.glob("part-*")}
    shutil.copytree(folder / min(finished), folder / ".part-000001-77")
    (folder / ".part-000001-77" / "index.json").unlink()  # half of a part
    made: list[str] = []
    make = PartMaker.make

    def count(self: PartMaker, part: int) -> None:
        made.append(self.path(part).name)
        make(self, part)

    monkeypatch.setattr(PartMaker, "make", count)
    monkeypatch.setattr(build_source, "SMALL", 1 << 20)
    lines: list[str] = []
    prepared = prepare(settings(tmp_path), lines.append)
    assert len(finished) >= killed.PARTS
    assert set(made) & finished == set()
    assert len(made) > 2
    everything = f"{len(finished)} of {len(finished) + len(made)} parts are there from before"
    assert any(everything in line for line in lines)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", "", ".lock", ".lock"]
    fresh = prepare(settings(tmp_path, cache_dir=str(tmp_path / "fresh")), silent)
    assert contents(folders(prepared)["jsonl-0"]) == contents(folders(fresh)["jsonl-0"])


def test_best_fit_cuts_few_documents_that_would_fit(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    write_records(tmp_path, [{"text": "x" * int(size)} for size in draw.integers(1, 60, 2000)])
    cut = {}
    for packing in ("concatenate", "best_fit"):
        lines: list[str] = []
        prepared = prepare(settings(tmp_path, packing=packing, sequence_length=64), lines.append)
        reader = prepared.sources[0].stored
        assert reader is not None
        lengths = [reader.document(number).size + 1 for number in range(reader.documents)]
        fits = sum(length <= 64 for length in lengths)
        cut[packing] = sum(length <= 64 for length in cut_by_walking(lengths, 64, 1))
        told = f"; rows cut {cut[packing]:,} of {fits:,} documents that fit"
        assert any(line.endswith(told) for line in lines) is (packing == "best_fit")
    assert 5 * cut["best_fit"] < cut["concatenate"]


@pytest.mark.usefixtures("small_parts")
def test_documents_are_packed_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_source, "SMALL", 1 << 20)
    wanted = [f"record {number} {'x' * (number % 40)}" for number in range(300)]
    write_records(tmp_path, [{"text": text} for text in wanted])
    config = settings(tmp_path, packing="best_fit", sequence_length=64, validation_fraction=0.0)
    at_once = texts(prepare(config, silent))[0]
    monkeypatch.setattr(write_shards, "PLAN_TOKENS", 2000)
    here = str(tmp_path / "again")
    piecewise = texts(prepare(config.model_copy(update={"cache_dir": here}), silent))[0]
    assert piecewise != at_once
    assert sorted(piecewise) == sorted(at_once) == sorted(wanted)


def test_the_sequence_length_decides_the_folder_only_where_it_decides_the_order(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": f"record {number}"} for number in range(50)])
    for packing, same in (("concatenate", True), ("best_fit", False)):
        one, other = (
            folders(prepare(settings(tmp_path, packing=packing, sequence_length=length), silent))
            for length in (16, 32)
        )
        assert (one == other) == same


def test_what_is_left_out_is_counted_once_and_told(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "some text"}] * 60 + [{"text": ""}] * 3 + [{"text": None}] * 2)
    lines: list[str] = []
    prepared = prepare(settings(tmp_path, tokenizer=schema.Tokenizer(vocab_size=260)), lines.append)
    assert "data: jsonl-0: 5 documents left out: 3 empty, 2 no string (of 65)" in lines
    counts = prepared.sources[0].left_out
    assert counts == {"empty": 3, "no string": 2}
    again = prepare(settings(tmp_path, tokenizer=schema.Tokenizer(vocab_size=260)), lines.append)
    assert again.sources[0].left_out == counts


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"text": ""}] * 3,
            r"source jsonl-0: it has no usable document \(3 documents left out: 3 empty\)",
        ),
        ([], r"source jsonl-0: it has no usable document \(its files hold no record"),
    ],
)
def test_an_empty_source_is_refused(tmp_path: Path, records: list[Any], message: str) -> None:
    write_records(tmp_path, records)
    with pytest.raises(UserError, match=message):
        prepare(settings(tmp_path), silent)
    assert not [path for path in (tmp_path / "cache").iterdir() if "jsonl" in path.name and not path.suffix]


def test_a_bad_document_stops_the_build_where_that_is_asked_for(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "fine"}] * 30 + [{"text": 1}])
    with pytest.raises(UserError, match=r"r.jsonl:31: field 'text' is 1, not a string"):
        prepare(settings(tmp_path, errors="raise"), silent)


def test_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    write_records(tmp_path, [{"input_ids": [1, 2, number]} for number in range(30)])
    source = schema.Source(type="jsonl", path=str(tmp_path / "r.jsonl"), record="ids")
    prepared = prepare(settings(tmp_path, sources=[source], validation_fraction=0.0), silent)
    stored = prepared.sources[0].stored
    assert stored is not None
    documents = [stored.document(number).tolist() for number in range(stored.documents)]
    assert sorted(documents) == [[1, 2, number] for number in range(30)]


def test_ids_of_another_vocabulary_are_left_out_or_refused_with_their_place(tmp_path: Path) -> None:
    write_records(tmp_path, [{"input_ids": [1] * 20}, {"input_ids": [1, 257]}, {"input_ids": [-100]}])
    source = schema.Source(type="jsonl", path=str(tmp_path / "r.jsonl"), record="ids")
    prepared = prepare(settings(tmp_path, sources=[source], validation_fraction=0.0), silent)
    assert prepared.sources[0].left_out == {"with token ids outside the vocabulary": 2}
    with pytest.raises(UserError, match=r"r.jsonl:2: holds the token id 257, .* go from 0 to 256.*; mend"):
        prepare(settings(tmp_path, sources=[source], errors="raise"), silent)


def test_where_nothing_is_held_out_that_is_told(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "one record is all there is"}])
    lines: list[str] = []
    prepared = prepare(settings(tmp_path), lines.append)
    assert "data: jsonl-0: nothing is held out: one in 20 of its 1 documents is none" in lines
    assert prepared.heldout == {}


def test_nothing_is_held_out_where_none_is_asked_for(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "record"}] * 30)
    lines: list[str] = []
    prepared = prepare(settings(tmp_path, validation_fraction=0.0), lines.append)
    assert prepared.heldout == {}
    assert len(texts(prepared)[0]) == 30
    assert not any("nothing is held out" in line for line in lines)
    tokens = 1 + 30 * len("record ")  # end-of-text first, and after each record
    assert any(f" 30 documents, {tokens} tokens of " in line for line in lines)
    assert prepared.train_tokens == tokens


def test_the_held_out_index_tells_what_compressors_make_of_the_text(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": f"record {i} " * 9} for i in range(50)])
    prepared = prepare(settings(tmp_path), silent)
    text = "".join(texts(prepared)[1]).encode()
    assert next(iter(prepared.heldout.values())).index.extra == {
        "xz_bits_per_byte": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text),
        "gzip_bits_per_byte": 8 * len(gzip.compress(text, 9)) / len(text),
    }


def test_much_held_out_text_is_not_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_shards, "COMPRESS_LIMIT", 30)
    write_records(tmp_path, [{"text": f"record {i} " * 9} for i in range(50)])
    assert prepare(settings(tmp_path), silent).heldout["jsonl-0"].index.extra == {}


@pytest.mark.usefixtures("small_parts")
def test_long_builds_tell_how_far_they_are_and_how_fast_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(build_source, "SMALL", 1 << 20)
    write_records(tmp_path, [{"text": "x" * 90}] * 100)
    lines: list[str] = []
    prepare(settings(tmp_path), lines.append)
    told = [line for line in lines if line.endswith("% is tokenized")]
    assert len(told) > 3
    assert told[-1].endswith(": 100% is tokenized")
    assert any("data: jsonl-0: 100 documents, " in line and "/s)" in line for line in lines)


def test_what_is_told_of_chats_is_the_text_that_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": "user", "content": "x" * 20_000}, {"role": "assistant", "content": "yes"}]
    write_records(tmp_path, [{"messages": turns}] * 50)
    source = schema.Source(type="jsonl", path=str(tmp_path / "r.jsonl"), record="chat")
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(build_source, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    lines: list[str] = []
    prepare(settings(tmp_path, sources=[source], validation_fraction=0.0), lines.append)
    assert any(" tokens of 1.00 MB of text in 2.0 s (0.5 MB/s); 49 documents" in line for line in lines), (
        lines
    )
    assert lines[-1].endswith(" training tokens of 150 bytes to learn, 0 bytes held out")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_what_is_told_is_text_and_not_how_it_was_packed(tmp_path: Path, suffix: str) -> None:
    records = [{"text": "\u00e9" * 5_000, "noise": "x" * 9_000}] * 50
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path = tmp_path / f"r{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        packed = {".gz": gzip.compress(content), ".zst": pa.compress(content, "zstd", asbytes=True)}
        path.write_bytes(packed.get(path.suffix, content))
    kind = "parquet" if suffix == ".parquet" else "jsonl"
    source = schema.Source(type=kind, path=str(path), name="packed")
    lines: list[str] = []
    prepare(settings(tmp_path, sources=[source]), lines.append)
    assert sum(" tokens of 0.50 MB of text in " in line for line in lines) == 1, lines


def test_a_leftover_that_is_gone_before_it_is_deleted_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path, [{"text": f"record {number}"} for number in range(50)])
    iterdir = Path.iterdir

    def with_one_that_goes(folder: Path) -> Iterator[Path]:
        yield from iterdir(folder)
        if folder.name.startswith("parts-"):
            yield folder / ".part-000000-77"

    monkeypatch.setattr(Path, "iterdir", with_one_that_goes)
    prepare(settings(tmp_path), silent)


def test_a_process_of_a_killed_build_that_still_ends_puts_no_half_part_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path, [{"text": f"record {number}"} for number in range(50)])
    leftovers: list[Path] = []
    fill = Builder._fill

    def with_leftover(self: Builder, source: Source, tmp: Path) -> None:
        if not leftovers:
            leftovers.append(tmp / f"parts-v{build_source.PARTS_VERSION}" / ".part-000000-77")
            leftovers[0].mkdir(parents=True)
            (leftovers[0] / "part-00000.bin").write_bytes(b"tokens")
        fill(self, source, tmp)

    rmtree, deleted = shutil.rmtree, list[str]()

    def slowly(folder: Path, ignore_errors: bool = False) -> None:
        """As the other process writes and renames when the files are deleted, and the folder is not yet."""
        if leftovers and folder.parent == leftovers[0].parent and not deleted:
            deleted.append(folder.name)
            (folder / "part-00000.bin").unlink()
            with contextlib.suppress(FileNotFoundError):
                (leftovers[0] / "index.json").write_text("{}")
                leftovers[0].rename(leftovers[0].with_name("part-000000"))
        rmtree(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(Builder, "_fill", with_leftover)
    monkeypatch.setattr(shutil, "rmtree", slowly)
    train, heldout = texts(prepare(settings(tmp_path), silent))
    assert deleted, "the leftover was not deleted"
    assert len(train + heldout) == 50


def test_a_source_of_skippable_frames_only_is_refused_as_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes((0x184D2A50).to_bytes(4, "little") + bytes(4))
    source = schema.Source(type="jsonl", path=str(path))
    with pytest.raises(
        UserError, match=r"source jsonl-0: it has no usable document \(its files hold no record"
    ):
        prepare(settings(tmp_path, sources=[source]), silent)


def test_the_template_decides_the_folder_of_chats_and_of_nothing_else(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "because it is so"}]
    write_records(tmp_path, [{"messages": turns, "text": "some text that is learned"}] * 30)
    path = str(tmp_path / "r.jsonl")
    sources = [
        schema.Source(type="jsonl", path=path, name="chat", record="chat"),
        schema.Source(type="jsonl", path=path, name="text"),
    ]
    built = []
    for mark in ("=", "+"):
        template = tmp_path / f"template{mark}"
        template.write_text("{% for message in messages %}" + mark + "{{ message.content }}{% endfor %}")
        tokenizer = schema.Tokenizer(type="bytes", chat_template=str(template))
        built.append(folders(prepare(settings(tmp_path, sources=sources, tokenizer=tokenizer), silent)))
    assert built[0]["chat"] != built[1]["chat"]
    assert built[0]["text"] == built[1]["text"]


def test_exact_copies_are_counted_told_and_kept(tmp_path: Path) -> None:
    texts = [f"record {number}" for number in range(60)]
    write_records(tmp_path, [{"text": text} for text in [*texts, *texts[:7], texts[0]]])
    lines: list[str] = []
    prepared = prepare(settings(tmp_path, validation_fraction=0.0), lines.append)
    assert any("; 8 documents are exact copies of others" in line for line in lines), lines
    assert prepared.sources[0].duplicates == 8
    again = prepare(settings(tmp_path, validation_fraction=0.0), silent)
    assert again.sources[0].duplicates == 8


def test_held_out_documents_that_are_trained_on_too_are_told(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "the same"}] * 100)
    lines: list[str] = []
    prepare(settings(tmp_path), lines.append)
    assert any("; 5 of the held-out ones are trained on, too" in line for line in lines), lines
