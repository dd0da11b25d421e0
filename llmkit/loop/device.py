"""Which device a run trains on, in which precision, with how many rows at once."""

from __future__ import annotations

import torch

from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.monitor.hardware import has_bf16_units

CPU_TOKENS = 16384
"""Tokens of a micro-batch on a CPU: more brings no speed and costs memory."""
MEMORY_SHARE = 0.8
"""Share of a GPU's free memory that an automatic micro-batch may fill with activations."""


def choose_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def choose_precision(requested: str, device: torch.device) -> str:
    """`requested`, or for "auto" bf16 where the device has units for it, else fp32."""
    if requested != "auto":
        return requested
    return "bf16" if has_bf16_units(device) else "fp32"


def make_deterministic() -> None:
    """Bit-equal results on one machine. MKL and cuBLAS read theirs from the environment, set by the CLI."""
    torch.use_deterministic_algorithms(True)
    # Costs time, and nothing here reads memory that it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_micro_batch(config: Config, shape: ModelShape, precision: str, device: torch.device) -> int:
    """`train.micro_batch_size`, or for "auto" the largest divisor of the global batch that should fit.

    On a GPU activations are estimated from above: 34 values of the hidden size and 3 of the MLP's a
    layer and token, and 10 bytes a logit; masters, moments, weights and gradients take 18 bytes a
    parameter.
    """
    requested, total = config.train.micro_batch_size, config.train.global_batch_size
    if requested != "auto":
        return requested
    length = config.data.sequence_length
    if device.type == "cpu":
        tokens = CPU_TOKENS
    else:
        size = 2 if precision == "bf16" else 4
        layer = size * (34 * shape.hidden_size + 3 * shape.intermediate_size)
        each = shape.num_hidden_layers * layer + 10 * shape.padded_vocab_size
        free = torch.cuda.mem_get_info(device)[0] - 18 * shape.num_parameters
        tokens = int(MEMORY_SHARE * free / each)
    return max(n for n in range(1, total + 1) if total % n == 0 and (n == 1 or n * length <= tokens))


def check_world(environment_world: str | None) -> None:
    """Raises UserError under a launcher that started several processes."""
    if environment_world not in (None, "", "1"):
        raise UserError(
            f"WORLD_SIZE is {environment_world}, but this version trains on one process: start it alone, "
            "or with one process"
        )
