"""A model of one's own: causal convolutions where a GPT has attention.

In the configuration: `plugins: [own_model]` and `model: {type: convolution, width: 128}`.
"""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import llmkit


class Block(nn.Module):
    """x + mlp(convolution(norm(x)))."""

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, reach, padding=reach - 1, groups=width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.convolution(self.norm(x).mT)[..., : x.shape[1]].mT
        return x.add(self.down(F.silu(self.up(mixed))))


@llmkit.register("model", "convolution")
class Convolution(llmkit.Model):
    """A causal convolutional language model."""

    class Config(llmkit.Section):
        """Sizes of the convolutional model."""

        width: Annotated[int, Field(ge=1)] = 64
        """Width of the residual stream."""
        layers: Annotated[int, Field(ge=1)] = 2
        """Number of blocks."""
        reach: Annotated[int, Field(ge=1)] = 5
        """Positions that a block sees, its own included."""

    def __init__(self, config: Config, context: llmkit.ModelContext) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.reach) for _ in range(config.layers))
        self.head = nn.Linear(config.width, context.vocab_size, bias=False)

    def forward(self, batch: llmkit.Batch) -> llmkit.LossSum:
        return llmkit.LossSum.of_logits(self._logits(batch.tokens), batch.labels)

    def logits(self, tokens: Tensor, cache: None = None) -> Tensor:
        """Only for sampling."""
        return self._logits(tokens)[:, -1].float()

    def _logits(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        for block in (*self.blocks, self.head):
            x = block(x)
        return x
