"""Which device a run trains on, in which precision, with how many rows at once."""

from __future__ import annotations

import torch

from llmkit.config.derive import rows_per_rank
from llmkit.config.memory import state_bytes
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.cores import available_cores
from llmkit.monitor.hardware import has_bf16_units
from llmkit.parallel.layout import Layout

ALONE = Layout()
CPU_TOKENS = 16384
"""Tokens of a micro-batch on a CPU: more brings no speed and costs memory."""
AUTO_WORKERS = 4
"""Processes that tokenize, unless more are asked for: a few feed any number of GPUs of one process."""
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


def choose_workers(config: Config, local_size: int) -> int:
    """`data.workers`, or for "auto" half of the cores that each of the host's processes has, at most 4."""
    if config.data.workers != "auto":
        return config.data.workers
    return min(AUTO_WORKERS, available_cores() // local_size // 2)


def make_deterministic() -> None:
    """Bit-equal results on one machine. MKL and cuBLAS read theirs from the environment, set by the CLI."""
    torch.use_deterministic_algorithms(True)
    # Costs time, and nothing here reads memory that it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_micro_batch(
    config: Config, shape: ModelShape, precision: str, device: torch.device, layout: Layout = ALONE
) -> int:
    """`train.micro_batch_size`, or for "auto" the largest divisor of a rank's rows that should fit.

    On a GPU activations are estimated from above: 34 values of the hidden size and 3 of the MLP's a
    layer and token (with full recomputation one of the hidden size in the layers that do it, and one
    layer whole), and 10 bytes a logit; what the layout leaves of masters, moments, weights and gradients
    is not free.
    """
    requested = config.train.micro_batch_size
    if requested != "auto":
        return requested
    rows, length = rows_per_rank(config, layout.data_parallel_size), config.data.sequence_length
    if device.type == "cpu":
        tokens = CPU_TOKENS
    else:
        size = 2 if precision == "bf16" else 4
        layer = size * (34 * shape.hidden_size + 3 * shape.intermediate_size)
        whole = shape.num_hidden_layers
        if layout.activation_checkpointing == "full":
            whole = (
                shape.num_hidden_layers - shape.num_hidden_layers // layout.activation_checkpointing_every + 1
            )
        each = whole * layer + shape.num_hidden_layers * size * shape.hidden_size
        each += 10 * shape.padded_vocab_size // layout.tensor_parallel_size
        state = state_bytes(
            shape, precision, config.optimizer.name,
            data_parallel_size=layout.data_parallel_size, tensor_parallel_size=layout.tensor_parallel_size,
            zero_stage=layout.zero_stage, offload=layout.offload,
        )  # fmt: skip
        free = torch.cuda.mem_get_info(device)[0] - state.device - state.gradients
        tokens = int(MEMORY_SHARE * free / each)
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * length <= tokens))
