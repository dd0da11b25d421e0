"""`llmkit checkpoint diff`: what differs, across layouts and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.read import Checkpoint, load
from llmkit.checkpoint.write import save
from llmkit.checkpoints.difference import compare_tensors
from llmkit.cli import main
from llmkit.parallel.slices import full_box
from tests.checkpoints.recut import recut

TINY, OTHER = Path("runs/tiny/checkpoints"), Path("runs/other/checkpoints")


def of_tensors(root: Path, **tensors: torch.Tensor) -> Checkpoint:
    root.mkdir()
    pieces = [
        Piece(name, "master", tuple(t.shape), full_box(tuple(t.shape)), (0, t.numel()), t.flatten())
        for name, t in tensors.items()
    ]
    return load(save(root, 1, pieces, state={}, model={}, config={}, extra_files={}, keep_last=1))


def diff(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["checkpoint", "diff", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_tensor_differs_as_numpy_says(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.randn(70, 33, generator=generator) for _ in range(2))
    nan = torch.tensor([1.0, torch.nan])
    zero, four = nan * 0, torch.zeros(4)
    a = of_tensors(tmp_path / "a", weight=one, same=one, gone=one, shaped=four, nan=nan, zero=zero)
    b = of_tensors(tmp_path / "b", weight=other, same=one, new=one, shaped=four.view(2, 2), nan=nan, zero=nan)
    found = {each.name: each for each in compare_tensors(a, b)}
    x, y = one.double().numpy(), other.double().numpy()
    wanted = np.linalg.norm(x - y) / max(np.linalg.norm(x), np.linalg.norm(y))
    assert found["weight"].relative == pytest.approx(wanted, rel=1e-12)
    assert found["weight"].largest == np.abs(x - y).max()
    assert found["same"].relative == 0.0 and not found["same"].differs
    assert (found["gone"].problem, found["new"].problem) == ("only in A", "only in B")
    assert found["shaped"].problem == "shape [4] -> [2, 2]"
    assert found["nan"].differs and np.isnan(found["nan"].largest) and np.isnan(found["zero"].relative)


def test_the_same_state_of_another_layout_does_not_differ(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = recut(TINY / "step-00000008", project / "recut")
    found = diff(capsys, "runs/tiny", str(cut))
    assert found["settings"] == found["model"] == found["data"] == found["tensors"] == []
    assert {kind: each["differ"] for kind, each in found["kinds"].items()} == dict.fromkeys(
        ("master", "exp_avg", "exp_avg_sq"), 0
    )
    assert main(["checkpoint", "diff", "runs/tiny", str(cut)]) == 0
    assert "settings   the same" in capsys.readouterr().out


def test_two_runs_differ_in_settings_and_tensors(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(capsys, "runs/tiny", "runs/other")
    changed = {each["setting"]: (each["old"], each["new"]) for each in found["settings"]}
    assert changed["run.seed"] == ("0", "7") and changed["run.name"] == ('"tiny"', '"other"')
    kinds, tensors = found["kinds"], found["tensors"]
    assert kinds["master"]["differ"] > 10 and 0.1 < kinds["master"]["relative"] < 2
    sizes = [each["relative"] for each in tensors]
    assert sizes == sorted(sizes, reverse=True)
    assert main(["checkpoint", "diff", "runs/tiny", "runs/other", "--count", "3"]) == 0
    *_, heading, first, _, third, more = capsys.readouterr().out.splitlines()
    assert heading.split() == ["tensor", "kind", "relative", "largest"]
    assert first.split()[0] == tensors[0]["name"] and third.split()[0] == tensors[2]["name"]
    assert more == f"and {len(tensors) - 3} more; --count N shows more, --json all"


def test_two_steps_differ_in_where_they_read(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(capsys, str(TINY / "step-00000004"), str(TINY / "step-00000008"))
    assert found["data"] == ["rows read 16 -> 32"] and found["a"]["step"] == 4


def test_other_data_and_another_model_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.program import train

    Path("corpus/000.txt").write_text("other text\n")
    assert train("run.name=wide", "model.intermediate_size=96", "train.max_steps=1") == 0
    capsys.readouterr()
    found = diff(capsys, "runs/tiny", "runs/wide")
    assert any("training tokens" in line for line in found["data"])
    assert "intermediate_size: 64 -> 96" in found["model"]
    assert "shape [64, 32] -> [96, 32]" in {each["problem"] for each in found["tensors"]}


def test_an_average_lacks_the_moments(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "average", "runs/tiny", "--out", "out"]) == 0
    capsys.readouterr()
    found = diff(capsys, "runs/tiny", "out")
    assert found["only_in"] == {"A": ["exp_avg", "exp_avg_sq"], "B": []}
    assert {each["kind"] for each in found["tensors"]} == {"master"}
    assert main(["checkpoint", "diff", "out", "runs/tiny"]) == 0
    assert "only in B  exp_avg, exp_avg_sq" in capsys.readouterr().out


def test_what_is_no_checkpoint_is_one_message(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "diff", "runs/tiny", "nowhere"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
