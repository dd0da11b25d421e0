"""How long a rank computes for a micro-batch, by part, and for the update of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from llmkit.config.operators import QUANTISED, QUANTISED_BLOCK
from llmkit.config.parameters import INTO_MLP
from llmkit.estimate.rates import Rates
from llmkit.estimate.workload import RING, Update, Workload

EAGER_TRAFFIC = 2.5
"""Times as many bytes as fused pointwise kernels move, plain PyTorch does (counted on its operators)."""
TRITON_TRAFFIC = 1.3
"""The same of our Triton kernels, which leave residual sums to PyTorch (counted)."""
LOGIT_BYTES = {"triton": 4, "avx512": 4, "chunked": 8, "full": 6, "eager": 34}
"""Bytes moved per logit in bf16, by form of head and loss (counted; eager: of `full` that is not
compiled)."""
KERNELS = {True: (14, 30), False: (60, 120)}
"""Kernels of a layer, forward and backward: fused or not (counted in traces of a GPT)."""
ADAPTER_KERNELS = 4, 6
"""Kernels of an adapter, forward and backward: products, scaling, the sum with the layer's output."""
DEQUANTISED_BYTES = {"int8": 10.0, "nf4": 2.0}
"""Bytes moved to write a weight as its product takes it, beside its code: of int8 by way of fp32."""
RING_SCORE_BYTES = 60.0, 78.0
"""Bytes moved per score of a ring's blocks in bf16, forward and backward (counted on its operators): scores
are made, scaled, summed up and made to weights by operations of their own, in fp32."""
NEWTON_SCHULZ_STEPS = 5
"""Iterations of Muon (Jordan et al. 2024)."""


@dataclass(frozen=True)
class Pass:
    """Seconds of a part in the forward and the backward pass; again: of what is computed again."""

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.forward + self.backward + self.again

    def times(self, factor: float) -> Pass:
        """Of so many."""
        return Pass(self.forward * factor, self.backward * factor, self.again * factor)


@dataclass(frozen=True)
class Computing:
    """Seconds of a rank's micro-batch by part, over its layers; of_weights: of `matmul` backward, the
    weights' gradients alone."""

    matmul: Pass
    attention: Pass
    pointwise: Pass
    head: Pass
    loss: Pass
    of_weights: float
    kernels: float

    def times(self, factor: float) -> Computing:
        """The same, all of it so many times as long."""
        return Computing(
            self.matmul.times(factor), self.attention.times(factor), self.pointwise.times(factor),
            self.head.times(factor), self.loss.times(factor), self.of_weights * factor, self.kernels,
        )  # fmt: skip

    @property
    def layers(self) -> Pass:
        """Of all layers, without head and loss."""
        parts = (self.matmul, self.attention, self.pointwise)
        return Pass(*(sum(getattr(p, name) for p in parts) for name in ("forward", "backward", "again")))

    @property
    def total(self) -> float:
        """Of all parts."""
        return self.layers.total + self.head.total + self.loss.total


def computing(work: Workload, rates: Rates) -> Computing:
    """Seconds of each part for one micro-batch, on a rank of the stage with a mean share of the layers."""
    layers = work.shape.num_hidden_layers / work.pipeline
    again = {"none": 0.0, "selective": 0.0, "full": 1.0}[work.recompute] / work.recompute_every
    light = again if work.recompute != "selective" else 1.0 / work.recompute_every
    forward, of_inputs, of_weights = (
        one + more for one, more in zip(_linear(work, rates), _adapted(work, rates))
    )
    matmul = Pass(forward, of_inputs + of_weights, forward * again + _tiles(work, rates)).times(layers)
    attention = _attention(work, rates, again).times(1.0 / work.pipeline)
    moved, moved_back = pointwise_bytes(work)
    once = rates.pointwise(moved)
    pointwise = Pass(once, rates.pointwise(moved_back), once * light).times(layers)
    starts, starts_back = KERNELS[work.fused]
    kernels = (starts * (1.0 + light) + starts_back + work.hooks) * layers
    adapters = sum(each.layers for each in work.adapters) / work.pipeline
    kernels += (ADAPTER_KERNELS[0] * (1.0 + light) + ADAPTER_KERNELS[1]) * adapters
    head, loss = _head(work, rates)
    return Computing(matmul, attention, pointwise, head, loss, of_weights * layers, kernels)


