"""What a rank keeps from step to step: weights, gradients, masters and moments, to the byte.

The engines that keep it: `llmkit.engine.masters` (native), `llmkit.engine.zero` with DeepSpeed 0.19. The
matrix of layouts compares these numbers with the tensors that they allocate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from llmkit.config.adapters import trained_tensors
from llmkit.config.custom_model import AnyModel
from llmkit.config.groups import Group, assign
from llmkit.config.memory import moments_of, quantised_bytes
from llmkit.config.schema import Config
from llmkit.parallel.layout import Layout
from llmkit.plan.buckets import BUCKET_SIZES, BucketSizes, fill, offsets
from llmkit.plan.stored import Stored, stored_parameters
from llmkit.precision import BYTES, Precision

FP32 = BYTES["fp32"]


@dataclass(frozen=True)
class State:
    """Bytes of one process, all ranks alike. gradients: as the update reads them, with what they lie in. ema:
    the moving average of the masters.

    on_host: the parts that are kept in the host's memory, where the device is a GPU.
    """

    weights: int
    gradients: int
    masters: int
    moments: int
    ema: int = 0
    on_host: frozenset[str] = frozenset()

    @property
    def parts(self) -> dict[str, int]:
        """Each part, by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "on_host"}

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    @property
    def host(self) -> int:
        """Of the host's memory."""
        return sum(self.parts[name] for name in self.on_host)

    @property
    def device(self) -> int:
        """Of the memory of the device that computes."""
        return self.total - self.host

    @property
    def optimizer(self) -> int:
        """Of masters, moments and their average, wherever they are."""
        return self.masters + self.moments + self.ema


@dataclass(frozen=True)
class _Elements:
    """Elements of trained parameters on a rank. own: of which it has the masters, by group."""

    weights: int
    gradients: int
    own: Sequence[int]

    def with_those(self, others: _Elements) -> _Elements:
        """Those of both."""
        own = [mine + theirs for mine, theirs in zip(self.own, others.own, strict=True)]
        return _Elements(self.weights + others.weights, self.gradients + others.gradients, own)


def state_memory(
    config: Config, model: AnyModel, precision: Precision, layout: Layout, sizes: BucketSizes = BUCKET_SIZES
) -> State:
    """The state of each process of a layout. sizes: of the buckets in which gradients lie."""
    ranks = layout.tensor_parallel_size, layout.expert_parallel_size
    stored = stored_parameters(model, config.train.lora, *ranks)
    form = config.train.lora.base_form
    trained = [each for each in stored if each.trained]
    plain = [each for each in stored if not each.trained and not (each.linear and form is not None)]
    groups = assign(trained_tensors(model.tensors, config.train.lora), config.optimizer)
    found = _Elements(0, 0, [0] * len(groups))
    for each in summed_together(trained, groups, layout):
        found = found.with_those(_elements(each, len(groups), precision, layout, sizes))
    frozen = sum(_share(each.elements, layout) for each in plain) * BYTES[precision.weights]
    if form is not None:
        linear = [tensor for tensor in model.tensors if tensor.linear]
        frozen += quantised_bytes(linear, form) // layout.tensor_parallel_size
    moments = sum(moments_of(group.optimizer) * own for group, own in zip(groups, found.own, strict=True))
    copied = precision.keeps_masters or layout.engine == "deepspeed"  # which copies fp32 weights, too
    return State(
        found.weights * BYTES[precision.weights] + frozen,
        found.gradients * BYTES[precision.reduction],
        sum(found.own) * BYTES[precision.masters] * copied,
        moments * BYTES[precision.masters],
        sum(found.own) * BYTES[precision.masters] * config.train.ema.on,
        _on_host(layout),
    )


class Summed(NamedTuple):
    """Parameters whose gradients are summed over the same ranks, in buckets of their own.

    parameters: elements of each and the number of its group, in the model's order. indices: their places
    among all that are trained. ranks: which hold the same of them without ZeRO.
    """

    parameters: list[tuple[int, int]]
    indices: list[int]
    ranks: int

    def buckets(self, sizes: BucketSizes) -> list[tuple[list[int], int]]:
        """The buckets of partitioned parameters: which of them are in it, and its elements."""
        found = []
        for bucket in fill(self.parameters, sizes.native, self.ranks):
            elements = [self.parameters[index][0] for index in bucket]
            found.append((bucket, offsets(elements, self.ranks, partitioned=True)[1]))
        return found


def summed_together(trained: Sequence[Stored], groups: Sequence[Group], layout: Layout) -> list[Summed]:
    """All that are trained; experts that are dealt out for themselves, as fewer ranks hold the same."""
    number = {name: index for index, group in enumerate(groups) for name in group.names}
    numbered = [(each.elements, number[each.tensors[0]]) for each in trained]
    dealt = [each.expert and layout.expert_parallel_size > 1 for each in trained]
    found = []
    for which, ranks in ((False, layout.replicas), (True, layout.copies_of_experts)):
        indices = [index for index, each in enumerate(dealt) if each == which]
        found.append(Summed([numbered[index] for index in indices], indices, ranks))
    return found


def _share(elements: int, layout: Layout) -> int:
    """Of a parameter, the elements that a rank holds: at stage 3 a part of it, padded."""
    return -(-elements // layout.replicas) if layout.zero_stage == 3 else elements


def _on_host(layout: Layout) -> frozenset[str]:
    if layout.offload == "none":
        return frozenset()
    moved = {"gradients", "masters", "moments", "ema"}
    return frozenset(moved | {"weights"} if layout.zero_stage == 3 else moved)


def _elements(
    those: Summed, groups: int, precision: Precision, layout: Layout, sizes: BucketSizes
) -> _Elements:
    own, ranks = [0] * groups, those.ranks
    if layout.engine == "native" and layout.zero_stage and ranks > 1:
        whole = 0
        for indices, size in those.buckets(sizes):
            whole += size
            own[those.parameters[indices[0]][1]] += size // ranks
        return _Elements(whole, whole if layout.zero_stage == 1 else sum(own), own)
    for elements, group in those.parameters:
        own[group] += _share(elements, layout)
    if layout.engine == "native" or layout.zero_stage == 3:
        return _Elements(sum(own), sum(own), own)
    # Of each group one flat tensor, which DeepSpeed pads to pairs of elements of each rank. Its optimizer for
    # stage 1 in bf16 keeps the gradients of all.
    flat = [-(-size // (2 * ranks)) * 2 * ranks for size in own]
    own = [size // ranks for size in flat]
    all_gradients = layout.zero_stage == 1 and precision.keeps_masters and layout.offload == "none"
    return _Elements(sum(flat), sum(flat if all_gradients else own), own)
