"""Reference and training on pairs over several ranks, compared with one process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.cli import main
from tests.preference.pairs_project import PAIRS
from tests.program import rows, train
from tests.ranks import free_ports, run_ranks

COMPARED = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margin", "eval_loss")
EXACT = (*COMPARED, "rewards/accuracy", "eval_rewards/accuracy", "eval_rewards/margin", "tokens", "step")
ZERO3 = (
    "parallel.zero_stage=3",
    "parallel.tensor_parallel_size=2",
    "parallel.sequence_parallel=true",
    "train.micro_batch_size=1",
)
ADAPTERS = (
    "train.init_from=runs/base",
    "train.dpo.reference=null",
    "train.lora={rank: 3, alpha: 6}",
    "optimizer.eps=1e-5",
)
DATA_PARALLEL = ("parallel.zero_stage=1", "train.micro_batch_size=1")  # 6 pairs on 4 ranks: two only fill


def columns(name: str, wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in wanted if key in row} for row in rows(Path("runs") / name)]


HALF = ("train.max_steps=3", "schedule.steps=6")
EVERY = (*PAIRS, "evaluate.every_steps=3")
OTHER_CACHE = "data.cache_dir=other-cache"


def on_four(folder: Path, lines: list[list[str]]) -> None:
    """Commands on four ranks, one after the other; each must end well."""
    found = run_ranks(
        4, "tests.preference.rank_cases:commands", joined=False,
        folder=str(folder), ports=free_ports(len(lines)), lines=lines,
    )  # fmt: skip
    assert found == [[0] * len(lines)] * 4


def check(alone: str, *others: str) -> None:
    """That runs have the rows of one on a single process."""
    for name in others:
        for row, wanted in zip(columns(name, COMPARED), columns(alone, COMPARED), strict=True):
            assert row == pytest.approx(wanted, rel=2e-4, abs=2e-5), name


def test_all_layouts_train_alike_and_go_on_exactly(pairs: Path) -> None:
    started = ["train", "tiny.yaml", *EVERY, OTHER_CACHE]
    lines = [
        ["reference", "tiny.yaml", *PAIRS, OTHER_CACHE, "parallel.tensor_parallel_size=2"],
        [*started, *ZERO3, "run.name=zero3"],
        [*started, *ZERO3, "run.name=parts", *HALF],
        [*started, *ZERO3, "run.name=parts"],
        [*started, *DATA_PARALLEL, "run.name=ddp"],
    ]
    on_four(pairs, lines)
    assert main(["reference", "tiny.yaml", *PAIRS]) == 0
    assert train(*EVERY, "run.name=alone") == 0
    for split in ("train", "heldout"):
        [one], [other] = (
            list(Path(folder).glob(f"jsonl-0-reference-*/{split}.f32"))
            for folder in ("data-cache", "other-cache")
        )
        assert one.parent.name == other.parent.name
        assert np.allclose(np.fromfile(one, "<f4"), np.fromfile(other, "<f4"), rtol=2e-6)
    assert columns("parts", EXACT) == columns("zero3", EXACT)
    check("alone", "zero3", "ddp")


@pytest.mark.exhaustive
def test_adapters_train_alike_in_all_layouts(pairs: Path) -> None:
    started = ["train", "tiny.yaml", *EVERY, OTHER_CACHE, *ADAPTERS]
    lines = [
        [*started, *ZERO3, "run.name=lora-zero3"],
        [*started, *DATA_PARALLEL, "run.name=lora-parts", *HALF],
        [*started, *ZERO3, "run.name=lora-parts"],
    ]
    on_four(pairs, lines)
    assert train(*EVERY, *ADAPTERS, "run.name=lora-alone") == 0
    check("lora-alone", "lora-zero3", "lora-parts")
    first, *_, last = (row for row in rows(Path("runs/lora-alone")) if "loss" in row)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and last["rewards/margin"] > 0.01
