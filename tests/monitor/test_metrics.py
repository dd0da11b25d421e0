"""metrics.jsonl holds every row that was appended, whatever happens to the process or the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmkit.errors import RunFault, UserError
from llmkit.monitor import jsonlines
from llmkit.monitor.metrics import MetricsFile
from llmkit.ownership.claim import Claim


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsFile:
    return MetricsFile(tmp_path / "run" / "metrics.jsonl")


def steps(metrics: MetricsFile) -> list[int]:
    return [row["step"] for row in metrics.rows()]


def test_a_row_is_a_line_in_the_file_as_soon_as_it_is_appended(metrics: MetricsFile) -> None:
    metrics.append({"step": 1, "loss": 2.5})
    metrics.append({"step": 2, "loss": 2.25, "skipped": True})
    lines = metrics.path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "loss": 2.25, "skipped": True},
    ]


def test_values_that_are_not_finite_become_null_also_inside_lists_and_tables(metrics: MetricsFile) -> None:
    metrics.append({"loss": float("nan"), "norms": [1.0, float("inf")], "by_source": {"a": -float("inf")}})
    assert metrics.rows() == [{"loss": None, "norms": [1.0, None], "by_source": {"a": None}}]


def test_a_file_that_does_not_exist_has_no_rows_and_nothing_to_cut(metrics: MetricsFile) -> None:
    assert metrics.rows() == []
    assert metrics.cut_back(10) == 0
    assert not metrics.path.exists()


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3}', b"\x00" * 70000])
def test_a_last_line_without_its_newline_does_not_count_and_spoils_no_later_row(
    metrics: MetricsFile, torn: bytes
) -> None:
    metrics.append({"step": 1})
    metrics.append({"step": 2})
    metrics.close()
    with open(metrics.path, "ab") as file:
        file.write(torn)
    assert steps(metrics) == [1, 2]
    metrics.append({"step": 4})
    assert steps(metrics) == [1, 2, 4]


def test_a_file_that_is_one_torn_line_becomes_empty(metrics: MetricsFile) -> None:
    metrics.path.parent.mkdir()
    metrics.path.write_bytes(b'{"step"')
    metrics.append({"step": 1})
    assert metrics.path.read_bytes() == b'{"step": 1}\n'


def test_cut_back_drops_later_rows_torn_and_damaged_lines_and_keeps_the_rest_byte_for_byte(
    metrics: MetricsFile,
) -> None:
    for step in (10, 20, 30):
        metrics.append({"step": step, "loss": 1.0})
    metrics.append({"step": 20, "eval_loss": 1.5})
    metrics.close()
    whole = metrics.path.read_bytes().splitlines(keepends=True)
    with open(metrics.path, "ab") as file:
        file.write(b"\x00\x00 damaged\n" + b'{"loss": 1.0}\n' + b'{"step": 5')
    assert metrics.cut_back(20) == 4
    assert metrics.path.read_bytes() == whole[0] + whole[1] + whole[3]


def test_rows_go_on_after_a_cut(metrics: MetricsFile) -> None:
    for step in range(1, 6):
        metrics.append({"step": step})
    metrics.cut_back(3)
    metrics.append({"step": 4})
    assert steps(metrics) == [1, 2, 3, 4]


def test_a_cut_that_fails_leaves_the_file_as_it_was(
    metrics: MetricsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 6):
        metrics.append({"step": step})

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", refuse)
        with pytest.raises(RunFault, match=r"cannot write .*metrics.jsonl: No space"):
            metrics.cut_back(3)
    assert steps(metrics) == [1, 2, 3, 4, 5]


def test_what_can_never_be_read_or_written_is_an_error_that_names_it(metrics: MetricsFile) -> None:
    metrics.path.mkdir(parents=True)
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read .it is no regular file"):
        metrics.rows()
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read .it is no regular file"):
        metrics.cut_back(3)
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written .Is a directory"):
        metrics.open()


def test_a_full_disk_ends_no_run_and_loses_no_row(
    metrics: MetricsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.append({"step": 1})
    write = os.write

    def half_then_full(file: int, data: bytes) -> int:
        if len(data) <= 5:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) - 5])

    with monkeypatch.context() as full:
        full.setattr(jsonlines.os, "write", half_then_full)
        metrics.append({"step": 2})
        metrics.append({"step": 3})
    assert metrics.fault is not None and "No space left" in metrics.fault
    assert metrics.path.read_bytes() == b'{"step": 1}\n', "half a row must not stay"
    metrics.append({"step": 4})
    assert metrics.fault is None
    assert steps(metrics) == [1, 2, 3, 4]


def test_a_value_that_json_does_not_have_is_a_bug_not_a_torn_file(metrics: MetricsFile) -> None:
    with pytest.raises(TypeError):
        metrics.append({"loss": object()})
    metrics.append({"step": 1})
    assert steps(metrics) == [1]


class Lost(Claim):
    """The claim of a start that has lost the run."""

    def is_current(self) -> bool:
        self.lost = "taken over"
        return False


def test_rows_of_a_start_that_has_lost_the_run_go_nowhere(tmp_path: Path) -> None:
    mine = MetricsFile(tmp_path / "metrics.jsonl")
    mine.append({"step": 1})
    theirs = MetricsFile(tmp_path / "metrics.jsonl")
    assert theirs.cut_back(1) == 0  # which makes it another file
    mine.append({"step": 2})
    assert steps(theirs) == [1]
    late = MetricsFile(tmp_path / "metrics.jsonl", Lost(tmp_path, 1))
    late.append({"step": 3})
    assert steps(theirs) == [1]
    with pytest.raises(RunFault, match="taken over"):
        late.cut_back(0)
    assert steps(theirs) == [1] and [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rows_wait_for_a_disk_that_does_not_tell_whose_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> int:
        raise OSError(5, "Input/output error")

    metrics = MetricsFile(tmp_path / "metrics.jsonl", Claim(tmp_path, 1))
    with monkeypatch.context() as patch:
        patch.setattr("llmkit.ownership.claim.newest_generation", broken)
        metrics.append({"step": 1})
    assert metrics.fault and "Input/output error" in metrics.fault
    metrics.append({"step": 2})
    assert steps(metrics) == [1, 2] and metrics.fault is None


def test_a_copy_takes_the_place_of_a_file_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\ndamaged\n{"step":')
    mine = MetricsFile(path)
    mine.append({"step": 2})  # which drops the torn end
    MetricsFile(path).detach()
    assert path.read_bytes() == b'{"step": 1}\ndamaged\n{"step": 2}\n'
    mine.append({"step": 3})
    assert steps(MetricsFile(path)) == [1, 2]
    MetricsFile(tmp_path / "none").detach()
    MetricsFile(os.devnull).detach()
    assert not (tmp_path / "none").exists()
