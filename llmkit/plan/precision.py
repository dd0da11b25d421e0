"""The number types of a run, and whether its device and sizes allow them."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.load import Loaded
from llmkit.config.mistakes import Mistake
from llmkit.config.model_section import Model
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.facts import DeviceFacts
from llmkit.precision import PRECISIONS, Precision

FP8_CAPABILITY = (8, 9)
"""Of the first GPUs that multiply 8-bit floating-point numbers (Ada; then Hopper and Blackwell)."""
FP8_MULTIPLE = 16
"""Of the sizes of such products."""


def choose_precision(asked: str, device: DeviceFacts | None) -> Precision:
    """Returns the precision of that name; for "auto" bf16 where the device has units for it, else fp32."""
    if asked == "auto":
        asked = "bf16" if device is not None and device.has_bf16_units else "fp32"
    return PRECISIONS[asked]


def fp8_missing(shape: ModelShape | None, layout: Layout, device: DeviceFacts | None) -> str | None:
    """Why the blocks' linear layers cannot be computed in 8-bit numbers; None where they can.

    shape, device: None where they are not known. A CPU takes the same numbers, slowly.
    """
    if device is not None and device.kind == "cuda" and (device.capability or (0, 0)) < FP8_CAPABILITY:
        found = "{}.{}".format(*device.capability) if device.capability else "none that NVIDIA gives"
        wanted = "{}.{}".format(*FP8_CAPABILITY)
        return f"it needs a GPU of compute capability {wanted} or newer, and this one has {found}"
    odd = [] if shape is None else [each for each in _sizes(shape, layout) if each[1] % FP8_MULTIPLE]
    if not odd:
        return None
    named = ", ".join(f"{name} {size:,}" for name, size in odd)
    ranks = layout.tensor_parallel_size
    over = f" on each of {ranks} tensor-parallel ranks" if ranks > 1 else ""
    return f"it needs sizes that are multiples of {FP8_MULTIPLE}, and there are{over}: {named}"


def precision_mistakes(
    loaded: Loaded,
    precision: Precision,
    shape: ModelShape | None,
    layout: Layout,
    device: DeviceFacts | None,
) -> Iterator[Mistake]:
    """What stands against a precision that was asked for."""
    if precision.linear != "fp8":
        return
    if not isinstance(loaded.config.model, Model):
        what = "{0} is for llmkit's own model, not for {1}"
        yield loaded.settings.mistake(what, "train.precision", "model.type")
    elif (reason := fp8_missing(shape, layout, device)) is not None:
        yield loaded.settings.mistake(f"{{0}}: {reason}", "train.precision", note="bf16 has no such limits")


def precision_notes(precision: Precision, device: DeviceFacts | None, compiled: bool) -> Iterator[str]:
    """What one should know of a precision on this device."""
    if precision.linear != "fp8" or device is None:
        return
    if device.kind == "cpu":
        yield "train.precision fp8: a CPU rounds as a GPU does, and is slower than in bf16"
    elif not compiled:
        yield "train.precision fp8 without torch.compile rounds in passes of their own, which cost time"


def _sizes(shape: ModelShape, layout: Layout) -> Iterator[tuple[str, int]]:
    """Inner and outer sizes of the blocks' linear layers on a rank."""
    ranks = layout.tensor_parallel_size
    heads, kv_heads = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    yield "model.hidden_size", shape.hidden_size
    yield "query heads x head_dim", heads // ranks
    yield "all heads x head_dim", (heads + 2 * kv_heads) // ranks
    yield "model.intermediate_size", shape.intermediate_size // ranks
