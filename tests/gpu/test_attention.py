"""Every form of attention that the plan allows, with documents, windows and groups, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.batch import Rows
from llmkit.device import device_facts
from llmkit.errors import UserError
from llmkit.kernels.operators import FORMS, Operators
from llmkit.plan import plan_for_shape
from tests.kernels.float64 import check
from tests.shapes import LLAMA_STYLE

CASES = {
    "plain": {},
    "window": {"sliding_window": 7},
    "documents": {"lengths": (13, 1, 20, 14)},
    "both": {"sliding_window": 7, "lengths": (13, 1, 20, 14)},
}
"""Lengths of documents add up to a row on the CPU; on a GPU all are 64 times as long."""
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}
END = 1


def operators(
    form: str, device: torch.device, dtype: torch.dtype, length: int, case: dict
) -> Operators | None:
    """The table with that form of attention; None where the plan refuses it."""
    shape = replace(
        LLAMA_STYLE, head_dim=16, max_position_embeddings=length, sliding_window=case.get("sliding_window")
    )
    settings = {
        "data": {
            "sources": [{"type": "stdlib"}], "sequence_length": length, "document_masks": "lengths" in case
        },
        "train": {
            "max_steps": 1, "micro_batch_size": 1, "precision": "bf16" if dtype == torch.bfloat16 else "fp32"
        },
        "kernels": {"compile": False, "operators": {"attention": form}},
    }  # fmt: skip
    try:
        return Operators.of(plan_for_shape(shape, settings, device_facts(device)).kernels.forms)
    except UserError:
        return None


def rows(lengths: tuple[int, ...] | None, length: int, scale: int) -> Rows:
    """Two rows; the second has the documents of the first in the other order."""
    tokens = torch.zeros(2, length + 1, dtype=torch.int32)
    for row, parts in zip(tokens, (lengths or (), (lengths or ())[::-1]), strict=True):
        at = 0
        for part in parts:
            row[at] = END
            at += part * scale
    return Rows.of(tokens, None, END if lengths else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_forms_and_their_gradients(device, name, dtype):
    case = dict(CASES[name])
    scale = 64 if device.type == "cuda" else 1
    length = 48 * scale
    if "sliding_window" in case:
        case["sliding_window"] *= scale
    torch.manual_seed(0)
    inputs = [
        torch.randn(2, length, heads, 16 if device.type == "cpu" else 64, device=device).to(dtype)
        for heads in (6, 2, 2)
    ]
    batch = rows(case.get("lengths"), length, scale).to(device)
    window = case.get("sliding_window")
    tried = []
    for form in FORMS["attention"]:
        table = operators(form, device, dtype, length, case)
        if table is None:
            continue
        tried.append(form)
        check(
            lambda q, k, v, attend=table.attention: attend(
                q, k, v, window=window, documents=batch.documents, bounds=batch.bounds
            ),
            lambda q, k, v: reference(q, k, v, window, batch.documents),
            [each.requires_grad_() for each in inputs],
            TOLERANCE[dtype],
        )
    assert tried


def reference(q, k, v, window, documents):
    """With a mask, in the type of its arguments."""
    k, v = (each.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for each in (k, v))
    at = torch.arange(q.shape[1], device=q.device)
    visible = (at[None, :] <= at[:, None])[None]
    if window is not None:
        visible = visible & (at[None, :] > at[:, None] - window)
    if documents is not None:
        visible = visible & (documents[:, :, None] == documents[:, None, :])
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)
