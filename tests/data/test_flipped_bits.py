"""Whatever bit of prepared data flips: it is found when the data are opened, or by `llmkit data verify`."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.prepared import verify
from llmkit.data.shards.format import read_index
from llmkit.errors import RunFault, UserError
from tests.data.toy import folders

TRIES = 25
"""Bits flipped of each file."""


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> schema.Data:
    """Built chats, which have masks and held-out documents."""
    folder = tmp_path_factory.mktemp("chats")
    lines = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "x" * i}]}
        for i in range(1, 60)
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=[schema.Source(type="jsonl", path=str(folder / "a.jsonl"), record="chat", name="chats")],
        sequence_length=16,
        cache_dir=str(folder / "cache"),
    )
    prepare(config, silent)
    return config


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.drill(
    "D21",
    injection="a bit flipped at random positions of each file of prepared data",
    expected="the file is named when the data are opened or verified",
)
def test_each_bit_of_each_file_is_covered(chats: schema.Data, measured: Any) -> None:
    files = [path for path in Path(chats.cache_dir).glob("*/**/*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".bin", ".idx", ".mask"}
    assert {path.parent.name for path in files} >= {"train", "heldout"}
    chosen = random.Random(0)
    verify(prepare(chats, silent), silent)
    for path in files:
        whole = path.read_bytes()
        says = whole.decode("utf-8", "replace") if path.suffix == ".json" else None
        for bit in chosen.sample(range(8 * len(whole)), TRIES):
            path.write_bytes(flipped(whole, bit))
            with pytest.raises((UserError, RunFault), match=path.name.split(".")[0][:9]):
                verify(prepare(chats, silent), silent)
        path.write_bytes(whole)
        assert says is None or json.loads(says) == json.loads(path.read_text())
    verify(prepare(chats, silent), silent)
    measured("found", TRIES * len(files), f"of {TRIES * len(files)} bits in {len(files)} files")


def test_no_figure_of_an_index_can_change_unseen(chats: schema.Data) -> None:
    (path,) = Path(chats.cache_dir).glob("chats-*/heldout/index.json")
    whole = path.read_bytes()
    for byte in range(len(whole)):
        bit = 8 * byte + byte % 8
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(UserError, match=r"index.json: .*; build it"):
            read_index(path.parent, "build it")
    path.write_bytes(whole)


def test_a_cache_of_before_checksums_is_read(chats: schema.Data, tmp_path: Path) -> None:
    shutil.copytree(chats.cache_dir, tmp_path / "cache")
    versions = {"index.json": 1, "source.json": 2, "hash.json": None}
    found = [path for path in (tmp_path / "cache").rglob("*.json") if path.name in versions]
    assert len(found) == 4
    for path in found:
        content = json.loads(path.read_text())
        del content["checksum"], content["version"]
        content.pop("files", None)
        if versions[path.name]:
            content["version"] = versions[path.name]
        path.write_text(json.dumps(content))
    lines: list[str] = []
    now = prepare(chats.model_copy(update={"cache_dir": str(tmp_path / "cache")}), lines.append)
    assert len(lines) == 1  # nothing is built again
    assert now.fingerprint == prepare(chats, silent).fingerprint
    verify(now, lines.append)
    assert sum("index.json without a checksum (build them again for one)" in line for line in lines) == 2


@pytest.mark.parametrize("change", [0, 1])
def test_the_text_of_an_index_without_a_checksum_is_counted(tmp_path: Path, change: int) -> None:
    (tmp_path / "a.txt").write_text("".join(f"sentence number {i}\n" for i in range(50)))
    source = schema.Source(type="text", path=str(tmp_path / "a.txt"), separator="\n", name="words")
    common = {"tokenizer": schema.Tokenizer(type="bytes"), "sequence_length": 16}
    config = schema.Data(sources=[source], cache_dir=str(tmp_path / "cache"), **common)
    built = folders(prepare(config, silent))["words"]
    shutil.move(built, tmp_path / "old")
    for path in (tmp_path / "old").glob("*/index.json"):
        index = json.loads(path.read_text())
        del index["checksum"]
        index["text_bytes"] += 4096 * change
        path.write_text(json.dumps({**index, "version": 1}))
    old = schema.Source(
        type="shards", path=str(tmp_path / "old/train"), heldout_path=str(tmp_path / "old/heldout")
    )
    prepared = prepare(schema.Data(sources=[old], cache_dir=str(tmp_path / "cache"), **common), silent)
    lines: list[str] = []
    if change:
        with pytest.raises(UserError, match=r"index.json without a checksum, but its tokens have [\d,]+;"):
            verify(prepared, lines.append)
    else:
        verify(prepared, lines.append)
        assert all("without a checksum, as its tokens have" in line for line in lines)
