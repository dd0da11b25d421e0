"""Memory of a forward and backward pass of our own model, from its sizes; counted, not measured.

The numbers of values that a block keeps for its backward pass were counted on the tensors that autograd and
the partitioner of torch.compile save; a test counts them again.
"""

from __future__ import annotations

from math import prod

from llmkit.config.operators import QUANTISED
from llmkit.config.parameters import INTO_MLP
from llmkit.config.shape import ModelShape
from llmkit.plan.adapter_memory import adapter_parts
from llmkit.plan.arithmetic import Activations, Arithmetic, Recompute
from llmkit.plan.context_memory import received_width, ring_blocks
from llmkit.plan.gradient_memory import gradient_bytes
from llmkit.plan.score_memory import mask_bytes, score_bytes
from llmkit.precision import BYTES

FP32 = BYTES["fp32"]
LOGIT_BYTES = {True: 4, False: 14}
"""Of a logit where all are stored. Compiled: the logits and their gradient; else fp32 logits and
logarithms of probabilities, too, with their gradients."""
CHUNKED_LOGIT_BYTES = 0.08 * FP32
"""Of a logit where they are made in chunks: the share of all of them in fp32 that is held, or else"""
CHUNK_BYTES = 2**28
"""so much, whichever is larger (`llmkit.kernels.head_loss_chunks`)."""


def training_bytes(shape: ModelShape, how: Arithmetic) -> Activations:
    """Returns what a training step needs at its largest, an estimate from above.

    All blocks have run, and then the head with the loss computes, or the last block its gradients.
    """
    parts = training_parts(shape, how).values()
    return Activations(sum(each.token for each in parts), sum(each.fixed for each in parts))