def shared_expert(work: Workload, rates: Rates) -> Pass:
    """Of the experts that compute every token, those of all layers: a part of `Computing.matmul`."""
    width, inner = work.shape.hidden_size, work.shape.moe.shared_expert_intermediate_size
    if inner is None:
        return Pass()
    into = rates.linear(work.tokens, len(INTO_MLP[work.shape.mlp]) * inner / work.tensor, width, work.linear)
    out = rates.linear(work.tokens, width, inner / work.tensor, work.linear)
    weights = 0.0 if work.frozen else into.of_weights + out.of_weights
    once = Pass(into.forward + out.forward, into.of_inputs + out.of_inputs + weights)
    return once.times(work.shape.expert_layers / work.pipeline)


def linear_shapes(work: Workload) -> Iterator[tuple[float, float]]:
    """(outputs, inputs) of each product of a layer on a rank, fused where the model fuses them."""
    shape, tensor = work.shape, work.tensor
    query = shape.num_attention_heads * shape.head_dim
    grouped = shape.num_key_value_heads * shape.head_dim
    width, inner = shape.hidden_size, shape.mean_active_width
    yield (query + 2 * grouped) / tensor, width
    yield width, query / tensor
    yield len(INTO_MLP[shape.mlp]) * inner / tensor, width
    yield width, inner / tensor


def _linear(work: Workload, rates: Rates) -> tuple[float, float, float]:
    """Of a layer's products: forward, gradients of inputs, gradients of weights."""
    forward = of_inputs = of_weights = 0.0
    for outputs, inputs in linear_shapes(work):
        found = rates.linear(work.tokens, outputs, inputs, work.linear)
        forward += found.forward
        of_inputs += found.of_inputs
        of_weights += found.of_weights
    return forward, of_inputs, 0.0 if work.frozen else of_weights


def _tiles(work: Workload, rates: Rates) -> float:
    """Of a layer's MLP that is computed in tiles: its products once more."""
    if not work.tiled:
        return 0.0
    _, _, *mlp = linear_shapes(work)
    return sum(rates.linear(work.tokens, outputs, inputs, work.linear).forward for outputs, inputs in mlp)


def _adapted(work: Workload, rates: Rates) -> tuple[float, float, float]:
    """The same of a layer's low-rank adapters, on average: A, then B."""
    forward = of_inputs = of_weights = 0.0
    kind = "fp32" if work.value_bytes == 4 else "bf16"
    for outputs, inputs, rank, layers in work.adapters:
        share = layers / work.shape.num_hidden_layers
        for wide, narrow in ((rank, inputs), (outputs, rank)):
            found = rates.linear(work.tokens, wide, narrow, kind)
            forward += found.forward * share
            of_inputs += found.of_inputs * share
            of_weights += found.of_weights * share
    return forward, of_inputs, of_weights


def seen_keys(length: int, window: int | None) -> float:
    """Keys that a position of a row sees on average; None: all before it. Documents are not known."""
    near = length if window is None else min(length, window)
    return (near * (near + 1) / 2 + (length - near) * near) / length


