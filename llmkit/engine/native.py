"""Our own engine: plain PyTorch, nothing between the reader and the arithmetic.

One device, or several data-parallel ones that each hold all of the state (ZeRO stage 0, DDP) or a slice of
masters and moments (stage 1) and of gradients (stage 2); under tensor parallelism, of this rank's part of the
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from llmkit.batch import Batch, LossSum
from llmkit.checkpoint.pieces import EMA, Piece
from llmkit.config.groups import Group
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
from llmkit.engine.ema import MovingAverage
from llmkit.engine.fingerprint import Fingerprint, fingerprint
from llmkit.engine.first_pass import FirstPass
from llmkit.engine.gradient_slices import GradientSlices
from llmkit.engine.layer_statistics import LayerMeter
from llmkit.engine.masters import Masters, PartitionedMasters, ReplicatedMasters, SeveralMasters
from llmkit.engine.own_gradients import OwnGradients
from llmkit.engine.parts import StepParts
from llmkit.engine.quantised import write_quantised
from llmkit.engine.state_shards import (
    Source,
    StateShard,
    broadcast_shards,
    load_shards,
    share_out,
    to_pieces,
)
from llmkit.kernels.adamw import RoundsWeights
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.base import Model
from llmkit.optim.build import build_optimizers, groups_of, moments, set_values
from llmkit.optim.muon import Muon
from llmkit.optim.schedule import AS_CONFIGURED, StepValues
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.placement import REPLICATED, placement
from llmkit.plan.buckets import BUCKET_SIZES, BucketSizes
from llmkit.precision import Precision, torch_dtype


class NativeEngine:
    """Trains `model` in fp32, or in bf16 with fp32 masters, accumulation and moments.

    The model comes in fp32. In bf16 its values become the masters, and the model keeps rounded
    copies, renewed after each update. Parameters that require no gradient are never updated; they have no
    master, gradient or moment. zero_stage: 0, 1 or 2. objective: what is minimised. ema: whether to keep a
    moving average of the masters.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        *,
        precision: Precision,
        gradient_clipping: float,
        mesh: Mesh | None = None,
        zero_stage: int = 0,
        buckets: BucketSizes = BUCKET_SIZES,
        operators: Operators = TORCH,
        objective: Objective = next_token,
        ema: bool = False,
        note: Callable[[str], None] = print,
    ) -> None:
        self.model, self.mesh, self.operators = model, mesh or Mesh(), operators
        self.objective = objective
        self.sums = StepSums(self.mesh)
        self.first_pass = FirstPass(model, operators, self.mesh.world_size == 1, note)
        self.gradient_clipping = gradient_clipping
        self.weights = dict(model.named_parameters())
        self.parts = model.parameter_slices()
        self.placements = {name: placement(weight) for name, weight in self.weights.items()}
        trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        parts = self.trained = {name: self.parts[name] for name in trained}
        groups = groups_of(parts, optimizer, model.hidden_matrices())
        self.summed = {name: along.summed for name, along in self.placements.items()}
        several = {dims for dims in self.summed.values() if self.mesh[dims].size > 1}
        self.alone = {
            name
            for name, dims in self.summed.items()
            if dims not in several and "expert" not in self.placements[name].sharded
        }
        """Parameters whose gradient this rank computes by itself, of its own tokens, and sends to nobody."""
        self.zero_stage, share = zero_stage, zero_stage > 0
        self.partitioned = {
            name: dims if share and dims in several else () for name, dims in self.summed.items()
        }
        self.own_gradients = OwnGradients(self.mesh)
        self.step_parts = StepParts(torch.device("cpu"))
        """Of the step that is computed, or was last."""
        self.masters = self._make_masters(trained, groups, precision, buckets.native)
        self.frozen = {name: weight for name, weight in self.weights.items() if name not in trained}
        for weight in self.frozen.values():
            weight.data = weight.data.to(torch_dtype(precision.weights))
        apart = {name: (*self.placements[name].sharded, *self.partitioned[name]) for name in trained}
        self.meter = LayerMeter(model, list(trained), self.masters.held, apart, self.mesh)
        self.optimizers = build_optimizers(
            self.masters.held,
            parts,
            optimizer,
            self.mesh,
            device=next(model.parameters()).device,
            precision=precision,
            operators=operators,
        )
        self.ema = MovingAverage(held.tensor for held in self.masters.held) if ema else None
        self.written = self._round_in_updates()
        """Masters whose weights the optimizers round as they update them."""

    def _make_masters(
        self, trained: Mapping[str, Tensor], groups: Sequence[Group], precision: Precision,
        bucket_bytes: int,
    ) -> Masters:  # fmt: skip
        """The masters of `trained`, for each set of ranks over which gradients are summed its own."""
        found: list[Masters] = []
        for dims, weights in _by(self.summed, trained).items():
            masters: ReplicatedMasters | PartitionedMasters
            common = weights, groups, precision, self.mesh[dims], bucket_bytes
            if any(self.partitioned[name] for name in weights):
                masters = PartitionedMasters(*common, sliced=self.zero_stage == 2)
            else:
                masters = ReplicatedMasters(*common)
            if masters.buckets is not None and "expert_data" not in dims:  # see `OwnGradients`
                masters.buckets.before_sending = self.own_gradients.add
            if isinstance(masters.buckets, GradientSlices):
                masters.buckets.waiting = lambda: self.step_parts.part("communication")
            found.append(masters)
        return found[0] if len(found) == 1 else SeveralMasters(found)

    def _round_in_updates(self) -> set[Tensor]:
        """Has optimizers that can round weights in the pass of their update do so; returns these masters."""
        rounded, written = self.masters.rounded(), set[Tensor]()
        for each in self.optimizers:
            if isinstance(each, (RoundsWeights, Muon)):
                masters = {master for group in each.param_groups for master in group["params"]}
                each.rounded = {master: weight for master, weight in rounded.items() if master in masters}
                written |= each.rounded.keys()
        return written

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        targets: int,
        values: StepValues = AS_CONFIGURED,
        measure: bool = False,
    ) -> StepResult:
        """See `Engine.train_step`. Nothing here waits for the device."""
        device = next(iter(self.weights.values())).device
        if targets == 0:
            return without_targets(device)
        parts = self.step_parts = StepParts(device)
        self.first_pass.run(lambda: self._forward_and_backward(micro_batches, targets, measure))
        with parts.part("communication"):
            self.masters.reduce()
        with parts.part("optimizer"):
            norm = self._gradient_norm(device)
            if measure:
                self.meter.sums.add_gradients(held.tensor for held in self.masters.held)
            if self.gradient_clipping > 0.0:
                self._clip((self.gradient_clipping / (norm + 1e-6)).clamp(max=1.0))
            skipped = (~torch.isfinite(norm)).float()
            self._update(skipped, values, measure)
        with parts.part("communication"):
            self.masters.send_weights()
            sums = self.sums.over_ranks(self.own_gradients.by_rank())
            self.model.after_update(sums.routing, skipped)
            layers = self.meter.finish(skipped) if measure else None
        return sums.result(targets, norm, skipped)._replace(parts=parts, layers=layers)

    def _forward_and_backward(self, micro_batches: Sequence[Batch], targets: int, measure: bool) -> None:
        """The sums and this rank's gradients of a step, whatever those of an earlier one are."""
        self.masters.zero_gradients()
        self.own_gradients.start()
        self.sums.start(micro_batches[0].tokens.device, by_position=measure)
        with self.meter.watched(measure):
            for index, batch in enumerate(micro_batches):
                self.masters.before_backward(index == len(micro_batches) - 1)
                loss = self.objective(self.model(batch), batch)
                (loss.objective / targets).backward()
                self.sums.add(loss, batch)

    def _gradient_norm(self, device: torch.device) -> Tensor:
        """The L2 norm of the full model's gradient, of which a rank may hold a part only: () fp32."""
        gradients: dict[tuple[tuple[str, ...], bool], list[Tensor]] = {}
        for name in self.weights:  # on all ranks the same keys, whatever they hold
            gradients.setdefault(self._where(name), [])
        for held in self.masters.held:
            if (gradient := held.tensor.grad) is None:
                continue
            for each in held.fragments:
                found = gradients[self._where(each.parameter)]
                all_of_it = each.numel == gradient.numel()
                found.append(gradient if all_of_it else gradient[each.offset : each.offset + each.numel])
        total = torch.zeros((), dtype=torch.float64, device=device)
        for (dims, alone), found in sorted(gradients.items()):
            squares = self.operators.sum_of_squares(found, device)
            if alone:
                self.own_gradients.add_squares(squares)
            total += self.mesh[dims].sum(squares)
        return total.sqrt().float()

    def _where(self, name: str) -> tuple[tuple[str, ...], bool]:
        """Mesh dimensions along which ranks hold different elements of a parameter's gradient, and whether
        it is of this rank's own tokens alone (`alone`)."""
        dims = {*self.placements[name].sharded, *self.partitioned[name]}
        return tuple(sorted(dims)), name in self.alone

    def _clip(self, scale: Tensor) -> None:
        """Multiplies all gradients by `scale`, () fp32; AdamW and Muon do that in a pass of their update."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, (torch.optim.AdamW, Muon)):
                optimizer.grad_scale = scale.reciprocal()  # type: ignore[union-attr]
                continue
            tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
            torch._foreach_mul_([each.grad for each in tensors if each.grad is not None], scale)

    @torch.no_grad()
    def _update(self, skipped: Tensor, values: StepValues, measure: bool) -> None:
        """One optimizer step; where `skipped` is 1.0 the optimizers leave everything as it was."""
        set_values(self.optimizers, values)
        for optimizer in self.optimizers:
            optimizer.found_inf = skipped  # type: ignore[attr-defined]
            if measure:
                self.meter.sums.around(optimizer, partial(self.first_pass.update, optimizer.step), skipped)
            else:
                self.first_pass.update(optimizer.step)
        self.masters.round_weights(self.written)
        if self.ema is not None and values.ema:
            self.ema.update(values.ema, skipped)

    def evaluate(self, batches: Iterable[Batch], observe: Observer = ignore) -> LossSum:
        """See `Engine.evaluate`.

        The forward pass is the one of training, gradients enabled: torch.compile then has no second graph to
        build (but of experts with a capacity, which hold in training alone), and what it keeps for a backward
        pass is freed at once.
        """
        return evaluate_rows(
            self.model,
            lambda batch: self.first_pass.run(
                lambda: self.objective(self.model(batch), batch), with_backward=False
            ),
            batches,
            observe,
        )

    def score(self, batches: Iterable[Batch]) -> LossSum:
        """See `Engine.score`."""
        return score_rows(self.model, self.model, batches)

    def fingerprint(self, batch: Batch) -> Fingerprint:
        """See `Engine.fingerprint`."""
        weights = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        return fingerprint(lambda each: self.objective(self.model(each), each), weights, batch)

    def copies(self) -> Iterator[Copies]:
        """See `Engine.copies`: of partitioned masters and moments there are none."""
        for name, weight in self.weights.items():
            yield Copies(name, self.placements[name].copies, weight.detach())
        for name, buffer in self.model.full_buffers().items():
            yield Copies(name, REPLICATED.copies, buffer)
        is_weight = not self.masters.rounded()  # then a master is the weight itself
        for shard in self._state_shards():
            if shard.parameter in self.trained and not (is_weight and shard.kind == "master"):
                yield Copies(f"{shard.parameter} ({shard.kind})", self._copies(shard.parameter), shard.data)

    def read_pieces(self) -> Iterator[Piece]:
        """See `Engine.read_pieces`. Ranks that hold the same share it out (`share_out`).

        A frozen weight has no master: its value, rounded as it is, stands for one, unless it is in no
        checkpoint (`Model.adapted`).
        """
        names = self.trained if self.model.adapted else self.weights
        sizes = {name: (self.weights[name].numel(), self.mesh[self._copies(name)]) for name in names}
        shares = share_out(sizes)
        kept = (
            shard.within(*shares[shard.parameter])
            for shard in self._state_shards()
            if shard.parameter in shares
        )
        held = (shard._replace(data=shard.data.float()) for shard in kept if len(shard.data))
        return chain(to_pieces(held, self.parts), buffer_pieces(self.model, self.mesh))

    def _copies(self, name: str) -> tuple[str, ...]:
        """Mesh dimensions along which all ranks hold the same of a parameter's state."""
        partitioned = () if name in self.frozen else self.partitioned[name]
        return tuple(dim for dim in self.placements[name].copies if dim not in partitioned)

    def write_pieces(self, source: Source, optimizer_steps: int) -> None:
        """See `Engine.write_pieces`."""
        for optimizer in self.optimizers:
            for master in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state[master] = {
                    "step": torch.tensor(float(optimizer_steps), device=master.device),
                    **{kind: torch.zeros_like(master) for kind in moments(optimizer)},
                }
        # Of ranks that hold the same the first one reads for all; what is partitioned each reads for itself.
        alike = {name: () if self.partitioned[name] else dims for name, dims in self.summed.items()}
        with fail_together(self.mesh):
            mine = (each for each in self._state_shards() if self.mesh[alike[each.parameter]].rank == 0)
            load_shards(mine, self.parts, source)
            load_buffers(self.model, source)
        for dims, those in _by(alike, self.weights).items():
            shards = (each for each in self._state_shards() if each.parameter in those)
            broadcast_shards(shards, self.mesh[dims])
        write_quantised(self.model, source, self.mesh)
        self.model.has_weights = True
        self.masters.round_weights()
        self.masters.send_weights()

    def exchange_ema(self) -> None:
        """See `Engine.exchange_ema`."""
        assert self.ema is not None
        self.ema.exchange()
        self.masters.round_weights()
        self.masters.send_weights()

    def _state_shards(self) -> Iterator[StateShard]:
        """All that a checkpoint keeps."""
        owner = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for held in self.masters.held:
            optimizer = owner[held.tensor]
            state = optimizer.state.get(held.tensor, {})
            tensors = {"master": held.tensor.detach()}
            if self.ema is not None:
                tensors[EMA] = self.ema.of[held.tensor]
            tensors |= {kind: state[kind] for kind in moments(optimizer) if kind in state}
            for each in held.fragments:
                for kind, tensor in tensors.items():
                    flat = tensor.view(-1)[each.offset : each.offset + each.numel]
                    yield StateShard(each.parameter, kind, flat, each.start)
        for name, weight in self.frozen.items():
            yield StateShard(name, "master", weight.detach().view(-1), 0)

    @property
    def optimizer_steps(self) -> int:
        """See `Engine.optimizer_steps`; waits for the device, so ask only when saving."""
        states = self.optimizers[0].state.values()
        return next((int(state["step"].item()) for state in states), 0)

    def files(self) -> dict[str, Any]:
        """See `Engine.files`."""
        return {}

    def end_fetching(self) -> None:
        """Does nothing: parameters are there all the time."""

    def close(self) -> None:
        """Nothing to release: the groups belong to the mesh."""


def _by(
    dims: Mapping[str, tuple[str, ...]], weights: Mapping[str, Tensor]
) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """The weights with the same dimensions together, in the same order on all ranks."""
    found: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for name, weight in weights.items():
        found.setdefault(dims[name], {})[name] = weight
    return found
