from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.config import schema
from llmkit.data.building import build_source
from llmkit.data.building.prepare import prepare
from llmkit.data.live.heldout import heldout_records
from llmkit.data.prepared import PreparedData
from llmkit.data.source import Source
from llmkit.data.sources.files import File
from llmkit.data.sources.records import Text
from llmkit.errors import UserError
from tests.data.toy import folders
from tests.limits import HANG

Words = Callable[[str, int], Path]
SCRIPT = """
import sys
from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from tests.data.toy import folders

path, cache = sys.argv[1:]
config = schema.Data(
    tokenizer=schema.Tokenizer(vocab_size=300), sequence_length=16, cache_dir=cache,
    sources=[schema.Source(type="text", path=path, separator="\\n")],
)
print(prepare(config, print).fingerprint)
print(sorted({"torch", "datasets", "transformers"} & sys.modules.keys()), flush=True)
"""


def source(path: Path, **changes: Any) -> schema.Source:
    return schema.Source(**{"type": "text", "path": str(path), "separator": "\n"} | changes)


def settings(path: Path, **changes: Any) -> schema.Data:
    fields: dict[str, Any] = {
        "tokenizer": schema.Tokenizer(type="bytes"),
        "sources": [source(path)],
        "sequence_length": 16,
        "cache_dir": str(path.parent / "cache"),
    }
    return schema.Data(**fields | changes)


def silent(line: str) -> None:
    pass


def document_texts(prepared: PreparedData) -> list[str]:
    readers = [one.stored for one in prepared.sources if one.stored] + [*prepared.heldout.values()]
    decode = prepared.tokenizer.decode
    return [decode(reader.document(number)) for reader in readers for number in range(reader.documents)]


def test_what_is_built_is_opened_and_not_built_again(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(words("w", 50))
    first = prepare(config, silent)
    monkeypatch.setattr(build_source, "write_shards", None)
    second = prepare(config, silent)
    assert (folders(second), second.fingerprint) == (folders(first), first.fingerprint)


def test_settings_that_leave_the_tokens_alone_share_a_folder(words: Words) -> None:
    text = words("w", 50)
    first = prepare(settings(text), silent)
    heavier = [source(text, weight=7.0, max_epochs=3)]
    other = prepare(settings(text, sequence_length=8, document_masks=True, sources=heavier), silent)
    assert folders(other) == folders(first)
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"validation_fraction": 0.2},
        {"errors": "replace"},
        {"tokenizer": schema.Tokenizer(type="bytes", end_of_text="<end>")},
    ],
)
def test_settings_that_decide_the_tokens_have_their_own_folder(words: Words, change: dict[str, Any]) -> None:
    text = words("w", 50)
    first, other = prepare(settings(text), silent), prepare(settings(text, **change), silent)
    assert set(folders(first).values()).isdisjoint(folders(other).values())


