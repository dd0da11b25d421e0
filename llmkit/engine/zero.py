"""ZeRO stages 1 to 3 by DeepSpeed (Rajbhandari et al. 2020), under our own seam.

DeepSpeed cuts moments and masters (stage 1), gradients (2) and weights (3) over the data-parallel ranks
and updates them. What is left to us, because it decides whether the numbers are right: the model, the
groups, the division of the loss, the learning rate, and the state in checkpoints.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from llmkit.batch import Batch, LossSum
from llmkit.checkpoint.pieces import Piece
from llmkit.config.schema import Optimizer
from llmkit.engine.base import StepResult, StepSums, evaluate_rows, without_targets
from llmkit.engine.state_shards import Source, StateShard, load_shards, to_pieces
from llmkit.model.base import Model
from llmkit.optim.build import build_adamw
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.mesh import Mesh

MOMENTS = ("exp_avg", "exp_avg_sq")


def import_deepspeed() -> Any:
    """DeepSpeed, set up to be quiet and to compile nothing. Before any process group exists.

    Its shared-memory all-reduce for CPUs is a C++ extension, built at the first start (37 s measured). A GPU
    does without it, and there the mere look at DeepSpeed's table of extensions would probe all of them.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
    import deepspeed

    deepspeed.utils.logging.logger.setLevel(logging.ERROR)
    if on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class ModelParallelUnit:
    """The mesh in the words that DeepSpeed asks for (Megatron's `mpu`).

    It must not have a method named initialize_sequence_parallel: DeepSpeed takes that for its own form.
    """

    def __init__(self, mesh: Mesh) -> None:
        assert mesh.data_group is not None and mesh.tensor_group is not None
        self.mesh = mesh
        self.data_group: ProcessGroup = mesh.data_group
        self.tensor_group: ProcessGroup = mesh.tensor_group

    def get_data_parallel_group(self) -> ProcessGroup:
        """The ranks over which state is cut."""
        return self.data_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their ranks in the world."""
        return dist.get_process_group_ranks(self.data_group)

    def get_data_parallel_rank(self) -> int:
        """The place among them."""
        return self.mesh.data_rank

    def get_data_parallel_world_size(self) -> int:
        """How many they are."""
        return self.mesh.data_size

    def get_model_parallel_group(self) -> ProcessGroup:
        """The ranks over which the layers are cut."""
        return self.tensor_group

    def get_model_parallel_rank(self) -> int:
        """The place among them."""
        return self.mesh.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """How many they are."""
        return self.mesh.tensor_size

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size


@contextmanager
def zero3_init(config: dict[str, Any], mesh: Mesh, precision: str) -> Iterator[None]:
    """In here, each module's parameters are cut over the data-parallel ranks as soon as it exists (ZeRO-3).

    No rank ever holds the whole model. DeepSpeed would also cast every new tensor to the weights' type,
    tables of rotations included: here only parameters get it, as PyTorch's default type.
    """
    zero = import_deepspeed().zero
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if precision == "bf16" else torch.float32)
    try:
        # Not by its `mpu` argument: that is ignored, and all ranks would share one cut.
        with zero.Init(
            data_parallel_group=mesh.data_group,
            config_dict_or_path=config,
            mem_efficient_linear=False,
            tensor_overrides=None,
        ):
            yield
    finally:
        torch.set_default_dtype(before)


class ZeroEngine:
    """Trains `model` under DeepSpeed; fp32, or bf16 with fp32 masters, accumulation and moments.

    model: of fp32 parameters; for stage 3 made inside `zero3_init`. Its values do not matter: state
    comes by `write_pieces`.
    """

    def __init__(self, model: Model, optimizer: Optimizer, *, config: dict[str, Any], mesh: Mesh) -> None:
        deepspeed = import_deepspeed()
        self.model, self.mesh = model, mesh
        self.deepspeed_config: dict[str, Any] | None = config
        self.stage: int = config["zero_optimization"]["stage"]
        self.parts = model.parameter_slices()
        self.parameters = dict(model.named_parameters())
        adamw = build_adamw(self.parameters, self.parts, optimizer)
        with redirect_stdout(io.StringIO()):  # it prints its memory use, asked or not
            self.engine, self.zero, _, _ = deepspeed.initialize(
                model=model,
                optimizer=adamw,
                config=config,
                mpu=ModelParallelUnit(mesh),
                dist_init_required=False,
            )
        if self.stage == 3:
            # Gathering and letting go of weights is nothing to compile: without this torch.compile tries, for
            # each module anew, until it reaches its limit.
            for module in model.modules():
                for hooks in (module._forward_pre_hooks, module._forward_hooks):
                    for key, hook in list(hooks.items()):
                        hooks[key] = torch.compiler.disable(hook)

    def train_step(self, micro_batches: Sequence[Batch], targets: int, learning_rate: float) -> StepResult:
        """See `Engine.train_step`."""
        if targets == 0:
            return without_targets(micro_batches[0].tokens.device)
        # DeepSpeed averages over the data-parallel ranks; it must not divide by the micro-batches too.
        share = self.mesh.data_size / targets
        sums = StepSums(micro_batches[0].tokens.device)
        for index, batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            loss = self.engine(batch)
            self.engine.backward(loss.objective * share, scale_wrt_gas=False)
            sums.add(loss)
        for group in self.zero.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        if self.zero.overflow and hasattr(self.zero, "averaged_gradients"):
            # With offload, DeepSpeed would add the next step's gradients to those that it just refused.
            self.zero.averaged_gradients.update(dict.fromkeys(self.zero.averaged_gradients))
        norm = torch.as_tensor(
            self.engine.get_global_grad_norm(), dtype=torch.float32, device=sums.loss.device
        )
        skipped = torch.full_like(norm, float(self.zero.overflow))
        loss_sum, extras = sums.over_data(self.mesh)
        return StepResult(loss_sum, targets, norm, skipped, extras)

    def evaluate(self, batches: Iterable[Batch]) -> LossSum:
        """See `Engine.evaluate`."""
        with torch.no_grad():
            return evaluate_rows(self.model, self.engine, batches)

    def read_pieces(self) -> Iterator[Piece]:
        """See `Engine.read_pieces`. What is not cut over a tensor-parallel group, its first rank gives."""
        mine = {
            name
            for name, parameter in self.parameters.items()
            if self.mesh.tensor_rank == 0 or hasattr(parameter, "tensor_model_parallel")
        }
        return to_pieces((slot for slot in self._slots() if slot.parameter in mine), self.parts)

    def write_pieces(self, source: Source, optimizer_steps: int) -> None:
        """See `Engine.write_pieces`."""
        state = self.zero.optimizer.state
        for flat in self._flat_masters():
            # The optimizer would make these in its first step.
            state[flat] = {
                "step": torch.tensor(float(optimizer_steps), device=flat.device),
                **{kind: torch.zeros_like(flat) for kind in MOMENTS},
            }
        with fail_together(self.mesh):
            load_shards(self._slots(), self.parts, source)
        self.model.has_weights = True
        self._round_weights()

    def _flat_masters(self) -> list[Tensor]:
        """This rank's slices of all masters, one flat tensor for each group of parameters."""
        for name in (
            "fp32_partitioned_groups_flat",  # stage 3
            "single_partition_of_fp32_groups",  # stages 1 and 2
            "fp32_groups_flat_partition",  # stage 1 in bf16
        ):
            if found := getattr(self.zero, name, None):
                return list(found)
        raise AssertionError(f"{type(self.zero).__name__} keeps its masters elsewhere")

    def _slots(self) -> Iterator[StateShard]:
        """All that this rank keeps, as views of DeepSpeed's flat tensors."""
        flats, state = self._flat_masters(), self.zero.optimizer.state
        for name, parameter in self.parameters.items():
            place = self._place(parameter)
            if place is None:
                continue
            group, offset, start, size = place
            flat = flats[group]
            tensors = {"master": flat.detach(), **{kind: state[flat][kind] for kind in MOMENTS}}
            for kind, tensor in tensors.items():
                yield StateShard(name, kind, tensor[offset : offset + size], start)

    def _place(self, parameter: nn.Parameter) -> tuple[int, int, int, int] | None:
        """Where this rank keeps its slice of a parameter; None where it has none.

        (flat tensor, offset in it, first element of the parameter's storage, elements)
        """
        if self.stage == 3:
            group, offset, size = self.zero.grad_position[self.zero.get_param_id(parameter)]
            start = self.mesh.data_rank * size
            size = min(size, parameter.ds_numel - start)  # type: ignore[attr-defined]
            return (group, offset, start, size) if size > 0 else None
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        held, cut = mapping.hp_fragment_address, mapping.lp_fragment_address
        return mapping.param_group_index, held.start, cut.start, held.numel

    @torch.no_grad()
    def _round_weights(self) -> None:
        """Makes the weights the rounded masters, as after an update."""
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        flats = self._flat_masters()
        for parameter in self.parameters.values():
            if parameter.ds_persist:  # type: ignore[attr-defined]
                # A whole copy may be there already; it is gathered anew at its next use.
                parameter.partition(has_been_updated=False)  # type: ignore[attr-defined]
            place = self._place(parameter)
            if place is not None:
                group, offset, _, size = place
                parameter.ds_tensor[:size].copy_(flats[group][offset : offset + size])  # type: ignore[attr-defined]

    @property
    def optimizer_steps(self) -> int:
        """See `Engine.optimizer_steps`."""
        return int(self.zero.optimizer.state[self._flat_masters()[0]]["step"].item())

    def close(self) -> None:
        """Takes DeepSpeed's hooks off the model."""
        with redirect_stdout(io.StringIO()):
            self.engine.destroy()
