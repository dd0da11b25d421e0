"""Rows of several documents: as if each were alone, and at the memory of rows without masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.batch import Rows
from llmkit.device import device_facts
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from llmkit.plan import plan_for_shape
from tests.shapes import LLAMA_STYLE

END = 1


def model(device: torch.device, dtype: torch.dtype, length: int, masked: bool) -> GPT:
    """Two layers, wide enough on a GPU for its kernels, with the forms that the plan chooses."""
    sizes = {"max_position_embeddings": length}
    if device.type == "cuda":
        sizes |= {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64}
    shape = replace(LLAMA_STYLE, **sizes)
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": length, "document_masks": masked},
        "train": {"max_steps": 1, "micro_batch_size": 1, "precision": precision},
        "kernels": {"compile": False},
    }
    plan = plan_for_shape(shape, settings, device_facts(device))
    with torch.device(device):
        made = GPT(shape, operators=Operators.of(plan.kernels.forms))
    return made.to(dtype)


def rows_of(lengths: list[int]) -> torch.Tensor:
    """One row of documents, each behind an end-of-text."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for length in lengths:
        text = torch.randint(2, LLAMA_STYLE.vocab_size, (length,), generator=generator, dtype=torch.int32)
        text[0] = END
        parts.append(text)
    return torch.cat(parts)[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_documents_do_not_see_each_other(device, dtype):
    lengths = [3001, 1, 517, 4096, 578] if device.type == "cuda" else [13, 1, 7, 20, 8]
    row = rows_of(lengths)
    made = model(device, dtype, sum(lengths), masked=True)
    together = made(Rows.of(torch.cat((row, row[:, :1]), 1), None, END).to(device))
    together.nats.sum().backward()
    gradients = {name: each.grad.double() for name, each in made.named_parameters()}
    made.zero_grad()
    nats = 0.0
    for part in row.split(lengths, dim=1):
        # The last target of a document is the end-of-text that opens the next one.
        follows = torch.full_like(part[:, :1], END)
        alone = made(Rows.of(torch.cat((part, follows), 1), None, END).to(device))
        alone.nats.sum().backward()
        nats += alone.nats.sum().item()
    loss, gradient = (1e-5, 1e-4) if dtype == torch.float32 else (5e-3, 5e-2)
    assert together.nats.sum().item() == pytest.approx(nats, rel=loss)
    for name, each in made.named_parameters():
        wanted = each.grad.double()
        assert float((gradients[name] - wanted).norm() / wanted.norm()) < gradient, name


def test_masks_take_no_memory_to_speak_of(device):
    length = 8192 if device.type == "cuda" else 64
    peaks = []
    for masked in (False, True):
        made = model(device, torch.bfloat16, length, masked)
        row = rows_of([length // 4] * 4)
        batch = Rows.of(torch.cat((row, row[:, :1]), 1), None, END if masked else None).to(device)
        for _ in range(2):
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            made.zero_grad()
            made(batch).nats.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() if device.type == "cuda" else 1)
        del made
    assert peaks[1] <= 1.1 * peaks[0]
