from __future__ import annotations

from pathlib import Path

from llmkit.copies.record import is_of_record, snapshot


def test_whole_lines_and_known_files_alone(tmp_path: Path) -> None:
    for name, content in {
        "metrics.jsonl": b'{"step": 1}\n{"ste', "events.jsonl": b"", "DONE": b"now\n", "run.lock": b"x",
        "configs/start-0001.yaml": b"run:\n", "configs/other.yaml": b"x", "wandb/run_id": b"abc",
        "wandb/session.json": b"{}",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = {file.name: content for file, content in snapshot(tmp_path)}
    assert found == {
        "metrics.jsonl": b'{"step": 1}\n', "DONE": b"now\n", "configs/start-0001.yaml": b"run:\n",
        "wandb/run_id": b"abc",
    }  # fmt: skip
    assert all(map(is_of_record, found))


def test_no_other_file_is_ever_taken_back() -> None:
    for name in ("run.lock", "STOP", "copies/state.json", "wandb/session.json", "configs/x.yaml", "../DONE"):
        assert not is_of_record(name)
