from __future__ import annotations

import pytest

from llmkit.config.schema import Source
from llmkit.data.sources.formats import format_of, suffixes_of


@pytest.mark.parametrize(
    ("path", "compression"),
    [
        ("/d/a.jsonl.gz", "gzip"),
        ("/d/a#1.jsonl.GZ", "gzip"),
        ("/d/a.jsonl", None),
        ("s3://bucket/a#1.jsonl.gz", "gzip"),
        ("s3://bucket/what?.jsonl.zst", "zstd"),
        ("gs://bucket/a.jsonl.gz#b.jsonl", None),
        ("https://host/a.jsonl.gz?sig=b.zst#c", "gzip"),
        ("HTTP://host/a.jsonl?name=a.gz", None),
    ],
)
def test_only_the_name_of_a_file_tells_its_compression(path: str, compression: str | None) -> None:
    assert format_of(Source(type="jsonl", path=path), path).compression == compression


def test_suffixes_are_told_in_small_letters() -> None:
    assert suffixes_of("/d/A.JSON.GZ") == (".json", "gzip")
