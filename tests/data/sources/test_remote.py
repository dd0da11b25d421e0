from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.sources.remote import stat_of_info
from llmkit.data.sources.retries import RequestError


@pytest.mark.parametrize(
    ("info", "tag"),
    [
        ({"ETag": '"x"', "LastModified": "today"}, '"x"'),
        ({"blob_id": "b", "xet_hash": "h"}, "b"),
        ({"blob_id": None, "mtime": 5}, "5"),
        ({}, ""),
    ],
)
def test_a_file_is_known_by_the_best_that_its_store_tells(info: dict[str, Any], tag: str) -> None:
    assert stat_of_info({"size": 7, **info}) == (7, tag)


def test_a_store_must_tell_the_size() -> None:
    with pytest.raises(RequestError, match="does not tell the file's size"):
        stat_of_info({"size": None})
