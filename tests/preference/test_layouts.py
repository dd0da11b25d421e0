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


def test_all_layouts_train_alike_and_go_on_exactly(pairs: Path) -> None:
    cache = "data.cache_dir=other-cache"
    every = [*PAIRS, "evaluate.every_steps=3"]
    lines = [
        ["reference", "tiny.yaml", *PAIRS, cache, "parallel.tensor_parallel_size=2"],
        ["train", "tiny.yaml", *every, cache, *ZERO3, "run.name=zero3"],
        [
            "train",
            "tiny.yaml",
            *every,
            cache,
            *ZERO3,
            "run.name=parts",
            "train.max_steps=3",
            "schedule.steps=6",
        ],
        ["train", "tiny.yaml", *every, cache, *ZERO3, "run.name=parts"],
        ["train", "tiny.yaml", *every, cache, *DATA_PARALLEL, "run.name=ddp"],
        ["train", "tiny.yaml", *every, cache, *ADAPTERS, *ZERO3, "run.name=lora-zero3"],
        [
            "train",
            "tiny.yaml",
            *every,
            cache,
            *ADAPTERS,
            *DATA_PARALLEL,
            "run.name=lora-parts",
            "train.max_steps=3",
            "schedule.steps=6",
        ],
        ["train", "tiny.yaml", *every, cache, *ADAPTERS, *ZERO3, "run.name=lora-parts"],
    ]
    found = run_ranks(
        4, "tests.preference.rank_cases:commands", joined=False,
        folder=str(pairs), ports=free_ports(len(lines)), lines=lines,
    )  # fmt: skip
    assert found == [[0] * len(lines)] * 4
    assert main(["reference", "tiny.yaml", *PAIRS]) == 0
    assert train(*every, "run.name=alone") == 0
    assert train(*every, *ADAPTERS, "run.name=lora-alone") == 0
    for split in ("train", "heldout"):
        [one], [other] = (
            list(Path(folder).glob(f"jsonl-0-reference-*/{split}.f32"))
            for folder in ("data-cache", "other-cache")
        )
        assert one.parent.name == other.parent.name
        assert np.allclose(np.fromfile(one, "<f4"), np.fromfile(other, "<f4"), rtol=2e-6)
    assert columns("parts", EXACT) == columns("zero3", EXACT)
    layouts = {"alone": ("zero3", "ddp"), "lora-alone": ("lora-zero3", "lora-parts")}
    for alone, others in layouts.items():
        for name in others:
            for row, wanted in zip(columns(name, COMPARED), columns(alone, COMPARED), strict=True):
                assert row == pytest.approx(wanted, rel=2e-4, abs=2e-5), name
    first, *_, last = (row for row in rows(Path("runs/lora-alone")) if "loss" in row)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and last["rewards/margin"] > 0.01
