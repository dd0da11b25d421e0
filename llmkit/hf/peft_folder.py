"""Low-rank adapters as a folder of PEFT: adapter_config.json and adapter_model.safetensors.

Our layers that are one matrix there (GPT-2's c_attn) become one adapter: their A one above the other, their B
along the diagonal of a larger one, whose rank is the sum of theirs. It computes the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmkit.config.lora_section import Lora
from llmkit.config.shape import ModelShape
from llmkit.hf.architectures import Architecture
from llmkit.hf.names import Stored

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Matrices = Callable[[str], tuple[Tensor, Tensor]]
"""Layer -> its A (rank, inputs) and B (outputs, rank)."""


def write_peft_folder(
    out: Path,
    shape: ModelShape,
    architecture: Architecture,
    lora: Lora,
    layers: AbstractSet[str],
    matrices: Matrices,
    base: str,
) -> None:
    """Writes the adapters of `layers` into the folder `out`, which exists.

    base: what people and PEFT find the base model by, a path or a name of the hub.
    """
    modules = _modules(architecture.naming.stored(shape.parameters()))
    adapted = {name: parts for name, parts in modules.items() if not layers.isdisjoint(parts)}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, parts in adapted.items():
        rows = [shape.parameters()[f"{part}.weight"][0] for part in parts]
        a, b = _joined(parts, rows, layers, matrices)
        ranks[name] = len(a)
        tensors |= {
            f"base_model.model.{name}.{kind}.weight": matrix.contiguous()
            for kind, matrix in (("lora_A", a), ("lora_B", b))
        }
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = _config(lora, ranks, list(modules), architecture.naming.conv1d, base)
    (out / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _modules(stored: Sequence[Stored]) -> dict[str, list[str]]:
    """Each of their modules with a matrix -> our layers in it."""
    return {
        tensor.name.removesuffix(".weight"): [name.removesuffix(".weight") for name, _ in tensor.parts]
        for tensor in stored
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2
    }


def _joined(
    parts: Sequence[str], rows: Sequence[int], layers: Collection[str], matrices: Matrices
) -> tuple[Tensor, Tensor]:
    """A and B of a matrix that holds these layers one below the other; where there is no adapter, B is 0."""
    found = [matrices(part) if part in layers else None for part in parts]
    a = torch.cat([each[0] for each in found if each is not None])
    b = a.new_zeros(sum(rows), len(a))
    row = column = 0
    for each, height in zip(found, rows, strict=True):
        if each is not None:
            width = each[1].shape[1]
            b[row : row + height, column : column + width] = each[1]
            column += width
        row += height
    return a, b


def _config(lora: Lora, ranks: dict[str, int], modules: list[str], conv1d: bool, base: str) -> dict[str, Any]:
    """The content of adapter_config.json. ranks: module -> rank of its adapter."""
    short = {name: _shortest(name, ranks, modules) for name in ranks}
    other = {short[name]: rank for name, rank in ranks.items() if rank != lora.rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.input_dropout,
        "target_modules": sorted(set(short.values())),
        "rank_pattern": other,
        "alpha_pattern": {name: lora.alpha / lora.rank * rank for name, rank in other.items()},
        "bias": "none",
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
    }


def _shortest(name: str, ranks: Mapping[str, int], modules: Collection[str]) -> str:
    """The shortest end of a module's name that no module without an adapter, or of another rank, has."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        end = "." + ".".join(parts[-count:])
        if all(ranks.get(other) == ranks[name] for other in modules if other.endswith(end)):
            return end[1:]
    return name
