"""Runs that copy their checkpoints to a store, good or bad, beside training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.checkpoint.read import load
from llmkit.copies import catalogue, copier
from llmkit.copies.listing import files_of
from llmkit.copies.outgoing import check
from llmkit.copies.store import Store
from tests.copies.stores import PutServer, S3Store
from tests.limits import HANG
from tests.program import train


def events(name: str) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in Path("runs/tiny/events.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == name]


def steps(url: str) -> list[int]:
    found = catalogue.read(Store(url))
    return [] if found is None else [copy.step for copy in found.complete]


def test_a_listing_has_all_files_with_their_checksums(trained: Path) -> None:
    folder = trained / "runs/tiny/checkpoints/step-00000012"
    files = files_of(folder)
    assert {file.name for file in files} == {path.name for path in folder.iterdir()}
    assert files[-1].name == "manifest.json"
    for file in files:
        check((folder / file.name).read_bytes(), file.xxh64, 0, file.name)


def test_checkpoints_and_record_are_copied(
    copying_project: Path, put_server: PutServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"checkpoint.copy_to={put_server.url}/runs", "checkpoint.keep_last=2") == 0
    assert steps(f"{put_server.url}/runs/tiny")[-1] == 12
    for row in events("copied"):
        assert row["path"] in ("step-00000005", "step-00000010", "step-00000012")
        assert row["to"] == f"{put_server.url}/runs/tiny"
    assert events("copied")[-1]["step"] == 12 and not events("copy_failed")
    folder = copying_project / "again/step-00000012"
    for path, content in put_server.files.items():
        if "/checkpoints/step-00000012/" in path:
            (folder / Path(path).name).parent.mkdir(parents=True, exist_ok=True)
            (folder / Path(path).name).write_bytes(content)
    assert list(load(folder).problems()) == []
    (record,) = (content for path, content in put_server.files.items() if path.endswith("/metrics.jsonl"))
    assert record == Path("runs/tiny/metrics.jsonl").read_bytes()
    assert any(path.endswith("/DONE") for path in put_server.files)
    assert not [path for path in Path("runs/tiny/checkpoints").iterdir() if path.name.startswith(".")]
    assert "copie" not in capsys.readouterr().out


@pytest.mark.parametrize("trouble", ["stall", pytest.param(503, marks=pytest.mark.exhaustive)])
def test_a_bad_store_never_stops_training(
    trouble: str | int, copying_project: Path, put_server: PutServer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One line, and one at the end that names what is not copied; the next start copies it, once."""
    monkeypatch.setattr(copier, "END_SECONDS", 2.0)
    put_server.write_trouble = lambda method, number, path: trouble
    assert train(f"checkpoint.copy_to={put_server.url}") == 0
    output = capsys.readouterr()
    text = output.out + output.err
    assert text.count("training goes on") <= 1  # the first attempts are silent
    assert text.count("step-00000012 is not copied to") == 1
    assert "llmkit checkpoint copy runs/tiny" in text
    assert len(events("save")) == 3 and events("done") and not events("copied")
    put_server.write_trouble = lambda method, number, path: None
    monkeypatch.setattr(copier, "END_SECONDS", HANG)
    assert train(f"checkpoint.copy_to={put_server.url}", "train.max_steps=13") == 0
    assert [row["path"] for row in events("copied")][-1] == "step-00000013"
    assert steps(f"{put_server.url}/tiny")[-1] == 13


def test_without_copies_what_a_killed_copy_left_goes(copying_project: Path) -> None:
    left = Path("runs/tiny/checkpoints/.copying-step-00000001")
    left.mkdir(parents=True)
    assert train() == 0
    assert not left.exists() and not Path("runs/tiny/copies").exists()


def test_keys_of_a_bucket_come_from_the_environment_and_stay_there(
    copying_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, secret = S3Store(), "canary-of-the-tests-4711"
    server.buckets["bucket"] = {}
    for name, value in {
        "AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": f"id-{secret}",
        "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": f"token-{secret}",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    server.write_trouble = lambda method, number, path: 503 if number == 3 else None
    assert train("checkpoint.copy_to=s3://bucket/runs") == 0
    server.close()
    kept = server.buckets["bucket"]
    assert "runs/tiny/checkpoints/step-00000012/manifest.json" in kept
    output = capsys.readouterr()
    texts = [path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()]
    for text in [*texts, *kept.values(), (output.out + output.err).encode()]:
        assert secret.encode() not in text
