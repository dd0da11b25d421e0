"""Checks of the model's sizes, the batch, the optimizer, and how the processes of a run share them."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.custom_model import describe
from llmkit.config.derive import (
    accumulation_steps,
    default_intermediate_size,
    fitting_ranks,
    known_vocab_size,
    rows_per_rank,
)
from llmkit.config.mistakes import Mistake
from llmkit.config.model_rules import contradictions
from llmkit.config.model_section import Model
from llmkit.config.schema import BPE_VOCAB_SIZE, BYTES_VOCABULARY
from llmkit.config.settings import Settings
from llmkit.errors import UserError
from llmkit.registry import find

_TENSOR_SIZE = "parallel.tensor_parallel_size"
_STAGE = "parallel.zero_stage"
_ENGINE = "parallel.engine"


def check_model(s: Settings) -> Iterator[Mistake]:
    """Checks the sizes of the model against each other and the sequence length."""
    model = s.config.model
    if not isinstance(model, Model):
        yield from _check_custom_model(s)
        return
    heads, kv_heads, width = "model.num_attention_heads", "model.num_key_value_heads", "model.hidden_size"
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        note = "choose a multiple, or give model.head_dim"
        yield s.mistake("{0} is not divisible by {1}", width, heads, note=note)
    elif model.position_embedding == "rope":
        rope = "model.position_embedding"
        if model.head_dim is not None and model.head_dim % 2:
            yield s.mistake("{0} is odd, but {1} rotates pairs", "model.head_dim", rope)
        elif model.head_dim is None and (odd := model.hidden_size // model.num_attention_heads) % 2:
            what = f"{{0}} and {{1}} make heads of width {odd}, which is odd, but {{2}} rotates pairs"
            yield s.mistake(what, width, heads, rope)
    if model.num_key_value_heads and model.num_attention_heads % model.num_key_value_heads:
        yield s.mistake("{0} is not divisible by {1}", heads, kv_heads)
    if model.head_initializer_range is not None and model.tie_word_embeddings:
        head, tied = "model.head_initializer_range", "model.tie_word_embeddings"
        note = "a tied head is the embedding: see model.embedding_initializer_range"
        yield s.mistake("{0} does not go with {1}", head, tied, note=note)
    if model.max_position_embeddings and s.config.data.sequence_length > model.max_position_embeddings:
        yield s.mistake("{0} is longer than {1}", "data.sequence_length", "model.max_position_embeddings")
    for found in contradictions(model):
        yield s.mistake(found.what, *(f"model.{name}" for name in found.names), note=found.note)


def _check_custom_model(s: Settings) -> Iterator[Mistake]:
    """Checks that a registered model can be built as the settings ask."""
    config, size = s.config, s.config.parallel.tensor_parallel_size
    vocabulary = known_vocab_size(config, s.facts.tokenizer_size) or 1
    try:
        found = describe(config.model, vocabulary, config.data.sequence_length, size)
    except UserError as error:
        yield s.mistake(f"{{0}}: {error}", "model.type", _TENSOR_SIZE)
        return
    if size > 1 and not found.takes_tensor_parallel:
        note = "only layers of llmkit.layers can be sharded; build the model of them, or set the size to 1"
        yield s.mistake("{0} does not go with {1}", _TENSOR_SIZE, "model.type", note=note)
    if s.facts.engine == "deepspeed" and found.scalars:
        what = f"{{0}}: DeepSpeed (ZeRO stage {s.facts.zero_stage}) takes no parameters without dimensions"
        note = f"give {found.scalars[0]} the shape (1,), or choose parallel.engine=native and a stage below 3"
        yield s.mistake(what, "model.type", note=note)
    asked = {
        "parallel.activation_checkpointing": config.parallel.activation_checkpointing != "none",
        "data.document_masks": config.data.document_masks,
        "kernels.compile": config.kernels.compile is True,
        "parallel.sequence_parallel": config.parallel.sequence_parallel and size > 1,
        "train.z_loss": config.train.z_loss > 0.0,
        "train.label_smoothing": config.train.label_smoothing > 0.0,
    }
    for path in (path for path, wanted in asked.items() if wanted):
        feature = path.rpartition(".")[2]
        if feature not in found.supports:
            note = f'a model that uses it has "{feature}" in its `supports`'
            yield s.mistake("{0} has no effect on {1}", path, "model.type", note=note)


def check_vocabulary(s: Settings) -> Iterator[Mistake]:
    """Checks that the model has a row for every id of its tokenizer."""
    size, tokenizer = s.config.model.vocab_size, s.config.data.tokenizer
    tokens = s.facts.tokenizer_size
    if size == "auto":
        return
    note = "leave model.vocab_size out to take as many"
    if s.config.train.init_from is not None:
        note = "take the tokenizer of the weights (data.tokenizer.type: init_from)"
        if tokens is not None:
            note += f", or set model.vocab_size to {tokens} to add rows for the tokens beyond"
    if tokens is not None:
        if size < tokens:
            yield s.mistake(
                f"{{0}} is smaller than the {tokens} tokens of the tokenizer", "model.vocab_size", note=note
            )
    elif tokenizer.type == "bytes" and size < BYTES_VOCABULARY:
        what = f"{{0}} is smaller than the {BYTES_VOCABULARY} tokens of {{1}}"
        yield s.mistake(what, "model.vocab_size", "data.tokenizer.type", note=note)
    elif tokenizer.type == "bpe" and size < (tokenizer.vocab_size or BPE_VOCAB_SIZE):
        what = "{0} is smaller than {1}"
        if tokenizer.vocab_size is None:
            what += f", which means {BPE_VOCAB_SIZE}"
        yield s.mistake(what, "model.vocab_size", "data.tokenizer.vocab_size", note=note)


def check_batch(s: Settings) -> Iterator[Mistake]:
    """Checks that the run has an end, and that micro-batches divide the sequences of a rank."""
    train = s.config.train
    if train.max_steps is None and train.max_minutes is None:
        note = "set train.max_steps, or train.max_minutes for a run that ends in time"
        yield s.mistake("one of {0} and {1} must be given", "train.max_steps", "train.max_minutes", note=note)
    micro, ranks = train.micro_batch_size, s.data_parallel_size
    paths = ("train.micro_batch_size", "train.global_batch_size")
    if micro == "auto":
        return
    if ranks is None:
        if fitting_ranks(s.config) is None:
            what = (
                "{0} does not divide {1}, nor a rank's part of it, however many data-parallel ranks there are"
            )
            note = "a rank has global_batch_size / ranks sequences, rounded up; choose a divisor, or auto"
            yield s.mistake(what, *paths, note=note)
        return
    if accumulation_steps(s.config, ranks, micro) is None:
        rows = rows_per_rank(s.config, ranks)
        what = "{0} does not divide {1}"
        if ranks > 1:
            what = f"{{0}} does not divide the {rows} of {{1}} that each of {ranks} data-parallel ranks has"
        yield s.mistake(what, *paths, note=f"it must be a divisor of {rows}, or auto")


def check_optimizer(s: Settings) -> Iterator[Mistake]:
    """Checks that the optimizer gets full tensors where it needs them, and that the momentum can rise."""
    registered, parallel = find("optimizer", s.config.optimizer.name), s.config.parallel
    if registered is not None and not getattr(registered.make, "elementwise", False):
        stage = parallel.zero_stage if s.facts.zero_stage is None else s.facts.zero_stage
        note = "it needs full tensors, as it is not marked `elementwise = True`"
        if stage not in ("auto", 0):
            yield s.mistake(
                f"{{0}} does not go with {{1}} (stage {stage})", "optimizer.name", _STAGE, note=note
            )
        if parallel.tensor_parallel_size > 1:
            yield s.mistake("{0} does not go with {1}", "optimizer.name", _TENSOR_SIZE, note=note)
    settings = s.config.optimizer
    if settings.momentum_warmup_steps and settings.momentum_start > settings.momentum:
        paths = "optimizer.momentum_start", "optimizer.momentum"
        yield s.mistake("{0} is larger than {1}", *paths, note="the momentum rises in its warm-up")


def check_world(s: Settings) -> Iterator[Mistake]:
    """Checks the number of processes against tensor parallelism and what was launched."""
    parallel, world = s.config.parallel, s.facts.world_size
    if world is not None and parallel.world_size not in (None, world):
        what = f"{{0}}, but the world that was joined has {world}"
        note = "the launcher started another number, or several worlds that do not know of each other"
        yield s.mistake(what, "parallel.world_size", note=note)
    sizes, factors = [_TENSOR_SIZE], "{0}"
    if parallel.context_parallel_size > 1:
        sizes, factors = [_TENSOR_SIZE, "parallel.context_parallel_size"], "{0} times {1}"
    if world is not None and world % parallel.ranks_of_a_row:
        yield s.mistake(f"{world} processes are not a multiple of {factors}", *sizes)
    elif world is None and parallel.world_size and parallel.world_size % parallel.ranks_of_a_row:
        factors = factors.replace("1", "2").replace("0", "1")
        yield s.mistake(f"{{0}} is not a multiple of {factors}", "parallel.world_size", *sizes)
    if parallel.sequence_parallel and parallel.tensor_parallel_size == 1:
        yield s.mistake("{0} needs {1} to be at least 2", "parallel.sequence_parallel", _TENSOR_SIZE)
    if parallel.activation_checkpointing_every > 1 and parallel.activation_checkpointing == "none":
        what = "{0} does nothing with {1}"
        yield s.mistake(what, "parallel.activation_checkpointing_every", "parallel.activation_checkpointing")


def check_tensor_parallel(s: Settings) -> Iterator[Mistake]:
    """Checks that tensor parallelism divides heads, MLP width and sequence.

    The vocabulary needs no check: it is padded for the layout.
    """
    model, size = s.config.model, s.config.parallel.tensor_parallel_size
    if s.config.parallel.sequence_parallel and s.config.data.sequence_length % size:
        what = "{0} is not divisible by {1}, over which {2} cuts it"
        yield s.mistake(what, "data.sequence_length", _TENSOR_SIZE, "parallel.sequence_parallel")
    if not isinstance(model, Model):
        return  # see check_model
    heads, inner = model.num_attention_heads, model.intermediate_size or default_intermediate_size(s.config)
    if heads % size:
        yield s.mistake("{0} is not divisible by {1}", "model.num_attention_heads", _TENSOR_SIZE)
    if inner % size:
        means = "" if model.intermediate_size else f", which means {inner},"
        yield s.mistake(f"{{0}}{means} is not divisible by {{1}}", "model.intermediate_size", _TENSOR_SIZE)
    for name in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        if model.moe.num_experts and (getattr(model.moe, name) or 0) % size:
            yield s.mistake("{0} is not divisible by {1}", f"model.moe.{name}", _TENSOR_SIZE)
    if model.num_key_value_heads is not None:
        yield from _check_shared_heads(s, model.num_key_value_heads, size)


def _check_shared_heads(s: Settings, kv_heads: int, size: int) -> Iterator[Mistake]:
    """Checks that key and value heads can be distributed, or each shared by the same number of ranks."""
    paths = ("model.num_key_value_heads", _TENSOR_SIZE)
    if kv_heads % size and size % kv_heads:
        yield s.mistake("{0} and {1}: one of them must be a multiple of the other", *paths)
        return
    model, sharing = s.config.model, max(1, size // kv_heads)
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        return  # there is no width of a head
    width = model.head_dim or model.hidden_size // model.num_attention_heads
    if width % sharing:
        means = "" if model.head_dim else f", which means {width},"
        what = f"{{0}}{means} is not divisible by the {sharing} ranks that share each head of {{1}} ({{2}})"
        yield s.mistake(what, "model.head_dim", *paths)


def check_zero(s: Settings) -> Iterator[Mistake]:
    """Checks what depends on the ZeRO stage; one that accelerate's configuration names counts too."""
    parallel, asked = s.config.parallel, s.config.parallel.zero_stage
    stage = asked if s.facts.zero_stage is None else s.facts.zero_stage
    if (s.facts.offload or parallel.offload) == "cpu" and stage == 0:
        note = "only what ZeRO shares out can lie in the host's memory; choose stage 1, 2 or 3"
        what = "{0} does not go with {1}"
        if asked == "auto":
            what = "{0} does not go with ZeRO stage 0: {1}, and accelerate's configuration names no other"
        yield s.mistake(what, "parallel.offload", _STAGE, note=note)
    if parallel.engine == "native" and stage == 3:
        note = "llmkit's own engine knows stages 0, 1 and 2; set the engine to auto or deepspeed"
        yield s.mistake(f"{{0}} does not go with {{1}} (stage {stage})", _ENGINE, _STAGE, note=note)
    if parallel.engine == "native" and (s.facts.offload or parallel.offload) == "cpu":
        note = "only DeepSpeed offloads; set the engine to auto or deepspeed"
        yield s.mistake("{0} does not go with {1}", _ENGINE, "parallel.offload", note=note)
    if parallel.engine == "deepspeed" and stage == 0:
        note = "DeepSpeed is for stages 1 to 3; set the engine to auto"
        yield s.mistake(f"{{0}} does not go with {{1}} (stage {stage})", _ENGINE, _STAGE, note=note)
