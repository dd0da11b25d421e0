"""What the checks of the settings let pass can be cut: the ranks hold every element of every tensor once."""

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

sections = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([24, 48, 60]),
        "num_attention_heads": st.sampled_from([1, 2, 3, 4, 6, 12]),
        "num_key_value_heads": st.sampled_from([None, 1, 2, 3, 4, 6]),
        "head_dim": st.sampled_from([None, 2, 6, 8, 10]),
        "intermediate_size": st.sampled_from([None, 20, 36, 40]),
        "mlp": st.sampled_from(["swiglu", "gelu"]),
        "attention_bias": st.booleans(),
        "qk_norm": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(sections, st.sampled_from([2, 3, 4, 6, 8]))
def test_accepted_sizes_are_shared_out_whole(model: dict[str, object], size: int) -> None:
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
            cut = GPT(shape, tp=TensorParallel(rank, size, head_size=sharing))
        check_placements(cut)
        shapes = {name: tuple(parameter.shape) for name, parameter in cut.named_parameters()}
        for name, parts in cut.parameter_slices().items():
            assert all(box_shape(part.box)[1:] == shapes[name][1:] for part in parts)
            # What is not cut is held by every rank, and saved by one.
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
