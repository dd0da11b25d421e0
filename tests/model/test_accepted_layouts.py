"""What the checks of the settings accept can be sharded: the ranks hold each element of each tensor once."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmkit.checkpoint.completeness import check_complete
from llmkit.checkpoint.index import PieceEntry, TensorEntry, build_index
from llmkit.config.check import check
from llmkit.config.derive import resolved_model
from llmkit.config.schema import Config
from llmkit.model.build import check_placements
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import box_shape, box_size, full_box


@st.composite
def sections(draw: st.DrawFn) -> tuple[dict[str, object], int]:
    """Settings of a model and a number of ranks, most of which go together."""
    size = draw(st.sampled_from([2, 3, 4, 6, 8]))
    heads = draw(st.sampled_from([1, 2, 3])) * size
    divisors = [number for number in range(1, heads + 1) if heads % number == 0]
    return {
        "hidden_size": draw(st.sampled_from([24, 48, 60])),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([None, *divisors])),
        "head_dim": draw(st.sampled_from([None, 2, 6, 8, 10])),
        "intermediate_size": draw(st.sampled_from([None, 20, 36, 40, 48])),
        "mlp": draw(st.sampled_from(["swiglu", "geglu", "gelu", "relu2"])),
        "attention_bias": draw(st.booleans()),
        "attention_output_bias": draw(st.sampled_from([None, False, True])),
        "qk_norm": draw(st.sampled_from([False, True, "full"])),
        "norm_placement": draw(st.sampled_from(["pre", "post", "both"])),
        "norm_weight": draw(st.booleans()),
        "embedding_norm": draw(st.booleans()),
        "bigram_embedding": draw(st.sampled_from([None, 41])),
        "value_embeddings": draw(st.booleans()),
        "residual_scalars": draw(st.booleans()),
    }, size


@settings(max_examples=60, deadline=None)
@given(sections())
def test_accepted_sizes_are_shared_out_whole(drawn: tuple[dict[str, object], int]) -> None:
    model, size = drawn
    config = Config.model_validate(
        {
            "model": {**model, "num_hidden_layers": 1, "vocab_size": 300},
            "data": {"sources": [{"type": "stdlib"}], "tokenizer": {"type": "bytes"}, "sequence_length": 24},
            "train": {"max_steps": 9},
            "parallel": {"tensor_parallel_size": size},
        }
    )
    assume(not check(config, {}))
    shape = resolved_model(config)
    sharing = max(1, size // shape.num_key_value_heads)
    pieces = []
    for rank in range(size):
        with torch.device("meta"):
            sharded = GPT(shape, tp=TensorParallel(rank, size, head_size=sharing))
        check_placements(sharded)
        shapes = {name: tuple(parameter.shape) for name, parameter in sharded.named_parameters()}
        for name, parts in sharded.parameter_slices().items():
            assert all(box_shape(part.box)[1:] == shapes[name][1:] for part in parts)
            # What is not sharded is held by every rank, and saved by one.
            held = [
                part
                for part in parts
                if box_size(part.box) and (rank == 0 or part.box != full_box(part.shape))
            ]
            pieces += [(part.name, part.shape, part.box) for part in held]
    check_complete(
        build_index(
            PieceEntry(TensorEntry("master", name, shape, "F32"), box, (0, box_size(box)))
            for name, shape, box in pieces
        )
    )
