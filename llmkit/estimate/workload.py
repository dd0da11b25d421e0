"""What the ranks of a run compute and send in a step, in the terms that its time is estimated from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple

from llmkit.config.adapters import LORA_B
from llmkit.config.context import Form, ulysses_heads
from llmkit.config.groups import assign
from llmkit.config.parameters import EXPERTS
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan import Plan
from llmkit.plan.context_memory import makes_scores
from llmkit.plan.memory import arithmetic
from llmkit.plan.stored import COLUMN, ROW, stored_parameters
from llmkit.precision import BYTES, Precision

DEEPSPEED_BESIDE = (1.0, 0.0, 0.5, 1.0)
"""By stage: share of the sums of gradients that DeepSpeed hides. Stage 1 in bf16 sums after the backward
pass; stage 2 makes it wait for the bucket before (both read in its source; the half is assumed)."""
DEEPSPEED_MOVED = (10.0, 18.0, 18.0, 24.0)
"""By stage: bytes of memory that DeepSpeed moves for each gradient and micro-batch in bf16, to divide,
convert, copy together and add up (counted in its source); ours reads the gradient and adds to its fp32
sum."""
DEEPSPEED_HOOKS = (0.0, 0.0, 20.0, 390.0)
"""By stage: the host's time for DeepSpeed's hooks on a layer in each micro-batch, as so many kernels (0.15
and 3.0 ms were measured on a CPU, where a kernel of PyTorch takes 7.7 us)."""
RING = "ring"
"""The form of attention of our ring where it makes scores; else it uses fused attention, as others' do."""
TensorOverlap = Literal["none", "backward", "pipelined"]


@dataclass(frozen=True)
class Exchange:
    """How a trainer sends what its ranks share.

    gradient_bytes: of one gradient on the way. beside: share of their sums that can run beside the backward
    pass. each_micro_batch: whether gradients are sent after each backward pass, not after the last one of a
    step alone. all_reduce: whether every rank gets all of them. gathers_late: whether updated weights are
    gathered before the next step begins, not beside its first forward pass. tensor: which sums of tensor
    parallelism run beside products: none, those of the backward pass beside the weights' gradients
    (Megatron-LM), or all, in pieces beside the pieces of the product that makes or needs them (Transformer
    Engine's, within the reach of the inner link). gathers_again: whether the inputs of products are gathered
    once more for the weights' gradients, instead of being kept.
    """

    gradient_bytes: int = 4
    beside: float = 1.0
    each_micro_batch: bool = False
    all_reduce: bool = False
    gathers_late: bool = False
    tensor: TensorOverlap = "backward"
    gathers_again: bool = False


@dataclass(frozen=True)
class Update:
    """The optimizer's work on a set of parameters. muon: shapes of the matrices that it orthogonalises. ema:
    whether a moving average of the masters is kept."""

    elements: float
    moments: float = 2.0
    muon: tuple[tuple[int, ...], ...] = ()
    ema: bool = False


class Adapter(NamedTuple):
    """A low-rank adapter of a linear layer, as a tensor-parallel rank computes it; layers: that have it."""

    outputs: float
    inputs: float
    rank: int
    layers: int


