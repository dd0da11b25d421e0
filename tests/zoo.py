"""What published config.json files say of the models in configs/models, and their numbers of weights."""

from __future__ import annotations

from typing import Any

Keys = dict[str, Any]


def _llama3(factor: float) -> Keys:
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def _gpt2(width: int, layers: int, heads: int) -> Keys:
    return {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": width, "n_layer": layers, "n_head": heads,
        "n_positions": 1024, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
    }  # fmt: skip


def _keys(
    kind: str, vocab: int, width: int, layers: int, heads: int, kv_heads: int, inner: int, **further: Any
) -> Keys:
    return {
        "model_type": kind, "vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": inner,
        "pad_token_id": None, **further,
    }  # fmt: skip


LLAMA_3: Keys = {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072}
QWEN: Keys = {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
MISTRAL: Keys = {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768}
SMOLLM: Keys = {"rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": True}
OLMO: Keys = {"rms_norm_eps": 1e-6, "rope_theta": 500000.0, "max_position_embeddings": 4096}
GEMMA: Keys = {"head_dim": 256, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh"}
SLIDING, FULL = "sliding_attention", "full_attention"

CONFIGS: dict[str, tuple[int, Keys]] = {
    "gpt2-124m": (124_439_808, _gpt2(768, 12, 12)),
    "gpt2-355m": (354_823_168, _gpt2(1024, 24, 16)),
    "gpt2-774m": (774_030_080, _gpt2(1280, 36, 20)),
    "gpt2-1558m": (1_557_611_200, _gpt2(1600, 48, 25)),
    "llama-3.2-1b": (
        1_235_814_400,
        _keys("llama", 128256, 2048, 16, 32, 8, 8192, head_dim=64, tie_word_embeddings=True,
              rope_scaling=_llama3(32.0), **LLAMA_3),
    ),
    "llama-3.2-3b": (
        3_212_749_824,
        _keys("llama", 128256, 3072, 28, 24, 8, 8192, head_dim=128, tie_word_embeddings=True,
              rope_scaling=_llama3(32.0), **LLAMA_3),
    ),
    "llama-3.1-8b": (
        8_030_261_248,
        _keys("llama", 128256, 4096, 32, 32, 8, 14336, rope_scaling=_llama3(8.0), **LLAMA_3),
    ),
    "llama-3.1-70b": (
        70_553_706_496,
        _keys("llama", 128256, 8192, 80, 64, 8, 28672, rope_scaling=_llama3(8.0), **LLAMA_3),
    ),
    "llama-3.1-405b": (
        405_853_388_800,
        _keys("llama", 128256, 16384, 126, 128, 8, 53248, rope_scaling=_llama3(8.0), **LLAMA_3),
    ),
    "qwen2.5-0.5b": (
        494_032_768,
        _keys("qwen2", 151936, 896, 24, 14, 2, 4864, max_position_embeddings=32768, max_window_layers=24,
              use_sliding_window=False, sliding_window=32768, tie_word_embeddings=True, **QWEN),
    ),
    "qwen2.5-7b": (
        7_615_616_512,
        _keys("qwen2", 152064, 3584, 28, 28, 4, 18944, max_position_embeddings=131072, max_window_layers=28,
              use_sliding_window=False, sliding_window=131072, tie_word_embeddings=False, **QWEN),
    ),
    "qwen3-0.6b": (
        596_049_920,
        _keys("qwen3", 151936, 1024, 28, 16, 8, 3072, head_dim=128, max_position_embeddings=32768,
              max_window_layers=28, use_sliding_window=False, sliding_window=None, attention_bias=False,
              tie_word_embeddings=True, **QWEN),
    ),
    "qwen3-8b": (
        8_190_735_360,
        _keys("qwen3", 151936, 4096, 36, 32, 8, 12288, head_dim=128, max_position_embeddings=32768,
              max_window_layers=36, use_sliding_window=False, sliding_window=None, attention_bias=False,
              tie_word_embeddings=False, **QWEN),
    ),
    "mistral-7b-v0.1": (
        7_241_732_096,
        _keys("mistral", 32000, 4096, 32, 32, 8, 14336, rope_theta=10000.0, sliding_window=4096, **MISTRAL),
    ),
    "mistral-7b-v0.3": (
        7_248_023_552,
        _keys("mistral", 32768, 4096, 32, 32, 8, 14336, rope_theta=1000000.0, sliding_window=None, **MISTRAL),
    ),
    "smollm2-135m": (
        134_515_008,
        _keys("llama", 49152, 576, 30, 9, 3, 1536, rope_theta=100000, rope_interleaved=False,
              initializer_range=0.041666666666666664, **SMOLLM),
    ),
    "smollm2-360m": (
        361_821_120,
        _keys("llama", 49152, 960, 32, 15, 5, 2560, rope_theta=100000, rope_interleaved=False, **SMOLLM),
    ),
    "smollm2-1.7b": (
        1_711_376_384,
        _keys("llama", 49152, 2048, 24, 32, 32, 8192, rope_theta=130000, **SMOLLM),
    ),
    "olmo2-1b": (1_484_916_736, _keys("olmo2", 100352, 2048, 16, 16, 16, 8192, **OLMO)),
    "olmo2-7b": (7_298_617_344, _keys("olmo2", 100352, 4096, 32, 32, 32, 11008, **OLMO)),
    "gemma-2b": (
        2_506_172_416,
        _keys("gemma", 256000, 2048, 18, 8, 1, 16384, max_position_embeddings=8192,
              rope_theta=10000.0, **GEMMA),
    ),
    "gemma2-2b": (
        2_614_341_888,
        _keys("gemma2", 256000, 2304, 26, 8, 4, 9216, max_position_embeddings=8192, rope_theta=10000.0,
              sliding_window=4096, query_pre_attn_scalar=256, attn_logit_softcapping=50.0,
              final_logit_softcapping=30.0, **GEMMA),
    ),
    "gemma3-1b": (
        999_885_952,
        _keys("gemma3_text", 262144, 1152, 26, 4, 1, 6912, max_position_embeddings=32768,
              rope_theta=1000000.0, rope_local_base_freq=10000.0, sliding_window=512,
              sliding_window_pattern=6, query_pre_attn_scalar=256, **GEMMA),
    ),
    "mixtral-8x7b": (
        46_702_792_704,
        _keys("mixtral", 32000, 4096, 32, 32, 8, 14336, rope_theta=1000000.0, sliding_window=None,
              num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02,
              output_router_logits=False, **MISTRAL),
    ),
    "qwen3-30b-a3b": (
        30_532_122_624,
        _keys("qwen3_moe", 151936, 2048, 48, 32, 4, 6144, head_dim=128, max_position_embeddings=32768,
              num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
              decoder_sparse_step=1, mlp_only_layers=[], router_aux_loss_coef=0.001,
              output_router_logits=False, use_sliding_window=False, sliding_window=None, max_window_layers=48,
              attention_bias=False, **QWEN),
    ),
    "olmoe-1b-7b": (
        6_919_161_856,
        _keys("olmoe", 50304, 2048, 16, 16, 16, 1024, num_experts=64, num_experts_per_tok=8, clip_qkv=None,
              norm_topk_prob=False, router_aux_loss_coef=0.01, output_router_logits=False, rms_norm_eps=1e-5,
              rope_theta=10000.0, max_position_embeddings=4096, attention_bias=False),
    ),
}  # fmt: skip
"""Name -> number of weights as published, and keys of config.json."""

GPT3 = {
    "gpt3-125m": 125e6, "gpt3-350m": 350e6, "gpt3-760m": 760e6, "gpt3-1.3b": 1.3e9, "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9, "gpt3-13b": 13e9, "gpt3-175b": 175e9,
}  # fmt: skip
"""Numbers of weights in table 2.1 of Brown et al. 2020."""
