"""Published rates of GPUs; nothing heavy is imported here."""

from __future__ import annotations

import re

# Dense bf16 rates of matrix products with fp32 accumulation, in TFLOP/s: from NVIDIA's data sheets (which
# print twice as much, "with sparsity"), for RTX cards from its white papers on GA102, Ada and Blackwell RTX,
# for Instinct from AMD's data sheets. NVIDIA's TF32 is half of each. GPUs whose published rate is unclear are
# left out: no utilization is better than a wrong one.
PUBLISHED_TFLOPS = (
    (r"A[18]00\b", 312.0),
    (r"A10$", 125.0),
    (r"A30$", 165.0),
    (r"A40$", 149.7),
    (r"H[18]00 PCIe\b", 756.0),
    (r"H[12]00 NVL\b", 835.0),
    (r"H[18]00( 80GB HBM3)?$", 989.4),
    (r"H20$", 148.0),
    (r"G?H200( \d+GB( HBM3e)?)?$", 989.4),
    (r"B200$", 2250.0),
    (r"GB200$", 2500.0),
    (r"L4$", 121.0),
    (r"L20$", 119.5),
    (r"L40$", 181.0),
    (r"L40S$", 362.0),
    (r"RTX A6000$", 154.8),
    (r"RTX 6000 Ada Generation$", 364.2),
    (r"GeForce RTX 3090$", 71.2),
    (r"GeForce RTX 4090$", 165.2),
    (r"GeForce RTX 5090$", 209.5),
    (r"AMD Instinct MI3(00|25)X$", 1307.4),
)


def published_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a whole GPU by the name PyTorch gives it, or None if it is not known."""
    if "MIG" in name.split():
        return None  # a slice of a GPU: its share of the peak is not in its name
    plain = name.removeprefix("NVIDIA ").strip()
    return next((rate * 1e12 for pattern, rate in PUBLISHED_TFLOPS if re.match(pattern, plain)), None)
