"""Whether the frozen weights of a run can be kept in 8 or 4 bits (`train.lora.quantize_base`)."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.load import Loaded
from llmkit.config.mistakes import Mistake
from llmkit.config.model_section import Model
from llmkit.config.operators import QUANTISED_BLOCK
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.facts import DeviceFacts

_AT = "train.lora.quantize_base"
_EXPERTS = "model.moe.num_experts"


def quantised_mistakes(
    loaded: Loaded, shape: ModelShape | None, layout: Layout, device: DeviceFacts | None
) -> Iterator[Mistake]:
    """What stands against it on this device, and with these sizes on a tensor-parallel rank.

    shape, device: None where they are not known.
    """
    form, ranks = loaded.config.train.lora.base_form, layout.tensor_parallel_size
    if form is None:
        return
    if form == "nf4" and device is not None and device.nf4_missing is not None:
        note = "int8 needs no further package"
        yield loaded.settings.mistake(f"{{0}}: {device.nf4_missing}", _AT, note=note)
    if isinstance(loaded.config.model, Model) and loaded.config.model.moe.num_experts:
        note = "train adapters beside weights in the precision of the run (none)"
        what = "{0}: experts are not kept in fewer bits: {1}"
        yield loaded.settings.mistake(what, _AT, _EXPERTS, note=note)
    if shape is None or ranks == 1:
        return
    # Else the blocks of a rank would not be those of the whole row, and layouts would round differently.
    sizes = {
        "query heads x head_dim": shape.num_attention_heads * shape.head_dim // ranks,
        "model.intermediate_size": shape.intermediate_size // ranks,
    }
    if odd := [f"{name} {size:,}" for name, size in sizes.items() if size % QUANTISED_BLOCK]:
        what = f"{{0}}: it needs multiples of {QUANTISED_BLOCK} on each of the {ranks} tensor-parallel ranks"
        note = "take fewer of them (parallel.tensor_parallel_size), which share the rows in whole blocks"
        yield loaded.settings.mistake(f"{what}, and there are {' and '.join(odd)}", _AT, note=note)