def training_parts(shape: ModelShape, how: Arithmetic) -> dict[str, Activations]:
    """The same by kind: what all blocks keep (`block_parts`), and what is beside it at the largest moment."""
    layout = how.layout
    recompute, every = layout.activation_checkpointing, layout.activation_checkpointing_every
    layers = shape.num_hidden_layers
    recomputed = 0 if recompute == "none" else -(-layers // every)
    plain, kept = block_parts(shape, how, "none"), block_parts(shape, how, recompute)
    again = sum(plain.values()) - sum(kept.values())  # what a block computes once more
    if layout.offload_activations:  # one in use, and one on its way
        kept["residual stream and norms"] *= min(1.0, 2.0 / max(1, recomputed))
    parts = {
        kind: Activations(recomputed * kept[kind] + (layers - recomputed) * plain[kind]) for kind in plain
    }
    parts["a tile of an MLP"] = _tile(shape, how)
    parts["before the blocks"] = Activations(_before_blocks(shape, how))
    head, block = _head(shape, how), gradient_bytes(shape, how, plain) + again
    parts["loss" if head.token >= block else "gradients of a block"] = Activations(max(head.token, block))
    chunk = 0.0 if how.forms.get("head_loss", "full") == "full" else CHUNK_BYTES
    logits = FP32 * shape.padded_vocab_size / how.layout.tensor_parallel_size
    fixed = max(head.fixed - chunk, _dequantised(shape, how))
    if head.token + logits >= block:  # else they are gone before the largest moment
        parts["logits of a chunk"] = Activations(0.0, chunk, logits)
        fixed = max(head.fixed, _dequantised(shape, how)) - chunk
    parts["blocks of a ring"] = ring_blocks(shape, how)
    parts["whatever the batch"] = Activations(0.0, fixed)  # gradients of the head, a matrix of few bits
    return {kind: each for kind, each in parts.items() if each.token or each.fixed}


def _tile(shape: ModelShape, how: Arithmetic) -> Activations:
    """What a tile of an MLP has beside it, while it is computed again."""
    if how.tiled == 1.0:
        return Activations(0.0)
    gathered = how.bytes * shape.hidden_size * how.layout.sequence_parallel
    each = _mlp(shape, how, "none") / how.layout.tensor_parallel_size + gathered
    return Activations(2.0 * each * how.tiled)


def offloaded_bytes(shape: ModelShape, how: Arithmetic) -> float:
    """Bytes on the host, for each token of a micro-batch, of the inputs of blocks."""
    layout = how.layout
    if not layout.offload_activations:
        return 0.0
    recomputed = -(-shape.num_hidden_layers // layout.activation_checkpointing_every)
    return recomputed * block_bytes(shape, how, "full")


def _dequantised(shape: ModelShape, how: Arithmetic) -> float:
    """The largest weight that is kept in fewer bits, as its product takes it; of int8 in fp32 on the way."""
    form = how.forms.get("linear", "torch")
    if form not in QUANTISED:
        return 0.0
    matrices = dict[str, int]()
    for tensor in shape.tensors:
        if tensor.linear:
            matrices[tensor.stored_in] = matrices.get(tensor.stored_in, 0) + prod(tensor.shape)
    each = how.bytes + FP32 * (form == "int8")
    return each * max(matrices.values()) / how.layout.tensor_parallel_size


def forward_bytes(shape: ModelShape, how: Arithmetic) -> Activations:
    """Returns what a forward pass without gradients needs at its largest: a block's tensors or the logits."""
    head = _head(shape, how)
    return Activations(max(head.token, block_bytes(shape, how, "none")), head.fixed)


def _before_blocks(shape: ModelShape, how: Arithmetic) -> float:
    """What the norm of the embedding keeps, and the vectors of pairs of tokens that all blocks are given."""
    fp32 = FP32 + how.bytes % FP32 if _keeps_fp32_norms(shape, how) else 0
    norm = (how.bytes + fp32) * shape.embedding_norm
    pairs = how.bytes * (shape.bigram_embedding is not None)
    pieces = how.layout.tensor_parallel_size if how.layout.sequence_parallel else 1
    return float(norm + pairs) * shape.hidden_size / pieces


def _head(shape: ModelShape, how: Arithmetic) -> Activations:
    """The last norm, and the logits with their gradients; in chunks the gradients of states and weight."""
    logits = shape.padded_vocab_size / how.layout.tensor_parallel_size
    normed = 2 * how.bytes * shape.hidden_size
    if how.forms.get("head_loss", "full") == "full":
        return Activations(normed + LOGIT_BYTES[how.head_compiled] * logits)
    weight = 0.0 if how.lora.rank else (FP32 + how.bytes) * logits * shape.hidden_size
    return Activations(normed + CHUNKED_LOGIT_BYTES * logits, weight + CHUNK_BYTES)


def block_bytes(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> float:
    """Returns the bytes for each token that a block keeps until its backward pass, on a tensor-parallel rank.

    recompute: what of it is computed again then.
    """
    return sum(block_parts(shape, how, recompute).values())


def block_parts(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> dict[str, float]:
    """The same by kind."""
    size, layout = how.bytes, how.layout
    whole = float(size * shape.hidden_size)  # its input
    attention, scores, mlp, gathered, copies = 0.0, 0.0, 0.0, 0.0, 0.0
    if recompute != "full":
        whole += _residual(shape, how, recompute)
        attention = _attention(shape, how, recompute)
        mlp = 0.0 if how.tiled < 1.0 else _mlp(shape, how, recompute)
        scores, copies = score_bytes(shape, how, recompute), _copies(shape, how, recompute)
        if (
            layout.sequence_parallel
        ):  # of the inputs of both column-parallel layers, all of the sequence is kept
            gathered = (1.0 if how.tiled < 1.0 else 2.0) * size * shape.hidden_size
            whole -= gathered if recompute == "none" else 0.0
    more = adapter_parts(shape, how, recompute, fp32_norms=_keeps_fp32_norms(shape, how))
    whole += more.get("residual stream and norms", 0.0)
    attention, mlp = attention + more.get("attention", 0.0), mlp + more.get("mlp", 0.0)
    copies += more.get("copies of tokens for experts", 0.0)
    pieces = layout.tensor_parallel_size if layout.sequence_parallel else 1
    ranks = layout.tensor_parallel_size
    return {
        "residual stream and norms": whole / pieces + gathered, "attention": attention / ranks,
        "attention scores": scores / ranks, "masks": mask_bytes(shape, how, recompute), "mlp": mlp / ranks,
        "copies of tokens for experts": copies,
    }  # fmt: skip


def _residual(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> float:
    """Beside the block's input: of the residual stream, the norms and the dropouts behind the branches."""
    size, width = how.bytes, shape.hidden_size
    if recompute == "selective":  # what products give; compiled, only what the backward pass reads
        return (1.0 if how.compiled else 2.0) * size * width
    norms = 4 if shape.norm_placement == "both" else 2
    kept = (1.0 + norms) * size * width  # the middle of the residual stream, and what all norms give
    if norms == 4 and how.compiled:  # that middle is the sum of two tensors that are kept
        kept -= size * width
    if _keeps_fp32_norms(shape, how):
        kept += norms * (FP32 * shape.norm_weight + size % FP32) * width
    if shape.residual_scalars and not how.compiled:  # the stream before and after them
        kept += size * width
    if shape.hidden_dropout > 0.0:  # a mask of each: of bytes, or in the type of the activations
        kept += 2 * (1 if how.compiled else size) * width
    return kept


def _attention(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> float:
    """Queries, keys and values, before and after their rotation; what attention gives, and its statistics."""
    size, heads = how.bytes, shape.num_attention_heads
    query, grouped = heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    kept = size * (2.0 * query + 2.0 * grouped) + FP32 * heads
    exchanged = how.layout.in_ulysses
    if exchanged:
        kept += _exchanged(shape, how, recompute)
    if recompute == "none":
        rotated = query + grouped
        kept += size * rotated * (shape.position_embedding == "rope" and not exchanged)
        if shape.qk_norm:
            statistics = FP32 * (heads + shape.num_key_value_heads)
            copies = FP32 * shape.norm_weight + (FP32 if size < FP32 else 0)
            fp32 = rotated * copies if _keeps_fp32_norms(shape, how) else 0
            kept += size * grouped * (shape.key_shift > 0.0)
            again = shape.position_embedding != "rope" and not exchanged
            kept += fp32 + statistics + size * rotated * again
        if shape.value_embeddings:  # counted in every block, though every second one has them
            kept += size * (2.0 * grouped + 2.0 * shape.num_key_value_heads)
    return kept


def _exchanged(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> float:
    """Beside what attention keeps anyway: of an exchange of pieces of rows for heads (Ulysses).

    What is received, with copies of heads where there are too few, and what is sent back. Nothing needs what
    the projections gave, but for norms that keep no copy in fp32, and where selective recomputation keeps it.
    """
    query, grouped = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
    given = query + 2.0 * grouped
    normed = shape.qk_norm and not (how.bytes < FP32 and _keeps_fp32_norms(shape, how))
    kept = given if normed or (recompute == "selective" and not how.compiled) else 0.0
    return how.bytes * (received_width(shape, how.layout) + query + kept - given)


def _mlp(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> float:
    """What the up-projections give, the activation of it, and its product with the gate."""
    if recompute == "selective":
        values = len(INTO_MLP[shape.mlp])
    elif len(INTO_MLP[shape.mlp]) == 2:
        values = 3 if how.compiled else 4
    else:
        values = 2
    widest = max(map(shape.active_width, range(shape.num_hidden_layers)))
    return float(how.bytes * values * widest)


def _copies(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> float:
    """Of each token one for each of its experts, of what goes into them and of what comes out; scores of the
    experts and their probabilities."""
    moe = shape.moe
    if not shape.expert_layers:
        return 0.0
    scores = 3.0 * FP32 * moe.num_experts
    if how.bytes < FP32:  # the router's input in fp32; the product that takes it as it is may be missing
        scores += (FP32 - how.bytes * (moe.shared_expert_intermediate_size is None)) * shape.hidden_size
    kept, numbers = 1.0 if recompute == "selective" else 2.0, 28.0  # what comes out is a result of a product
    if how.layout.expert_parallel_size > 1:  # their order where they arrive; messages are kept like products
        kept, numbers = kept + 2.0 * (recompute == "selective"), numbers + 16.0
    return moe.num_experts_per_tok * (kept * how.bytes * shape.hidden_size + numbers) + scores


def _keeps_fp32_norms(shape: ModelShape, how: Arithmetic) -> bool:
    """Whether RMS norms keep fp32 copies: in plain PyTorch, step by step."""
    return shape.norm == "rmsnorm" and not how.compiled and how.forms.get("norm", "torch") == "torch"
