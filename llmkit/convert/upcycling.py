"""A mixture of experts made of a dense model: sparse upcycling (Komatsuzaki et al. 2023)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.config.model_section import Moe
from llmkit.config.parameters import EXPERTS
from llmkit.config.shape import ModelShape
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.model.initial import normal_, stream_key
from llmkit.parallel.slices import Box, Shape, box_shape, box_size
from llmkit.weights import Weights, model_of

ROUTER_STD = 0.02
"""Standard deviation of the routers' weights, which are random: with equal ones every token would go to the
same experts."""


class Upcycled:
    """The weights of a mixture, each expert of which is a copy of the MLP of a dense model.

    The weights of a token's experts sum up to 1, so that the mixture computes what the dense model does,
    wherever its routers send tokens. They are drawn by `seed`. Satisfies `Weights`. Raises UserError for a
    model of which there is no such mixture.
    """

    def __init__(self, dense: Weights, experts: int, per_token: int, seed: int = 0) -> None:
        shape = model_of(dense)
        if not isinstance(shape, ModelShape):
            raise UserError(f"{dense.path}: --upcycle is for llmkit's own GPT, and this is another model")
        if shape.moe.num_experts:
            raise UserError(f"{dense.path}: it is a mixture of experts already; leave --upcycle out")
        if shape.mlp_bias:
            raise UserError(f"{dense.path}: its MLP has biases, and experts have none: it cannot be upcycled")
        self._dense, self._seed = dense, seed
        moe = Moe(
            num_experts=experts, num_experts_per_tok=per_token,
            moe_intermediate_size=shape.intermediate_size, norm_topk_prob=True,
        )  # fmt: skip
        self.model_shape = replace(shape, moe=moe)  # which refuses more experts for a token than there are
        self._shapes = self.model_shape.parameters()

    @property
    def path(self) -> Path:
        """The folder of the dense model."""
        return self._dense.path

    @property
    def origin(self) -> str:
        """See `Weights.origin`."""
        return self._dense.origin

    @property
    def model(self) -> Mapping[str, Any]:
        """See `Weights.model`."""
        return self.model_shape.to_dict()

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Weights.config`: no run made it."""
        return {}

    def names(self) -> Collection[str]:
        """See `Weights.names`."""
        return self._shapes.keys()

    def shape(self, name: str) -> Shape:
        """See `Weights.shape`."""
        return self._shapes[name]

    def read(self, name: str, region: Box) -> Tensor:
        """See `Weights.read`. Routers are fp32."""
        if name.endswith(".router.weight"):
            drawn = torch.empty(box_size(region))
            normal_(drawn, ROUTER_STD, stream_key(self._seed, name), self._shapes[name], region)
            return drawn.view(box_shape(region))
        return self._dense.read(_of_dense(name), region)

    def tokenizer(self) -> Tokenizer:
        """See `Weights.tokenizer`."""
        return self._dense.tokenizer()

    def digest(self) -> str:
        """See `Weights.digest`: that of the dense model, of which all of it follows."""
        moe = self.model_shape.moe
        return f"{self._dense.digest()}-{moe.num_experts}-{moe.num_experts_per_tok}-{self._seed}"


def _of_dense(name: str) -> str:
    """The dense model's tensor of which this one is a copy: blocks.0.mlp.experts.3.up_proj.weight is one of
    blocks.0.mlp.up_proj.weight."""
    before, found, after = name.partition(EXPERTS)
    return f"{before}.mlp.{after.partition('.')[2]}" if found else name
