"""The settings of low-rank adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.section import NonNegative, Section

Targets = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1)]


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021, LoRA): an adapted linear layer computes W x + (alpha / rank) B A x,
    of which only A and B are trained and saved."""

    rank: NonNegative = 0
    """Rows of each A and columns of each B, as in 16; 0 = no adapters, and all weights are trained."""
    alpha: Annotated[float, Field(gt=0.0)] = 32.0
    """What the adapters compute is multiplied by alpha / rank."""
    targets: Targets = Field(default=["*_proj"])
    """Patterns of the linear layers that are adapted, each of a layer's full name, as in
    `blocks.0.attention.q_proj`, or of its last part: * is any text, ? a character, [01] one of these."""
    input_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of the adapters; not with tensor parallelism."""
    quantize_base: Literal["none", "int8", "nf4"] = "none"
    """How the frozen weights of the blocks' linear layers are kept: none = as the precision says, int8 and
    nf4 = in 8 and 4 bits, with a scale for each 64 of a row (nf4 as in QLoRA, Dettmers et al. 2023, by the
    package bitsandbytes). Products are in the type of the precision all the same."""

    @property
    def base_form(self) -> str | None:
        """The form of linear layers that keeps frozen weights in fewer bits (`QUANTISED`); None: no such."""
        return self.quantize_base if self.rank and self.quantize_base != "none" else None
