"""The named shapes that are measured: a model, the length of its rows and how many of them a step takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmkit.batch import IGNORE, Batch
from llmkit.config.derive import resolved_model
from llmkit.config.load import load
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
BATCHES = 8
"""Different batches of a workload; later steps see them again."""

GPT2 = {
    "vocab_size": 50257, "mlp": "gelu", "norm": "layernorm", "position_embedding": "learned",
    "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
LLAMA_1B = {"vocab_size": 128256, "num_key_value_heads": 8, "intermediate_size": 8192}

# name: (layers, hidden size, heads, further settings of the model, sequence length, rows on a CPU, on a GPU)
_TABLE: dict[str, tuple[int, int, int, dict[str, Any], int, int, int]] = {
    "toy": (2, 64, 2, {"vocab_size": 500}, 32, 4, 4),
    "14m": (6, 384, 6, {"vocab_size": 8192}, 256, 16, 16),
    "124m": (12, 768, 12, GPT2, 1024, 2, 32),
    "355m": (24, 1024, 16, GPT2, 1024, 1, 16),
    "1558m": (48, 1600, 25, GPT2, 1024, 1, 8),
    "llama-1b": (16, 2048, 32, LLAMA_1B, 2048, 1, 4),
}
NAMES = ("demo", *_TABLE)
ON_CPU = ("demo", "14m", "124m")
"""What is measured where nothing is asked for."""
ON_GPU = (*ON_CPU, "355m", "1558m", "llama-1b")


@dataclass(frozen=True)
class Workload:
    """A configuration to train by; `config.train.global_batch_size` rows make one step."""

    name: str
    config: Config

    @property
    def shape(self) -> ModelShape:
        """The shape of llmkit's model."""
        return resolved_model(self.config)

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.config.train.global_batch_size

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.config.data.sequence_length


def make_workload(name: str, device: torch.device) -> Workload:
    """The workload of that name, with as many rows as suit `device`. Raises UserError for unknown names."""
    if name == "demo":
        return Workload(name, load(ROOT / "configs" / "demo.yaml").config)
    if name not in _TABLE:
        raise UserError(f"there is no shape named {name!r}; choose among {', '.join(NAMES)}")
    layers, width, heads, further, length, cpu_rows, gpu_rows = _TABLE[name]
    model = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    settings = {
        "model": model | further,
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": length},  # the source is never read
        "train": {"max_steps": 1, "global_batch_size": gpu_rows if device.type == "cuda" else cpu_rows},
    }
    return Workload(name, Config.model_validate(settings))


def make_batches(workload: Workload, device: torch.device) -> list[Batch]:
    """Random tokens, token i as frequent as 1 / (i + 1): something to learn, and like text to a cache.

    A row's last position has no target: its successor is not in the row.
    """
    generator = torch.Generator().manual_seed(0)
    share = (1.0 / torch.arange(1, workload.shape.vocab_size + 1, dtype=torch.float64)).cumsum(0)
    batches = []
    for _ in range(BATCHES):
        draw = torch.rand(workload.rows, workload.length, generator=generator, dtype=torch.float64)
        tokens = torch.searchsorted(share, draw * share[-1])
        labels = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], IGNORE)), dim=1)
        batches.append(Batch(tokens, labels).to(device))
    return batches
