"""Checks of what is kept of activations: tiles of the MLP, inputs of blocks on the host."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.mistakes import Mistake
from llmkit.config.model_section import Model
from llmkit.config.settings import Settings

_TILE, _OFFLOAD, _RECOMPUTE = (
    "kernels.mlp_tile", "parallel.offload_activations", "parallel.activation_checkpointing"
)  # fmt: skip


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
