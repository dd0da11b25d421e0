"""AdamW over all tensors of a group in one launch, with clipping and the rounded weights in the same pass.

Contract: `llmkit.kernels.adamw`. Per parameter 30 bytes of memory traffic: gradient, master and two moments
are read, master and moments written, and the weights in bf16. PyTorch's fused kernel writes the scaled
gradient back (4 bytes), and a copy to bf16 after it reads the masters again (4 + 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmkit.kernels.adamw import RoundsWeights

BLOCK = 2048
"""Elements of a program."""
COLUMNS = 8
"""Of the table: places of master, gradient, moments, step count, weight; elements; first block."""


@triton.jit
def _update(
    row, index, inside, floats_ptr, halves_ptr, gradient_factor, shrinkage, size, root,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    ROUNDED: tl.constexpr, FLOATS: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    # The product with a constant is how the compiler knows the alignment, and reads 16 bytes at a time.
    master_ptr = floats_ptr + tl.load(row) * FLOATS + index
    gradient_ptr = floats_ptr + tl.load(row + 1) * FLOATS + index
    first_ptr = floats_ptr + tl.load(row + 2) * FLOATS + index
    second_ptr = floats_ptr + tl.load(row + 3) * FLOATS + index
    gradient = tl.load(gradient_ptr, mask=inside, other=0.0) * gradient_factor
    first = BETA1 * tl.load(first_ptr, mask=inside, other=0.0) + (1.0 - BETA1) * gradient
    second = tl.load(second_ptr, mask=inside, other=0.0)
    second = BETA2 * second + (1.0 - BETA2) * gradient * gradient
    master = tl.load(master_ptr, mask=inside, other=0.0)
    master = master - shrinkage * master - size * first / (tl.sqrt(second) / root + EPS)
    tl.store(master_ptr, master, mask=inside)
    tl.store(first_ptr, first, mask=inside)
    tl.store(second_ptr, second, mask=inside)
    if ROUNDED:
        weight_ptr = halves_ptr + tl.load(row + 5) * HALVES + index
        tl.store(weight_ptr, master.to(tl.bfloat16), mask=inside)


@triton.jit
def _kernel(
    table_ptr, tensor_of_block_ptr, floats_ptr, halves_ptr, grad_scale_ptr, found_inf_ptr, lr, shrinkage,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr,
    SCALED: tl.constexpr, ROUNDED: tl.constexpr, FLOATS: tl.constexpr, HALVES: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = table_ptr + tl.load(tensor_of_block_ptr + tl.program_id(0)).to(tl.int64) * COLUMNS
    # Where a step is skipped, no element is read or written.
    numel = tl.where(tl.load(found_inf_ptr) == 0.0, tl.load(row + 6), 0)
    begin = (tl.program_id(0) - tl.load(row + 7)) * BLOCK
    index = begin + tl.arange(0, BLOCK)
    # 1 - beta^step in fp64: in fp32 it would lose four digits at the first steps.
    step = tl.load(floats_ptr + tl.load(row + 4)).to(tl.float64)
    size = lr / (1.0 - tl.exp(step * tl.full((), LOG_BETA1, tl.float64))).to(tl.float32)
    root = tl.sqrt(1.0 - tl.exp(step * tl.full((), LOG_BETA2, tl.float64))).to(tl.float32)
    factor = 1.0
    if SCALED:
        factor = 1.0 / tl.load(grad_scale_ptr)
    if begin + BLOCK <= numel:  # without a mask, so that whole vectors are read
        _update(
            row, index, tl.full((BLOCK,), True, tl.int1), floats_ptr, halves_ptr, factor, shrinkage, size,
            root, BETA1, BETA2, EPS, ROUNDED, FLOATS, HALVES,
        )  # fmt: skip
    else:
        _update(
            row, index, index < numel, floats_ptr, halves_ptr, factor, shrinkage, size, root,
            BETA1, BETA2, EPS, ROUNDED, FLOATS, HALVES,
        )  # fmt: skip


class _Table:
    """What the kernel must know of the tensors of a group, on the device; sent when an address changes.

    Places in memory are distances from `floats` (fp32) and `halves` (bf16), in elements times `units`.
    """

    def __init__(self) -> None:
        self.addresses: list[list[int]] = []
        self.rows = self.tensor_of_block = self.floats = self.halves = torch.empty(0)
        self.blocks, self.units = 0, (4, 8)

    def update(self, addresses: list[list[int]], device: torch.device) -> None:
        """addresses: of each tensor the first six columns, in bytes, and its number of elements."""
        if addresses == self.addresses:
            return
        counts = [triton.cdiv(each[6], BLOCK) for each in addresses]
        if [each[6] for each in addresses] != [each[6] for each in self.addresses]:
            self.blocks = sum(counts)
            owners = torch.arange(len(counts), dtype=torch.int32)
            self.tensor_of_block = _send(owners.repeat_interleave(torch.tensor(counts)), device)
            self.floats = torch.empty(4, dtype=torch.float32, device=device)
            self.halves = torch.empty(8, dtype=torch.bfloat16, device=device)
        aligned = all(address % 16 == 0 for each in addresses for address in (*each[:4], each[5]))
        self.units = (4, 8) if aligned else (1, 1)
        rows = torch.tensor([[*each, 0] for each in addresses], dtype=torch.int64)
        rows[:, :5] = (rows[:, :5] - self.floats.data_ptr()) // 4
        rows[:, 5] = (rows[:, 5] - self.halves.data_ptr()) // 2
        rows[:, :4] //= self.units[0]
        rows[:, 5] //= self.units[1]
        rows[1:, 7] = torch.tensor(counts).cumsum(0)[:-1]
        self.rows, self.addresses = _send(rows, device), addresses


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; nothing waits for the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class AdamW(RoundsWeights):
    """torch.optim.AdamW's state, options and arithmetic, with another `step`."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self._tables = [_Table() for _ in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient. Nothing waits for the device."""
        for group, table in zip(self.param_groups, self._tables, strict=True):
            masters = [each for each in group["params"] if each.grad is not None and each.numel()]
            if masters:
                self._update(masters, group, table)

    def _update(self, masters: list[Tensor], group: dict[str, Any], table: _Table) -> None:
        device = masters[0].device
        skipped = getattr(self, "found_inf", None)
        skipped = torch.zeros((), device=device) if skipped is None else skipped
        scale = getattr(self, "grad_scale", None)
        states = [self._state_of(each) for each in masters]
        gradients = [_laid_out_as(each.grad, each) for each in masters if each.grad is not None]
        torch._foreach_add_([state["step"] for state in states], 1.0 - skipped)
        addresses = []
        for master, gradient, state in zip(masters, gradients, states, strict=True):
            tensors = [master, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"]]
            rounded = self.rounded[master].data_ptr() if self.rounded else 0
            addresses.append([*(each.data_ptr() for each in tensors), rounded, master.numel()])
        table.update(addresses, device)
        beta1, beta2 = group["betas"]
        _kernel[(table.blocks,)](
            table.rows, table.tensor_of_block, table.floats, table.halves,
            skipped if scale is None else scale, skipped, group["lr"], group["lr"] * group["weight_decay"],
            BETA1=beta1, BETA2=beta2, EPS=group["eps"],
            LOG_BETA1=math.log(max(beta1, 1e-300)), LOG_BETA2=math.log(max(beta2, 1e-300)),
            SCALED=scale is not None, ROUNDED=bool(self.rounded),
            FLOATS=table.units[0], HALVES=table.units[1],
            BLOCK=BLOCK, COLUMNS=COLUMNS, num_warps=8,
        )  # fmt: skip

    def _state_of(self, master: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[master]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return state


def _laid_out_as(gradient: Tensor, master: Tensor) -> Tensor:
    """The gradient with its elements in the master's order."""
    same = gradient.stride() == master.stride()
    return gradient if same else torch.empty_like(master).copy_(gradient)


def adamw(
    groups: Sequence[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """See `llmkit.kernels.adamw.adamw`."""
    return AdamW(groups, lr, betas, eps)
