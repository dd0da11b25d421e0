"""Columns of a metrics.jsonl, whole or damaged."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from llmkit.errors import UserError
from llmkit.monitor.series import Series, read_columns


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_column_has_the_steps_of_the_rows_that_have_it(path: Path) -> None:
    write(
        path,
        {"step": 1, "loss": 2.5, "mfu_peak": "of an A100"},
        {"step": 2, "loss": None, "skipped": True, "mfu_peak": "of an H100"},
        {"step": 2, "eval_loss": 3},
        {"step": 4, "loss": 1.5, "list": [1], "table": {}},
    )
    found = read_columns(path)
    np.testing.assert_array_equal(found.numbers["loss"].steps, [1, 2, 4])
    np.testing.assert_array_equal(found.numbers["loss"].values, [2.5, math.nan, 1.5])
    assert found.numbers["eval_loss"].steps.tolist() == [2] and found.numbers["eval_loss"].last == 3.0
    assert found.numbers["skipped"].values.tolist() == [1.0]
    assert found.texts == {"mfu_peak": "of an H100"}
    assert set(found.numbers) == {"step", "loss", "skipped", "eval_loss"}
    assert (found.rows, found.damaged) == (4, 0)


def test_damaged_lines_are_left_out_and_counted(path: Path) -> None:
    write(
        path, {"step": 1, "loss": 4.0}, "\0\0", '{"step": 2, "lo', "[]", '{"step": 3}, {"step": 4}', "",
        {"loss": 1.0}, {"step": "5", "loss": 1.0}, {"step": True, "loss": 1.0}, {"step": -1, "loss": 1.0},
        {"step": 6, "loss": 3.0, "text": "\ud800"}, '{"step": 7, "loss": NaN}',
        '{"step": 8, "loss": 1' + "0" * 400 + "}",
    )  # fmt: skip
    with path.open("a") as file:
        file.write('{"step": 9, "loss": 0.0}')  # its newline is not there yet
    found = read_columns(path)
    np.testing.assert_array_equal(found.numbers["loss"].steps, [1, 6, 7, 8])
    np.testing.assert_array_equal(found.numbers["loss"].values, [4.0, 3.0, math.nan, math.nan])
    assert (found.rows, found.damaged) == (4, 9)


def test_rows_with_other_columns_and_mixed_values_keep_their_order(path: Path) -> None:
    write(
        path,
        {"step": 1, "a": 1.0, "s": "x"},
        {"step": 3, "b": 1.0, "a": 3.0, "s": "y"},
        {"step": 2, "a": "2", "s": 2.0},
        {"a": 4.0, "step": 3, "s": None},
        {"step": 2, "a": 2.5, "s": "z"},
        {"step": 2, "a": [], "s": {}},
    )
    found = read_columns(path)
    assert found.numbers["a"].steps.tolist() == [1, 2, 3]
    assert found.numbers["a"].values.tolist() == [1, 2.5, 4]
    np.testing.assert_array_equal(found.numbers["s"].steps, [2, 3])
    np.testing.assert_array_equal(found.numbers["s"].values, [2.0, math.nan])
    assert found.texts == {"a": "2", "s": "z"} and found.rows == 6


def test_of_a_step_that_is_there_twice_the_last_row_counts(path: Path) -> None:
    write(path, *({"step": step, "loss": value} for step, value in ((1, 9), (3, 8), (2, 7), (3, 6), (4, 5))))
    loss = read_columns(path).numbers["loss"]
    assert loss.steps.tolist() == [1, 2, 3, 4] and loss.values.tolist() == [9, 7, 6, 5]


def test_a_file_that_is_not_there_has_no_columns_and_one_that_cannot_be_read_is_named(path: Path) -> None:
    assert read_columns(path).numbers == {}
    path.mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
        read_columns(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read \(it is no regular file\)"):
        read_columns(path)


def test_the_value_at_a_step_is_that_of_the_newest_row_up_to_it() -> None:
    column = Series(np.array([2, 4]), np.array([20.0, 40.0]))
    np.testing.assert_array_equal(column.at(np.array([1, 2, 3, 4, 9])), [math.nan, 20, 20, 40, 40])
    assert Series(np.array([2, 4]), np.array([20.0, math.nan])).last == 20.0
    assert Series(np.array([2]), np.array([math.nan])).last is None
