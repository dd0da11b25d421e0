"""Regions of full tensors in tensors that are stored transposed, or several in one."""

from __future__ import annotations

import torch

from llmkit.hf.names import GPT2, LLAMA, places
from tests.shapes import GPT2_STYLE, LLAMA_STYLE


def test_a_region_of_a_projection_lies_in_the_fused_transposed_matrix():
    stored = GPT2.stored(GPT2_STYLE.parameters())
    place = places(stored)["blocks.1.attention.k_proj.weight"]
    assert (place.stored.name, place.stored.shape) == ("transformer.h.1.attn.c_attn.weight", (48, 144))
    fused = torch.randn(48, 144)
    full = fused.t().chunk(3)[1]
    rows, columns = place.region(((3, 11), (20, 48)))
    assert torch.equal(fused[slice(*rows), slice(*columns)].t(), full[3:11, 20:48])
    bias = places(stored)["blocks.1.attention.v_proj.bias"]
    assert bias.stored.shape == (144,) and bias.region(((1, 5),)) == ((97, 101),)


def test_every_full_tensor_has_one_place():
    for naming, shape in ((GPT2, GPT2_STYLE), (LLAMA, LLAMA_STYLE)):
        stored = naming.stored(shape.parameters())
        assert places(stored).keys() == shape.parameters().keys()
        assert len({each.name for each in stored}) == len(stored)