def test_a_new_source_leaves_the_others_as_they_are(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = words("one", 50), words("two", 60)
    first = prepare(settings(one, sources=[source(one, name="one")]), silent)
    lines: list[str] = []
    both = prepare(settings(one, sources=[source(two, name="two"), source(one, name="one")]), lines.append)
    assert folders(both)["one"] == folders(first)["one"]
    assert [line.split(":")[1] for line in lines if " documents, " in line] == [" two"]


def test_a_changed_text_is_built_anew(words: Words) -> None:
    text = words("w", 50)
    first = prepare(settings(text), silent)
    changed = text.read_text().replace("word", "WORD")
    text.write_text(changed)
    second = prepare(settings(text), silent)
    assert folders(second) != folders(first)
    assert sorted(document_texts(second)) == sorted(changed.splitlines())


def test_a_text_that_changed_in_its_middle_alone_is_built_anew(words: Words) -> None:
    text = words("w", 5000)
    first = prepare(settings(text), silent)
    status, content = text.stat(), text.read_bytes()
    middle = len(content) // 2
    text.write_bytes(content[:middle] + content[middle:].replace(b"word", b"WORD", 1))
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert folders(prepare(settings(text), silent)) != folders(first)


def test_a_fingerprint_tells_content_and_not_paths(words: Words, tmp_path: Path) -> None:
    text = words("w", 50)
    copy = tmp_path / "elsewhere" / "copy"
    copy.parent.mkdir()
    copy.write_bytes(text.read_bytes())
    first, second = prepare(settings(text), silent), prepare(settings(copy), silent)
    assert folders(first) != folders(second)
    assert first.fingerprint == second.fingerprint


def test_a_folder_that_was_moved_is_not_built_again(words: Words, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    words("w", 50).rename(folder / "w")
    first = prepare(settings(folder), silent)
    second = prepare(settings(folder.rename(tmp_path / "there")), silent)
    assert folders(first) == folders(second)


def test_a_dataset_of_the_hub_is_known_by_its_files_and_not_by_its_commit() -> None:
    def described(commit: str, tag: str) -> Any:
        files = [File(f"hf://datasets/me/words@{commit}/data/{n}.parquet", 9, tag) for n in range(2)]
        return Source(0, schema.Source(type="hub", dataset="me/words"), "skip", files).described()

    assert described("c0ffee", "blob") == described("decade", "blob")
    assert described("c0ffee", "blob") != described("c0ffee", "other")


def test_a_file_that_is_added_during_the_build_is_for_the_next_one(
    words: Words, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    words("w", 50).rename(folder / "w")
    write_shards = build_source.write_shards

    def write_and_add(*arguments: Any, **more: Any) -> Any:
        (folder / "x").write_text("added\n")
        return write_shards(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(build_source, "write_shards", write_and_add)
        first = prepare(settings(folder), silent)
    second = prepare(settings(folder), silent)
    assert "added" not in document_texts(first)
    assert sorted(document_texts(second)) == sorted(["added", *document_texts(first)])


def test_files_that_change_during_the_build_are_noticed(
    words: Words, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = words("w", 50)
    write_shards = build_source.write_shards

    def write_and_touch(*arguments: Any, **more: Any) -> Any:
        written = write_shards(*arguments, **more)
        text.write_text("another text\n")
        return written

    monkeypatch.setattr(build_source, "write_shards", write_and_touch)
    with pytest.raises(UserError, match="source text-0: its files changed while they were read"):
        prepare(settings(text), silent)
    assert not list((tmp_path / "cache").glob("text-0-*"))


def test_builders_at_once_end_with_one_folder(words: Words, tmp_path: Path) -> None:
    text = words("w", 3000)
    script = tmp_path / "build_it.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(text), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(Path(llmkit.__file__).parents[1])}
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) for _ in range(3)
    ]
    results = [process.communicate(timeout=HANG) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, results
    outputs = [output.splitlines() for output, _ in results]
    assert len({lines[-2] for lines in outputs}) == 1
    assert {lines[-1] for lines in outputs} == {"[]"}, "what builds needs none of these"
    assert sum("3,000 documents" in output for output, _ in results) == 1
    assert sum("trained a tokenizer" in output for output, _ in results) == 1
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == ["", "", ".lock", ".lock"]


def test_sources_that_read_the_same_file_are_warned_about(words: Words) -> None:
    path, lines = words("w", 50), []
    both = [source(path, name="one"), source(path, name="two")]
    prepare(settings(path, sources=both), lines.append)
    (warning,) = (line for line in lines if "WARNING" in line)
    assert f"one and two both read {path}: what is held out of the one is trained on in the other" in warning
    lines.clear()
    prepare(settings(path, sources=both, validation_fraction=0.0), lines.append)
    assert not any("WARNING" in line for line in lines)


def test_held_out_shards_that_are_trained_on_are_warned_about(words: Words) -> None:
    built = folders(prepare(settings(words("text", 60)), silent))["text-0"]
    for heldout, warned in (("train", True), ("heldout", False)):
        given = schema.Source(
            type="shards", path=str(built / "train"), heldout_path=str(built / heldout), name="web"
        )
        lines: list[str] = []
        prepare(settings(built, sources=[given]), lines.append)
        what = "what source web holds out is what source web trains on"
        assert any(what in line for line in lines) == warned


def test_of_a_live_source_only_a_few_held_out_documents_are_built(words: Words) -> None:
    text = words("w", 300)
    lines: list[str] = []
    prepared = prepare(settings(text, sources=[source(text, live=True)]), lines.append)
    (train,) = prepared.sources
    assert (train.kind, train.stored, prepared.train_tokens) == ("live", None, 0)
    everything = text.read_text().splitlines()
    held = [everything[index] for index in heldout_records(1, 20)[0] if index < 300]
    assert document_texts(prepared) == held
    assert lines[-1] == "data: text-0 tokenized while training (not counted), 320 bytes held out"
    assert prepared.fingerprint.sources[0].tokens is None


def test_a_live_source_that_is_cut_otherwise_has_other_held_out_documents(
    words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.data.live.source.SPLIT_BYTES", (100, 1 << 20))
    text = words("w", 300)
    found = []
    for lanes in (1, 8):
        prepared = prepare(settings(text, sources=[source(text, live=True)], stream_shards=lanes), silent)
        (train,) = prepared.sources
        live = train.live
        assert live is not None
        reader = live.reader
        held = [
            candidate.record.text
            for unit in range(len(reader.splits))
            for candidate in reader.read(unit)
            if candidate.number in live.heldout_of(unit) and isinstance(candidate.record, Text)
        ]
        assert document_texts(prepared) == held
        found.append(held)
    assert found[0] != found[1]


def test_a_live_source_may_hold_nothing_out(words: Words) -> None:
    text = words("w", 30)
    prepared = prepare(settings(text, sources=[source(text, live=True)], validation_fraction=0.0), silent)
    assert (prepared.heldout, folders(prepared)) == ({}, {})


def test_a_source_that_does_not_fill_a_row_is_named_before_larger_ones_are_built(words: Words) -> None:
    large, tiny = words("large.txt", 90), words("tiny.txt", 1)
    tiny.write_text("a word\n")
    both = settings(large, sources=[source(large, name="large"), source(tiny, name="tiny")])
    with pytest.raises(UserError, match="source tiny: it has 8 training tokens"):
        prepare(both, silent)
    made = {path.name.partition("-")[0] for path in Path(both.cache_dir).iterdir()}
    assert "tiny" in made
    assert "large" not in made


def test_a_weight_that_is_too_small_is_named_before_any_work(words: Words, tmp_path: Path) -> None:
    path = words("a", 50)
    sources = [source(path, name="a"), source(path, name="b", weight=1e-9)]
    config = settings(path, sources=sources, cache_dir=str(tmp_path / "not-made"))
    with pytest.raises(UserError, match=r"the weight of data.sources.1, 1e-09, is 1e-09 of all weights"):
        prepare(config, lambda line: None)
    assert not (tmp_path / "not-made").exists()
