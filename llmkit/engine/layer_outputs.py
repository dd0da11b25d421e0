"""How large what each layer gives is, in the forward passes of one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.batch import IGNORE, Batch
from llmkit.parallel.mesh import DIMENSIONS, Mesh

SQUARES, ELEMENTS, LARGEST = range(3)
"""Columns of the sums."""


class LayerOutputs:
    """Watches the modules of a model whose names are among `layers`; one that gives no tensor is left out.

    Where ranks give the same, as tensor-parallel ones do, all of them count, which changes no mean. Rows of
    a batch without a target do not count: how many there are that only fill depends on the layout.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], mesh: Mesh) -> None:
        self._mesh, self._model, self._device = mesh, model, next(model.parameters()).device
        modules = dict(model.named_modules())
        self._modules = {name: modules[name] for name in layers if name in modules}
        self.names = list(self._modules)
        self._sums: dict[str, Tensor] = {}
        self._rows: Tensor | None = None
        """(batch,) bool: those of the batch that is computed now that have a target; None: not known."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Adds up what the modules give in here; what was added before is forgotten.

        A module's call is replaced, compiled or not: a hook would be compiled with it, and so all anew.
        """
        self._sums, self._rows = {}, None
        modules = [self._model, *self._modules.values()]
        before = [module._compiled_call_impl for module in modules]
        calls = [compiled or module._call_impl for module, compiled in zip(modules, before, strict=True)]
        self._model._compiled_call_impl = self._noting_rows(calls[0])
        for (name, module), call in zip(self._modules.items(), calls[1:], strict=True):
            module._compiled_call_impl = self._watching(name, call)
        try:
            yield
        finally:
            for module, compiled in zip(modules, before, strict=True):
                module._compiled_call_impl = compiled

    def _noting_rows(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            batch = next((each for each in arguments if isinstance(each, Batch)), None)
            self._rows = None if batch is None else _with_target(batch)
            return call(*arguments, **options)

        return called

    def _watching(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            given = call(*arguments, **options)
            first = given[0] if type(given) is tuple and given else given  # a LossSum is no plain tuple
            if isinstance(first, Tensor) and first.is_floating_point() and first.numel():
                self._add(name, first.detach())
            return given

        return called

    @torch.no_grad()
    def _add(self, name: str, given: Tensor) -> None:
        # Of the last dimension first: of a whole large tensor a CPU's fp32 norm is off in the third digit.
        norms = torch.linalg.vector_norm(given, dim=-1, dtype=torch.float32).double()
        largest = torch.linalg.vector_norm(given, float("inf"), dim=-1, dtype=torch.float32).double()
        counted = self._counted(norms)
        squares = norms.square().where(counted, 0.0).sum()
        elements = counted.sum().double() * (given.numel() // norms.numel())
        found = torch.stack((squares, elements, largest.where(counted, 0.0).max()))
        if (before := self._sums.get(name)) is not None:
            found = torch.cat((before[:LARGEST] + found[:LARGEST], torch.maximum(before, found)[LARGEST:]))
        self._sums[name] = found

    def _counted(self, positions: Tensor) -> Tensor:
        """Of (batch, seq, ...), or (seq, batch) as pieces of a sequence lie, which count; else all."""
        rows, shape = self._rows, positions.shape
        dim = next(
            (at for at in (0, 1) if rows is not None and len(shape) > 1 and shape[at] == len(rows)), None
        )
        if rows is None or dim is None:
            return torch.ones_like(positions, dtype=torch.bool)
        return rows.view(-1, *[1] * (len(shape) - dim - 1)).expand(shape)

    def finish(self) -> Tensor:
        """(names, 3) fp64 over all ranks: squares, elements, largest magnitude. Collective."""
        nothing = torch.zeros(3, dtype=torch.float64, device=self._device)
        found = torch.stack([self._sums.get(name, nothing) for name in self.names] or [nothing])
        world = self._mesh[DIMENSIONS]
        sums, largest = found[:, :LARGEST].contiguous(), found[:, LARGEST:].contiguous()
        total = torch.cat((world.sum(sums), world.largest(largest)), 1)
        self._sums = {}
        return total[: len(self.names)]


def _with_target(batch: Batch) -> Tensor | None:
    """(batch,) bool: which rows have a target, of a piece of rows anywhere in them; None: all."""
    return (batch.labels != IGNORE).any(1) if batch.piece is None else batch.piece.has_target