@dataclass(frozen=True)
class Workload:
    """A step of a run, ours or a published one.

    rows: sequences of a step over all ranks, `length` tokens each; micro_batch: of a forward pass. tensor,
    context, pipeline: ranks that share a layer, a row, the layers; context_form: how those of a row compute
    attention; expert: ranks with other tokens among which experts are dealt out; chunks: parts of each
    pipeline stage, which take turns. linear: number type of the products of linear layers. fused: whether
    pointwise operations run as few kernels (compiled, or fused by hand). forms: operator -> form, as a plan
    has them. weight_bytes: of a weight as the forward pass reads it. adapters: which alone are trained where
    there are any; tuned: their elements on a rank. gathered: bytes of a rank's weights that ZeRO-3 gathers;
    None = of all. accumulates: bytes that are moved per gradient and micro-batch to add it up. hooks: work of
    the host beside a layer's kernels, as so many of them. inputs_to_host: whether the inputs of recomputed
    blocks go to the host and come back. tiled: whether MLPs are computed once more, beside what blocks do
    again.
    """

    shape: ModelShape
    length: int
    rows: int
    world: int
    micro_batch: int = 1
    tensor: int = 1
    sequence_parallel: bool = False
    context: int = 1
    context_form: Form = "ring"
    expert: int = 1
    pipeline: int = 1
    chunks: float = 1.0
    zero: int = 0
    offload: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    recompute_every: int = 1
    linear: Literal["bf16", "fp32", "fp8"] = "bf16"
    value_bytes: int = 2
    fused: bool = True
    forms: Mapping[str, str] = field(default_factory=dict)
    exchange: Exchange = field(default_factory=Exchange)
    update: Update | None = None
    weight_bytes: int = 2
    adapters: tuple[Adapter, ...] = ()
    tuned: float = 0.0
    gathered: float | None = None
    accumulates: float = 0.0
    hooks: float = 0.0
    inputs_to_host: bool = False
    tiled: bool = False

    @property
    def data_parallel(self) -> int:
        """Ranks that see different rows."""
        return self.world // (self.tensor * self.pipeline * self.context)

    @property
    def replicas(self) -> int:
        """Ranks that see different tokens, over which gradients are summed and ZeRO shares state out."""
        return self.data_parallel * self.context

    @property
    def exchanged(self) -> tuple[float, float]:
        """Values of a token that a rank sends in Ulysses' all-to-all before attention, and behind it."""
        shape = self.shape
        heads = shape.num_attention_heads // self.tensor, max(1, shape.num_key_value_heads // self.tensor)
        each, each_kv = ulysses_heads(*heads, self.context)
        width = shape.head_dim * self.context
        return float((each + 2 * each_kv) * width), float(each * width)

    @property
    def micro_batches(self) -> float:
        """Forward passes of a rank and step."""
        return -(-self.rows // self.data_parallel) / self.micro_batch

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch that a rank computes."""
        return self.micro_batch * self.length / self.context

    @cached_property
    def parameters(self) -> float:
        """Weights of a rank before ZeRO shards them."""
        all_experts = self.dealt * self.expert
        return self.shape.num_parameters / (self.tensor * self.pipeline) - (all_experts - self.dealt)

    @cached_property
    def dealt(self) -> float:
        """Of these, those of experts, where they are dealt out: fewer ranks hold the same."""
        if self.expert == 1:
            return 0.0
        elements = sum(prod(each.shape) for each in self.shape.tensors if EXPERTS in each.name)
        return elements / (self.tensor * self.pipeline * self.expert)

    @property
    def updated(self) -> float:
        """Parameters that a rank updates."""
        if self.update is None:
            return 0.0
        elements = self.update.elements / (self.tensor * self.pipeline)
        if self.zero:  # experts over fewer ranks, each of which has the fewer of them
            return elements / self.replicas
        return elements if self.frozen else elements - self.dealt * (self.expert - 1)

    @property
    def frozen(self) -> bool:
        """Whether the weights themselves have no gradient."""
        return bool(self.adapters)

    @property
    def trained(self) -> float:
        """Parameters of a rank with a gradient, before ZeRO shards these."""
        return self.tuned if self.frozen else self.parameters

    @property
    def sharded_bytes(self) -> float:
        """Bytes of a rank's weights, which ZeRO-3 shards and gathers."""
        return self.parameters * self.weight_bytes if self.gathered is None else self.gathered

    def form(self, operator: str, default: str) -> str:
        """The form of an operator."""
        return self.forms.get(operator, default)


def workload_of(plan: Plan) -> Workload | None:
    """The step of a plan of ours; None for a registered model, of which too little is known."""
    if not isinstance(plan.model, ModelShape):
        return None
    sequences = plan.config.data.sequences_per_row  # two of a pair, each with attention of its own
    layout, kernels, precision = plan.layout, plan.kernels, plan.precision
    deepspeed = layout.engine == "deepspeed"
    how = arithmetic(plan.config, precision, layout, kernels)
    slow_ring = layout.in_ring and makes_scores(plan.model, how)
    exchange = Exchange(
        beside=DEEPSPEED_BESIDE[layout.zero_stage] if deepspeed else 1.0,
        gradient_bytes=BYTES[precision.reduction],
        each_micro_batch=layout.zero_stage >= 2,
        all_reduce=layout.zero_stage == 0 or (deepspeed and layout.zero_stage <= 2),
        gathers_late=True,
    )
    return Workload(
        shape=plan.model, length=plan.config.data.sequence_length,
        rows=plan.rows_per_rank * layout.data_parallel_size * sequences, world=layout.world_size,
        micro_batch=plan.micro_batch_size * sequences, tensor=layout.tensor_parallel_size,
        context=layout.context_parallel_size, context_form=layout.context_parallel_form,
        expert=layout.expert_parallel_size,
        sequence_parallel=layout.sequence_parallel, zero=layout.zero_stage, offload=layout.offload == "cpu",
        recompute=layout.activation_checkpointing, recompute_every=layout.activation_checkpointing_every,
        linear=precision.linear, value_bytes=BYTES[precision.compute], fused=kernels.blocks_compiled,
        forms={**kernels.forms, "attention": RING} if slow_ring else kernels.forms,
        exchange=exchange, update=_update(plan), weight_bytes=BYTES[precision.weights],
        adapters=_adapters(plan), tuned=_tuned(plan), gathered=_gathered(plan),
        accumulates=DEEPSPEED_MOVED[layout.zero_stage] if deepspeed else _accumulated(precision, layout),
        inputs_to_host=layout.offload_activations,
        tiled=how.tiled < 1.0,
        hooks=DEEPSPEED_HOOKS[layout.zero_stage] if deepspeed else 0.0,
    )  # fmt: skip


def _accumulated(precision: Precision, layout: Layout) -> float:
    """Bytes that our own engine moves for a gradient and micro-batch: it reads it and adds to its fp32 sum;
    at stage 2 it copies it to a buffer, reads that for its norm, and adds its slice of what the ranks have
    summed there."""
    summed, came = BYTES[precision.reduction], BYTES[precision.weights]
    if layout.zero_stage == 2 and layout.replicas > 1:
        return came + summed * (2.0 + 3.0 / layout.replicas)
    return came + summed * 2.0


def _update(plan: Plan) -> Update:
    shapes = {tensor.name: tensor.shape for tensor in plan.trained}
    muon = tuple(
        shapes[name]
        for group in assign(plan.trained, plan.config.optimizer)
        if group.optimizer == "muon"
        for name in group.names
    )
    elements = float(plan.num_trained)
    moments = 2.0 - sum(map(prod, muon)) / elements
    return Update(elements, moments, muon, plan.config.train.ema.on)


def _adapters(plan: Plan) -> tuple[Adapter, ...]:
    """Those of a tensor-parallel rank. It has a part of the outputs of some layers, of the inputs of others
    (`llmkit.model.lora`)."""
    rank, tensor = plan.config.train.lora.rank, plan.layout.tensor_parallel_size
    if not rank:
        return ()
    adapted = {
        name.removesuffix(f".{LORA_B}") for each in plan.trained if (name := each.name).endswith(LORA_B)
    }
    found = Counter[tuple[float, float]]()
    for weight in plan.model.tensors:
        layer = weight.name.removesuffix(".weight")
        if weight.linear and layer in adapted:
            kind, (outputs, inputs) = layer.rpartition(".")[2], weight.shape
            found[outputs / (tensor if kind in COLUMN else 1), inputs / (tensor if kind in ROW else 1)] += 1
    return tuple(Adapter(*sizes, rank, layers) for sizes, layers in found.items())


def _tuned(plan: Plan) -> float:
    """Elements of the adapters on a tensor-parallel rank."""
    lora = plan.config.train.lora
    stored = stored_parameters(plan.model, lora, plan.layout.tensor_parallel_size)
    return float(sum(each.elements for each in stored if each.trained)) if lora.rank else 0.0


def _gathered(plan: Plan) -> float | None:
    """Bytes of a rank's weights that ZeRO-3 gathers: adapters, too, but not what is kept in few bits, which
    every rank has whole."""
    lora, tensor = plan.config.train.lora, plan.layout.tensor_parallel_size
    if not lora.rank:
        return None
    stored = stored_parameters(plan.model, lora, tensor)
    whole = [each.elements for each in stored if not (each.linear and lora.base_form and not each.trained)]
    return float(sum(whole) * BYTES[plan.precision.weights])
