"""Of each part of a step the formula in words, and where it is from: what `--explain` shows."""

from __future__ import annotations

_PARTS = {
    "matmul": (
        "3 products of 2 m n k FLOPs for each linear layer, at (rate) x k / (k + 120) x filled waves",
        "estimate/rates.py; rate measured on H100, of other devices assumed",
    ),
    "attention": (
        "4 x queries x keys x width FLOPs forward, 2.5 times as many backward, at R s / (s + s0)",
        "FlashAttention-2 and -3, published charts",
    ),
    "pointwise": (
        "bytes read and written by norms, residual sums, rotations, activations / memory bandwidth",
        "estimate/computing.py, counted; bandwidth measured on H100",
    ),
    "head": ("3 products of 2 m n k FLOPs with the vocabulary", "estimate/rates.py"),
    "loss": ("bytes moved per logit, by form of the loss / memory bandwidth", "counted on the kernels"),
    "recompute": ("the forward pass of what is computed again, once more", "Chen et al. 2016"),
    "accumulation": ("gradient read, fp32 sum read and written, each micro-batch", "engine/reduce.py"),
    "overhead": ("a factor on all computing: gaps between kernels, lower clocks", "fitted to published runs"),
    "launching": ("kernels x 4.5 us of the host, as far as the device would wait for it", "assumed"),
    "stragglers": (
        "a share per doubling of nodes: each step waits for the slowest",
        "fitted to published runs",
    ),
    "tensor parallelism": (
        "2 sums a layer and pass, each (n - 1) / n x bytes x 2 / bandwidth + latency; those beside products "
        "count by their contention alone",
        "Shoeybi et al. 2019, Korthikanti et al. 2022; bandwidth by data sheets, shares assumed",
    ),
    "context parallelism": ("keys and values around a ring, beside attention", "Liu et al. 2023"),
    "gathers of ZeRO-3": (
        "weights gathered twice, gradients scattered once for each micro-batch, layer by layer, less the "
        "computing of a layer",
        "Rajbhandari et al. 2020, Zhao et al. 2023",
    ),
    "gradients and weights": (
        "gradients in buckets beside the last backward pass, then the updated weights",
        "Li et al. 2020, Rajbhandari et al. 2020",
    ),
    "offload": (
        "gradients to the host, weights from it, AdamW on the host's cores",
        "Ren et al. 2021; assumed",
    ),
    "pipeline": ("(p - 1) / (v m) of the step, and messages between stages", "Narayanan et al. 2021"),
    "optimizer": (
        "bytes of gradient, master, moments and weight / memory bandwidth; Muon's products",
        "counted",
    ),
    "data": ("waiting for batches that are prepared beside the step", "none is expected"),
    "checkpoint": ("copying the state to the host / steps between saves", "checkpoint/stage.py"),
}


def source_of(part: str) -> tuple[str, str]:
    """Formula and source of a part."""
    return _PARTS[part]