def _attention(work: Workload, rates: Rates, again: float) -> Pass:
    """Of all layers; the backward pass computes 2.5 times as much (Dao 2023, FlashAttention-2)."""
    shape, form = work.shape, work.form("attention", "sdpa")
    if form == RING:
        return _ring(work, rates, again)
    forward = backward = 0.0
    for (keys, masked), flops in _attended(work).items():
        how = "efficient" if masked and form in ("sdpa", "matmul") else form
        length = 2.0 * keys  # a row without a window in which as many are seen
        forward += rates.attention(flops, shape.head_dim, length, how, False)
        backward += rates.attention(2.5 * flops, shape.head_dim, length, how, True)
    return Pass(forward, backward, forward * again)


def _ring(work: Workload, rates: Rates, again: float) -> Pass:
    """The same in our ring: plain products of blocks, and passes over their scores.

    Of 2 n chunks of a row a rank has two, and computes 2 n + 1 pairs of chunks: half of two is masked.
    """
    shape, whole = work.shape, 1.0 + 0.5 / work.context
    forward = backward = 0.0
    for (keys, _), flops in _attended(work).items():
        flops *= whole
        scores = flops / (4.0 * shape.head_dim)
        first, second = (rates.pointwise(scores * each) for each in RING_SCORE_BYTES)
        forward += first + rates.attention(flops, shape.head_dim, 2.0 * keys, "matmul", False)
        backward += second + rates.attention(2.5 * flops, shape.head_dim, 2.0 * keys, "matmul", True)
    passes = Pass(forward, backward, 0.0 if work.recompute == "selective" else forward * again)
    return passes.times(1.0 / work.pipeline)


def attention_flops(work: Workload) -> float:
    """Of the forward pass of all layers, for a micro-batch on a rank."""
    return sum(_attended(work).values())


def _attended(work: Workload) -> dict[tuple[float, bool], float]:
    """(Keys that a position sees on average, whether that takes a mask) -> FLOPs of the layers alike.

    4 for each query, key seen and channel.
    """
    shape = work.shape
    windows = Counter(shape.window(layer) for layer in range(shape.num_hidden_layers))
    found: dict[tuple[float, bool], float] = {}
    for window, layers in windows.items():
        keys = seen_keys(work.length, window)
        flops = 4.0 * work.tokens * keys * shape.num_attention_heads * shape.head_dim / work.tensor
        found[keys, window is not None] = layers * flops
    return found


def pointwise_bytes(work: Workload) -> tuple[float, float]:
    """Bytes that norms, residual sums, rotations and activations of a layer move: forward, backward.

    In values of a token: two norms and two residual sums read and write 8 widths; a rotation reads and writes
    queries and keys; a gated activation reads two inner widths and writes one (backward: reads 3, writes 2,
    and gate or product once more); gradients of biases read what they sum up.
    """
    shape = work.shape
    query = shape.num_attention_heads * shape.head_dim
    grouped = shape.num_key_value_heads * shape.head_dim
    width, inner, gated = shape.hidden_size, shape.mean_active_width, len(INTO_MLP[shape.mlp]) == 2
    copies = shape.moe.num_experts_per_tok * width * shape.expert_layers / shape.num_hidden_layers
    norms = 4 if shape.norm_placement == "both" else 2
    # Copies of a token are written and sorted, for its experts and behind them.
    forward = (4.0 + 2.0 * norms) * width + (3.0 if gated else 2.0) * inner + 5.0 * copies
    backward = (4.0 + 2.0 * norms) * width + (5.5 if gated else 3.0) * inner + 6.0 * copies
    if shape.position_embedding == "rope":
        forward, backward = forward + 2 * (query + grouped), backward + 2 * (query + grouped)
    if shape.qk_norm:
        forward, backward = forward + 2 * (query + grouped), backward + 3 * (query + grouped)
    if work.context > 1 and work.context_form == "ulysses":  # put together, and in order for each message
        copied = 4.0 * work.tensor * sum(work.exchanged)
        forward, backward = forward + copied, backward + copied
    biases = (query + 2 * grouped) * shape.attention_bias + width * shape.output_bias
    backward += biases + (inner + width) * shape.mlp_bias
    if shape.hidden_dropout:
        forward, backward = forward + 2.0 * width, backward + 2.0 * width
    fp8 = (5.0 * width + inner) * 1.5 if work.linear == "fp8" else 0.0  # casts: read 2 bytes, write 1
    more = 1.0 if work.fused else TRITON_TRAFFIC if work.form("norm", "torch") == "triton" else EAGER_TRAFFIC
    scale = work.tokens * work.value_bytes / work.tensor
    moved = (forward * more + fp8 / 3) * scale, (backward * more + fp8 * 2 / 3) * scale
    added, added_back = _adapter_bytes(work)
    return moved[0] + added, moved[1] + added_back


