"""Registered models and optimizers under DDP, ZeRO and tensor parallelism against one process."""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks

COMPARE = "tests.engine.custom_models:compare"
CONVOLUTION = {"type": "convolution", "width": 12}
LLAMA = {
    "type": "hf",
    "architecture": "llama",
    "settings": {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36,
    },
}  # fmt: skip
PIECES = {"sequence_parallel": True}
SHARDED = {"type": "sharded-test-model"}


def check(cases, ranks, tensor_size):
    for found in run_ranks(ranks, COMPARE, cases=cases, tensor_size=tensor_size):
        for case, each in zip(cases, found, strict=True):
            alone, spread = each["losses"]
            assert spread == pytest.approx(alone, rel=1e-6), case
            assert each["worst"][1] < 3e-5, (case, each["worst"])
            assert alone[-1] != alone[0]


def test_a_model_of_ordinary_modules_trains_alike_under_every_zero_stage():
    cases = [
        *({"model": CONVOLUTION, "optimizer": {"name": "adamw"}, "stage": stage} for stage in range(4)),
        *({"model": CONVOLUTION, "optimizer": {"name": "muon"}, "stage": stage} for stage in (0, 3)),
        {"model": CONVOLUTION, "optimizer": {"name": "lion"}, "stage": 1},
        {"model": LLAMA, "optimizer": {"name": "muon"}, "stage": 3},
    ]
    check(cases, ranks=2, tensor_size=1)


@pytest.mark.exhaustive
def test_they_do_with_other_optimizers_under_each_stage():
    cases = [
        *({"model": CONVOLUTION, "optimizer": {"name": "muon"}, "stage": stage} for stage in (1, 2)),
        {"model": CONVOLUTION, "optimizer": {"name": "lion"}, "stage": 2},
        {"model": LLAMA, "optimizer": {"name": "muon"}, "stage": 0},
    ]
    check(cases, ranks=2, tensor_size=1)


def test_a_model_of_our_layers_trains_alike_under_tensor_parallelism():
    cases = [
        *({"model": SHARDED, "optimizer": {"name": "adamw"}, "stage": stage} for stage in (1, 3)),
        {"model": SHARDED, "optimizer": {"name": "muon"}, "stage": 2},
        *(
            {"model": SHARDED, "optimizer": {"name": name}, "stage": stage, "parallel": PIECES}
            for name, stage in (("muon", 1), ("adamw", 3))
        ),
    ]
    check(cases, ranks=4, tensor_size=2)


@pytest.mark.exhaustive
def test_they_do_with_the_native_engine_too():
    adamw = {"model": SHARDED, "optimizer": {"name": "adamw"}, "stage": 0}
    check([adamw, {**adamw, "parallel": PIECES}], ranks=4, tensor_size=2)
