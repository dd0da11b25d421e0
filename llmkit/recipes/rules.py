"""From a size to all that depends on it: vocabulary, context, tokens, batch, steps, rates.

The rules with their sources are in docs/recipes.md, their constants in `recipe.py`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from llmkit.config.derive import resolved_model
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.monitor.flops import train_flops_per_token
from llmkit.recipes import recipe
from llmkit.recipes.recipe import Setting

DEEPEST = 128
"""Blocks of the largest model that a rule is asked about."""
MOST_VOCABULARY, MOST_CONTEXT = 32768, 2048


@dataclass(frozen=True)
class Text:
    """How text becomes rows: tokens of the vocabulary and of a row; None = by the model's width."""

    vocab_size: int | None = None
    sequence_length: int | None = None


@dataclass(frozen=True)
class Size:
    """A model of the family, with its text."""

    depth: int
    width: int
    vocab_size: int
    sequence_length: int

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return head_dim(self.width)

    @property
    def model(self) -> dict[str, Setting]:
        """The section `model` of a configuration."""
        heads = self.width // self.head_dim
        return {
            "hidden_size": Setting(self.width, f"{self.width / self.depth:.0f} for each block"),
            "num_hidden_layers": Setting(self.depth),
            "num_attention_heads": Setting(heads, f"of {self.head_dim} each"),
            "num_key_value_heads": Setting(heads, "fewer save memory when generating, and cost loss"),
            **recipe.MODEL,
            "initializer_range": recipe.INITIAL.setting(self.width),
        }

    @cached_property
    def shape(self) -> ModelShape:
        """With every default filled in."""
        model = {name: setting.value for name, setting in self.model.items()}
        data = {"sources": [{"type": "stdlib"}], "sequence_length": self.sequence_length}
        shape = resolved_model(
            Config.model_validate({"model": model | {"vocab_size": self.vocab_size}, "data": data})
        )
        assert isinstance(shape, ModelShape)
        return shape


def head_dim(width: int) -> int:
    """Width of a head in a model of this width: attention's kernels are fastest at 64 and 128."""
    return 128 if width >= 1024 else 64 if width >= 128 else 32


def vocabulary(width: int) -> int:
    """Tokens of a tokenizer that is trained for a model of this width."""
    return min(MOST_VOCABULARY, 2 ** int(math.log2(32 * width)))


def context(width: int) -> int:
    """Tokens of a row: at most twice the width, so that attention stays below a quarter of all products."""
    return min(MOST_CONTEXT, 2 ** int(math.log2(2 * width)))


def sized(depth: int, width: int, text: Text) -> Size:
    """A model of this depth and width, with what its text leaves open."""
    return Size(depth, width, text.vocab_size or vocabulary(width), text.sequence_length or context(width))


@dataclass(frozen=True)
class Budget:
    """How long a model is trained: tokens, in steps of `rows` sequences; flops: of the whole run."""

    tokens: int
    rows: int
    steps: int
    flops: float


def counted_parameters(shape: ModelShape) -> int:
    """Weights of the blocks' matrices and of the head (a tied one too), which tokens are counted by.

    Tables that are only looked up in do not count.
    """
    matrices = sum(math.prod(tensor.shape) for tensor in shape.tensors if tensor.hidden)
    return matrices + shape.vocab_size * shape.hidden_size


def best_batch(tokens: float) -> float:
    """Tokens of a step, for a run over so many."""
    line = recipe.BATCH_TOKENS * (tokens / recipe.BATCH_AT_TOKENS) ** recipe.BATCH_EXPONENT
    return min(line, tokens / recipe.LEAST_STEPS)


def budget(size: Size, tokens: float | None = None) -> Budget:
    """The training of a model: over so many tokens, or as many as are optimal for the compute it takes."""
    shape = size.shape
    if tokens is None:
        tokens = recipe.TOKENS_PER_PARAMETER * counted_parameters(shape)
    length = size.sequence_length
    most = math.floor(math.log2(tokens / recipe.LEAST_STEPS / length) + 1e-9)
    rows = 2 ** max(0, min(round(math.log2(best_batch(tokens) / length)), most))
    steps = max(1, round(tokens / (rows * length)))
    trained = steps * rows * length
    return Budget(trained, rows, steps, float(trained) * train_flops_per_token(shape, length))


def weight_decay(learning_rate: float, steps: int) -> float:
    """The decay whose average over past updates spans the same share of the run as at `recipe.STEPS`.

    That share is 1 / (rate x decay x steps) (Wang and Aitchison 2024).
    """
    spans = recipe.MATRICES.value * recipe.WEIGHT_DECAY * recipe.STEPS
    return spans / (learning_rate * steps)


def by_depth(depth: int, text: Text) -> Size:
    """The model of so many blocks."""
    if not 1 <= depth <= DEEPEST:
        raise UserError(f"new: --depth is {depth}; it must be from 1 to {DEEPEST}")
    usual = recipe.WIDTH_PER_LAYER * depth
    step = head_dim(usual)
    return sized(depth, max(1, round(usual / step)) * step, text)


def by_parameters(parameters: float, text: Text) -> Size:
    """The model whose number of weights is nearest."""
    return _nearest(parameters, "--params", lambda size: float(size.shape.num_parameters), text)


def by_flops(flops: float, text: Text, asked: str = "--flops") -> Size:
    """The model whose optimal training takes most nearly so many FLOPs. asked: the option, for messages."""
    return _nearest(flops, asked, lambda size: budget(size).flops, text)


def _nearest(target: float, asked: str, measure: Callable[[Size], float], text: Text) -> Size:
    """The model for which `measure`, which grows with depth and width, comes nearest to the target.

    A width that is not the usual one for its depth counts as a distance, too. Up to 3 blocks may be wider or
    narrower by less than a head, as there are few widths of whole heads otherwise.
    """
    depths = range(1, DEEPEST)
    depth = 1 + bisect.bisect_left(depths, target, key=lambda depth: measure(by_depth(depth, text)))
    least, most = recipe.WIDTHS_PER_LAYER
    sizes = []
    for blocks in range(max(1, depth - 2), min(DEEPEST, depth + 2) + 1):
        for width in range(32, (most + 1) * blocks + 128, 32):
            step = head_dim(width)
            slack = step - 1 if blocks <= 3 else 0
            if width % step == 0 and least * blocks - slack <= width <= most * blocks + slack:
                sizes.append(sized(blocks, width, text))

    def distance(size: Size) -> float:
        usual = math.log(size.width / size.depth / recipe.WIDTH_PER_LAYER)
        return abs(math.log(measure(size) / target)) + 0.2 * abs(usual)

    best = min(sizes, key=distance)
    found = measure(best)
    if not 0.5 < found / target < 2.0:
        end = "largest" if found < target else "smallest"
        raise UserError(
            f"new: {asked} asks for {target:.3g}; the {end} model of this family has {found:.3g} "
            f"({best.depth} blocks of {best.width}): ask for {'less' if found < target else 'more'}"
        )
    return best
