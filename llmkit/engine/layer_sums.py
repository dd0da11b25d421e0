"""Of a step, layer by layer: how large gradients, weights and updates are, of what each rank holds of them.

The update is not found by comparison with a copy of the weights, which would take as much memory again:
AdamW's follows from its moments, Muon gives its own. Only of optimizers of other people's code is there a
copy, while they update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmkit.kernels.gradient_norm import sum_of_squares
from llmkit.kernels.magnitudes import RANGES, count_magnitudes
from llmkit.optim.build import Held
from llmkit.optim.muon import Muon
from llmkit.parallel.mesh import Mesh

GRADIENT, WEIGHT, UPDATE, COUNTS = range(4)
"""Columns of the sums: three sums of squares, and from COUNTS on how many gradients are of each magnitude."""
COLUMNS = COUNTS + RANGES
CHUNK = {"cpu": 2**18, "cuda": 2**22}
"""Elements that are looked at together. What is made on the way takes some times as much: on a CPU it stays
in its caches, on a GPU it is little memory."""


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: up to the first number in its name, or all but its last part."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[: max(len(parts) - 1, 1)] if number is None else parts[: number + 1])


def _chunk(tensor: Tensor) -> int:
    return CHUNK.get(tensor.device.type, CHUNK["cuda"])


class _Part(NamedTuple):
    """Elements offset, offset + 1, ... of a held tensor. dims: over which ranks its sums are added up."""

    tensor: Tensor
    offset: int
    numel: int
    layer: int
    dims: tuple[str, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """Its elements of a tensor that lies as the held one does, flat."""
        return tensor.detach().reshape(-1)[self.offset : self.offset + self.numel]


class LayerSums:
    """Collects the sums of one step; engines call it around their update.

    names: of all trained parameters. held: the tensors that this rank updates. dims: of each parameter the
    mesh dimensions along which ranks hold different elements. device: of the sums, that of the model.
    """

    def __init__(
        self,
        names: Sequence[str],
        held: Sequence[Held],
        dims: Mapping[str, tuple[str, ...]],
        mesh: Mesh,
        device: torch.device,
    ) -> None:
        self._mesh, self._device = mesh, device
        self.layers = list(dict.fromkeys(map(layer_of, names)))
        number = {name: self.layers.index(layer_of(name)) for name in names}
        self._dims = sorted({dims[name] for name in names})  # on all ranks the same, whatever they hold
        self._parts: dict[Tensor, list[_Part]] = {}
        for each in held:
            chunk = _chunk(each.tensor)
            self._parts[each.tensor] = [
                _Part(
                    each.tensor, fragment.offset + start, min(chunk, fragment.numel - start),
                    number[fragment.parameter], dims[fragment.parameter],
                )
                for fragment in each.fragments
                for start in range(0, fragment.numel, chunk)
            ]  # fmt: skip
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def start(self) -> None:
        """Before the gradients of a step are complete."""
        shape = (len(self.layers), COLUMNS)
        self._sums = {
            dims: torch.zeros(shape, dtype=torch.float64, device=self._device) for dims in self._dims
        }

    def add_gradients(self, tensors: Iterable[Tensor], scale: Tensor | None = None) -> None:
        """Adds those of these held tensors, times `scale`, a device scalar."""
        for parts in self._batches(tensor for tensor in tensors if tensor.grad is not None):
            views = [part.of(part.tensor.grad) for part in parts]  # type: ignore[arg-type]
            if scale is not None:
                views = list(torch._foreach_mul(views, scale.to(views[0].device)))
            self._add(parts, GRADIENT, sum_of_squares(views, views[0].device))
            self._add(parts, slice(COUNTS, None), count_magnitudes(views))

    def around(self, optimizer: torch.optim.Optimizer, step: Callable[[], object], skipped: Tensor) -> None:
        """Calls `step`, by which the optimizer updates its tensors, and adds by how much. skipped: as
        `StepResult.skipped`."""
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        if isinstance(optimizer, Muon):
            optimizer.watch = lambda *found: self._add_muon(optimizer, skipped, *found)
            try:
                step()
            finally:
                optimizer.watch = None
        elif isinstance(optimizer, torch.optim.AdamW):
            step()
            for group in optimizer.param_groups:
                self._add_adamw(optimizer, group, skipped)
        else:
            before = {tensor: tensor.detach().clone() for tensor in tensors}
            step()
            for parts in self._batches(tensors):
                pairs = [(part.of(part.tensor), part.of(before[part.tensor])) for part in parts]
                changes = [new - old for new, old in pairs]
                self._add(parts, UPDATE, sum_of_squares(changes, changes[0].device))

    def _add_adamw(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any], skipped: Tensor) -> None:
        """From the state after the update, as Loshchilov and Hutter (2019, algorithm 2) make it.

        With u = lr m' / (sqrt(v') + eps), where m' and v' are the corrected moments, and c = lr decay, the
        new weight is w = (1 - c) w0 - u, and so w - w0 = -(u + c w) / (1 - c).
        """
        (beta1, beta2), rate, eps = group["betas"], group["lr"], group["eps"]
        decay = rate * group["weight_decay"]
        for parts in self._batches(group["params"]):
            states = [optimizer.state[part.tensor] for part in parts]
            count = states[0]["step"]  # all of a group have made as many
            moved = [part.of(state["exp_avg_sq"]).sqrt() for part, state in zip(parts, states, strict=True)]
            torch._foreach_mul_(moved, (1.0 - beta2**count).rsqrt().to(moved[0].device))
            torch._foreach_add_(moved, eps)
            first = [part.of(state["exp_avg"]) for part, state in zip(parts, states, strict=True)]
            moved = list(torch._foreach_div(first, moved))
            torch._foreach_mul_(moved, (rate / (1.0 - beta1**count)).to(moved[0].device))
            torch._foreach_add_(moved, [part.of(part.tensor) for part in parts], alpha=decay)
            squares = sum_of_squares(moved, moved[0].device) / (1.0 - decay) ** 2
            self._add(parts, UPDATE, torch.where(skipped.to(squares.device) > 0.0, 0.0, squares))

    def _add_muon(
        self, optimizer: Muon, skipped: Tensor, weights: Sequence[Tensor], updates: Sequence[Tensor],
        sizes: Sequence[float], decays: Sequence[float],
    ) -> None:  # fmt: skip
        """weights <- (1 - decays) weights - sizes updates is to come: see `llmkit.kernels.muon.descend`."""
        index = 0
        for tensor, shards in zip(optimizer.tensors, optimizer.shards, strict=True):
            for shard in shards:
                part = next(p for p in self._parts[tensor] if p.offset <= shard.offset < p.offset + p.numel)
                weight = weights[index].detach()
                change = updates[index].to(weight.device, torch.float32) * sizes[index]
                change += decays[index] * weight
                squares = sum_of_squares([change], change.device)
                self._add([part], UPDATE, torch.where(skipped.to(change.device) > 0.0, 0.0, squares))
                index += 1

    def finish(self) -> Tensor:
        """(layers, COLUMNS) fp64, over all ranks, with the weights of now. Collective."""
        for parts in self._batches(self._parts):
            views = [part.of(part.tensor) for part in parts]
            self._add(parts, WEIGHT, sum_of_squares(views, views[0].device))
        total = torch.zeros(len(self.layers), COLUMNS, dtype=torch.float64, device=self._device)
        for dims in self._dims:
            total += self._mesh[dims].sum(self._sums[dims])
        self._sums = {}
        return total

    def _batches(self, tensors: Iterable[Tensor]) -> Iterator[list[_Part]]:
        """Parts of one layer and of the same dimensions, of `CHUNK` elements together at most."""
        alike: dict[tuple[int, tuple[str, ...]], list[_Part]] = defaultdict(list)
        for tensor in tensors:
            for part in self._parts[tensor]:
                waiting = alike[part.layer, part.dims]
                if waiting and sum(each.numel for each in waiting) + part.numel > _chunk(tensor):
                    yield waiting
                    waiting = alike[part.layer, part.dims] = []
                waiting.append(part)
        yield from filter(None, alike.values())

    def _add(self, parts: Sequence[_Part], columns: int | slice, values: Tensor) -> None:
        sums = self._sums[parts[0].dims]
        sums[parts[0].layer, columns] += values.to(sums.device)
