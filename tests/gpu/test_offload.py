"""Inputs of recomputed blocks on the host: the same bits, and no memory that grows with the micro-batches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from llmkit.batch import Batch
from llmkit.kernels.operators import PLAIN, Operators
from llmkit.model import gpt
from llmkit.model.gpt import GPT
from llmkit.model.offload import HostCopies
from tests.shapes import LLAMA_STYLE, random_model

MICRO_BATCHES = 6
LARGE = replace(
    LLAMA_STYLE, num_hidden_layers=12, hidden_size=512, num_attention_heads=8, head_dim=64,
    intermediate_size=1024, max_position_embeddings=1024,
)  # fmt: skip
"""The input of a block takes 8 MiB of 4 rows."""


def trained(device: torch.device, offload: bool) -> tuple[list[Tensor], list[int]]:
    """Gradients summed over micro-batches, and after each the most bytes that were reserved so far."""
    on_gpu = device.type == "cuda"
    shape = LARGE if on_gpu else replace(LLAMA_STYLE, num_hidden_layers=3)
    plain = Operators.of({"attention": PLAIN["attention"]})
    model = GPT(shape, plain, activation_checkpointing="full", offload_activations=offload)
    model.load_state_dict(random_model(shape).state_dict())
    model.to(device)
    rows, length = (4, 1024) if on_gpu else (2, 24)
    generator, reserved = torch.Generator().manual_seed(1), list[int]()
    for _ in range(MICRO_BATCHES):
        tokens = torch.randint(90, (rows, length), generator=generator).to(device)
        model(Batch(tokens[:, :-1], tokens[:, 1:])).nats.sum().backward()
        reserved.append(torch.cuda.max_memory_reserved(device) if on_gpu else 0)
    return [each.grad for each in model.parameters() if each.grad is not None], reserved


@pytest.mark.filterwarnings("ignore:.*determinis:UserWarning")
def test_several_micro_batches_give_the_same_bits_in_the_memory_of_two(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(gpt, "HostCopies", partial(HostCopies, always=True))
    try:
        wanted, _ = trained(device, offload=False)
        found, reserved = trained(device, offload=True)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert wanted and all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert reserved[-1] == reserved[1]
