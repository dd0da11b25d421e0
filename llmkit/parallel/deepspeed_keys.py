"""The rule of each key of a user's DeepSpeed configuration: it takes effect, or is refused by name.

Keys are dotted. A section that is not listed key by key has one rule for all of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Compared(NamedTuple):
    """Must agree with a setting of llmkit, or supplies it where that is auto.

    field: of llmkit.parallel.accelerate.AccelerateConfig.
    """

    field: str


class Passed(NamedTuple):
    """Goes to DeepSpeed as it is: it changes speed and memory, not what is computed.

    stages: of ZeRO that use it. kind: of its value, a whole number (a multiple of `multiple`) or a boolean.
    """

    stages: tuple[int, ...]
    kind: type[int] | type[bool] = int
    multiple: int = 1


class Fixed(NamedTuple):
    """Accepted with the values that llmkit gives DeepSpeed itself, or that switch the feature off."""

    values: tuple[Any, ...]
    instead: str


class Off(NamedTuple):
    """A section, accepted where it is switched off: false, empty, or with `enabled` or all values false."""

    instead: str


class NoEffect(NamedTuple):
    """Accepted with a note: it does not affect training, and llmkit does that itself or not at all."""

    reason: str


class Refused(NamedTuple):
    """Never accepted."""

    instead: str


Rule = Compared | Passed | Fixed | Off | NoEffect | Refused
UNSUPPORTED = "llmkit has no such feature; take it out"
UNPROVEN = "llmkit trains without it, since no parity case covers it; take it out"
OURS = "llmkit decides this itself, since the numbers or its checkpoints depend on it; take it out"
SAVES = "the section checkpoint says what is saved, and llmkit saves it itself; take it out"
RECORDS = "monitor.* says what is recorded; take it out"
NVME = "state is kept on the GPU or in the host's memory (parallel.offload), never on NVMe; take it out"
ALL = (1, 2, 3)

RULES: dict[str, Rule] = {
    "train_batch_size": Compared("global_batch"),
    "train_micro_batch_size_per_gpu": Compared("micro_batch"),
    "gradient_accumulation_steps": Compared("accumulation"),
    "managed_gradient_accumulation": Fixed((True,), OURS),
    "gradient_clipping": Compared("clipping"),
    "bf16.enabled": Compared("mixed_precision"),
    "bf16.immediate_grad_update": Fixed((True,), OURS),
    "bf16.check_grad_overflow": Fixed((True,), "skipping non-finite updates is train.max_nonfinite_steps'"),
    "bf16.bf16_master_weights_and_grads": Fixed((False,), "masters and accumulation are always fp32"),
    "bf16.bf16_optimizer_states": Fixed((False,), "moments are always fp32"),
    "fp16": Off("llmkit trains in bf16 or fp32: train.precision"),
    "amp": Off("llmkit trains in bf16 or fp32: train.precision"),
    "torch_autocast": Off("train.precision decides"),
    "data_types.grad_accum_dtype": Fixed(("fp32", None), "gradients are always added up in fp32"),
    "data_types.param_dtype": Fixed((None,), "train.precision decides"),
    "data_types.buffer_dtype": Fixed((None,), "train.precision decides"),
    "data_types.keep_in_fp32_modules": Fixed((None,), OURS),
    "communication_data_type": Fixed(("fp32", None), "gradients are always sent in fp32"),
    "seq_parallel_communication_data_type": Fixed(("fp32", None), "gradients are always sent in fp32"),
    "optimizer": Refused("the sections optimizer and schedule say it; take it out"),
    "scheduler": Refused("the section schedule says it; take it out"),
    "zero_allow_untested_optimizer": Fixed((True,), OURS),
    "zero_force_ds_cpu_optimizer": Fixed((False,), OURS),
    "zero_optimization.stage": Compared("zero_stage"),
    "zero_optimization.offload_optimizer.device": Compared("offload_optimizer"),
    "zero_optimization.offload_param.device": Compared("offload_param"),
    "zero_optimization.offload_optimizer.pin_memory": Passed(ALL, bool),
    "zero_optimization.offload_param.pin_memory": Passed((3,), bool),
    "zero_optimization.offload_optimizer.nvme_path": Fixed((None, "none"), NVME),
    "zero_optimization.offload_param.nvme_path": Fixed((None, "none"), NVME),
    "zero_optimization.offload_optimizer.buffer_count": Fixed((4,), NVME),
    "zero_optimization.offload_param.buffer_count": Fixed((5,), NVME),
    "zero_optimization.offload_param.buffer_size": Fixed((10**8,), NVME),
    "zero_optimization.offload_param.max_in_cpu": Fixed((10**9,), NVME),
    "zero_optimization.offload_optimizer.pipeline": Fixed((False,), NVME),
    "zero_optimization.offload_optimizer.pipeline_read": Fixed((False,), NVME),
    "zero_optimization.offload_optimizer.pipeline_write": Fixed((False,), NVME),
    "zero_optimization.offload_optimizer.fast_init": Fixed((False,), NVME),
    "zero_optimization.offload_optimizer.ratio": Fixed((1.0,), "parallel.offload keeps all or nothing there"),
    "zero_optimization.offload_optimizer.super_offload": Fixed((False,), UNPROVEN),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": Fixed((0.8,), "OMP_NUM_THREADS says how many"),
    "zero_optimization.cpu_offload": Fixed((False, None), "parallel.offload"),
    "zero_optimization.cpu_offload_param": Fixed((False, None), "parallel.offload"),
    "zero_optimization.cpu_offload_use_pin_memory": Fixed((False, None), "offload_optimizer.pin_memory"),
    "zero_optimization.reduce_bucket_size": Passed(ALL),
    "zero_optimization.allgather_bucket_size": Passed((1, 2), multiple=2),
    "zero_optimization.overlap_comm": Passed(ALL, bool),
    "zero_optimization.sub_group_size": Passed((3,)),
    "zero_optimization.stage3_prefetch_bucket_size": Passed((3,)),
    "zero_optimization.stage3_param_persistence_threshold": Passed((3,)),
    "zero_optimization.stage3_model_persistence_threshold": Passed((3,)),
    "zero_optimization.stage3_max_live_parameters": Passed((3,)),
    "zero_optimization.stage3_max_reuse_distance": Passed((3,)),
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": NoEffect(
        "llmkit saves its own checkpoints"
    ),
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": NoEffect(
        "llmkit saves its own checkpoints"
    ),
    "zero_optimization.stage3_module_granularity_threshold": Fixed((0,), UNPROVEN),
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": Fixed((False,), UNPROVEN),
    "zero_optimization.stage3_allgather_sequential": Fixed((False,), UNPROVEN),
    "zero_optimization.contiguous_gradients": Fixed((True,), OURS),
    "zero_optimization.reduce_scatter": Fixed((True,), OURS),
    "zero_optimization.allgather_partitions": Fixed((True,), OURS),
    "zero_optimization.use_multi_rank_bucket_allreduce": Fixed((True,), UNPROVEN),
    "zero_optimization.compute_grad_norm": Fixed((True,), OURS),
    "zero_optimization.load_from_fp32_weights": Fixed((True,), SAVES),
    "zero_optimization.elastic_checkpoint": Fixed((False,), SAVES),
    "zero_optimization.pipeline_loading_checkpoint": Fixed((False,), SAVES),
    "zero_optimization.ignore_unused_parameters": Fixed((True,), UNPROVEN),
    "zero_optimization.legacy_stage1": Fixed((False,), UNPROVEN),
    "zero_optimization.round_robin_gradients": Fixed((False,), UNPROVEN),
    "zero_optimization.parameter_alignment": Fixed((False,), UNPROVEN),
    "zero_optimization.zero_hpz_partition_size": Fixed((1,), UNPROVEN),
    "zero_optimization.zero_quantized_weights": Fixed((False,), UNPROVEN),
    "zero_optimization.zero_quantized_nontrainable_weights": Fixed((False,), UNPROVEN),
    "zero_optimization.zero_quantized_gradients": Fixed((False,), UNPROVEN),
    "zero_optimization.memory_efficient_linear": Fixed((False,), OURS),
    "zero_optimization.override_module_apply": Fixed((True,), OURS),
    "zero_optimization.log_trace_cache_warnings": Fixed((False,), UNSUPPORTED),
    "zero_optimization.enable_sanity_checks": Fixed((False,), UNSUPPORTED),
    "zero_optimization.save_muon_momentum_buffer_in_memory": Fixed((False,), "the section optimizer says it"),
    "zero_optimization.leaf_module": Off(UNSUPPORTED),
    "zero_optimization.zenflow": Off(UNPROVEN),
    "zero_optimization.mics_shard_size": Fixed((-1,), UNPROVEN),
    "zero_optimization.mics_hierarchical_params_gather": Fixed((False,), UNPROVEN),
    "zero_optimization.zeropp_loco_param": Off(UNPROVEN),
    "tensor_parallel": Off("parallel.tensor_parallel_size"),
    "sequence_parallel_size": Fixed((1,), "llmkit shards the sequence by parallel.sequence_parallel only"),
    "expert_parallel": Off(UNSUPPORTED),
    "use_data_before_expert_parallelism": Fixed((False,), UNSUPPORTED),
    "pipeline": Off(UNSUPPORTED),
    "activation_checkpointing": Off("parallel.activation_checkpointing"),
    "compile": Off("kernels.compile"),
    "disable_allgather": Fixed((False,), OURS),
    "prescale_gradients": Fixed((False,), OURS),
    "gradient_predivide_factor": Fixed((1.0,), OURS),
    "gradient_allreduce_op": Fixed(("mean",), OURS),
    "sparse_gradients": Fixed((False,), UNSUPPORTED),
    "dataloader_drop_last": Fixed((False,), "the section data says what is read; take it out"),
    "data_efficiency": Off("data.curriculum"),
    "curriculum_learning": Off("data.curriculum"),
    "progressive_layer_drop": Off(UNSUPPORTED),
    "checkpoint": Refused(SAVES),
    "datastates_ckpt": Refused(SAVES),
    "nebula": Off(SAVES),
    "aio": Refused(NVME),
    "steps_per_print": NoEffect("monitor.log_every says how often the console has a line"),
    "log_level": NoEffect("llmkit keeps DeepSpeed quiet"),
    "wall_clock_breakdown": Fixed((False,), RECORDS),
    "memory_breakdown": Fixed((False,), RECORDS),
    "dump_state": Fixed((False,), RECORDS),
    "flops_profiler": Off("metrics.jsonl has mfu in every row; take it out"),
    "comms_logger": Off(RECORDS),
    "tensorboard": Off(RECORDS),
    "wandb": Off("monitor.wandb"),
    "comet": Off(RECORDS),
    "csv_monitor": Off(RECORDS),
    "timers": Off("metrics.jsonl has the times of a step; take it out"),
    "disable_python_gc": Fixed((False,), UNSUPPORTED),
    "autotuning": Off("train.micro_batch_size=auto"),
    "hybrid_engine": Off(UNSUPPORTED),
    "weight_quantization": Off(UNSUPPORTED),
    "quantize_training": Off(UNSUPPORTED),
    "compression_training": Off(UNSUPPORTED),
    "sparse_attention": Off("model.sliding_window"),
    "eigenvalue": Off(UNSUPPORTED),
    "elasticity": Off("a run goes on with any number of processes by itself; take it out"),
    "graph_harvesting": Fixed((False,), UNSUPPORTED),
    "vocabulary_size": Refused("model.vocab_size"),
}
SAME_SECTION = {"bfloat16": "bf16"}
"""Older names of sections."""
