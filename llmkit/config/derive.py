"""Values that follow from the settings: the model's sizes, the batch's parts."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.config.memory import GRADIENT, parameter_bytes, show_bytes, state_bytes
from llmkit.config.schema import BPE_VOCAB_SIZE, BYTES_VOCABULARY, Config, Tokenizer
from llmkit.config.shape import ModelShape


@dataclass(frozen=True)
class Derived:
    """A value with how it came about; the value is a text such as "chosen at start" if not known yet."""

    name: str
    value: int | str
    how: str


def resolved_model(config: Config, vocab_size: int | None = None) -> ModelShape:
    """The model's shape with every default filled in.

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
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        raise ValueError(
            f"width {model.hidden_size} cannot be shared out to {model.num_attention_heads} heads"
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
    data_parallel_size: None for what the settings say; where they say nothing, as few as the batch fits.
    micro_batch_size: what was chosen for "auto", None if not known yet.
    """
    if data_parallel_size is None and config.parallel.world_size is not None:
        data_parallel_size = config.parallel.world_size // config.parallel.tensor_parallel_size
    ranks = data_parallel_size or fitting_ranks(config) or 1
    return [
        *_model(config, vocab_size),
        *_memory(config, vocab_size, ranks),
        *_batch(config, ranks, micro_batch_size, ranks == data_parallel_size),
    ]


def rows_per_rank(config: Config, data_parallel_size: int) -> int:
    """Sequences of a step that one data-parallel rank computes; rows that only fill are among them."""
    return -(-config.train.global_batch_size // data_parallel_size)


def fitting_ranks(config: Config) -> int | None:
    """The fewest data-parallel ranks whose sequences micro_batch_size divides; None if no number does."""
    micro, total = config.train.micro_batch_size, config.train.global_batch_size
    if micro == "auto":
        return 1
    most = -(-total // micro)  # with more ranks each has fewer sequences than a micro-batch
    return next((ranks for ranks in range(1, most + 1) if rows_per_rank(config, ranks) % micro == 0), None)


def accumulation_steps(config: Config, data_parallel_size: int, micro_batch_size: int) -> int:
    """Micro-batches of a rank and step. Raises ValueError if they do not divide its sequences."""
    rows = rows_per_rank(config, data_parallel_size)
    if rows % micro_batch_size:
        raise ValueError(f"micro-batches of {micro_batch_size} do not divide {rows} sequences")
    return rows // micro_batch_size


def _model(config: Config, vocab_size: int | None) -> list[Derived]:
    model, tokenizer = config.model, config.data.tokenizer
    known = known_vocab_size(config, vocab_size) is not None
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


def _memory(config: Config, vocab_size: int | None, ranks: int) -> list[Derived]:
    parallel, optimizer = config.parallel, config.optimizer.name
    if known_vocab_size(config, vocab_size) is None:
        return []
    precision = "fp32" if config.train.precision == "auto" else config.train.precision  # it takes less
    stage = 0 if parallel.zero_stage == "auto" else parallel.zero_stage
    state = state_bytes(
        resolved_model(config, vocab_size), precision, optimizer,
        data_parallel_size=ranks, tensor_parallel_size=parallel.tensor_parallel_size,
        zero_stage=stage, offload=parallel.offload,
    )  # fmt: skip
    each = GRADIENT + sum(parameter_bytes(precision, optimizer))
    how = f"at least, a process: weights, gradients, optimizer state; {each} bytes a parameter in {precision}"
    if parallel.offload == "cpu":
        how += f", of which {show_bytes(state.gradients + state.host)} on the host"
    return [Derived("training_state", show_bytes(state.device + state.gradients + state.host), how)]


def _batch(config: Config, ranks: int, micro_batch_size: int | None, ranks_known: bool) -> list[Derived]:
    train = config.train
    total, rows = train.global_batch_size, rows_per_rank(config, ranks)
    chosen = train.micro_batch_size if train.micro_batch_size != "auto" else micro_batch_size
    given = train.micro_batch_size != "auto"
    later = "chosen at start"
    over = f" / {ranks} data-parallel ranks" if ranks > 1 else ""
    if ranks > 1 and not ranks_known:
        over += ", the fewest whose part micro_batch_size divides,"
    derived = [
        Derived("micro_batch_size", later if chosen is None else chosen, "as given" if given else "auto"),
        Derived(
            "accumulation_steps",
            later if chosen is None else accumulation_steps(config, ranks, chosen),
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


def known_vocab_size(config: Config, tokenizer_size: int | None = None) -> int | None:
    """Tokens the model knows; None where only a tokenizer that is not loaded yet can tell."""
    asked = config.model.vocab_size
    if asked != "auto":
        return asked
    return size_of(config.data.tokenizer) if tokenizer_size is None else tokenizer_size


def size_of(tokenizer: Tokenizer) -> int | None:
    """Tokens of a tokenizer by its settings; None where they do not tell. A trained one may get fewer."""
    if tokenizer.type == "bpe":
        return tokenizer.vocab_size or BPE_VOCAB_SIZE
    return BYTES_VOCABULARY if tokenizer.type == "bytes" else None


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
