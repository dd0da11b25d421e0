"""How many FLOPs a token of a run takes, by its plan and by the documents of a batch."""

from __future__ import annotations

import numpy as np

from llmkit.data.rank_batch import RankBatch
from llmkit.monitor.flops import causal_flops_per_token, recomputed_flops_per_token, train_flops_per_token
from llmkit.plan import Plan


class Work:
    """FLOPs of forward and backward for a token of a run.

    full: by the convention of `train_flops_per_token`. recomputed: beside them, of activation checkpointing.
    """

    def __init__(self, plan: Plan) -> None:
        config, layout = plan.config, plan.layout
        self._model, length = plan.model, config.data.sequence_length
        self._adapters = plan.num_trained if config.train.lora.rank else 0
        self.full = train_flops_per_token(plan.model, length, self._adapters)
        how, every = layout.activation_checkpointing, layout.activation_checkpointing_every
        self.recomputed = recomputed_flops_per_token(plan.model, length, how, every, self._adapters)
        self._causal = causal_flops_per_token(plan.model, [length], self._adapters)

    def causal(self, batch: RankBatch) -> float | None:
        """What causal attention needs for the tokens of this rank's part of a batch; None = not known.

        Where documents are masked from each other, each is a sequence.
        """
        bounds = [micro.bounds.numpy() for micro in batch.micro_batches if micro.bounds is not None]
        if not bounds or self._causal is None:
            return self._causal
        lengths = np.concatenate([np.diff(each) for each in bounds])
        return causal_flops_per_token(self._model, lengths[lengths > 0], self._adapters)
