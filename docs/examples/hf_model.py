"""A causal language model of Hugging Face's transformers, trained by llmkit from fresh weights.

In the configuration: `plugins: [hf_model]` and
`model: {type: hf, architecture: llama, settings: {hidden_size: 256, num_hidden_layers: 4}}`.
"""

from typing import Any

from pydantic import Field
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import llmkit


@llmkit.register("model", "hf")
class HuggingFace(llmkit.Model):
    """Any architecture that AutoModelForCausalLM knows."""

    class Config(llmkit.Section):
        """A model of transformers."""

        architecture: str
        """Its `model_type`, such as llama, qwen3 or gpt_neox."""
        settings: dict[str, Any] = Field(default={})
        """Settings of its configuration, by their names in transformers."""

    def __init__(self, config: Config, context: llmkit.ModelContext) -> None:
        super().__init__()
        sizes = {"vocab_size": context.vocab_size, "max_position_embeddings": context.sequence_length}
        self.model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.architecture, **sizes | config.settings)
        )

    def forward(self, batch: llmkit.Batch) -> llmkit.LossSum:
        """The only duty; each sequence is one document to such a model."""
        return llmkit.LossSum.of_logits(self.model(batch.tokens, use_cache=False).logits, batch.labels)

    def logits(self, tokens: Tensor, cache: None = None) -> Tensor:
        """For sampling."""
        return self.model(tokens, use_cache=False).logits[:, -1].float()
