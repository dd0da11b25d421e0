"""Buffers of communication that come and go in a step, beside what a rank keeps.

Of our own engine those of stage 2 (`llmkit.engine.gradient_slices`). Of DeepSpeed 0.19 by its code, set as
`llmkit.engine.deepspeed_config` does.
"""

from __future__ import annotations

from llmkit.config.adapters import trained_tensors
from llmkit.config.custom_model import AnyModel
from llmkit.config.groups import assign
from llmkit.config.lora_section import Lora
from llmkit.config.schema import Config
from llmkit.parallel.layout import Layout
from llmkit.plan.buckets import BUCKET_SIZES, BucketSizes, deepspeed_bucket, most_alive, reduce_bucket
from llmkit.plan.state_memory import State, summed_together
from llmkit.plan.stored import stored_parameters
from llmkit.precision import BYTES, Precision

BUCKETS = "buckets of gradients"
"""The kind of buffers that `native_buffers` counts."""
REUSE_DISTANCE = 10**9
"""Elements: of `stage3_max_reuse_distance`. What is used again before so many others stays gathered."""


def native_buffers(
    config: Config, model: AnyModel, precision: Precision, layout: Layout, sizes: BucketSizes = BUCKET_SIZES
) -> dict[str, int]:
    """Bytes by kind: of the buckets of gradients in memory at once, where ranks keep slices of them alone."""
    if layout.zero_stage != 2:
        return {}
    lora, ranks = config.train.lora, (layout.tensor_parallel_size, layout.expert_parallel_size)
    trained = [each for each in stored_parameters(model, lora, *ranks) if each.trained]
    groups = assign(trained_tensors(model.tensors, lora), config.optimizer)
    sequences = []
    for each in summed_together(trained, groups, layout):
        if each.ranks > 1:
            buckets = each.buckets(sizes)
            sequences.append([([each.indices[n] for n in within], size) for within, size in buckets])
    elements = most_alive(sequences)
    return {BUCKETS: elements * BYTES[precision.reduction]} if elements else {}


def deepspeed_buffers(
    model: AnyModel, lora: Lora, precision: Precision, layout: Layout, on_gpu: bool = True
) -> dict[str, int]:
    """Bytes by kind, on the device. on_gpu: where reduction and backward pass overlap, with two buckets."""
    stored = stored_parameters(model, lora, layout.tensor_parallel_size)
    elements = sum(each.elements for each in stored)
    largest = max((each.elements for each in stored if each.trained), default=0)
    per_rank = model.num_parameters // layout.tensor_parallel_size
    bucket = reduce_bucket(layout.zero_stage, per_rank, largest)
    weight, summed = BYTES[precision.weights], BYTES[precision.reduction]
    if layout.zero_stage == 3:
        # Prefetched, in use, or used again soon, as the last layers are in the backward pass.
        live = REUSE_DISTANCE // 2 + deepspeed_bucket(per_rank) + largest
        small = sum(each.elements for each in stored if each.elements <= BUCKET_SIZES.persistent)
        gathered = min(elements, live + small) * weight
        return {"gathered weights": gathered, "gradient bucket": bucket * summed}
    if layout.zero_stage == 1 and layout.offload == "none" and precision.keeps_masters:
        return {}  # all gradients lie in one tensor, which is summed where it is
    found = {}
    trained = sum(each.elements for each in stored if each.trained)
    if layout.zero_stage == 1:  # gradients of all parameters, until the update
        found["gradients as they come"] = summed * trained
        weight = summed
    elif layout.offload == "none":  # those of a rank's share, until the backward pass is over
        found["gradients as they come"] = weight * trained // layout.replicas
    found["gradient bucket"] = bucket * weight * (1 + on_gpu)
    if weight < summed:
        found["gradient bucket"] += bucket * summed  # the bucket as it is sent
    if layout.offload != "none":
        found["gradient on its way to the host"] = largest * BYTES[precision.weights]
    if layout.offload != "none" and precision.keeps_masters:  # a rank's share, added up on the device
        found["gradients of a step"] = summed * trained // layout.replicas
    return found


def offload_buffers(
    model: AnyModel, lora: Lora, precision: Precision, layout: Layout, state: State
) -> dict[str, int]:
    """Bytes by kind on the host, page-locked, beside the state that is kept there.

    Of a rank's share: at stage 3 the sums of gradients, beside those that the update reads; below it the
    updated weights on their way to the device, and the largest gradient on its way to the host.
    """
    if layout.offload == "none":
        return {}
    if layout.zero_stage == 3:
        return {"sums of gradients": state.gradients}
    trained = [each for each in stored_parameters(model, lora, layout.tensor_parallel_size) if each.trained]
    weight = BYTES[precision.weights]
    updated = state.masters // BYTES[precision.masters] * weight
    largest = max(each.elements for each in trained) * weight
    return {"updated weights": updated, "gradient on its way": largest}
