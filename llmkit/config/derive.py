"""Rules by which values follow from the settings: the model's sizes, the batch's parts."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, isqrt

from llmkit.config.custom_model import AnyModel, describe
from llmkit.config.model_section import Mlp, Model
from llmkit.config.schema import BPE_VOCAB_SIZE, BYTES_VOCABULARY, Config, Tokenizer
from llmkit.config.shape import ModelShape

INTERMEDIATE_SIZES: dict[Mlp, tuple[Callable[[int], int], str]] = {
    "geglu": (lambda width: _round_up(-(-8 * width // 3), 64), "8/3 x hidden_size, rounded up to 64"),
    "gelu": (lambda width: 4 * width, "4 x hidden_size"),
    "relu2": (lambda width: 4 * width, "4 x hidden_size"),
    "swiglu": (lambda width: _round_up(-(-8 * width // 3), 64), "8/3 x hidden_size, rounded up to 64"),
}
"""MLP: its default width as a function of hidden_size, and the same in words."""


def resolved_model(config: Config, vocab_size: int | None = None) -> AnyModel:
    """Returns the model's sizes with every default filled in.

    config: one that `check` finds nothing wrong with; else ValueError may be raised.
    vocab_size: tokens of the tokenizer; where None, what the settings say of it.
    Raises ValueError if they say nothing.
    """
    model = config.model
    size = known_vocab_size(config, vocab_size)
    if size is None:
        raise ValueError(
            f"the vocabulary of a {config.data.tokenizer.type} tokenizer is known once it is loaded"
        )
    if not isinstance(model, Model):
        return describe(model, size, config.data.sequence_length)
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        raise ValueError(
            f"width {model.hidden_size} cannot be shared out to {model.num_attention_heads} heads"
        )
    copied = {name: getattr(model, name) for name in Model.model_fields if name != "type"}
    return ModelShape(
        **copied
        | {
            "vocab_size": size,
            "padded_vocab_size": _round_up(size, model.vocab_pad_multiple),
            "num_key_value_heads": model.num_key_value_heads or model.num_attention_heads,
            "head_dim": model.head_dim or model.hidden_size // model.num_attention_heads,
            "intermediate_size": model.intermediate_size or default_intermediate_size(config),
            "max_position_embeddings": model.max_position_embeddings or config.data.sequence_length,
        }
    )


def default_intermediate_size(config: Config) -> int:
    """The width of the MLP where the settings leave it open: see INTERMEDIATE_SIZES."""
    return INTERMEDIATE_SIZES[config.model.mlp][0](config.model.hidden_size)


def rows_per_rank(config: Config, data_parallel_size: int) -> int:
    """Returns the sequences per data-parallel rank and step, padding sequences included."""
    return -(-config.train.global_batch_size // data_parallel_size)


def divisors(number: int) -> list[int]:
    """Returns what divides a positive number, ascending."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def fitting_ranks(config: Config) -> int | None:
    """Returns the fewest data-parallel ranks whose sequences micro_batch_size divides, None if none does.

    So many that experts can be dealt out over them.
    """
    micro, total = config.train.micro_batch_size, config.train.global_batch_size
    experts = config.parallel.expert_parallel_size
    least = experts // gcd(experts, config.parallel.context_parallel_size)
    if micro == "auto":
        return least
    most = max(least, -(-total // micro))  # with more each has fewer sequences than a micro-batch
    fitting = (ranks for ranks in range(least, most + 1, least) if accumulation_steps(config, ranks, micro))
    return next(fitting, None)


def accumulation_steps(config: Config, data_parallel_size: int, micro_batch_size: int) -> int | None:
    """Returns the micro-batches per data-parallel rank and step; None if they do not divide its sequences."""
    steps, rest = divmod(rows_per_rank(config, data_parallel_size), micro_batch_size)
    return None if rest else steps


def known_vocab_size(config: Config, tokenizer_size: int | None = None) -> int | None:
    """Returns the vocabulary size without padding; None where it depends on a tokenizer not loaded yet."""
    asked = config.model.vocab_size
    if asked != "auto":
        return asked
    return size_of(config.data.tokenizer) if tokenizer_size is None else tokenizer_size


def size_of(tokenizer: Tokenizer) -> int | None:
    """Returns a tokenizer's size by its settings, None where they do not determine it.

    A trained tokenizer may get fewer tokens.
    """
    if tokenizer.type == "bpe":
        return tokenizer.vocab_size or BPE_VOCAB_SIZE
    return BYTES_VOCABULARY if tokenizer.type == "bytes" else None


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
