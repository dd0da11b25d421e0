"""Every architecture against transformers' own class: weights that it has saved give its logits."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.errors import UserError
from llmkit.hf.choose import ARCHITECTURES, read_shape
from llmkit.hf.config_json import NO_EFFECT, OF_GENERATION
from llmkit.hf.folder import HFFolder
from llmkit.inference import load_model
from llmkit.precision import PRECISIONS
from tests.hf.models import CASES, GPT2, LLAMA, STABLELM, logits, save
from tests.shapes import randomise

TOLERANCE = 1e-5
SAME_SIZE = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "n_embd",
    "n_layer", "n_head", "n_inner", "initializer_range", "layer_types", "rope_parameters",
})  # fmt: skip
"""Keys that `CASES` vary, or that are not of what a model computes."""
LINEAR = {"rope_type": "linear", "factor": 3.0}
CHANGES: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (True,), "num_key_value_heads": (1, 6), "head_dim": (8, 12),
    "hidden_act": ("gelu", "relu"), "hidden_activation": ("gelu", "silu"),
    "activation_function": ("gelu", "gelu_pytorch_tanh", "relu"), "max_position_embeddings": (40,),
    "n_positions": (40,), "rms_norm_eps": (3e-3,), "layer_norm_epsilon": (3e-3,),
    "tie_word_embeddings": (True, False), "use_sliding_window": (True,), "sliding_window": (None, 4),
    "max_window_layers": (1,), "attention_dropout": (0.3,), "resid_pdrop": (0.3,), "embd_pdrop": (0.3,),
    "attn_pdrop": (0.3,), "attention_bias": (True,), "mlp_bias": (True,), "scale_attn_weights": (False,),
    "scale_attn_by_inverse_layer_idx": (True,), "add_cross_attention": (True,),
    "embedding_multiplier": (2.0,), "logits_scaling": (2.0,), "residual_multiplier": (2.0,),
    "attention_multiplier": (2.0,), "use_bidirectional_attention": (True,), "query_pre_attn_scalar": (7,),
    "final_logit_softcapping": (None, 1.0), "attn_logit_softcapping": (None, 1.0),
    "num_experts": (3,), "num_local_experts": (3,), "num_experts_per_tok": (1,), "norm_topk_prob": (True,),
    "moe_intermediate_size": (20,), "router_aux_loss_coef": (0.5,), "router_jitter_noise": (0.1,),
    "output_router_logits": (True,), "mlp_only_layers": ([0], [1]), "decoder_sparse_step": (2,),
    "clip_qkv": (1.0,),
    # Of older files:
    "rope_theta": (99.0,), "rope_scaling": (LINEAR,), "partial_rotary_factor": (0.5,),
    "rope_local_base_freq": (99.0,), "sliding_window_pattern": (2,),
    "layer_norm_eps": (3e-3,), "use_qkv_bias": (True,), "qk_layernorm": (True,),
    "use_parallel_residual": (True,), "hidden_dropout": (0.3,), "original_max_position_embeddings": (16,),
}  # fmt: skip
"""Key -> other values."""
COMMON = "attention_dropout max_position_embeddings num_key_value_heads tie_word_embeddings rope_theta"
LLAMAS = f"{COMMON} rms_norm_eps rope_scaling"
COMPUTED = {
    "llama": f"{LLAMAS} attention_bias mlp_bias head_dim",
    "mistral": f"{LLAMAS} head_dim sliding_window",
    "qwen2": f"{LLAMAS} sliding_window use_sliding_window max_window_layers",
    "qwen3": f"{LLAMAS} attention_bias head_dim sliding_window use_sliding_window max_window_layers",
    "olmo2": f"{LLAMAS} attention_bias",
    "granite": f"{LLAMAS} attention_bias mlp_bias attention_multiplier embedding_multiplier logits_scaling "
    "residual_multiplier",
    "gemma": f'{LLAMAS} attention_bias head_dim hidden_act="gelu"',
    "gemma2": f"{LLAMAS} attention_bias head_dim attn_logit_softcapping final_logit_softcapping "
    "query_pre_attn_scalar sliding_window=4 sliding_window_pattern",
    "gemma3_text": f"{LLAMAS} attention_bias head_dim attn_logit_softcapping=null final_logit_softcapping "
    "query_pre_attn_scalar sliding_window=4 sliding_window_pattern rope_local_base_freq",
    "stablelm": f"{COMMON} rope_scaling layer_norm_eps use_qkv_bias partial_rotary_factor",
    "mixtral": f"{LLAMAS} head_dim sliding_window num_local_experts num_experts_per_tok "
    "router_aux_loss_coef output_router_logits",
    "qwen3_moe": f"{LLAMAS} attention_bias sliding_window use_sliding_window num_experts_per_tok "
    "moe_intermediate_size norm_topk_prob router_aux_loss_coef output_router_logits mlp_only_layers=[0] "
    "decoder_sparse_step",
    "olmoe": f"{LLAMAS} attention_bias num_experts num_experts_per_tok norm_topk_prob "
    "router_aux_loss_coef output_router_logits",
    "phi3": f"{COMMON} rms_norm_eps sliding_window partial_rotary_factor original_max_position_embeddings",
    "gpt2": 'attn_pdrop layer_norm_epsilon n_positions tie_word_embeddings '
    'activation_function="gelu_pytorch_tanh"',
}
"""Class -> what must be computed: keys with all their values in `CHANGES`, or with one. The rest is refused,
or no model of transformers either."""
OLDER = (
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "sliding_window_pattern",
)


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_transformers(case, tmp_path):
    theirs = save(case, tmp_path)
    ours = load_model(HFFolder(tmp_path), torch.device("cpu"), PRECISIONS["fp32"])
    tokens = torch.randint(90, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = ours.head.logits(ours.hidden(tokens))
    wanted = logits(theirs, tokens)
    assert float((found - wanted).norm() / wanted.norm()) <= TOLERANCE


def said(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"


MIXTURE = LLAMA | {"num_experts": 5, "num_experts_per_tok": 2, "num_hidden_layers": 2}
BASES = {each.model_type: LLAMA for each in ARCHITECTURES} | {
    "gpt2": GPT2, "stablelm": STABLELM, "mixtral": LLAMA | {"num_hidden_layers": 2}, "olmoe": MIXTURE,
    "qwen3_moe": MIXTURE | {"moe_intermediate_size": 28},
}  # fmt: skip
"""Class -> the keys that are left as they are while one is changed."""


@pytest.mark.parametrize("kind", BASES)
def test_a_key_with_another_value_is_computed_or_refused(kind, tmp_path):
    """Every key of the class of transformers: its logits, or one message."""
    base = deepcopy(BASES[kind] | {"model_type": kind})
    base.pop("rope_parameters", None)
    keys = AutoConfig.for_model(kind).to_dict().keys() - NO_EFFECT - OF_GENERATION - SAME_SIZE
    tokens = torch.randint(90, (1, 37), generator=torch.Generator().manual_seed(1))
    computed: list[str] = []
    for key in [*sorted(keys), *OLDER]:
        for value in CHANGES[key]:
            (tmp_path / "config.json").write_text(json.dumps(base | {key: value}))
            try:
                config = AutoConfig.from_pretrained(tmp_path)
                theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
                wanted = logits(randomise(theirs.float().eval()), tokens)
            except (TypeError, ValueError, RuntimeError, StrictDataclassError):
                continue  # no model there either
            theirs.save_pretrained(tmp_path)  # of tied weights one; of experts a tensor each
            (tmp_path / "config.json").write_text(json.dumps(base | {key: value}))
            try:
                ours = load_model(HFFolder(tmp_path), torch.device("cpu"), PRECISIONS["fp32"])
            except UserError:
                continue
            with torch.no_grad():
                found = ours.head.logits(ours.hidden(tokens))
            # Of sharp scores rounding makes 1e-5; a key that is ignored makes far more.
            assert float((found - wanted).norm() / wanted.norm()) <= 1e-4, (key, value)
            computed.append(said(key, value))
    words = COMPUTED[kind].split()
    whole = [said(key, value) for key in CHANGES if key in words for value in CHANGES[key]]
    assert sorted(computed) == sorted([*whole, *(word for word in words if "=" in word)])


def test_every_architecture_has_its_case():
    assert {kind for kind, _ in CASES.values()} == {each.model_type for each in ARCHITECTURES}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_transformers_would_have_written(case, tmp_path):
    """The keys that matter, read again by transformers, have the values that they had."""
    theirs = save(case, tmp_path).config
    folder = HFFolder(tmp_path)
    written = folder.architecture.write(folder.model_shape)
    again = type(theirs)(**json.loads(json.dumps(written)))
    mine, wanted = again.to_dict(), theirs.to_dict()
    free = {"dtype", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path"}
    free |= {"max_window_layers", "architectures", "head_dim", "n_inner"}  # None and the width it stands for
    different = {key for key in wanted if mine.get(key) != wanted[key]} - free
    assert different == set()
    assert read_shape(written, "", folder.architecture) == folder.model_shape


def test_gpt2_says_its_context_by_both_names_that_readers_look_for(tmp_path):
    save("gpt2", tmp_path)
    folder = HFFolder(tmp_path)
    written = folder.architecture.write(folder.model_shape)
    assert written["n_ctx"] == written["n_positions"] == 64
