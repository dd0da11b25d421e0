"""How many sequences a forward pass takes, where the settings leave that open."""

from __future__ import annotations

from llmkit.config.custom_model import AnyModel
from llmkit.config.derive import divisors, rows_per_rank
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.activations import forward_bytes, training_bytes
from llmkit.plan.arithmetic import Activations, Arithmetic
from llmkit.plan.facts import DeviceFacts
from llmkit.plan.memory import COMMUNICATOR, arithmetic, groups_of_ranks, memory, with_losses
from llmkit.plan.plan import Plan
from llmkit.precision import Precision

CPU_TOKENS = 16384
"""Tokens of a micro-batch on a CPU: more brings no speed and costs memory."""
MEMORY_SHARE = 0.8
"""Share of a GPU's free memory that an automatic micro-batch may fill with activations: they are estimated to
a tenth, and some memory is lost between them."""
ALONE = Layout()


def choose_micro_batch(plan: Plan, device: DeviceFacts) -> int:
    """Returns `train.micro_batch_size`; for "auto" the largest divisor of a rank's sequences that should fit
    beside the state, the buffers of communication and what is lost between tensors.

    On a GPU it is 1 for a registered model, of whose activations nothing is known. plan: with any one.
    """
    config, layout = plan.config, plan.layout
    if config.train.micro_batch_size != "auto":
        return config.train.micro_batch_size
    needed = None
    if isinstance(plan.model, ModelShape):
        needed = training_bytes(plan.model, arithmetic(config, plan.precision, layout, plan.kernels))
    beside = memory(plan)
    buffers = with_losses(0, beside.buffers) + sum(beside.buffers.values())
    buffers += COMMUNICATOR * groups_of_ranks(layout)
    return _largest(config, device, device.free_bytes - beside.state.device - buffers, needed, layout)


def choose_evaluation_batch(
    config: Config, shape: AnyModel, precision: Precision, device: DeviceFacts
) -> int:
    """Returns how many sequences are evaluated at once on one device that holds the weights, and only them.

    That is `train.micro_batch_size`, or for "auto" what should fit beside them without gradients.
    """
    if config.train.micro_batch_size != "auto":
        return config.train.micro_batch_size
    needed = None
    if isinstance(shape, ModelShape):
        needed = forward_bytes(shape, Arithmetic(precision, ALONE, False, False, {}))
    return _largest(config, device, device.free_bytes, needed, ALONE)


def choose_scoring_tokens(shape: AnyModel, precision: Precision, device: DeviceFacts, layout: Layout) -> int:
    """Returns how many tokens a batch of any shape may have on a device that holds the weights already.

    0 on a GPU for a registered model, of whose activations nothing is known.
    """
    if device.kind != "cuda":
        return CPU_TOKENS
    if not isinstance(shape, ModelShape):
        return 0
    needed = forward_bytes(shape, Arithmetic(precision, layout, False, False, {}))
    return max(0, int((MEMORY_SHARE * device.free_bytes - needed.fixed) / needed.token))


def _largest(
    config: Config, device: DeviceFacts, free: int, needed: Activations | None, layout: Layout
) -> int:
    """Returns the largest divisor of a rank's sequences whose tokens need at most MEMORY_SHARE of `free`."""
    rows, length = rows_per_rank(config, layout.data_parallel_size), config.data.row_length
    tokens = CPU_TOKENS
    if device.kind == "cuda":
        tokens = 0 if needed is None else int((MEMORY_SHARE * free - needed.fixed) / needed.token)
    return max(n for n in divisors(rows) if n == 1 or layout.tokens_of(n, length) <= tokens)
