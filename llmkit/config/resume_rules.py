"""The rule of each setting for resuming a run: whether it may change, and why."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["fixed", "data", "warned", "content", "free"]


class ResumePolicy(NamedTuple):
    """What happens where a setting has another value than in the checkpoint.

    kind: "fixed" = refused, it would be another run; "data" = refused unless a change of the data is
    allowed; "warned" = accepted with a note; "content" = accepted, but what it names must have the same
    content, which is checked when it is opened; "free" = accepted. Every change is recorded in events.jsonl.
    reason: why, as a sentence about the setting.
    """

    kind: Kind
    reason: str


def _rules(kind: Kind, reason: str, section: str, names: str) -> dict[str, ResumePolicy]:
    """The same rule for several settings of a section; names: separated by spaces."""
    return {f"{section}.{name}": ResumePolicy(kind, reason) for name in names.split()}


RESUME_POLICIES: dict[str, ResumePolicy] = {
    **_rules("free", "names the run folder, not what is in it", "run", "name dir"),
    **_rules("fixed", "decides the order of the data", "run", "seed"),
    **_rules("free", "changes rounding only", "run", "deterministic"),
    "plugins": ResumePolicy("warned", "other code takes part"),
    **_rules("free", "what is shown, recorded and asked for", "hooks.N", "type"),
    **_rules("free", "what is shown and recorded", "monitor.sinks.N", "type"),
    **_rules(
        "fixed", "decides which weights the model has", "model",
        "type vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "intermediate_size mlp norm norm_weight norm_placement position_embedding attention_bias "
        "attention_output_bias mlp_bias qk_norm "
        "tie_word_embeddings embedding_norm bigram_embedding value_embeddings residual_scalars",
    ),
    **_rules(
        "warned", "the same weights compute something else", "model",
        "norm_eps norm_weight_offset rope_theta sliding_rope_theta partial_rotary_factor key_shift "
        "sliding_window layer_types "
        "final_logit_softcapping attn_logit_softcapping embedding_multiplier attention_multiplier "
        "residual_multiplier logits_scaling",
    ),
    **_rules(
        "warned", "the same weights compute something else", "model.rope_scaling",
        "rope_type factor original_max_position_embeddings low_freq_factor high_freq_factor beta_fast "
        "beta_slow attention_factor mscale mscale_all_dim truncate",
    ),
    **_rules(
        "warned", "learned positions are weights, which are compared; others may become more", "model",
        "max_position_embeddings",
    ),
    **_rules(
        "warned", "has no effect: only the initial weights depend on it", "model",
        "initializer_range embedding_initializer_range head_initializer_range residual_init",
    ),
    **_rules(
        "fixed", "decides which weights the model has", "model.moe",
        "num_experts moe_intermediate_size shared_expert_intermediate_size first_dense_layers every_n_layers",
    ),
    **_rules(
        "warned", "the same weights compute something else", "model.moe",
        "num_experts_per_tok router norm_topk_prob bias_update_rate",
    ),
    **_rules("warned", "changes what each step computes", "model.moe", "capacity_factor"),
    **_rules(
        "warned", "another loss is minimised", "model.moe", "router_aux_loss_coef router_z_loss_coef"
    ),
    **_rules("free", "padding is in no checkpoint and in no loss", "model", "vocab_pad_multiple"),
    **_rules(
        "free", "acts in training alone, from the next step on: no stored number depends on it", "model",
        "attention_dropout hidden_dropout",
    ),
    **_rules(
        "content", "the checkpoint's tokenizer is used, and another one refused", "data.tokenizer",
        "type vocab_size pattern path name revision end_of_text control_tokens_in_text",
    ),
    **_rules("content", "the tokens that it makes are compared", "data.tokenizer", "chat_template"),
    **_rules(
        "content", "what is read there is compared, not where it lies", "data.sources.N",
        "path dataset heldout_path",
    ),
    **_rules(
        "data", "decides what is read, and in which order", "data.sources.N",
        "type name subset split revision live weight record text_field messages_field prompt_field "
        "completion_field chosen_field rejected_field ids_field separator",
    ),
    **_rules("free", "a limit, which is checked at the start", "data.sources.N", "max_epochs"),
    **_rules("data", "decides what is read, and in which order", "data.curriculum.N", "step weights"),
    **_rules(
        "data", "decides what is read, and in which order", "data",
        "sequence_length packing validation_fraction document_masks stream_shards shuffle_window",
    ),
    **_rules("content", "the documents that it leaves are compared", "data", "errors"),
    **_rules("free", "where, and by how many, tokens are made", "data", "cache_dir workers stall_seconds"),
    **_rules(
        "warned", "where the run ends, and its schedule unless that has steps of its own", "train",
        "max_steps",
    ),
    **_rules("warned", "changes no number of steps that it has become before", "train", "max_minutes"),
    **_rules(
        "warned", "changes what each step computes", "train",
        "global_batch_size gradient_clipping precision z_loss label_smoothing",
    ),
    **_rules("fixed", "decides what is learned", "train", "objective"),
    **_rules(
        "warned", "changes what each step computes", "train.dpo", "beta loss label_smoothing nll_weight"
    ),
    **_rules("fixed", "decides what the answers are compared with", "train.dpo", "reference"),
    **_rules("free", "the loss is a sum over the whole batch", "train", "micro_batch_size"),
    **_rules("fixed", "decides which adapters there are", "train.lora", "rank targets"),
    **_rules(
        "warned", "the same adapters compute something else", "train.lora", "alpha quantize_base"
    ),
    **_rules(
        "free", "acts in training alone, from the next step on: no stored number depends on it",
        "train.lora", "input_dropout",
    ),
    **_rules("free", "a limit", "train", "max_nonfinite_steps"),
    **_rules(
        "warned", "changes the average, which begins at the weights of now if the checkpoint has none",
        "train.ema", "decay half_life_tokens every_steps",
    ),
    **_rules("free", "what is measured", "train.ema", "evaluate"),
    **_rules("fixed", "decides the weights that the run began with", "train", "init_from"),
    **_rules("fixed", "the checkpoint holds the moments of this optimizer", "optimizer", "name"),
    **_rules(
        "warned", "changes what each step computes", "optimizer",
        "learning_rate betas eps momentum momentum_warmup_steps momentum_start weight_decay",
    ),
    **_rules(
        "warned", "changes what each step computes", "optimizer.groups.N",
        "params learning_rate betas eps momentum weight_decay",
    ),
    **_rules(
        "warned", "the moments of a parameter that another rule updates start at zero", "optimizer.groups.N",
        "name",
    ),
    **_rules(
        "warned", "changes the learning rate", "schedule",
        "name steps warmup_steps min_lr_ratio decay_fraction decay_shape",
    ),
    **_rules(
        "free", "how the run is spread over its processes, not what it computes", "parallel",
        "world_size layout zero_stage engine tensor_parallel_size context_parallel_size "
        "context_parallel_form expert_parallel_size sequence_parallel offload activation_checkpointing "
        "activation_checkpointing_every offload_activations timeout_minutes",
    ),
    **_rules("free", "how operators are computed, not what", "kernels", "compile backend mlp_tile"),
    **_rules(
        "free", "how operators are computed, not what", "kernels.operators",
        "linear norm rotation activation dropout_add attention head_loss gradient_norm adamw muon",
    ),
    **_rules(
        "free", "when to save, what to keep", "checkpoint",
        "every_steps every_minutes keep_last keep_every keep_best background copy_to max_failed_saves",
    ),
    **_rules("free", "when to evaluate and to end the run", "evaluate", "every_steps early_stopping"),
    **_rules(
        "free", "what is measured beside the loss", "evaluate.tasks",
        "names every_steps include_path num_fewshot limit",
    ),
    **_rules("free", "what is shown and recorded", "monitor", "log_every log_samples report trackers"),
    **_rules("free", "what is shown and recorded", "monitor", "sample samples"),
    **_rules("free", "what is shown and recorded", "monitor", "profile_steps profile_ranks"),
    **_rules("free", "what is shown and recorded", "monitor", "pue grid_gco2_per_kwh"),
    **_rules("free", "what is shown and recorded", "monitor.cost", "per_device_hour per_kwh currency"),
    **_rules("free", "what is measured", "monitor", "statistics_every spike_threshold spike_window"),
    **_rules("free", "what is measured", "monitor", "dead_expert collapsed_router"),
    **_rules(
        "free", "what is looked for, and what follows", "faults",
        "on_spike rollback_margin max_rollbacks check_replicas_every repeat_every watchdog max_step_seconds",
    ),
    **_rules(
        "free", "what is shown and recorded", "monitor.wandb",
        "mode project entity name tags group job_type notes artifacts alerts",
    ),
}  # fmt: skip
"""One rule a setting; indices in lists are N, as in the reference of all settings."""
