"""The operators of the arithmetic of a step: what the plan and the table of functions both know of them."""

from __future__ import annotations

from collections.abc import Mapping

FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "linear": ("linear",),
    "norm": ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"),
    "rotation": ("rotate",),
    "activation": ("swiglu", "geglu", "gelu", "relu2"),
    "dropout_add": ("dropout", "dropout_add"),
    "attention": ("attention",),
    "head_loss": ("head_loss",),
    "gradient_norm": ("sum_of_squares",),
    "adamw": ("adamw",),
    "muon": ("look_ahead", "orthogonalise", "descend"),
}
"""Operator -> its functions. Their contracts are the docstrings of the plain forms in `llmkit/kernels`."""

GENERATED = frozenset(("triton", "avx512"))
"""Forms that are kernels of llmkit's own: compiled on the machine that they run on, where they may fail when
they are first used. `kernels.backend: torch` takes none of them."""

QUANTISED: Mapping[str, int] = {"int8": 8, "nf4": 4}
"""Forms of `linear` whose frozen weights are kept in fewer bits than they are computed in -> how many."""

QUANTISED_BLOCK = 64
"""Elements of a row of such a weight that share a scale, in fp32."""

FLASH_PACKAGES: Mapping[str, tuple[str, str, str]] = {
    "flash3": ("FA3", "flash_attn_interface", ""),
    "flash4": ("FA4", "flash_attn", "cute/interface.py"),
}
"""Form of attention by a package of others -> PyTorch's name of it, the package, and a file that the package
has. `kernels.backend: torch` takes none of them unless asked by name."""
