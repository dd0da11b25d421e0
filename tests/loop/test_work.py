"""FLOPs of a run's tokens, by its plan and its documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmkit.batch import Rows
from llmkit.config.load import load
from llmkit.data.rank_batch import RankBatch
from llmkit.loop.work import Work
from llmkit.monitor.flops import causal_flops_per_token, recomputed_flops_per_token, train_flops_per_token
from llmkit.plan import Known, Plan, resolve_plan
from tests.program import rows, train


def plan_of(*overrides: str) -> Plan:
    return resolve_plan(load("tiny.yaml", list(overrides)), Known(world_size=1, tokenizer_size=257))


def step_of(*rows: Rows) -> RankBatch:
    return RankBatch(list(rows), 1, 1, 1, 0, np.zeros(1), None, np.zeros(1))


def test_work_is_that_of_the_plan(project) -> None:
    plan = plan_of("parallel.activation_checkpointing=full")
    work = Work(plan)
    assert work.full == train_flops_per_token(plan.model, 32)
    assert work.recomputed == recomputed_flops_per_token(plan.model, 32, "full") > 0
    tokens = torch.ones(2, 33, dtype=torch.int32)
    assert work.causal(step_of(Rows.of(tokens, None, None))) == causal_flops_per_token(plan.model, [32])


def test_documents_of_a_batch_are_sequences_of_their_own(project) -> None:
    plan = plan_of("data.document_masks=true")
    first, second = torch.ones(2, 2, 33, dtype=torch.int32)
    first[0, 10] = first[1, 0] = second[1, 31] = 0  # these open a document
    batch = step_of(Rows.of(first, None, 0), Rows.of(second, None, 0))
    lengths = [10, 22, 32, 32, 31, 1]
    assert Work(plan).causal(batch) == causal_flops_per_token(plan.model, lengths)


def test_a_row_has_the_work_of_its_own_batches(project, monkeypatch) -> None:
    monkeypatch.setattr(Work, "causal", lambda self, batch: 1000.0 * batch.first)
    assert train("train.max_steps=4", "evaluate.every_steps=0", "checkpoint.every_steps=0") == 0
    full = train_flops_per_token(plan_of().model, 32)
    first, *others = [row for row in rows(project / "runs/tiny") if "loss" in row]
    assert first["mfu_causal"] is None and [row["step"] for row in others] == [2, 3, 4]
    for row in others:
        assert row["mfu_causal"] / row["mfu"] == pytest.approx(1000.0 * 4 * (row["step"] - 1) / full)
