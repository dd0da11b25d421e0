"""The engine for one device: plain PyTorch, nothing between the reader and the arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from llmkit.batch import Batch, LossSum
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.read import Checkpoint
from llmkit.config.schema import Optimizer
from llmkit.engine.base import StepResult
from llmkit.model.gpt import GPT
from llmkit.optim.build import build_optimizers, moments
from llmkit.parallel.spec import Part


class NativeEngine:
    """Trains `model` in fp32, or in bf16 with fp32 masters, accumulation and moments.

    The model comes in fp32. In bf16 its values become the masters, and the model keeps rounded
    copies, renewed after each update.
    """

    def __init__(self, model: GPT, optimizer: Optimizer, *, precision: str, gradient_clipping: float) -> None:
        self.model = model
        self.gradient_clipping = gradient_clipping
        self.weights: list[Tensor] = list(model.parameters())
        self.masters = self.weights
        if precision == "bf16":
            self.masters = [nn.Parameter(weight.detach().clone()) for weight in self.weights]
            for weight in self.weights:
                weight.data = weight.data.bfloat16()
        names = [name for name, _ in model.named_parameters()]
        self.named_masters = dict(zip(names, self.masters, strict=True))
        self.parts = model.parts()
        self.optimizers = build_optimizers(self.named_masters, self.parts, optimizer, precision == "bf16")

    def train_step(self, micro_batches: Sequence[Batch], targets: int, learning_rate: float) -> StepResult:
        """See `Engine.train_step`. Nothing here waits for the device."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.weights[0].device)
        for batch in micro_batches:
            nats = self.model(batch).nats.sum()
            (nats / max(targets, 1)).backward()
            self._accumulate()
            loss_sum += nats.detach()
        gradients = [master.grad for master in self.masters if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.gradient_clipping > 0.0:
            scale = (self.gradient_clipping / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)
        skipped = (~torch.isfinite(norm)).float()
        self._update(skipped, learning_rate)
        return StepResult(loss_sum, targets, norm, skipped)

    def _accumulate(self) -> None:
        """Adds the weights' bf16 gradients to the masters' fp32 ones (fp32 weights are their own masters)."""
        if self.masters is self.weights:
            return
        for master, weight in zip(self.masters, self.weights, strict=True):
            if weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

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
        shape = self.model.shape
        if shape.attention_dropout > 0.0 or shape.hidden_dropout > 0.0:
            self.model.eval()
        nats, targets = [], []
        for batch in batches:
            rows = self.model(batch)
            nats.append(rows.nats.detach())
            targets.append(rows.targets)
            del rows  # and with it what a backward pass would need, before the next batch is computed
        self.model.train()
        return LossSum(torch.cat(nats), torch.cat(targets))

    def read_pieces(self) -> Iterator[Piece]:
        """See `Engine.read_pieces`."""
        for kind, part, rows in self._state_views():
            yield Piece(part.name, kind, part.shape, part.box, (0, rows.numel()), rows.detach().reshape(-1))

    def write_pieces(self, checkpoint: Checkpoint, updates: int) -> None:
        """See `Engine.write_pieces`."""
        for optimizer in self.optimizers:
            for master in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state[master] = {
                    "step": torch.tensor(float(updates), device=master.device),
                    **{kind: torch.zeros_like(master) for kind in moments(optimizer)},
                }
        with torch.no_grad():
            torch._foreach_zero_(self.masters)  # a vocabulary's padding is in no piece
            for kind, part, rows in self._state_views():
                rows.copy_(checkpoint.read(part.name, kind, part.box))
            if self.masters is not self.weights:
                torch._foreach_copy_(self.weights, self.masters)

    def _state_views(self) -> Iterator[tuple[str, Part, Tensor]]:
        """(kind, part, its rows in the tensor of that kind) of everything that a checkpoint keeps."""
        for name, master in self.named_masters.items():
            tensors = {"master": master}
            for optimizer in self.optimizers:
                state = optimizer.state.get(master, {})
                tensors |= {kind: state[kind] for kind in moments(optimizer) if kind in state}
            for kind, tensor in tensors.items():
                for part in self.parts[name]:
                    yield kind, part, tensor[part.start : part.stop]

    @property
    def updates(self) -> int:
        """See `Engine.updates`; waits for the device, so ask only when saving."""
        states = self.optimizers[0].state.values()
        return next((int(state["step"].item()) for state in states), 0)

    def close(self) -> None:
        """Nothing to give up on one device."""
