"""DeepSpeed's settings: nothing is left for it or its launcher to choose.

All are ours, but for what a user's DeepSpeed file says of speed and memory (see `Layout.deepspeed`).
"""

from __future__ import annotations

from typing import Any

from llmkit.errors import UserError
from llmkit.parallel.layout import Layout
from llmkit.plan import Plan
from llmkit.plan.buckets import BUCKET_SIZES, BucketSizes, deepspeed_bucket, reduce_bucket


def deepspeed_config(
    plan: Plan,
    *,
    largest_parameter: int,
    on_gpu: bool,
    buckets: BucketSizes = BUCKET_SIZES,
) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`, which at stage 3 is needed before there is a model.

    No train_batch_size: `zero.Init` would multiply it out over the tensor-parallel ranks too, and refuse.
    We count targets ourselves. largest_parameter: its elements on this tensor-parallel rank (0 at stage 3).
    """
    layout, precision = plan.layout, plan.precision
    num_parameters = plan.model.num_parameters // layout.tensor_parallel_size
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "gradient_clipping": plan.config.train.gradient_clipping,
        "zero_optimization": _zero(layout, num_parameters, largest_parameter, on_gpu, buckets),
        # PyTorch's fused AdamW, on a CPU too: DeepSpeed's own optimizers are compiled at the first start.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        # It would wait for the device in each forward pass and each step.
        "timers": {"throughput": {"enabled": False}},
    }
    if precision.keeps_masters:
        config |= {
            # At stage 1 gradients are added to the fp32 ones as they come, and let go of.
            "bf16": {"enabled": True, "immediate_grad_update": True, "check_grad_overflow": True},
            "data_types": {"grad_accum_dtype": precision.reduction},
            "communication_data_type": precision.reduction,
        }
    for key, value in layout.deepspeed.items():
        *sections, name = key.split(".")
        within = config
        for section in sections:
            within = within[section]
        within[name] = value
    _check_bucket(config["zero_optimization"], largest_parameter)
    return config


def _check_bucket(zero: dict[str, Any], largest_parameter: int) -> None:
    """Raises UserError for a bucket of the user's with which gradients would be lost, see `reduce_bucket`."""
    size = zero["reduce_bucket_size"]
    if zero["stage"] == 2 and zero["overlap_comm"] and size < largest_parameter:
        raise UserError(
            f"accelerate's configuration says zero_optimization.reduce_bucket_size {size}, but at ZeRO stage "
            f"2 with overlap_comm a bucket must hold the largest parameter, of {largest_parameter} elements: "
            "DeepSpeed frees larger gradients while they are still being reduced; raise it, or take it out"
        )


def _zero(
    layout: Layout, num_parameters: int, largest_parameter: int, on_gpu: bool, buckets: BucketSizes
) -> dict[str, Any]:
    """What is partitioned, where it is kept, how much is sent at once."""
    bucket = deepspeed_bucket(num_parameters, buckets)
    reduced = reduce_bucket(layout.zero_stage, num_parameters, largest_parameter, buckets)
    zero: dict[str, Any] = {
        "stage": layout.zero_stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": reduced,
        "allgather_bucket_size": bucket,
        "round_robin_gradients": False,
    }
    if layout.zero_stage == 3:
        zero |= {
            # It replaces torch.nn.functional.linear for the whole process, by a form that adds the bias
            # in place: selective recomputation, which keeps that product, then gets wrong gradients.
            "memory_efficient_linear": False,
            "sub_group_size": 10**9,
            "stage3_prefetch_bucket_size": min(5 * 10**7, bucket),
            "stage3_max_live_parameters": 10**9,
            "stage3_max_reuse_distance": 10**9,
            "stage3_param_persistence_threshold": buckets.persistent,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    if layout.offload == "cpu":
        place = {"device": "cpu", "pin_memory": on_gpu}
        zero["offload_optimizer"] = place
        if layout.zero_stage == 3:
            zero["offload_param"] = dict(place)
    return zero