def _adapter_bytes(work: Workload) -> tuple[float, float]:
    """Bytes that a layer's adapters move beside their products: forward and backward.

    What they give is added to the layer's outputs, and backward to the gradient of its inputs: two read, one
    written. A base in few bits is written as its product takes it in each pass.
    """
    share = work.tokens * work.value_bytes / work.shape.num_hidden_layers
    forward = sum(3.0 * each.outputs * each.layers for each in work.adapters) * share
    backward = sum(3.0 * each.inputs * each.layers for each in work.adapters) * share
    form = work.form("linear", "torch")
    if form in QUANTISED:
        weights = sum(outputs * inputs for outputs, inputs in linear_shapes(work))
        code = QUANTISED[form] / 8 + 4.0 / QUANTISED_BLOCK
        written = (code + DEQUANTISED_BYTES[form]) * weights
        forward, backward = forward + written, backward + written
    return forward, backward


def _head(work: Workload, rates: Rates) -> tuple[Pass, Pass]:
    """Of the head's product, and of the loss of its logits; both on the last stage, which others wait for."""
    columns = work.shape.padded_vocab_size / work.tensor
    width, kind = work.shape.hidden_size, "fp32" if work.value_bytes == 4 else "bf16"
    found = rates.linear(work.tokens, columns, width, kind)
    back = found.of_inputs + found.of_weights * (not work.frozen)
    moved = rates.loss(columns * work.tokens, logit_bytes(work))
    share = 1.0 / work.pipeline
    return Pass(found.forward, back).times(share), Pass(moved / 3, moved * 2 / 3).times(share)


def logit_bytes(work: Workload) -> float:
    """Bytes that the loss and its gradient move for each logit."""
    form = work.form("head_loss", "full")
    traffic = LOGIT_BYTES["eager" if form == "full" and not work.fused else form]
    return traffic * work.value_bytes / 2


def update_bytes(work: Workload) -> float:
    """Bytes that are moved for each parameter: its gradient is read for the norm, read for the update and set
    to zero (12), master and moments are read and written, the weight is written; of a moving average the
    master is read, and it is read and written (12)."""
    update = work.update or Update(0.0)
    average = 12.0 if update.ema else 0.0
    return 12.0 + 8.0 * (1.0 + update.moments) + average + (2.0 if work.value_bytes == 2 else 0.0)


def update_seconds(work: Workload, rates: Rates) -> float:
    """Seconds of the update of a rank."""
    if work.update is None:
        return 0.0
    seconds = rates.updated(work.updated, update_bytes(work))
    flops = sum(map(newton_schulz_flops, work.update.muon)) / (work.tensor * work.pipeline)
    if flops:
        size_of = max(prod(shape) for shape in work.update.muon) ** 0.5
        cube = rates.product(size_of, size_of, size_of, "bf16" if work.value_bytes == 2 else "fp32")
        seconds += flops / work.replicas * cube / (2.0 * size_of**3)
    return seconds


def newton_schulz_flops(shape: tuple[int, ...]) -> float:
    """FLOPs of Muon for one matrix (m, n), m <= n: X X', its square, and the sum times X, five times."""
    small, large = min(shape), max(shape)
    return NEWTON_SCHULZ_STEPS * (4.0 * small * small * large + 2.0 * small**3)
