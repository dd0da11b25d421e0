from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.config import schema
from llmkit.data.building.probe import open_sources
from llmkit.data.inspect_rejects import write_rejects
from llmkit.errors import UserError


def settings(folder: Path, errors: str = "raise") -> schema.Data:
    """A source that is built and a live one, with a bad record each, and one without."""
    (folder / "a.jsonl").write_text('{"text": "one"}\n{broken\n{"text": ""}\n{"text": "two"}\n{"other": 1}\n')
    (folder / "b.jsonl").write_text('{"text": "one"}\n' * 3 + '{"text": 7}\n')
    (folder / "c.txt").write_text("one\ntwo\n")
    return schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=[
            schema.Source(name="built", type="jsonl", path=str(folder / "a.jsonl")),
            schema.Source(name="live", type="jsonl", path=str(folder / "b.jsonl"), live=True),
            schema.Source(name="whole", type="text", path=str(folder / "c.txt"), separator="\n"),
        ],
        errors=errors,
        cache_dir=str(folder / "cache"),
    )


@pytest.mark.parametrize("errors", ["raise", "skip", "replace"])
def test_records_that_cannot_be_read_are_listed_with_their_lines(tmp_path: Path, errors: str) -> None:
    out, reports = tmp_path / "rejects.jsonl", []
    found = write_rejects(open_sources(settings(tmp_path, errors)), out, reports.append)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["source"], line["location"], line["reason"]) for line in lines] == [
        ("built", f"{tmp_path}/a.jsonl:2", "broken JSON"),
        ("built", f"{tmp_path}/a.jsonl:3", "empty"),
        ("built", f"{tmp_path}/a.jsonl:5", "without the field"),
        ("live", f"{tmp_path}/b.jsonl:4", lines[-1]["reason"]),
    ]
    assert all(line["detail"] for line in lines)
    assert {name: counts.total() for name, counts in found.items()} == {"built": 3, "live": 1, "whole": 0}
    assert reports[0].startswith("built: 3 documents left out: ")
    assert reports[2] == "whole: every record can be read"
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    sources = open_sources(settings(tmp_path))
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"--rejects .*a.jsonl: is there already; name another file"):
        write_rejects(sources, out, print)
    assert out.read_bytes() == before
    with pytest.raises(UserError, match=r"--rejects .*none/out: cannot be written \(No such file"):
        write_rejects(sources, tmp_path / "none" / "out", print)
