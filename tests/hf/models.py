"""Small random models of transformers' own classes: odd sizes, no bias at zero, no norm at one."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.hf.architectures import QWEN2_PIECES
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.shapes import randomise

LLAMA: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 5e3},
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 97, "n_embd": 44, "n_inner": 100, "n_layer": 3, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.2,
}  # fmt: skip
MIXTURE: dict[str, Any] = LLAMA | {"num_experts_per_tok": 2, "num_hidden_layers": 3}
STABLELM: dict[str, Any] = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama-biases-tied": (
        "llama",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 10},
    ),
    "mistral": ("mistral", LLAMA | {"sliding_window": None}),
    "mistral-window": ("mistral", LLAMA | {"sliding_window": 7, "head_dim": 14}),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 14, "num_attention_heads": 5, "num_key_value_heads": 5}),
    "qwen3-window": (
        "qwen3",
        LLAMA | {"head_dim": 10, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0},
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", GPT2 | {"n_inner": None, "tie_word_embeddings": False}),
    "granite": (
        "granite",
        LLAMA | {
            "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7,
            "logits_scaling": 2.5,
        },
    ),
    "llama3-rope": (
        "llama",
        LLAMA | {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
    ),
    "qwen2": ("qwen2", LLAMA),
    "qwen2-mixed-windows-yarn": (
        "qwen2",
        LLAMA | {
            "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5,
            "max_window_layers": 2,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "olmo2": (
        "olmo2", LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}},
    ),
    "olmo2-biases": ("olmo2", LLAMA | {"attention_bias": True, "num_key_value_heads": 6}),
    "stablelm": ("stablelm", STABLELM | {"use_qkv_bias": True, "layer_norm_eps": 3e-3}),
    "stablelm-yarn": (
        "stablelm",
        STABLELM | {
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0, "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "phi3": (
        "phi3",
        LLAMA | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.75},
            "tie_word_embeddings": True, "original_max_position_embeddings": 64,
        },
    ),
    "phi3-window": (
        "phi3",
        LLAMA | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.4},
            "sliding_window": 7, "head_dim": 10, "original_max_position_embeddings": 64,
        },
    ),
    "mixtral": ("mixtral", MIXTURE | {"num_local_experts": 5}),
    "mixtral-window-tied": (
        "mixtral",
        MIXTURE | {"num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 7, "head_dim": 10,
        "tie_word_embeddings": True},
    ),
    "qwen3-moe": ("qwen3_moe", MIXTURE | {"num_experts": 7, "moe_intermediate_size": 20, "head_dim": 14}),
    "qwen3-moe-some-layers": (
        "qwen3_moe",
        MIXTURE | {
            "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "mlp_only_layers": [0],
            "num_hidden_layers": 4, "decoder_sparse_step": 2, "norm_topk_prob": True,
        },
    ),
    "olmoe": ("olmoe", MIXTURE | {"num_experts": 5, "num_experts_per_tok": 3}),
    "olmoe-normalised": (
        "olmoe", MIXTURE | {"num_experts": 4, "norm_topk_prob": True, "attention_bias": True},
    ),
    "gemma": ("gemma", LLAMA | {"head_dim": 14, "hidden_size": 50, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        LLAMA | {
            "head_dim": 14, "sliding_window": 6, "query_pre_attn_scalar": 11, "tie_word_embeddings": True,
            "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        LLAMA | {
            "head_dim": 14, "sliding_window": 6, "query_pre_attn_scalar": 11, "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}  # fmt: skip
"""Name -> model_type and the keys of its config.json."""


def make(case: str, **changes: Any) -> PreTrainedModel:
    """A model of transformers in fp32, the same every time."""
    kind, settings = CASES[case]
    config = AutoConfig.for_model(kind, **deepcopy(settings | changes))  # which it changes
    return randomise(AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval())


def save(case: str, folder: Path, shard: str = "1GB", **changes: Any) -> PreTrainedModel:
    """The same, saved as transformers saves it."""
    model = make(case, **changes)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def qwen2_tokenizer() -> Tokenizer:
    """A token a byte, with text cut as Qwen 2 does, which transformers takes for no other tokenizer."""
    spec = json.loads(bytes_tokenizer("<|endoftext|>").files()["tokenizer.json"])
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = QWEN2_PIECES
    return Tokenizer(json.dumps(spec | {"normalizer": {"type": "NFC"}}), "<|endoftext|>")


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """(batch, seq, vocab) of transformers."""
    return model(input_ids=tokens).logits
