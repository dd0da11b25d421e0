"""How many sequences a forward pass takes, where the settings leave that open."""

from __future__ import annotations

from llmkit.config.custom_model import AnyModel
from llmkit.config.derive import rows_per_rank
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.facts import DeviceFacts
from llmkit.plan.plan import training_state
from llmkit.precision import BYTES, Precision

CPU_TOKENS = 16384
"""Tokens of a micro-batch on a CPU: more brings no speed and costs memory."""
MEMORY_SHARE = 0.8
"""Share of a GPU's free memory that an automatic micro-batch may fill with activations."""
ALONE = Layout()


def choose_micro_batch(
    config: Config, shape: AnyModel, precision: Precision, device: DeviceFacts, layout: Layout = ALONE
) -> int:
    """Returns `train.micro_batch_size`; for "auto" the largest divisor of a rank's sequences that should fit.

    On a GPU it is 1 for a registered model, of whose activations nothing is known.
    """
    requested = config.train.micro_batch_size
    if requested != "auto":
        return requested
    rows, length = rows_per_rank(config, layout.data_parallel_size), config.data.sequence_length
    tokens = CPU_TOKENS
    if device.kind == "cuda":
        state = training_state(config, shape, precision, layout)
        free = MEMORY_SHARE * (device.free_bytes - state.device - state.gradients)
        tokens = 0
        if isinstance(shape, ModelShape):
            tokens = int(free / activation_bytes(shape, precision, layout))
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * length <= tokens))


def activation_bytes(shape: ModelShape, precision: Precision, layout: Layout) -> int:
    """Returns an upper estimate of the bytes per token of the activations kept for the backward pass.

    34 values of the hidden size and 3 of the MLP's a layer and token (with full recomputation one of the
    hidden size in the layers that do it, and one full layer), and 10 bytes a logit.
    """
    size = BYTES[precision.compute]
    layer = size * (34 * shape.hidden_size + 3 * shape.intermediate_size)
    kept = shape.num_hidden_layers
    if layout.activation_checkpointing == "full":
        kept = shape.num_hidden_layers - shape.num_hidden_layers // layout.activation_checkpointing_every + 1
    return (
        kept * layer
        + shape.num_hidden_layers * size * shape.hidden_size
        + 10 * shape.padded_vocab_size // layout.tensor_parallel_size
    )
