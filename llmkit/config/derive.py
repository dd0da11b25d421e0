"""Values that follow from the settings: the model's sizes, the batch's parts."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.config.check import BYTES_VOCABULARY
from llmkit.config.schema import BPE_VOCAB_SIZE, Config
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError


@dataclass(frozen=True)
class Derived:
    """A value with how it came about; the value is a text such as "chosen at start" if not known yet."""

    name: str
    value: int | str
    how: str


def resolved_model(config: Config, vocab_size: int | None = None) -> ModelShape:
    """The model's shape with every default filled in.

    vocab_size: tokens of the tokenizer; where None, what the settings say of it.
    Raises UserError if the vocabulary's size is not known, or too small for the tokenizer.
    """
    model = config.model
    size = _vocab_size(config, vocab_size)
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"model.hidden_size {model.hidden_size} is not divisible by "
            f"model.num_attention_heads {model.num_attention_heads}; "
            "choose a multiple, or give model.head_dim"
        )
    copied = model.model_dump()
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
    """4 x hidden for gelu; for swiglu 8/3 x hidden, rounded up to a multiple of 64."""
    width = config.model.hidden_size
    return 4 * width if config.model.mlp == "gelu" else _round_up(-(-8 * width // 3), 64)


def derive(
    config: Config,
    *,
    vocab_size: int | None = None,
    data_parallel_size: int | None = None,
    micro_batch_size: int | None = None,
) -> list[Derived]:
    """All derived values, in the order in which they are worth reading.

    vocab_size: tokens of the tokenizer, None if not known yet.
    data_parallel_size: None for what the settings say, one process where they say nothing.
    micro_batch_size: what was chosen for "auto", None if not known yet.
    Raises UserError if the micro-batches do not fit into the global batch.
    """
    if data_parallel_size is None:
        parallel = config.parallel
        data_parallel_size = max(1, (parallel.world_size or 1) // parallel.tensor_parallel_size)
    return _model(config, vocab_size) + _batch(config, data_parallel_size, micro_batch_size)


def rows_per_rank(config: Config, data_parallel_size: int) -> int:
    """Sequences of a step that one data-parallel rank computes; rows that only fill are among them."""
    return -(-config.train.global_batch_size // data_parallel_size)


def _model(config: Config, vocab_size: int | None) -> list[Derived]:
    model, tokenizer = config.model, config.data.tokenizer
    known = vocab_size is not None or model.vocab_size != "auto" or tokenizer.type in ("bpe", "bytes")
    shape = resolved_model(config, vocab_size if known else 1)
    given = "as given"
    heads_how = given if model.num_key_value_heads else "as many as query heads"
    dim_how = given if model.head_dim else f"{model.hidden_size} / {model.num_attention_heads}"
    inner_how = "4 x hidden_size" if model.mlp == "gelu" else "8/3 x hidden_size, rounded up to 64"
    inner_how = given if model.intermediate_size else inner_how
    vocab_how = "the tokenizer's size"
    if model.vocab_size != "auto":
        vocab_how = given
    elif vocab_size is None and tokenizer.type == "bpe":
        vocab_how = "at most; the tokenizer is trained at start"
    length_how = given if model.max_position_embeddings else "data.sequence_length"
    later = "known once the tokenizer is loaded"
    padding = f"vocab_size rounded up to {model.vocab_pad_multiple}"
    counted = "without padding, tied weights once"
    return [
        Derived("vocab_size", shape.vocab_size if known else later, vocab_how),
        Derived("padded_vocab_size", shape.padded_vocab_size if known else later, padding),
        Derived("num_key_value_heads", shape.num_key_value_heads, heads_how),
        Derived("head_dim", shape.head_dim, dim_how),
        Derived("intermediate_size", shape.intermediate_size, inner_how),
        Derived("max_position_embeddings", shape.max_position_embeddings, length_how),
        Derived("parameters", shape.num_parameters if known else later, counted),
    ]


def _batch(config: Config, ranks: int, micro_batch_size: int | None) -> list[Derived]:
    train = config.train
    total, rows = train.global_batch_size, rows_per_rank(config, ranks)
    chosen = train.micro_batch_size if train.micro_batch_size != "auto" else micro_batch_size
    if chosen is not None and rows % chosen:
        raise UserError(
            f"train.micro_batch_size {chosen} does not divide the {rows} sequences that each of "
            f"{ranks} data-parallel ranks has a step; choose a divisor, or auto"
        )
    given = train.micro_batch_size != "auto"
    later = "chosen at start"
    over = f" / {ranks} data-parallel ranks" if ranks > 1 else ""
    derived = [
        Derived("micro_batch_size", later if chosen is None else chosen, "as given" if given else "auto"),
        Derived(
            "accumulation_steps",
            later if chosen is None else rows // chosen,
            f"{total} sequences{over} / micro_batch_size",
        ),
        Derived(
            "tokens_per_step",
            total * config.data.sequence_length,
            f"{total} sequences x {config.data.sequence_length} tokens",
        ),
    ]
    if filling := rows * ranks - total:
        how = f"of {rows * ranks} rows a step only fill: {ranks} ranks do not divide {total} sequences"
        derived.append(Derived("wasted_rows", filling, how))
    return derived


def _vocab_size(config: Config, tokenizer_size: int | None) -> int:
    """Tokens the model knows."""
    asked, tokenizer = config.model.vocab_size, config.data.tokenizer
    if asked != "auto":
        if tokenizer_size is not None and asked < tokenizer_size:
            raise UserError(
                f"model.vocab_size {asked} is smaller than the {tokenizer_size} tokens of the tokenizer; "
                "leave it out to take as many"
            )
        return asked
    if tokenizer_size is not None:
        return tokenizer_size
    if tokenizer.type == "bytes":
        return BYTES_VOCABULARY
    if tokenizer.type == "bpe":
        return tokenizer.vocab_size or BPE_VOCAB_SIZE
    raise UserError(f"the vocabulary of a {tokenizer.type} tokenizer is known once the tokenizer is loaded")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
