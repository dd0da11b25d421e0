"""Checks of what is kept of activations: tiles of the MLP, inputs of blocks on the host."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.context import context_form, row_pieces
from llmkit.config.mistakes import Mistake
from llmkit.config.model_section import Model
from llmkit.config.schema import Config
from llmkit.config.settings import Settings

_TILE, _OFFLOAD, _RECOMPUTE = (
    "kernels.mlp_tile", "parallel.offload_activations", "parallel.activation_checkpointing"
)  # fmt: skip
MANY_TILES = 16
"""More of them are noted where gradients are summed in bf16: docs/parallelism.md has the errors."""


def check_activations(s: Settings) -> Iterator[Mistake]:
    """Checks that what is asked for changes what is kept, and nothing of what is computed."""
    config, model = s.config, s.config.model
    ours = isinstance(model, Model)
    asked = {_TILE: config.kernels.mlp_tile > 0, _OFFLOAD: config.parallel.offload_activations}
    for path, wanted in asked.items():
        if wanted and not ours:
            note = "only llmkit's own model knows it; leave it out"
            yield s.mistake("{0} has no effect on {1}", path, "model.type", note=note)
    if config.parallel.offload_activations and config.parallel.activation_checkpointing != "full":
        note = "inputs of blocks lie on the host where they alone are kept; set full"
        yield s.mistake("{0} does not go with {1}", _OFFLOAD, _RECOMPUTE, note=note)
    if not config.kernels.mlp_tile or not isinstance(model, Model):
        return
    if config.parallel.activation_checkpointing == "selective":
        note = "it keeps the products of all tiles; choose full, or none"
        yield s.mistake("{0} does not go with {1}", _TILE, _RECOMPUTE, note=note)
    if config.train.precision == "fp8":
        note = "a scale in 8 bits is that of all positions of a product; set the tile to 0"
        yield s.mistake("{0} does not go with {1}", _TILE, "train.precision", note=note)
    if model.moe.num_experts:
        note = "experts take what the router sends them, wherever it is in a sequence; set the tile to 0"
        yield s.mistake("{0} does not go with {1}", _TILE, "model.moe.num_experts", note=note)
    stage = config.parallel.zero_stage if s.facts.zero_stage is None else s.facts.zero_stage
    counts = tiles_of_ranks(config)
    if stage == 3 and len(counts) > 1:
        least, most = min(counts), max(counts)
        note = (
            "at stage 3 all ranks gather the weights of a tile together, and one would wait for the others; "
            "choose another tile, or rows of which every rank has as many tokens"
        )
        what = f"{{0}} cuts the pieces of {{1}} into {least} tiles on some ranks and {most} on others"
        yield s.mistake(what, _TILE, "parallel.context_parallel_size", "data.sequence_length", note=note)


def tiles_of_ranks(config: Config) -> set[int]:
    """How many tiles the MLP of a block has, on the ranks that share a row; they may differ by one."""
    parallel, tile, length = config.parallel, config.kernels.mlp_tile, config.data.row_length
    if not tile or length < 2 * parallel.context_parallel_size:
        return {1}  # another check says that rows are too short
    pieces = row_pieces(length, parallel.context_parallel_size, context_form(config))
    sizes = {sum(stop - start for start, stop in ranges) for ranges in pieces}
    if parallel.sequence_parallel:  # each of the ranks has its part of a tile, as in `llmkit.model.block`
        ranks = parallel.tensor_parallel_size
        sizes, tile = {size // ranks for size in sizes}, max(1, tile // ranks)
    return {max(1, -(-size // tile)) for size in sizes}


def activation_remarks(s: Settings) -> Iterator[str]:
    """Yields a note on so many tiles that gradients of weights, which are summed in bf16, lose digits."""
    config = s.config
    most = max(tiles_of_ranks(config))
    if config.train.precision == "bf16" and isinstance(config.model, Model) and most > MANY_TILES:
        yield (
            f"{s.describe(_TILE)} makes {most:,} tiles, over which gradients of the MLP's weights are summed "
            f"in bf16: the more tiles, the more is rounded away (docs/parallelism.md). A tile of "
            f"{-(-config.kernels.mlp_tile * most // MANY_TILES):,} or more makes no more than {MANY_TILES}"
        )
