from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.prepared import Prepared, verify
from llmkit.errors import UserError

Build = Callable[..., tuple[Prepared, schema.Data]]


def test_samples_are_training_documents_of_each_source(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    samples = list(prepared.samples(2))
    assert [name for name, _ in samples] == ["text-0", "text-0", "text-1", "text-1"]
    assert all(
        text.startswith(start) for (_, text), start in zip(samples, ["large", "large", "small", "small"])
    )


def test_sizes_are_those_of_all_sources(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    text = sum(len(Path(str(source.path)).read_bytes().replace(b"\n", b"")) for source in config.sources)
    assert prepared.train_bytes + prepared.heldout_bytes == text
    # Bytes as tokens: one a byte, one before the first and one after each document.
    documents = sum(source.reader.index.documents for source in prepared.train)
    assert prepared.train_tokens == prepared.train_bytes + documents + len(prepared.train)


def test_verify_reads_everything_and_names_what_is_damaged(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    lines: list[str] = []
    verify(prepared.folder, lines.append)
    assert [line.split(":")[0] for line in lines] == [
        "text-0/train", "text-0/heldout", "text-1/train", "text-1/heldout",
    ]  # fmt: skip
    path = prepared.folder / "heldout" / "text-1" / "text-1-00000.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x99")
    wanted = (
        rf"text-1-00000.bin: block 0 .* does not match .*; delete {prepared.folder} and build the data again"
    )
    with pytest.raises(UserError, match=wanted):
        verify(prepared.folder, lines.append)


def test_tokens_of_another_tokenizer_are_refused(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    path = prepared.folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 257, "content": "<new>"})
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="these tokens were made with tokenizer"):
        prepare(config, lambda line: None)


@pytest.mark.parametrize(
    "content", ['{"version": 2, "sources": {}}', '{"version": 1, "sources": {"../x": {}}}', "{}"]
)
def test_a_damaged_manifest_is_refused(prepared_bytes: Build, content: str) -> None:
    prepared, config = prepared_bytes()
    (prepared.folder / "build.json").write_text(content)
    wanted = rf"build.json: of another version or damaged; delete {prepared.folder}"
    with pytest.raises(UserError, match=wanted):
        prepare(config, lambda line: None)
    with pytest.raises(UserError, match=wanted):
        verify(prepared.folder, lambda line: None)


def test_a_folder_that_was_never_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"build.json: cannot be read \(No such file or directory\)"):
        verify(tmp_path, lambda line: None)
