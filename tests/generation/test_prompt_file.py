"""Files of prompts."""

from __future__ import annotations

import json

import pytest

from llmkit.errors import UserError
from llmkit.generation.prompt_file import read_prompts

CHAT = [{"role": "user", "content": "hello"}]


def test_lines_and_records(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone \r\n\n  two\u2028three\n".encode())
    assert read_prompts(path) == ["one ", "  two\u2028three"]
    path = tmp_path / "prompts.jsonl"
    rows = ["a\nb", {"prompt": "c", "id": 3}, {"messages": CHAT}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert read_prompts(path) == ["a\nb", "c", CHAT]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"\n \n", "a.txt: has no prompt; write one a line"),
        ("a.txt", b"x\ny\n\xff\n", "a.txt:3: is not UTF-8"),
        ("a.jsonl", b'{"prompt": "x"}\n\n{"prompt": \n', "a.jsonl:3: is no JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: is no JSON"),
        ("a.jsonl", b'"x"\n{"prompt": "\\ud800"}', "a.jsonl:2: has half a character"),
        ("a.jsonl", b'{"text": "x"}', "a.jsonl:1: has neither a text as prompt nor a list of messages"),
        ("a.jsonl", b'{"prompt": 3}', "a.jsonl:1: has neither"),
        ("a.jsonl", b'{"prompt": "x", "messages": []}', "a.jsonl:1: has neither"),
        ("a.jsonl", b'{"messages": []}', "a.jsonl:1: has neither"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": null}]}', "a.jsonl:1: has neither"),
        ("a.jsonl", b"17", "a.jsonl:1: has neither"),
    ],
)
def test_what_is_no_file_of_prompts_is_named_with_its_line(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        read_prompts(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "nowhere.txt")
