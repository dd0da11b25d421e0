"""The named shapes that are measured: a model, the length of its rows and how many of them a step takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmkit.batch import Batch, Rows
from llmkit.config.derive import resolved_model
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
DEMO = {"vocab_size": 4096, "num_key_value_heads": 1, "intermediate_size": 512, "qk_norm": True}
"""Of the size of configs/demo.yaml, without what peers do not have."""
LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "intermediate_size": 8192}
DOCUMENT_LENGTH = 600
"""Mean length of the documents where they are masked from each other, in tokens."""

# name: (layers, hidden size, heads, further settings of the model, sequence length, rows on a CPU, on a GPU)
_TABLE: dict[str, tuple[int, int, int, dict[str, Any], int, int, int]] = {
    "demo": (4, 192, 3, DEMO, 256, 8, 8),
    "toy": (2, 64, 2, {"vocab_size": 500}, 32, 4, 4),
    "14m": (6, 384, 6, {"vocab_size": 8192}, 256, 16, 16),
    "124m": (12, 768, 12, GPT2, 1024, 2, 32),
    "355m": (24, 1024, 16, GPT2, 1024, 1, 16),
    "1558m": (48, 1600, 25, GPT2, 1024, 1, 8),
    "llama-1b": (16, 2048, 32, LLAMA, 2048, 1, 4),
    "llama-3b": (28, 3072, 24, LLAMA, 4096, 1, 1),
}
NAMES = tuple(_TABLE)
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
    def micro_rows(self) -> int:
        """Rows of a micro-batch: all of a step unless the configuration names a number."""
        asked = self.config.train.micro_batch_size
        return self.rows if asked == "auto" else asked

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.config.data.sequence_length


def make_workload(
    name: str, device: torch.device, changes: Mapping[str, Mapping[str, Any]] | None = None
) -> Workload:
    """The workload of that name, with as many rows as suit `device`. Raises UserError for unknown names.

    changes: other values of settings, by section.
    """
    config = _config(name, device)
    sections = {
        section: type(before).model_validate(before.model_dump() | dict(values))
        for section, values in (changes or {}).items()
        for before in (getattr(config, section),)
    }
    return Workload(name, config.model_copy(update=sections))


def _config(name: str, device: torch.device) -> Config:
    if name not in _TABLE:
        raise UserError(f"there is no shape named {name!r}; choose among {', '.join(NAMES)}")
    layers, width, heads, further, length, cpu_rows, gpu_rows = _TABLE[name]
    model = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    settings = {
        "model": model | further,
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": length},  # the source is never read
        "train": {"max_steps": 1, "global_batch_size": gpu_rows if device.type == "cuda" else cpu_rows},
    }
    return Config.model_validate(settings)


def make_batches(workload: Workload, device: torch.device) -> list[list[Batch]]:
    """The micro-batches of `BATCHES` steps.

    Random tokens, token i as frequent as 1 / (i + 1): something to learn, and like text to a cache. A row's
    last position has no target: its successor is not in the row. Where documents are masked from each other
    they end at random.
    """
    generator = torch.Generator().manual_seed(0)
    share = (1.0 / torch.arange(1, workload.shape.vocab_size + 1, dtype=torch.float64)).cumsum(0)
    end_of_text = workload.shape.vocab_size - 1 if workload.config.data.document_masks else None
    is_target = torch.ones(workload.micro_rows, workload.length, dtype=torch.bool)
    is_target[:, -1] = False
    batches = []
    for _ in range(BATCHES):
        draw = torch.rand(workload.rows, workload.length, generator=generator, dtype=torch.float64)
        tokens = torch.searchsorted(share, draw * share[-1], out_int32=True)
        if end_of_text is not None:
            ends = torch.rand(tokens.shape, generator=generator) < 1 / DOCUMENT_LENGTH
            tokens = tokens.masked_fill(ends, end_of_text)
        tokens = torch.cat((tokens, tokens[:, :1]), dim=1)
        micro_batches = tokens.split(workload.micro_rows)
        batches.append([Rows.of(each, is_target, end_of_text).to(device) for each in micro_batches])
    return batches
