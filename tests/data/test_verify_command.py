"""`llmkit data verify`: lines for people, and an object for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.program import make_project


def test_what_was_read_and_what_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "verify", "tiny.yaml"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "as they were written" in line]
    assert [line.split(":")[0] for line in lines] == ["text-0/train", "text-0/heldout"]
    assert main(["data", "verify", "tiny.yaml", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["good"] and found["problem"] is None and lines[0] in printed.err
    assert [(each["source"], each["split"]) for each in found["sources"]] == [
        ("text-0", "train"), ("text-0", "heldout"),
    ]  # fmt: skip
    assert f"{found['sources'][0]['tokens']:,} tokens in {found['sources'][0]['blocks']} blocks" in lines[0]
    (shard,) = Path("data-cache").rglob("train/*.bin")
    whole = shard.read_bytes()
    for damaged in (whole[:-1] + b"\x99", whole[:-1]):
        shard.write_bytes(damaged)
        assert main(["data", "verify", "tiny.yaml", "--json"]) == 2
        printed = capsys.readouterr()
        found = json.loads(printed.out)
        assert not found["good"] and found["sources"] == [] and shard.name in found["problem"]
        assert found["problem"] in " ".join(printed.err.split())
