"""All that a step takes of memory, by part: the one estimate behind every message, choice and refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmkit.config.memory import show_bytes
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.activations import training_parts
from llmkit.plan.arithmetic import Arithmetic
from llmkit.plan.communication_memory import deepspeed_buffers, native_buffers
from llmkit.plan.plan import Kernels, Plan
from llmkit.plan.state_memory import State, state_memory
from llmkit.precision import Precision

CERTAIN = 0.9
"""Share of what blocks are counted to keep that they keep in any case: tests allow a tenth of error."""
FRAGMENTATION = 0.08
"""Of what comes and goes in a step, the share that is lost between tensors: 5 to 10 % fewer rows fit than the
sum of their tensors says, with segments that grow. Assumed."""
COMMUNICATOR = 3 * 2**27
"""Bytes of a GPU that NCCL takes for each group of ranks that a process sends to: its channels' buffers.
Assumed."""
UNCERTAIN = (
    "loss", "gradients of a block", "logits of a chunk", "whatever the batch", "attention scores", "masks",
    "blocks of a ring", "a tile of an MLP",
)  # fmt: skip
"""Kinds of activations that are not there all the time, or that a compiler may compute again."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the largest moment of a step.

    activations: by kind; None where nothing is known of the model. buffers: of communication, on the device.
    least: of the device, what a step takes at least.
    """

    state: State
    activations: Mapping[str, int] | None
    buffers: Mapping[str, int]
    least: int

    @property
    def activation_bytes(self) -> int:
        """Of all activations; 0 where nothing is known of them."""
        return sum((self.activations or {}).values())

    @property
    def on_device(self) -> int:
        """Of the device that computes."""
        return self.state.device + sum(self.buffers.values()) + self.activation_bytes

    def __str__(self) -> str:
        state = self.state
        parts = [(name, size) for name, size in state.parts.items() if name not in state.on_host]
        parts += [("activations", self.activation_bytes), *self.buffers.items()]
        return " + ".join(f"{name} {show_bytes(size)}" for name, size in parts if size)


def memory(plan: Plan, micro_batch_size: int | None = None, layout: Layout | None = None) -> Memory:
    """The estimate for a plan, or for it with another micro-batch, or another layout."""
    micro, layout = micro_batch_size or plan.micro_batch_size, layout or plan.layout
    state, activations = plan.state, None
    if layout != plan.layout:
        state = state_memory(plan.config, plan.model, plan.precision, layout)
    if isinstance(plan.model, ModelShape):
        how = arithmetic(plan.config, plan.precision, layout, plan.kernels)
        tokens = layout.tokens_of(micro, plan.config.data.row_length)
        activations = {kind: each.of(tokens) for kind, each in training_parts(plan.model, how).items()}
    if layout.engine == "deepspeed":
        buffers = deepspeed_buffers(plan.model, plan.config.train.lora, plan.precision, layout)
    else:
        buffers = native_buffers(plan.config, plan.model, plan.precision, layout)
    kept = sum(size for kind, size in (activations or {}).items() if kind not in UNCERTAIN)
    return Memory(state, activations, buffers, _least(state, layout, int(CERTAIN * kept)))


def with_losses(activations: int, buffers: Mapping[str, int]) -> int:
    """Bytes of activations with what is lost between tensors that come and go."""
    return activations + int(FRAGMENTATION * (activations + sum(buffers.values())))


def groups_of_ranks(layout: Layout) -> int:
    """Groups that a process sends to: all ranks with other tokens, and parts of these, where they are not the
    same ranks (see `Mesh`)."""
    parts = layout.context_parallel_size, layout.expert_parallel_size, layout.copies_of_experts
    whole = layout.replicas, layout.tensor_parallel_size
    return sum(size > 1 for size in whole) + sum(1 < size < layout.replicas for size in parts)


def arithmetic(config: Config, precision: Precision, layout: Layout, kernels: Kernels) -> Arithmetic:
    """What the memory of activations depends on."""
    return Arithmetic(
        precision, layout, kernels.blocks_compiled, kernels.compiled, kernels.forms,
        lora=config.train.lora, length=config.data.row_length,
        documents=config.data.document_masks, mlp_tile=config.kernels.mlp_tile,
        fused_ring=kernels.fused_ring,
    )  # fmt: skip


def _least(state: State, layout: Layout, kept: int) -> int:
    """Where nothing holds gradients from step to step they may come as activations go."""
    held = layout.zero_stage == 3 or (layout.engine == "native" and layout.replicas > 1)
    gradients = 0 if "gradients" in state.on_host else state.gradients
    return state.device + kept if held else state.device - gradients + max(gradients, kept)
