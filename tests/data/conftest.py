from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmkit.config import schema
from llmkit.data.shards.writer import ShardWriter

if TYPE_CHECKING:
    from llmkit.data.prepared import PreparedData

END = 0  # end-of-text of the hand-made shards


@pytest.fixture
def write_shards(tmp_path: Path) -> Callable[..., Path]:
    """Writes documents of ids as shards with end-of-text 0, and returns the folder."""

    def write(
        documents: list[list[int]], vocab_size: int = 1000, shard_bytes: int = 1 << 20, **extra: Any
    ) -> Path:
        writer = ShardWriter(tmp_path / "shards", "toy", "tok", vocab_size, END, shard_bytes)
        for document in documents:
            writer.add(np.array(document, dtype=np.int64), text_bytes=len(document))
        writer.finish(extra)
        return tmp_path / "shards"

    return write


def write_words(path: Path, documents: int) -> Path:
    """A text file of so many one-line documents, to be cut by newlines."""
    path.write_text("".join(f"{path.name} {i} {'word ' * (i % 7)}\n" for i in range(documents)))
    return path


@pytest.fixture
def words(tmp_path: Path) -> Callable[[str, int], Path]:
    """Writes a text file of so many one-line documents and returns it."""
    return lambda name, documents: write_words(tmp_path / name, documents)


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> schema.Data:
    """Settings of two text sources of unlike size, tokenized as bytes and already built."""
    from llmkit.data.building.prepare import prepare

    folder = tmp_path_factory.mktemp("two_sources")
    large, small = write_words(folder / "large", 400), write_words(folder / "small", 90)
    config = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=[
            schema.Source(type="text", path=str(large), separator="\n", weight=3.0),
            schema.Source(type="text", path=str(small), separator="\n", weight=1.0),
        ],
        sequence_length=16,
        cache_dir=str(folder / "cache"),
    )
    prepare(config, lambda line: None)
    return config


@pytest.fixture
def prepared_bytes(
    tmp_path: Path, two_sources: schema.Data
) -> Callable[..., tuple[PreparedData, schema.Data]]:
    """Opens the two sources under changed settings, in a copy of the cache; returns data and settings."""
    from llmkit.data.building.prepare import prepare

    shutil.copytree(two_sources.cache_dir, tmp_path / "cache")

    def build(**changes: Any) -> tuple[PreparedData, schema.Data]:
        config = two_sources.model_copy(update={"cache_dir": str(tmp_path / "cache")} | changes)
        return prepare(config, lambda line: None), config

    return build
