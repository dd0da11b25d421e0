"""The figures on the page, computed by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from benchmarks.machine import new_file, slug
from benchmarks.table import Result, Row, general_notes, section
from benchmarks.workloads import make_workload
from llmkit.monitor.flops import train_flops_per_token

CPU = torch.device("cpu")
WORK = make_workload("toy", CPU)  # 4 rows of 32 tokens
SHAPE = WORK.shape
OURS = Row("llmkit", SHAPE, None, ((0.5, 0.5), (1.0, 1.0), (0.5, 0.5)), (6.2, 5.0), 1.25, 20.0)
THEIRS = Row("llama", SHAPE, None, ((1.0, 1.0), (4.0, 4.0), (2.0, 2.0)), (6.2, 5.0), 2.5, 60.0)


def cells(result: Result, peak: float | None = None) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in section(result, peak) if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_rates_ratios_and_utilization() -> None:
    rows = cells(Result(WORK, [OURS, THEIRS], together=True), peak=2560.0 * train_flops_per_token(SHAPE, 32))

    assert rows["llmkit"][2:] == ["256 (146 to 256)", "1", "10.0%", "1.25", "20.0", "6.200, 5.000"]
    assert rows["llama"][2:4] == ["64 (37 to 102)", "0.25 (0.25 to 0.50)"]
    assert rows["llama"][4] == "2.5%"


def test_unknown_peaks_and_a_missing_base_leave_gaps_not_guesses() -> None:
    failed = Row("llmkit", SHAPE, failed="out | of memory")
    rows = cells(Result(WORK, [failed, THEIRS], together=True))

    assert rows["llmkit"][2:] == ["did not run: out \\| of memory", "-", "-", "-", "-", "-"]
    assert rows["llama"][3:5] == ["-", "-"]


@pytest.mark.parametrize(
    ("losses", "warning"),
    [
        ((6.2, 6.3), "the loss did not fall (6.200 to 6.300)"),
        ((6.2, math.nan), "the loss did not fall (6.200 to nan)"),
        ((9.9, 5.0), "the first loss, 9.900, is not near 6.21"),
    ],
)
def test_a_loss_that_is_off_is_said(losses: tuple[float, float], warning: str) -> None:
    row = dataclasses.replace(OURS, losses=losses)
    assert any(warning in line for line in section(Result(WORK, [row], together=True), None))


def test_the_page_says_when_contenders_did_not_take_turns() -> None:
    assert "one contender after the other" in "".join(section(Result(WORK, [OURS], together=False), None))


def test_the_notes_tell_what_bf16_means_for_whom() -> None:
    notes = "\n".join(general_notes("measured rate", "bf16", CPU))
    assert "fp32 masters" in notes
    assert "autocast" in notes
    assert "divided by the peak: measured rate." in notes


def test_a_devices_name_becomes_part_of_a_file_name() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("AMD EPYC(TM) 7/B13 ../x") == "amd-epyc-tm-7-b13-x"


def test_a_second_page_of_the_day_leaves_the_first_alone(tmp_path: Path) -> None:
    for name in ("day.md", "day-2.md"):
        assert new_file(tmp_path, "day") == tmp_path / name
        (tmp_path / name).touch()
