"""How long single operations take on a device: products, attention, and what only moves memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

from llmkit.estimate.hardware import Architecture, Device

K_HALF = 120.0
"""Length of the summed dimension at which a product runs at half speed (assumed): filling its pipeline."""
TILE = (128, 256)
"""Rows and columns of the result that one multiprocessor computes at a time (CUTLASS's usual tile)."""
MEASURED_SIZE = 8192
"""Of the square products whose rate `Reached.products` is."""
FEW_WAVES = 20
"""With more waves of tiles, the last one, which is not full, no longer counts."""
LEAST_FULL = 0.35
"""Smaller tiles and sums in parts keep at least this share of the multiprocessors at work (assumed)."""

Chart = tuple[tuple[float, float], tuple[float, float]]
ATTENTION: dict[tuple[Architecture, str], dict[int, Chart]] = {
    # Head size -> of the forward, and of the backward pass: share of the bf16 peak on long rows, and the
    # length of rows at half of it. FlashAttention-3 paper, charts of H100; those of causal attention assumed.
    ("hopper", "flash"): {64: ((0.333, 350), (0.273, 450)), 128: ((0.374, 350), (0.318, 500))},
    ("hopper", "cudnn"): {64: ((0.455, 420), (0.404, 600)), 128: ((0.617, 400), (0.515, 650))},
    ("hopper", "flash3"): {64: ((0.485, 450), (0.435, 600)), 128: ((0.657, 450), (0.566, 700))},
    # FlashAttention-2 paper, charts of A100; that of Ada assumed alike.
    ("ampere", "flash"): {64: ((0.57, 350), (0.46, 450)), 128: ((0.62, 350), (0.53, 500))},
    ("ada", "flash"): {64: ((0.57, 350), (0.46, 450)), 128: ((0.62, 350), (0.53, 500))},
    # Assumed, after the reports of FlashAttention-4 and cuDNN 9 on B200.
    ("blackwell", "flash"): {64: ((0.17, 350), (0.14, 450)), 128: ((0.20, 350), (0.16, 500))},
    ("blackwell", "cudnn"): {64: ((0.38, 700), (0.32, 900)), 128: ((0.60, 700), (0.48, 1000))},
    ("blackwell", "flash4"): {64: ((0.38, 700), (0.32, 900)), 128: ((0.62, 700), (0.50, 1000))},
    # Assumed, after AMD's reports of composable kernels on MI300X.
    ("cdna", "flash"): {64: ((0.22, 500), (0.16, 700)), 128: ((0.32, 500), (0.22, 700))},
}
BEST = {"hopper": "cudnn", "blackwell": "cudnn"}
"""What PyTorch chooses where nothing is said; elsewhere flash attention."""
EFFICIENT = 0.6
"""Of the rate of flash attention, that of memory-efficient attention (assumed)."""
FP8_GAIN = 1.55
"""Of fp8 over bf16 products, casts left out (assumed; their peaks differ by 2)."""
LAUNCH = 4.5e-6
"""Seconds of the host for each kernel of PyTorch (assumed; 3 to 6 us are commonly measured)."""


class Rates(Protocol):
    """What a device does in how many seconds; of a GPU by the table, of a CPU as calibrated."""

    @property
    def waits(self) -> bool:
        """Whether the host computes, or else starts kernels while those before them run."""
        ...

    def linear(self, tokens: float, outputs: float, inputs: float, number_type: str) -> Linear:
        """The products of a linear layer in "bf16", "fp32" or "fp8"."""
        ...

    def product(self, rows: float, columns: float, inner: float, number_type: str) -> float:
        """Of (rows, inner) times (inner, columns)."""
        ...

    def attention(self, flops: float, head_dim: int, length: float, form: str, backward: bool) -> float:
        """Of the products of attention in rows of this length. flops: of what is computed, masks left out."""
        ...

    def pointwise(self, size: float) -> float:
        """Of pointwise operations of a layer that read and write so many bytes together."""
        ...

    def loss(self, logits: float, size: float) -> float:
        """Of the loss and its gradient, which read and write `size` bytes for each logit."""
        ...

    def updated(self, parameters: float, size: float) -> float:
        """Of gradient norm and optimizer, which read and write `size` bytes for each parameter."""
        ...

    def accumulated(self, gradients: float, size: float) -> float:
        """Of adding up gradients, which reads and writes `size` bytes for each."""
        ...

    def launched(self, kernels: float) -> float:
        """Of the host, to start so many kernels of PyTorch."""
        ...


class Linear(NamedTuple):
    """Seconds of the products of a linear layer: its outputs, the gradients of its inputs, of its weights."""

    forward: float
    of_inputs: float
    of_weights: float


@dataclass(frozen=True)
class GpuRates:
    """See `Rates`: by the numbers of a device, and shares of them that hold in training."""

    device: Device
    waits: bool = False

    def linear(self, tokens: float, outputs: float, inputs: float, number_type: str) -> Linear:
        """See `Rates.linear`."""
        return Linear(
            self.product(tokens, outputs, inputs, number_type),
            self.product(tokens, inputs, outputs, number_type),
            self.product(outputs, inputs, tokens, number_type),
        )

    def product(self, rows: float, columns: float, inner: float, number_type: str) -> float:
        """See `Rates.product`: the slower of arithmetic and memory.

        The rate K / (K + `K_HALF`) is that of a pipeline that must be filled for each tile. Tiles are dealt
        to the multiprocessors in waves, of which the last one is partly empty (NVIDIA, Matrix Multiplication
        Background User's Guide).
        """
        bf16 = (
            self.device.peak("bf16" if number_type == "fp8" else number_type) * self.device.reached.products
        )
        rate = bf16 * (FP8_GAIN if number_type == "fp8" and "fp8" in self.device.flops else 1.0)
        shape = self._efficiency(rows, columns, inner) / self._efficiency(*[MEASURED_SIZE] * 3)
        seconds = 2.0 * rows * columns * inner / (rate * self.device.reached.sustained * shape)
        element = {"fp32": 4, "bf16": 2, "fp8": 1}[number_type]
        return max(seconds, self._moved((rows * inner + inner * columns + rows * columns) * element))

    def _efficiency(self, rows: float, columns: float, inner: float) -> float:
        """Share of the rate of an endless product that one of this shape reaches."""
        tiles = ceil(rows / TILE[0]) * ceil(columns / TILE[1])
        waves = ceil(tiles / self.device.units)
        full = tiles / (waves * self.device.units) if waves < FEW_WAVES else 1.0
        return inner / (inner + K_HALF) * max(full, LEAST_FULL)

    def attention(self, flops: float, head_dim: int, length: float, form: str, backward: bool) -> float:
        """See `Rates.attention`: a rate that grows with the length of rows, read from published charts."""
        found = attention_chart(self.device.architecture, form)
        share, half = found[64 if head_dim <= 64 else 128][int(backward)]
        slower = EFFICIENT if form in ("efficient", "matmul") else 1.0
        share *= self.device.reached.sustained
        return flops / (self.device.flops["bf16"] * share * slower * length / (length + half))

    def pointwise(self, size: float) -> float:
        """See `Rates.pointwise`: at the bandwidth that a copy reaches."""
        return self._moved(size)

    def loss(self, logits: float, size: float) -> float:
        """See `Rates.loss`."""
        return self._moved(logits * size)

    def updated(self, parameters: float, size: float) -> float:
        """See `Rates.updated`."""
        return self._moved(parameters * size)

    def accumulated(self, gradients: float, size: float) -> float:
        """See `Rates.accumulated`."""
        return self._moved(gradients * size)

    def _moved(self, size: float) -> float:
        return size / (self.device.bandwidth * self.device.reached.memory)

    def launched(self, kernels: float) -> float:
        """See `Rates.launched`."""
        return kernels * LAUNCH


def attention_chart(architecture: Architecture, form: str) -> dict[int, Chart]:
    """The chart of a form on an architecture; of one without a chart, that of what PyTorch would choose."""
    if form == "sdpa":
        form = BEST.get(architecture, "flash")
    if form not in ("cudnn", "flash", "flash3", "flash4"):
        form = "flash"
    return ATTENTION.get((architecture, form)) or ATTENTION[architecture, "flash"]
