"""ZeRO stages 1 to 3 by DeepSpeed (Rajbhandari et al. 2020), as one of our engines.

DeepSpeed partitions moments and masters (stage 1), gradients (2) and weights (3) over the data-parallel
ranks. What is ours, because it decides whether the numbers are right: the model, the groups, the division of
the loss, the learning rate, the optimizers' arithmetic, and the state in checkpoints.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from llmkit.batch import Batch, LossSum
from llmkit.checkpoint.pieces import EMA, Piece
from llmkit.config.optimizer_section import Optimizer
from llmkit.engine.base import (
    Copies,
    Objective,
    Observer,
    StepResult,
    StepSums,
    evaluate_rows,
    ignore,
    next_token,
    score_rows,
    without_targets,
)
from llmkit.engine.buffers import buffer_pieces, load_buffers
from llmkit.engine.deepspeed import ModelParallelUnit, import_deepspeed, mark_sharded, take_norm_precisely
from llmkit.engine.ema import MovingAverage
from llmkit.engine.fingerprint import Fingerprint, fingerprint
from llmkit.engine.first_pass import FirstPass
from llmkit.engine.flat import FlatOptimizer
from llmkit.engine.layer_statistics import LayerMeter
from llmkit.engine.own_gradients import OwnGradients
from llmkit.engine.partitions import held_by_deepspeed, own_partition
from llmkit.engine.quantised import write_quantised
from llmkit.engine.state_shards import Source, StateShard, load_shards, to_pieces
from llmkit.engine.used import SameUse
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.base import Model
from llmkit.optim.build import build_optimizers, groups_of, moments, set_values
from llmkit.optim.schedule import AS_CONFIGURED, StepValues
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.placement import REPLICATED, placement
from llmkit.precision import Precision, default_type, torch_dtype


@contextmanager
def zero3_init(config: dict[str, Any], mesh: Mesh, precision: Precision) -> Iterator[None]:
    """In here, each module's parameters are partitioned as soon as it exists (ZeRO-3).

    No rank ever holds the full model. DeepSpeed would also cast every new tensor to the weights' type,
    tables of rotations included: here only parameters get it, as PyTorch's default type.
    """
    zero = import_deepspeed().zero
    # Not by its `mpu` argument: that is ignored, and parameters would be partitioned over all ranks.
    partitioned = zero.Init(
        data_parallel_group=mesh.group(("data", "context")),
        config_dict_or_path=config,
        mem_efficient_linear=False,
        tensor_overrides=None,
    )
    with default_type(torch_dtype(precision.weights)), partitioned:
        yield


class ZeroEngine:
    """Trains `model` under DeepSpeed; fp32, or bf16 with fp32 masters, accumulation and moments.

    model: of fp32 parameters; for stage 3 made inside `zero3_init`. Its values do not matter: state comes
    by `write_pieces`. Parameters that require no gradient when the engine is made are never updated; they
    have no master, gradient or moment, and at stage 3 are partitioned as the others are. config: DeepSpeed's,
    see `deepspeed_config`. objective: what is minimised. ema: whether to keep a moving average of the
    masters.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        *,
        precision: Precision,
        config: dict[str, Any],
        mesh: Mesh,
        operators: Operators = TORCH,
        objective: Objective = next_token,
        ema: bool = False,
    ) -> None:
        deepspeed = import_deepspeed()
        self.model, self.mesh, self.config, self.objective = model, mesh, config, objective
        self.stage: int = config["zero_optimization"]["stage"]
        self.parts = model.parameter_slices()
        self.parameters = dict(model.named_parameters())
        if mesh["tensor"].size > 1:
            mark_sharded(self.parameters.values())
        trained = {name: weight for name, weight in self.parameters.items() if weight.requires_grad}
        self.sums, self.use = StepSums(mesh), SameUse(trained, mesh)
        self.first_pass = FirstPass(model, operators, alone=False)  # DeepSpeed keeps gradients of its own
        self.own_gradients = OwnGradients(mesh)
        self.own_gradients.watch(trained.values())
        self.frozen = {name: weight for name, weight in self.parameters.items() if name not in trained}
        parts = {name: self.parts[name] for name in trained}
        groups = groups_of(parts, optimizer, model.hidden_matrices())
        self.optimizer = FlatOptimizer([[trained[name] for name in group.names] for group in groups])
        with redirect_stdout(io.StringIO()):  # it prints its memory use, asked or not
            self.engine, self.zero, _, _ = deepspeed.initialize(
                model=model,
                optimizer=self.optimizer,
                config=config,
                mpu=ModelParallelUnit(mesh),
                dist_init_required=False,
            )
        rank, device = mesh["data", "context"].rank, next(model.parameters()).device
        self.held = held_by_deepspeed(self.zero, self.stage, trained, groups, rank)
        dims = {name: (*placement(each).sharded, *placement(each).summed) for name, each in trained.items()}
        self.meter = LayerMeter(model, list(trained), self.held, dims, mesh)
        self.clipping: float = config.get("gradient_clipping", 0.0)
        bound: dict[Tensor, torch.optim.Optimizer] = {}
        for held in self.held:
            (bound[held.tensor],) = build_optimizers(
                [held], parts, optimizer, mesh, device=device, precision=precision, operators=operators
            )
        self.optimizer.bind(bound)
        self.ema = MovingAverage(held.tensor for held in self.held) if ema else None
        if hasattr(self.zero, "get_grads_for_norm"):
            take_norm_precisely(self.zero, device, operators)
        if self.stage == 3:
            # Gathering and letting go of weights is nothing to compile: without this torch.compile tries, for
            # each module anew, until it reaches its limit.
            for module in model.modules():
                for hooks in (module._forward_pre_hooks, module._forward_hooks):
                    for key, hook in list(hooks.items()):
                        hooks[key] = torch.compiler.disable(hook)

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        targets: int,
        values: StepValues = AS_CONFIGURED,
        measure: bool = False,
    ) -> StepResult:
        """See `Engine.train_step`."""
        if targets == 0:
            return without_targets(micro_batches[0].tokens.device)
        # DeepSpeed averages over the data-parallel ranks; it must not divide by the micro-batches too.
        share = self.mesh["data", "context"].size / targets
        self.first_pass.run(lambda: self._forward_and_backward(micro_batches, share, measure))
        set_values(self.optimizer.optimizers.values(), values)
        self.optimizer.around = self._measured_update if measure else None
        self.engine.step()
        if self.zero.overflow and hasattr(self.zero, "averaged_gradients"):
            # With offload, DeepSpeed would add the next step's gradients to those that it just refused.
            self.zero.averaged_gradients.update(dict.fromkeys(self.zero.averaged_gradients))
        if self.ema is not None and values.ema and not self.zero.overflow:
            self.ema.update(values.ema)
        norm = torch.as_tensor(
            self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.sums.loss.device
        )
        skipped = torch.full_like(norm, float(self.zero.overflow))
        sums = self.sums.over_ranks(self.own_gradients.by_rank())
        self.model.after_update(sums.routing, skipped)
        layers = self.meter.finish(skipped) if measure else None
        return sums.result(targets, norm, skipped)._replace(layers=layers)

    def _measured_update(self, flat: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """An update of a flat tensor, whose gradient DeepSpeed has clipped by the whole gradient's norm."""
        scale = None
        if self.clipping:
            norm = torch.as_tensor(self.zero._global_grad_norm, dtype=torch.float32, device=flat.device)
            scale = ((norm + 1e-6) / self.clipping).clamp(min=1.0)
        self.meter.sums.add_gradients([flat], scale)
        self.meter.sums.around(optimizer, optimizer.step, torch.zeros((), device=flat.device))

    def _forward_and_backward(self, micro_batches: Sequence[Batch], share: float, measure: bool) -> None:
        """The sums of a step, and the gradients of the objective times `share`, which DeepSpeed keeps."""
        self.own_gradients.start()
        self.sums.start(micro_batches[0].tokens.device, by_position=measure)
        with self.meter.watched(measure):
            for index, batch in enumerate(micro_batches):
                self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
                loss = self.objective(self.engine(batch), batch)
                objective = loss.objective
                if not self.model.uses_every_parameter:
                    self.use.check(objective)
                self.engine.backward(objective * share, scale_wrt_gas=False)
                self.sums.add(loss, batch)

    def evaluate(self, batches: Iterable[Batch], observe: Observer = ignore) -> LossSum:
        """See `Engine.evaluate`; gradients are enabled, as in the native engine, and for the same reason."""
        return evaluate_rows(
            self.model,
            lambda batch: self.first_pass.run(
                lambda: self.objective(self.engine(batch), batch), with_backward=False
            ),
            batches,
            observe,
        )

    def score(self, batches: Iterable[Batch]) -> LossSum:
        """See `Engine.score`."""
        return score_rows(self.model, self.engine, batches)

    def fingerprint(self, batch: Batch) -> Fingerprint:
        """See `Engine.fingerprint`. The model is called past DeepSpeed, which would sum the gradients."""
        trained = {name: each for name, each in self.parameters.items() if name not in self.frozen}
        found = fingerprint(lambda each: self.objective(self.model(each), each), trained, batch)
        self.end_fetching()
        return found

    def copies(self) -> Iterator[Copies]:
        """See `Engine.copies`: at stage 3 tensor-parallel ranks alone hold some."""
        for name, parameter in self.parameters.items():
            along = placement(parameter)
            if self.stage < 3:
                yield Copies(name, along.copies, parameter.detach())
            else:
                mine, _ = own_partition(parameter, self.mesh["data", "context"].rank)
                dims = tuple(dim for dim in along.copies if dim not in along.summed)
                yield Copies(name, dims, mine.detach())
        for name, buffer in self.model.full_buffers().items():
            yield Copies(name, REPLICATED.copies, buffer)

    def end_fetching(self) -> None:
        """See `Engine.end_fetching`: at stage 3 all parameters are partitioned again."""
        if self.stage == 3:
            self.zero.empty_partition_cache()

    def read_pieces(self) -> Iterator[Piece]:
        """See `Engine.read_pieces`. Of ranks that hold the same slice, the first one gives it.

        A frozen weight has no master: its value, rounded as it is, stands for one, unless it is in no
        checkpoint (`Model.adapted`).
        """
        kept_here = (name for name in self.parameters if name not in self.frozen or not self.model.adapted)
        mine = {name for name in kept_here if self.mesh[self._copies(name)].rank == 0}
        kept = (
            shard._replace(data=shard.data.float()) for shard in self._shards() if shard.parameter in mine
        )
        return chain(to_pieces(kept, self.parts), buffer_pieces(self.model, self.mesh))

    def _copies(self, name: str) -> tuple[str, ...]:
        """Mesh dimensions along which all ranks hold the same of a parameter's state."""
        along = placement(self.parameters[name])
        partitioned = along.summed if self.stage == 3 or name not in self.frozen else ()
        return tuple(dim for dim in along.copies if dim not in partitioned)

    def write_pieces(self, source: Source, optimizer_steps: int) -> None:
        """See `Engine.write_pieces`."""
        for flat, optimizer in self.optimizer.optimizers.items():
            # The optimizer would make these in its first step.
            optimizer.state[flat] = {
                "step": torch.tensor(float(optimizer_steps), device=flat.device),
                **{kind: torch.zeros_like(flat) for kind in moments(optimizer)},
            }
        with fail_together(self.mesh):
            load_shards(self._shards(), self.parts, source)
            load_buffers(self.model, source)
        write_quantised(self.model, source, self.mesh)
        self.model.has_weights = True
        self._round_weights()

    def exchange_ema(self) -> None:
        """See `Engine.exchange_ema`."""
        assert self.ema is not None
        self.ema.exchange()
        self._round_weights()

    def _shards(self) -> Iterator[StateShard]:
        """All that this rank keeps, as views of DeepSpeed's flat tensors and of the frozen weights."""
        for held in self.held:
            state = self.optimizer.state[held.tensor]
            kinds = moments(self.optimizer.optimizers[held.tensor])
            tensors = {"master": held.tensor.detach(), **{kind: state[kind] for kind in kinds}}
            if self.ema is not None:
                tensors[EMA] = self.ema.of[held.tensor]
            for each in held.fragments:
                for kind, tensor in tensors.items():
                    mine = tensor[each.offset : each.offset + each.numel]
                    yield StateShard(each.parameter, kind, mine, each.start)
        for name, weight in self.frozen.items():
            stored, start = weight.detach().view(-1), 0
            if self.stage == 3:
                stored, start = own_partition(weight, self.mesh["data", "context"].rank)
            yield StateShard(name, "master", stored, start)

    @torch.no_grad()
    def _round_weights(self) -> None:
        """Makes the weights the rounded masters, as after an update."""
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        # Full copies may be there, of small parameters and after an evaluation; they are gathered anew.
        self.engine.empty_partition_cache()
        for held in self.held:
            for each in held.fragments:
                partition = self.parameters[each.parameter].ds_tensor  # type: ignore[attr-defined]
                partition[: each.numel].copy_(held.tensor[each.offset : each.offset + each.numel])

    @property
    def optimizer_steps(self) -> int:
        """See `Engine.optimizer_steps`."""
        return int(self.optimizer.state[self.held[0].tensor]["step"].item())

    def files(self) -> dict[str, Any]:
        """See `Engine.files`."""
        return {"deepspeed.json": self.config}

    def close(self) -> None:
        """Takes DeepSpeed's hooks off the model."""
        with redirect_stdout(io.StringIO()):
            self.engine.destroy()
