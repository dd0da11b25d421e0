from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmkit.checkpoint.read import load
from llmkit.cli import main
from tests.program import train


@pytest.fixture
def url(project: Path) -> str:
    return f"file://{project}/store"


def copied(*arguments: str) -> int:
    return main(["checkpoint", "copy", *arguments])


def fetched(*arguments: str) -> int:
    return main(["checkpoint", "fetch", *arguments])


def test_a_run_goes_to_a_store_and_back(project: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert copied("runs/tiny", "--to", url) == 0
    output = capsys.readouterr()
    assert output.out == f"{url}/tiny/checkpoints/step-00000008\n"
    assert f"copying step-00000008 to {url}/tiny" in output.err and "sent 0.3 MiB" in output.err
    assert copied("runs/tiny", "--to", url, "--json") == 0
    output = capsys.readouterr()
    assert "sent 0 bytes" in output.err
    lies_at = f"{url}/tiny/checkpoints/step-00000008"
    assert json.loads(output.out) == {"url": lies_at, "sent_bytes": 0, "not_deleted": None}
    assert fetched(f"{url}/tiny", "back", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"path": "back/checkpoints/step-00000008", "run": "back", "url": lies_at}
    assert list(load(Path("back/checkpoints/step-00000008")).problems()) == []
    for name in ("metrics.jsonl", "events.jsonl", "config.yaml", "DONE"):
        assert Path("back", name).read_bytes() == Path("runs/tiny", name).read_bytes()
    assert not Path("back/copies/fetching").exists()
    assert fetched(f"{url}/tiny", "back") == 2
    assert "back is there; name a folder that is not" in capsys.readouterr().err
    assert main(["evaluate", "back"]) == 0


def test_a_fetched_run_trains_on_and_copies(
    project: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copied("runs/tiny", "--to", url) == 0
    os.rename("runs/tiny", "lost")
    capsys.readouterr()
    assert fetched(f"{url}/tiny@8", "runs/tiny") == 0
    assert capsys.readouterr().out == "runs/tiny/checkpoints/step-00000008\n"
    on = (f"checkpoint.copy_to={url}", "train.max_steps=9", "model.hidden_dropout=0")
    assert train(*on) == 0
    events = [json.loads(line) for line in Path("runs/tiny/events.jsonl").read_text().splitlines()]
    assert [row["path"] for row in events if row["event"] == "copied"][-1] == "step-00000009"


def test_what_cannot_be_copied_is_said(project: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("runs/tiny",): "has no checkpoint.copy_to; name a store by --to URL",
        ("runs/tiny", "--to", "/mnt/x"): "--to /mnt/x: must be a URL without ? and #",
        ("runs/tiny", "--to", "s3://b/x?a=b"): "must be a URL",
        ("runs/tiny", "--to", "https://user:secret@host/x"): "--to has",
        ("runs/tiny/checkpoints/step-00000008", "--to", url): "is no run folder",
        ("none", "--to", url): "no such folder",
    }
    for arguments, says in cases.items():
        assert copied(*arguments) == 2
        error = capsys.readouterr().err
        assert says in error and "secret" not in error
