"""transformers' Llama at its defaults, trained as its Trainer does by default.

LlamaConfig: SwiGLU, RMSNorm, rotary positions, an untied head, initial weights of 0.02; the MLP is 2.7 times
as wide, as in the first Llama. Trainer: AdamW at 5e-5, betas 0.9 and 0.999, eps 1e-8, no weight decay,
clipping at 1, no warm-up, linear to 0.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning_contenders import Task
from benchmarks.learning_contenders.plain import Plain, adamw_update, summed_cross_entropy
from benchmarks.learning_sizes import Size

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, CLIPPING = 5e-5, (0.9, 0.999), 1e-8, 0.0, 1.0
MLP_RATIO, MLP_MULTIPLE = 8 / 3, 64


def settings(name: str, size: Size) -> dict[str, Any]:
    """The recipe; what is not here is LlamaConfig's default."""
    return {
        "model": {
            "num_hidden_layers": size.layers,
            "hidden_size": size.width,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "intermediate_size": -(-round(MLP_RATIO * size.width) // MLP_MULTIPLE) * MLP_MULTIPLE,
            "max_position_embeddings": size.length,
        },
        "learning_rate": LEARNING_RATE, "betas": list(BETAS), "eps": EPS,
        "weight_decay": WEIGHT_DECAY, "clipping": CLIPPING, "schedule": "linear",
    }  # fmt: skip


def build(name: str, task: Task) -> Plain:
    """The model with its optimizer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(task.seed)
    shape = settings(name, task.size)["model"]
    config: Any = LlamaConfig(
        **shape, vocab_size=task.text.vocabulary, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    from_config: Any = AutoModelForCausalLM.from_config
    model: Any = from_config(config, attn_implementation="sdpa").float().train()
    update = adamw_update(
        model,
        rate=lambda number: task.factor * LEARNING_RATE * (1.0 - (number - 1) / task.steps),
        betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, clipping=CLIPPING,
    )  # fmt: skip

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        return summed_cross_entropy(model(input_ids=tokens).logits, labels)

    return Plain(model, loss, update, compiled=task.compiled, autocast=task.precision == "bf16")
