"""The files that wandb writes are read as far as they are whole."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2 as messages

from llmkit.monitor.wandb_file import BLOCK, history, newest_on_disk


def row(step: int, text: str = "") -> bytes:
    record = messages.Record()
    record.history.step.num = step
    record.history.item.add(key="train/step", value_json=str(step + 1))
    record.history.item.add(nested_key=["a", "b"], value_json=f'"{text}"')
    return record.SerializeToString()


def file_of(payloads: list[bytes]) -> bytes:
    """As wandb writes them: chunks that do not cross blocks."""
    data = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    for payload in payloads:
        first = True
        while payload or first:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += bytes(left)
                continue
            body, payload = payload[: left - 7], payload[left - 7 :]
            kind = (1 if first else 4) if not payload else (2 if first else 3)
            data += struct.pack("<IHB", zlib.crc32(body, zlib.crc32(bytes([kind]))), len(body), kind) + body
            first = False
    return data


def test_rows_are_read_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "x.wandb"
    texts = ["short", "x" * 3 * BLOCK, "y" * (BLOCK - 60), "end"]
    path.write_bytes(file_of([row(step, text) for step, text in enumerate(texts)]))
    found = list(history(path))
    assert [each["_step"] for each in found] == [0, 1, 2, 3]
    assert [each["train/step"] for each in found] == [1, 2, 3, 4]
    assert [each["a.b"] for each in found] == texts


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_what_follows_damage_is_left_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.wandb"
    data = bytearray(file_of([row(0), row(1)]))
    if damage == "torn":
        del data[-1]
    else:
        data[-3] ^= 1
    path.write_bytes(data)
    assert [each["_step"] for each in history(path)] == [0]
    path.write_bytes(b"something else")
    assert list(history(path)) == []


def start(run_dir: Path, name: str, *steps: int) -> Path:
    folder = run_dir / "wandb" / name
    folder.mkdir(parents=True)
    (folder / "run-x.wandb").write_bytes(file_of([row(step) for step in steps]))
    return folder


def lines(run_dir: Path) -> int | None:
    found = newest_on_disk(run_dir, "x")
    return found and found.lines


def test_the_lines_on_this_disk_are_those_of_the_newest_start_if_that_was_offline(tmp_path: Path) -> None:
    assert lines(tmp_path) is None
    start(tmp_path, "offline-run-20260101_100000-x", 0, 1)
    assert newest_on_disk(tmp_path, "x") == (2, {"train/step": 2, "a.b": "", "_step": 1})
    start(tmp_path, "offline-run-20260101_110000-x", 2, 3, 4)
    assert lines(tmp_path) == 5
    start(tmp_path, "run-20260101_120000-x", 5)
    assert lines(tmp_path) is None
    start(tmp_path, "offline-run-20260101_130000-x")
    assert lines(tmp_path) is None, "nothing came through"
    start(tmp_path, "offline-run-20260101_140000-y", 6)
    assert lines(tmp_path) is None, "of another run, of which this folder is a copy"


def test_the_newest_start_is_not_told_by_a_clock_that_was_set_back(tmp_path: Path) -> None:
    start(tmp_path, "offline-run-20260101_100000-x", 0, 1)
    newest = start(tmp_path, "offline-run-20251231_100000-x", 2, 3)
    (tmp_path / "wandb" / "latest-run").symlink_to(newest.name)
    assert lines(tmp_path) == 4
    (tmp_path / "wandb" / "latest-run").unlink()
    (tmp_path / "wandb" / "latest-run").symlink_to(tmp_path)
    assert lines(tmp_path) == 2, "no link to a start"
