from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import UserError
from llmkit.files import read_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a":' * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a.json: {message}, the file is damaged; write it again"):
        read_json(path, "write it again")


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.json: cannot be read \(No such file.*; write it again"):
        read_json(tmp_path / "a.json", "write it again")
