"""Runs that copy their checkpoints to a store, good or bad, beside training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from llmkit.checkpoint.keeping import Best, step_of, write_best
from llmkit.checkpoint.read import load
from llmkit.config.load import load as load_config
from llmkit.copies import copier
from llmkit.copies.copier import Copier
from llmkit.copies.listing import files_of, offer_of
from llmkit.copies.offer import Listed
from llmkit.copies.outgoing import check
from llmkit.loop.copying import CopyHook
from tests.copies.stores import PutServer, S3Store, copied_steps
from tests.limits import HANG
from tests.program import recorded, train


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
    assert copied_steps(f"{put_server.url}/runs/tiny")[-1] == 12
    for row in recorded("copied"):
        assert row["path"] in ("step-00000005", "step-00000010", "step-00000012")
        assert row["to"] == f"{put_server.url}/runs/tiny"
    assert recorded("copied")[-1]["step"] == 12 and not recorded("copy_failed")
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
    assert len(recorded("save")) == 3 and recorded("done") and not recorded("copied")
    put_server.write_trouble = lambda method, number, path: None
    monkeypatch.setattr(copier, "END_SECONDS", HANG)
    assert train(f"checkpoint.copy_to={put_server.url}", "train.max_steps=13") == 0
    assert [row["path"] for row in recorded("copied")][-1] == "step-00000013"
    assert copied_steps(f"{put_server.url}/tiny")[-1] == 13


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


def test_of_failures_in_a_row_the_first_is_shown_and_so_is_the_last_word(project: Path) -> None:
    """All are on record; a failure that is over may be shown again, and a loss of the copies always is."""
    shown, on_record = list[str](), list[str]()
    t = SimpleNamespace(
        state=SimpleNamespace(step=7),
        console=SimpleNamespace(note=lambda text, important=False: shown.append(text)),
        events=SimpleNamespace(record=lambda name, **fields: on_record.append(name)),
    )
    hook = CopyHook(t, "s3://bucket/runs/tiny", Copier(project, "s3://bucket/runs/tiny", "c", {}))  # type: ignore[arg-type]
    failure = {"event": "copy_failed", "path": "step-00000005", "reason": "r"}
    for message, says in (
        (failure, "it is tried again: r"), (failure, ""),
        ({"event": "copied", "path": "step-00000006"}, "step-00000006 is copied to s3://bucket/runs/tiny"),
        ({"event": "recovered"}, ""), ({"event": "copied", "path": "step-00000007"}, ""),
        ({**failure, "path": ""}, "it is tried again: r"), ({"event": "recovered"}, "can be copied to again"),
        (failure, "it is tried again: r"),
        ({**failure, "path": "", "final": True}, "training goes on, and nothing more is copied: r"),
    ):  # fmt: skip
        shown.clear()
        hook._take(message)
        assert len(shown) == bool(says) and says in "".join(shown), (message, shown)
    assert on_record.count("copy_failed") == 5 and on_record.count("copied") == 2


def test_the_best_one_is_offered_with_the_newest(finished: Path) -> None:
    """Listed once: what is known of it is not read again."""
    root = Path("runs/tiny/checkpoints")
    *_, before, newest = sorted(root.glob("step-*"))
    config = load_config(Path("tiny.yaml")).config
    assert offer_of(newest, config).best is None
    write_best(root, Best(step_of(before) or 0, 2.5))
    offer = offer_of(newest, config)
    assert offer.best == Listed(name=before.name, files=files_of(before)) and offer.rule.best is not None
    assert offer_of(before, config).best is None  # it is the one that is offered
    known = Listed(name=before.name, files=offer.files)
    assert offer_of(newest, config, {before.name: known}).best is known
    write_best(root, Best(1, 2.5))  # which is not there any more
    assert offer_of(newest, config).best is None
