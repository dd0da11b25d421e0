"""The keys of a config.json: each is mapped, known to be without effect, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmkit.errors import UserError

NO_EFFECT = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled", "_name_or_path",
    "_num_labels", "_sliding_window_pattern", "architectures", "attn_implementation", "bos_token_id",
    "chunk_size_feed_forward", "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing",
    "id2label", "is_llama_config", "keys_to_ignore_at_inference", "label2id", "max_sequence_length",
    "model_max_length", "model_type", "n_ctx", "n_special", "num_labels", "output_attentions",
    "output_hidden_states", "output_past", "pad_token_id", "predict_special_tokens", "prefix",
    "pretraining_tp", "problem_type", "reorder_and_upcast_attn", "return_dict", "sep_token_id",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "task_specific_params", "tokenizer_class", "torch_dtype",
    "transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
    "use_return_dict",
})  # fmt: skip
"""Keys that say nothing of what the model computes from tokens: names, ids of tokens, ways to compute it."""

EMPTY: Mapping[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "use_mrope": False,
}
"""Keys with which files say that a model is without something that it might have been changed by."""

OF_GENERATION = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
    "temperature", "tf_legacy_loss", "top_k", "top_p", "torchscript", "typical_p", "use_bfloat16",
})  # fmt: skip
"""Keys that older versions of transformers wrote into config.json: how to sample, not what the model is."""


LARGEST = 2**24
"""Sizes beyond this are mistakes; of layers, see `architectures.MOST_LAYERS`."""


class ConfigKeys:
    """The keys of a config.json, taken one by one; what is wrong is collected and raised by `finish`.

    origin: the file, for messages. A key that is null sets nothing, except where null is one of its values.
    """

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self.origin = origin
        self._left = dict(values)
        self._problems: list[str] = []

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, or this default where it is absent."""
        return self._left.pop(key, default)

    def need(self, key: str) -> Any:
        """The value of a key that must be there."""
        value = self.take(key)
        if value is None:
            self._problems.append(f"{key} is missing")
        return value

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """The whole number of a key, at least `least`; `default` where it is absent; None: it must be there.

        Where it is another value that is noted, and `least` is returned.
        """
        value = self.need(key) if default is None else self.take(key, default)
        return least if value is None and default is None else self.whole(key, value, least)

    def count_or_null(self, key: str, default: int | None) -> int | None:
        """The same of a key for which null is a value of its own."""
        value = self.take(key, default)
        return None if value is None else self.whole(key, value)

    def whole(self, key: str, value: Any, least: int = 1) -> int:
        """The value of a key, if it is such a whole number; else that is noted, and `least` is returned."""
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST:
            return value
        self.refuse(key, value, f"a whole number is expected, from {least} to {LARGEST}")
        return least

    def expect(self, key: str, *values: Any) -> None:
        """Refuses a key with another value than these; the first of them holds where it is absent."""
        value = self.take(key)
        if value is not None and (
            value not in values or isinstance(value, bool) != isinstance(values[0], bool)
        ):
            self.refuse(key, value, f"only {' or '.join(json.dumps(each) for each in values)} is supported")

    def refuse(self, key: str, value: Any, why: str) -> None:
        """Notes that a key has a value with which the model cannot be built."""
        self._problems.append(f"{key} = {json.dumps(value):.120} ({why})")

    def finish(self) -> None:
        """Raises UserError for all that was noted, and for the keys that nobody took."""
        for key, value in self._left.items():
            known = key in NO_EFFECT or key in OF_GENERATION or (key in EMPTY and value == EMPTY[key])
            if value is not None and not known:
                self.refuse(
                    key, value, "llmkit does not know this key, so the model might compute something else"
                )
        if self._problems:
            raise UserError(f"{self.origin}: this model cannot be used: {'; '.join(self._problems)}")
