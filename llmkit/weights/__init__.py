"""Trained weights, whatever the format they are stored in."""

from llmkit.weights.adapted import AdaptedCheckpoint, AdaptedFolder
from llmkit.weights.base import Weights, model_of
from llmkit.weights.checkpoint import CheckpointWeights
from llmkit.weights.opening import base_path, look_at, open_base, open_weights, read_model, weights_of

__all__ = [
    "AdaptedCheckpoint", "AdaptedFolder", "CheckpointWeights", "Weights", "base_path",
    "look_at", "model_of", "open_base", "open_weights", "read_model", "weights_of",
]  # fmt: skip
