"""The rule of each setting for a run that goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmkit.config.keys import keys
from llmkit.config.mistakes import display
from llmkit.config.resume import compare
from llmkit.config.resume_rules import RESUME_POLICIES, Kind
from llmkit.config.schema import Config, Data, Source
from llmkit.errors import UserError

NOT_FREE: dict[Kind, str] = {
    "fixed": """
        run.seed
        model.type model.vocab_size model.hidden_size model.num_hidden_layers model.num_attention_heads
        model.num_key_value_heads model.head_dim model.intermediate_size model.mlp model.norm
        model.norm_weight model.norm_placement model.position_embedding model.attention_bias
        model.attention_output_bias model.mlp_bias model.qk_norm model.tie_word_embeddings
        model.embedding_norm model.bigram_embedding model.value_embeddings model.residual_scalars
        model.moe.num_experts model.moe.moe_intermediate_size model.moe.shared_expert_intermediate_size
        model.moe.first_dense_layers model.moe.every_n_layers
        train.objective train.dpo.reference train.lora.rank train.lora.targets train.init_from optimizer.name
    """,
    "data": """
        data.sources.N.type data.sources.N.name data.sources.N.subset data.sources.N.split
        data.sources.N.revision data.sources.N.live data.sources.N.weight data.sources.N.record
        data.sources.N.text_field data.sources.N.messages_field data.sources.N.prompt_field
        data.sources.N.completion_field data.sources.N.chosen_field data.sources.N.rejected_field
        data.sources.N.ids_field data.sources.N.separator data.curriculum.N.step data.curriculum.N.weights
        data.sequence_length data.packing data.validation_fraction data.document_masks data.stream_shards
        data.shuffle_window
    """,
    "content": """
        data.tokenizer.type data.tokenizer.vocab_size data.tokenizer.pattern data.tokenizer.path
        data.tokenizer.name data.tokenizer.revision data.tokenizer.end_of_text
        data.tokenizer.control_tokens_in_text data.tokenizer.chat_template
        data.sources.N.path data.sources.N.dataset data.sources.N.heldout_path data.errors
    """,
    "warned": """
        plugins
        model.norm_eps model.norm_weight_offset model.rope_theta model.sliding_rope_theta
        model.partial_rotary_factor model.key_shift model.sliding_window model.layer_types
        model.final_logit_softcapping model.attn_logit_softcapping model.embedding_multiplier
        model.attention_multiplier model.residual_multiplier model.logits_scaling
        model.rope_scaling.rope_type model.rope_scaling.factor
        model.rope_scaling.original_max_position_embeddings model.rope_scaling.low_freq_factor
        model.rope_scaling.high_freq_factor model.rope_scaling.beta_fast model.rope_scaling.beta_slow
        model.rope_scaling.attention_factor model.rope_scaling.mscale model.rope_scaling.mscale_all_dim
        model.rope_scaling.truncate model.max_position_embeddings model.initializer_range
        model.embedding_initializer_range model.head_initializer_range model.residual_init
        model.moe.num_experts_per_tok model.moe.router model.moe.norm_topk_prob
        model.moe.router_aux_loss_coef model.moe.router_z_loss_coef
        model.moe.bias_update_rate model.moe.capacity_factor
        train.max_steps train.max_minutes train.global_batch_size train.gradient_clipping train.precision
        train.z_loss train.label_smoothing train.dpo.beta train.dpo.loss train.dpo.label_smoothing
        train.dpo.nll_weight train.lora.alpha train.lora.quantize_base train.ema.decay
        train.ema.half_life_tokens train.ema.every_steps
        optimizer.learning_rate optimizer.betas optimizer.eps optimizer.momentum
        optimizer.momentum_warmup_steps optimizer.momentum_start optimizer.weight_decay
        optimizer.groups.N.params optimizer.groups.N.learning_rate optimizer.groups.N.betas
        optimizer.groups.N.eps optimizer.groups.N.momentum optimizer.groups.N.weight_decay
        optimizer.groups.N.name
        schedule.name schedule.steps schedule.warmup_steps schedule.min_lr_ratio schedule.decay_fraction
        schedule.decay_shape
    """,
}
"""Every setting that is not free to change: here, too, so that no rule changes by accident."""
KINDS = {path: kind for kind, paths in NOT_FREE.items() for path in paths.split()}
NEW, PLACE = 0.125, "mine.yaml:7"


def test_every_setting_has_a_rule_of_its_own_with_a_reason() -> None:
    assert sorted(RESUME_POLICIES) == sorted(key.path for key in keys())
    assert [path for path, rule in RESUME_POLICIES.items() if not rule.reason] == []


def test_what_decides_no_stored_number_is_free_and_nothing_else() -> None:
    assert {path: rule.kind for path, rule in RESUME_POLICIES.items() if rule.kind != "free"} == KINDS


def filled() -> dict[str, Any]:
    """The settings of a run, with an entry in each list and each section that may be absent."""
    config = Config(data=Data(sources=[Source(type="stdlib")])).model_dump(mode="json")
    content: dict[str, Any] = json.loads(json.dumps(config))
    for key in keys():
        here: Any = content
        *sections, name = key.path.split(".")
        for place, section in enumerate(sections):
            if section == "N":
                here = here[0]
                continue
            if not here.get(section):
                here[section] = [{}] if sections[place + 1 : place + 2] == ["N"] else {}
            here = here[section]
        here.setdefault(name, None)
    return content


def test_each_setting_that_changed_is_shown_with_both_values_and_does_what_its_rule_says() -> None:
    for key in keys():
        old, new = filled(), filled()
        here: Any = new
        *sections, name = key.path.split(".")
        for section in sections:
            here = here[0 if section == "N" else section]
        before, here[name] = here[name], NEW
        path = key.path.replace(".N", ".0")
        differences = compare(old, new, {path: PLACE})
        (found,) = differences.all
        shown = f'{path}: {display(before)} -> {NEW} ({PLACE})'
        assert str(found) == shown
        recorded = {"setting": path, "old": display(before), "new": f"{NEW}", "origin": PLACE}
        assert found.to_json() == recorded
        kind = KINDS.get(key.path, "free")
        assert found.rule.kind == kind, key.path
        for allowed, refused in ((False, ("fixed", "data")), (True, ("fixed",))):
            if kind not in refused:
                differences.raise_if_fixed("runs/demo", allowed)
                continue
            with pytest.raises(UserError) as refusal:
                differences.raise_if_fixed("runs/demo", allowed)
            assert f"{shown}: {found.rule.reason}" in str(refusal.value)
