"""Our own engine: plain PyTorch, nothing between the reader and the arithmetic.

One device, or several data-parallel ones that each hold all of the state (DDP); with a model that is
cut over a tensor-parallel group, all of its part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.batch import Batch, LossSum
from llmkit.checkpoint.pieces import Piece
from llmkit.config.schema import Optimizer
from llmkit.engine.base import BUCKET_SIZES, BucketSizes, StepResult, StepSums, evaluate_rows, without_targets
from llmkit.engine.norm import sum_of_squares
from llmkit.engine.reduce import GradientBuckets
from llmkit.engine.state_shards import Source, StateShard, broadcast_shards, load_shards, to_pieces
from llmkit.model.base import Model
from llmkit.optim.build import build_optimizers, moments
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.placement import placement
from llmkit.precision import Precision, torch_dtype


class NativeEngine:
    """Trains `model` in fp32, or in bf16 with fp32 masters, accumulation and moments.

    The model comes in fp32. In bf16 its values become the masters, and the model keeps rounded
    copies, renewed after each update.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        *,
        precision: Precision,
        gradient_clipping: float,
        mesh: Mesh | None = None,
        buckets: BucketSizes = BUCKET_SIZES,
    ) -> None:
        self.model, self.mesh = model, mesh or Mesh()
        self.gradient_clipping = gradient_clipping
        self.weights: list[Tensor] = list(model.parameters())
        self.masters = self.weights
        if precision.keeps_masters:
            self.masters = [nn.Parameter(weight.detach().clone()) for weight in self.weights]
            for weight in self.weights:
                weight.data = weight.data.to(torch_dtype(precision.weights))
        names = [name for name, _ in model.named_parameters()]
        self.named_masters = dict(zip(names, self.masters, strict=True))
        self.parts = model.parameter_slices()
        self.placements = [placement(weight) for weight in self.weights]
        self.optimizers = build_optimizers(
            self.named_masters,
            self.parts,
            optimizer,
            self.mesh,
            bf16=precision.compute == "bf16",
            hidden_matrices=model.hidden_matrices(),
        )
        self.buckets: GradientBuckets | None = None
        if (group := self.mesh["data", "context"].group) is not None:
            self.buckets = GradientBuckets(self.weights, self.masters, group, buckets.native)

    def train_step(self, micro_batches: Sequence[Batch], targets: int, learning_rate: float) -> StepResult:
        """See `Engine.train_step`. Nothing here waits for the device."""
        device = self.weights[0].device
        if targets == 0:
            return without_targets(device)
        if self.buckets is None:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
        else:
            self.buckets.zero()
        sums = StepSums(device)
        for index, batch in enumerate(micro_batches):
            if self.buckets is not None:
                self.buckets.last_micro_batch = index == len(micro_batches) - 1
            loss = self.model(batch)
            (loss.objective / targets).backward()
            self._accumulate()
            sums.add(loss)
        if self.buckets is not None:
            self.buckets.finish()
        norm = self._gradient_norm()
        if self.gradient_clipping > 0.0:
            gradients = [master.grad for master in self.masters if master.grad is not None]
            scale = (self.gradient_clipping / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)
        skipped = (~torch.isfinite(norm)).float()
        self._update(skipped, learning_rate)
        loss_sum, extras = sums.over_ranks(self.mesh)
        return StepResult(loss_sum, targets, norm, skipped, extras)

    def _accumulate(self) -> None:
        """Adds the weights' bf16 gradients to the masters' fp32 ones (fp32 weights are their own masters)."""
        if self.masters is self.weights or self.buckets is not None:
            return
        for master, weight in zip(self.masters, self.weights, strict=True):
            if weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    def _gradient_norm(self) -> Tensor:
        """The L2 norm of the full model's gradient, of which sharded parameters hold a part each: () fp32."""
        gradients: dict[tuple[str, ...], list[Tensor]] = {}
        for along, master in zip(self.placements, self.masters, strict=True):
            found = gradients.setdefault(along.sharded, [])
            if master.grad is not None:
                found.append(master.grad)
        total = torch.zeros((), dtype=torch.float64, device=self.weights[0].device)
        for dims, found in sorted(gradients.items()):
            total += self.mesh[dims].sum(sum_of_squares(found, total.device))
        return total.sqrt().float()

    @torch.no_grad()
    def _update(self, skipped: Tensor, learning_rate: float) -> None:
        """One optimizer step; where `skipped` is 1.0 the optimizers leave everything as it was."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.found_inf = skipped  # type: ignore[attr-defined]
            optimizer.step()
        if self.masters is not self.weights:
            torch._foreach_copy_(self.weights, self.masters)

    def evaluate(self, batches: Iterable[Batch]) -> LossSum:
        """See `Engine.evaluate`.

        The forward pass is the one of training, gradients enabled: torch.compile then has no second
        graph to build, and what it keeps for a backward pass is freed at once.
        """
        return evaluate_rows(self.model, self.model, batches)

    def read_pieces(self) -> Iterator[Piece]:
        """See `Engine.read_pieces`. Ranks that hold the same share the work, a parameter each."""
        mine = set()
        for index, (name, along) in enumerate(zip(self.named_masters, self.placements, strict=True)):
            copies = self.mesh[along.copies]
            if index % copies.size == copies.rank:
                mine.add(name)
        return to_pieces((slot for slot in self._slots() if slot.parameter in mine), self.parts)

    def write_pieces(self, source: Source, optimizer_steps: int) -> None:
        """See `Engine.write_pieces`."""
        for optimizer in self.optimizers:
            for master in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state[master] = {
                    "step": torch.tensor(float(optimizer_steps), device=master.device),
                    **{kind: torch.zeros_like(master) for kind in moments(optimizer)},
                }
        copies = self.mesh["data", "context"]
        with fail_together(self.mesh):
            if copies.rank == 0:
                load_shards(self._slots(), self.parts, source)
        broadcast_shards(self._slots(), copies)
        self.model.has_weights = True
        if self.masters is not self.weights:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)

    def _slots(self) -> Iterator[StateShard]:
        """All that a checkpoint keeps."""
        for name, master in self.named_masters.items():
            yield StateShard(name, "master", master.detach().view(-1), 0)
            for optimizer in self.optimizers:
                state = optimizer.state.get(master, {})
                for kind in moments(optimizer):
                    if kind in state:
                        yield StateShard(name, kind, state[kind].view(-1), 0)

    @property
    def optimizer_steps(self) -> int:
        """See `Engine.optimizer_steps`; waits for the device, so ask only when saving."""
        states = self.optimizers[0].state.values()
        return next((int(state["step"].item()) for state in states), 0)

    def files(self) -> dict[str, Any]:
        """See `Engine.files`."""
        return {}

    def close(self) -> None:
        """Nothing to give up: the groups belong to the mesh."""
