"""DeepSpeed itself: imported quietly, checked to be a version that we know, and shown our mesh."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup

from llmkit.errors import UserError
from llmkit.kernels.operators import Operators
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.placement import placement

SUPPORTED = ">=0.19.8,<0.20"
"""The versions in which what `PRIVATE` lists was found; as in pyproject.toml."""
PRIVATE: Mapping[str, tuple[str, ...]] = {
    "deepspeed.runtime.engine:DeepSpeedEngine": (
        "set_gradient_accumulation_boundary", "backward", "step", "get_global_grad_norm", "destroy",
        "empty_partition_cache",
    ),
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer": (
        "fp32_groups_flat_partition", "bf16_groups", "update_lp_params", "overflow", "get_grads_for_norm",
        "_global_grad_norm",
    ),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer": (
        "single_partition_of_fp32_groups", "bit16_groups", "update_lp_params", "overflow",
        "averaged_gradients", "_global_grad_norm",
    ),
    "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3": (
        "fp32_partitioned_groups_flat", "grad_position", "get_param_id", "overflow",
        "_global_grad_norm",
    ),
    "deepspeed.runtime.zero.partition_parameters:Init": (
        "ds_numel", "ds_tensor",
    ),
    "deepspeed.utils.tensor_fragment:tensor_fragment": (
        "hp_fragment_address", "lp_fragment_address",
    ),
}  # fmt: skip
"""Class -> names that this package uses and DeepSpeed does not document: of its members, or of attributes and
arguments in its methods."""
EXTENSIONS = {"deepspeed.ops": ("__compatible_ops__",)}
"""DeepSpeed's table of extensions. The mere look at it probes all of them where there is a GPU."""


def import_deepspeed() -> Any:
    """DeepSpeed, set up to be quiet and to compile nothing. Before any process group exists.

    Its shared-memory all-reduce for CPUs is a C++ extension, built at the first start (37 s measured); a GPU
    does without it. Raises UserError for a version in which something that we use has another name.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
    import deepspeed

    deepspeed.utils.logging.logger.setLevel(logging.ERROR)
    _check_names(on_cpu)
    if on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@cache
def _check_names(on_cpu: bool) -> None:
    if absent := missing_names({**PRIVATE, **(EXTENSIONS if on_cpu else {})}):
        raise UserError(
            f"deepspeed {metadata.version('deepspeed')} does not have what llmkit uses of it: "
            f'{", ".join(absent)}; install a version that it knows: pip install "deepspeed{SUPPORTED}"'
        )


def missing_names(names: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Those of module:class -> names that are neither defined there nor used by the class's methods."""
    absent = []
    for where, wanted in names.items():
        module_name, _, class_name = where.partition(":")
        try:
            module = importlib.import_module(module_name)
            owner = getattr(module, class_name) if class_name else module
        except (ImportError, AttributeError):
            absent.append(where.replace(":", "."))
            continue
        used = set(_used_by(owner)) if isinstance(owner, type) else set()
        absent += [
            f"{class_name or module_name}.{name}"
            for name in wanted
            if name not in used and not hasattr(owner, name)
        ]
    return absent


def _used_by(owner: type) -> Iterator[str]:
    """Names of attributes and arguments in the methods of a class and of its bases."""
    for base in owner.__mro__:
        yield from getattr(base, "__dataclass_fields__", ())
        for member in vars(base).values():
            if isinstance(member, FunctionType):
                yield from _names_in(unwrap(member).__code__)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_varnames
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, tuple):  # names of keyword arguments
            yield from (each for each in constant if isinstance(each, str))


class ModelParallelUnit:
    """The mesh in the words that DeepSpeed asks for (Megatron's `mpu`).

    It must not have a method named initialize_sequence_parallel: DeepSpeed takes that for its own form.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.shards = mesh, mesh["data", "context"]

    def get_data_parallel_group(self) -> ProcessGroup:
        """The ranks over which state is partitioned; never None, which DeepSpeed takes for all ranks."""
        return self.mesh.group(("data", "context"))

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their ranks in the world."""
        return dist.get_process_group_ranks(self.get_data_parallel_group())

    def get_data_parallel_rank(self) -> int:
        """This rank's index among them."""
        return self.shards.rank

    def get_data_parallel_world_size(self) -> int:
        """How many they are."""
        return self.shards.size

    def get_model_parallel_group(self) -> ProcessGroup:
        """The ranks over which the layers are sharded; never None either."""
        return self.mesh.group("tensor")

    def get_model_parallel_rank(self) -> int:
        """This rank's index among them."""
        return self.mesh["tensor"].rank

    def get_model_parallel_world_size(self) -> int:
        """How many they are."""
        return self.mesh["tensor"].size

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size


def mark_sharded(parameters: Iterable[nn.Parameter]) -> None:
    """Marks parameters as DeepSpeed wants it: else those that are sharded count once in the gradient norm."""
    for parameter in parameters:
        if "tensor" in placement(parameter).sharded:
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]


def take_norm_precisely(zero: Any, device: torch.device, operators: Operators) -> None:
    """Gives DeepSpeed's stage 1 in bf16 the norm in place of the gradients of which it would take it in fp32.

    It takes the norm of that one number then; see `llmkit.kernels.gradient_norm` for what is wrong there.
    """
    gradients_of = zero.get_grads_for_norm

    def norms(for_clipping: bool = False) -> Any:
        found = gradients_of(for_clipping)
        if for_clipping:
            return found
        gradients, of_experts = found
        return [operators.sum_of_squares(gradients, device).sqrt().float()], of_experts

    zero.get_grads_for_norm = norms
