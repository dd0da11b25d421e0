"""The account of memory: what ZeRO promises, and what is counted."""

from __future__ import annotations

import gc

import pytest
import torch

from benchmarks import memory

ROW = {"stage": 0, "tensor_size": 1, "parameters": 1000, "weights": 2000, "all": 18000}
ROW |= {"birth_peak": 10, "steady": 20}


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_a_parameter"),
    [
        (0, "fp32", 4 + 4 + 8),
        (0, "bf16", 2 + 4 + 4 + 8),
        (1, "fp32", 4 + 4 + 8 / 4),
        (1, "bf16", 2 + 4 / 4 + 4 + 8 / 4),
        (2, "fp32", 4 + 4 / 4 + 4 / 4 + 8 / 4),
        (2, "bf16", 2 + 4 / 4 + 4 / 4 + 8 / 4),
        (3, "bf16", 2 / 4 + 4 / 4 + 4 / 4 + 8 / 4),
    ],
)
def test_theory_divides_what_each_stage_cuts(stage, precision, bytes_a_parameter):
    row = ROW | {"stage": stage}
    assert memory.theory(row, 4, precision) == pytest.approx(1000 * bytes_a_parameter)
    assert memory.theory(row | {"tensor_size": 2}, 4, precision) == pytest.approx(500 * bytes_a_parameter)


def test_a_storage_that_several_tensors_share_counts_once():
    gc.collect()
    before = memory.live_bytes()
    whole = torch.zeros(1 << 20)
    views = [whole[:10], whole.view(2, -1)]
    assert memory.live_bytes() - before == whole.nbytes
    del views


@pytest.mark.parametrize(("engine", "stages"), [("native", "0 1 2"), ("deepspeed", "1 2 3")])
def test_an_engine_is_asked_for_its_own_stages_only(engine, stages, capsys):
    with pytest.raises(SystemExit, match="2"):
        memory.parse(["--engine", engine])
    assert f"--engine {engine} has no ZeRO stage" in capsys.readouterr().err
    assert memory.parse(["--engine", engine, "--stages", *stages.split()]).engine == engine
    assert memory.parse([]).stages == [0, 1, 2, 3]


@pytest.mark.exhaustive
def test_a_launch_counts_about_what_the_theory_says_and_zero_3_less_than_ddp(tmp_path, capsys):
    arguments = ["--stages", "0", "3", "--tensor-sizes", "1", "--hidden", "128", "--layers", "2"]
    assert memory.main([*arguments, "--out", str(tmp_path)]) == 0
    (page,) = tmp_path.glob("*.md")
    assert page.read_text() == capsys.readouterr().out.rstrip("\n") + "\n"
    rows = [line.split("|") for line in page.read_text().splitlines() if line.startswith("| 0 ")]
    assert float(rows[0][6]) == pytest.approx(1.0, abs=0.02), "what DDP holds is known exactly"
    weights = [line.split("|")[3] for line in page.read_text().splitlines() if line[:3] in ("| 0", "| 3")]
    assert int(weights[1]) == pytest.approx(int(weights[0]) / 2, abs=1)
