"""How long the ranks of a step communicate, and how much of it nothing hides."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.estimate.collectives import CONTENTION, Spread, exchanged, gathered, passed, sent
from llmkit.estimate.computing import Computing, Pass
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.workload import Workload

BUCKET = 25 * 2.0**20
"""Bytes of a message of gradients or weights, at least; with more than 32 ranks it grows with them."""
HOST_BANDWIDTH = 20e9
"""Bytes a second and direction between a device and its host's pinned memory (assumed of PCIe 4 and 5)."""
HOST_UPDATE = 0.5e-9
"""Seconds of a host for the update of a parameter of one rank, by 8 threads (assumed; one thread: 3.7 ns)."""
COUNT_BYTES = 4
"""Of the number of copies for an expert, which ranks tell each other before they send these."""
HOPS_EXPOSED = 0.3
"""Share of the messages between pipeline stages that nothing hides (assumed)."""


@dataclass(frozen=True)
class Sent:
    """Seconds of a kind of communication in a step: those that the rank waits for, and those beside
    computing.

    What is hidden slows the kernels beside it: that counts as waiting, too.
    """

    exposed: float = 0.0
    hidden: float = 0.0

    @classmethod
    def beside(cls, seconds: float, room: float, alone: float = 0.0) -> Sent:
        """Of `seconds`, as many hidden as there is room for; but for `alone`, which nothing can hide."""
        hidden = max(0.0, min(seconds - alone, room))
        return cls(seconds - hidden + CONTENTION * hidden, hidden)

    def times(self, factor: float) -> Sent:
        """Of so many."""
        return Sent(self.exposed * factor, self.hidden * factor)

    def plus(self, other: Sent) -> Sent:
        """Both."""
        return Sent(self.exposed + other.exposed, self.hidden + other.hidden)


def tensor_parallel(work: Workload, fleet: Fleet, computed: Computing) -> Sent:
    """Of a micro-batch, over the layers of a rank.

    A layer sums twice forward and twice backward (Shoeybi et al. 2019); a sum is a reduce-scatter and an
    all-gather, also where the sequence is sharded between them (Korthikanti et al. 2022). Full recomputation
    repeats the forward ones. Embedding and head add two.
    """
    if work.tensor == 1:
        return Sent()
    spread = Spread(fleet, work.tensor)
    once = gathered(work.tokens * work.shape.hidden_size * work.value_bytes, spread)
    layers = work.shape.num_hidden_layers / work.pipeline
    again = 4.0 / work.recompute_every if work.recompute == "full" else 0.0
    forward, backward = (4.0 + again) * layers, 4.0 * layers
    extra = 2.0 * layers if work.exchange.gathers_again else 0.0
    how = work.exchange.tensor if spread.nodes == 1 or work.exchange.tensor != "pipelined" else "backward"
    ends = Sent(4.0 * once / work.pipeline)
    if how == "none":
        return Sent((forward + backward + extra) * once).plus(ends)
    if how == "pipelined":
        seconds = (forward + backward + extra) * once
        return Sent.beside(seconds, computed.matmul.total, seconds / work.tensor).plus(ends)
    hidden = 2.0 if work.sequence_parallel and not work.exchange.gathers_again else 4.0
    beside = Sent.beside((hidden * layers + extra) * once, computed.of_weights)
    return Sent((forward + backward - hidden * layers) * once).plus(beside).plus(ends)


def tensor_sums(work: Workload) -> float:
    """Sums of a micro-batch: of each layer, those that are done again, those of embedding and head."""
    layers = work.shape.num_hidden_layers / work.pipeline
    again = 2.0 / work.recompute_every if work.recompute == "full" else 0.0
    return (4.0 + again + work.exchange.gathers_again) * layers + 2.0 / work.pipeline


def context_parallel(work: Workload, fleet: Fleet, computed: Computing) -> Sent:
    """Of a micro-batch, over the layers of a rank, between the ranks that share its rows."""
    if work.context == 1:
        return Sent()
    layers = work.shape.num_hidden_layers / work.pipeline
    spread = Spread(fleet, work.context, work.tensor)
    if work.context_form == "ring":
        return _around_ring(work, spread, computed.attention.times(1.0 / layers)).times(layers)
    return Sent(_to_heads(work, spread) * layers)


def ulysses_bytes(work: Workload) -> tuple[float, float]:
    """Bytes of a rank's message before attention of a layer, and of that behind it, with its own part."""
    before, behind = (each * work.tokens * work.value_bytes for each in work.exchanged)
    return before, behind


def _to_heads(work: Workload, spread: Spread) -> float:
    """Seconds of a layer: two all-to-alls forward and two backward (Jacobs et al. 2023), beside nothing.

    Full recomputation repeats the first two; selective recomputation keeps what they gave.
    """
    again = 1.0 / work.recompute_every if work.recompute == "full" else 0.0
    return (2.0 + again) * sum(exchanged(size, spread) for size in ulysses_bytes(work))


def ring_bytes(work: Workload) -> float:
    """Bytes of keys and values of a rank, which go to the next one."""
    shape = work.shape
    grouped = max(1.0, shape.num_key_value_heads / work.tensor)
    return 2.0 * grouped * shape.head_dim * work.tokens * work.value_bytes


def _around_ring(work: Workload, spread: Spread, attention: Pass) -> Sent:
    """Of a layer: keys and values go around beside attention to those that are there (Liu et al. 2023).

    In the backward pass their gradients go with them, in fp32, n times instead of n - 1: the last message,
    back to whose they are, has nothing beside it. Selective recomputation keeps the result.
    """
    turns, size = work.context - 1.0, ring_bytes(work)
    hop = passed(size, spread)
    gradients = passed(size * 4.0 / work.value_bytes, spread)
    forward = Sent.beside(turns * hop, attention.forward * turns / work.context)
    room = attention.backward * turns / work.context
    back = Sent.beside(turns * (hop + gradients) + gradients, room, gradients)
    again = 1.0 / work.recompute_every if work.recompute == "full" else 0.0
    return forward.times(1.0 + again).plus(back)


def expert_parallel(work: Workload, fleet: Fleet, shared: Pass) -> Sent:
    """Of a micro-batch: copies of tokens to the ranks that hold their experts, and back, in each such layer.

    Two all-to-alls forward and two backward (Lepikhin et al. 2021), and one of the copies' numbers forward;
    full recomputation repeats the forward ones. A shared expert computes beside one of them, forward and
    backward. Loads are taken to be alike: all ranks wait for the one that gets most.

    shared: seconds of the shared experts of all layers.
    """
    if work.expert == 1:
        return Sent()
    spread, layers = expert_spread(work, fleet), work.shape.expert_layers / work.pipeline
    once = exchanged(expert_bytes(work), spread)
    counts = exchanged(work.shape.moe.num_experts * COUNT_BYTES, spread)
    again = 1.0 / work.recompute_every if work.recompute == "full" else 0.0
    passes = 1.0 + again
    forward = Sent.beside(once * layers, shared.forward).times(passes)
    back = Sent.beside(once * layers, shared.backward)
    alone = (passes * (once + counts) + once) * layers
    return forward.plus(back).plus(Sent(alone))


def expert_sends(work: Workload) -> float:
    """All-to-alls of copies, or of their gradients, of a rank and step: see `expert_parallel`."""
    layers = work.shape.expert_layers / work.pipeline * work.micro_batches
    return layers * (4.0 + (2.0 / work.recompute_every if work.recompute == "full" else 0.0))


def expert_bytes(work: Workload) -> float:
    """Bytes of all copies of a rank's tokens, which it sends to their experts; tensor-parallel ranks, which
    compute the same tokens, send a copy each."""
    return work.tokens * work.shape.moe.num_experts_per_tok * work.shape.hidden_size * work.value_bytes


def expert_spread(work: Workload, fleet: Fleet) -> Spread:
    """Ranks among which experts are dealt out."""
    return Spread(fleet, work.expert, work.tensor)


def sharded_weights(work: Workload, fleet: Fleet, computed: Computing) -> Sent:
    """Of a micro-batch under ZeRO-3: weights gathered for each pass, gradients reduce-scattered.

    The weights of a layer are gathered while the one before computes (Rajbhandari et al. 2020; Zhao et al.
    2023, FSDP): a layer's messages are hidden by the computing of a layer, forward and backward apart. The
    first gather of each pass and the last reduce-scatter have nothing beside them.
    """
    spread = data_spread(work, fleet)
    if work.zero < 3 or spread.ranks == 1:
        return Sent()
    layers = work.shape.num_hidden_layers / work.pipeline
    weights = gathered(work.sharded_bytes / layers, spread)
    gradients = gathered(work.trained / layers * work.exchange.gradient_bytes, spread)
    passes = computed.layers
    head = computed.head.total + computed.loss.total
    forward = Sent.beside(weights * layers, passes.forward + head / 3, weights)
    back = (weights + gradients) * layers
    return forward.plus(Sent.beside(back, passes.backward + passes.again + head * 2 / 3, gradients))


def gradients(work: Workload, fleet: Fleet, computed: Computing) -> Sent:
    """Of a step below ZeRO-3: gradients summed beside the last backward pass, weights gathered.

    Buckets leave as they are complete (Li et al. 2020); of the last one nothing is hidden. Experts that are
    dealt out have buckets of their own, for the ranks that hold the same ones.
    """
    dealt = 0.0 if work.frozen else work.dealt
    experts = _summed(work, dealt, copies_spread(work, fleet), computed)
    return experts.plus(_summed(work, work.trained - dealt, data_spread(work, fleet), computed))


def _summed(work: Workload, elements: float, spread: Spread, computed: Computing) -> Sent:
    """`gradients` of so many elements of a rank, over the ranks that hold the same ones."""
    if work.zero == 3 or spread.ranks == 1 or not elements:
        return Sent()
    exchange, bucket = work.exchange, BUCKET * max(1.0, spread.ranks / 32.0)
    size = elements * exchange.gradient_bytes
    scattered = gathered(size, spread, max(1.0, size / bucket))
    if exchange.all_reduce:
        scattered *= 2.0
    times = work.micro_batches if exchange.each_micro_batch else 1.0
    passes = computed.layers
    room = passes.backward + passes.again + (computed.head.total + computed.loss.total) * 2 / 3
    room *= elements / work.trained
    alone = scattered * max(1.0 - exchange.beside, min(1.0, bucket / size))
    sums = Sent.beside(scattered, room, alone).times(times)
    if work.zero == 0:
        return sums
    size = elements * work.weight_bytes
    weights = gathered(size, spread, max(1.0, size / bucket))
    if exchange.gathers_late:
        return sums.plus(Sent(weights))
    return sums.plus(Sent.beside(weights, passes.forward, weights / work.shape.num_hidden_layers))


def pipeline(work: Workload, fleet: Fleet) -> tuple[float, float]:
    """Seconds of messages between stages of a micro-batch, and the share by which a step waits for stages.

    (p - 1) / (v m) for p stages of v chunks and m micro-batches (Narayanan et al. 2021). No engine of ours.
    """
    if work.pipeline == 1:
        return 0.0, 0.0
    size = work.tokens * work.shape.hidden_size * work.value_bytes / work.tensor
    hop = sent(size, fleet, work.tensor * work.context * work.pipeline > fleet.joined)
    return 2.0 * work.chunks * hop * HOPS_EXPOSED, (work.pipeline - 1) / (work.chunks * work.micro_batches)


def host_traffic(work: Workload, computed: Computing) -> Sent:
    """Of a step with offloading: what device and host send each other, and the host's update of its share.

    Both ways at once run beside computing; that the host updates, and weights come back from it, is waited
    for (ZeRO-Offload, Ren et al. 2021).
    """
    if not work.offload:
        return Sent()
    there, here = host_bytes(work)
    seconds, room = max(there, here) / HOST_BANDWIDTH, computed.total * work.micro_batches
    mine = work.trained / work.replicas
    back = mine * work.weight_bytes / HOST_BANDWIDTH if work.zero < 3 else 0.0
    return Sent(max(0.0, seconds - room) + back + mine * HOST_UPDATE, min(seconds, room))


def inputs_to_host(work: Workload, computed: Computing) -> Sent:
    """Of a micro-batch: inputs of recomputed blocks go to the host beside the forward pass, and come back."""
    if not work.inputs_to_host:
        return Sent()
    pieces = work.tensor if work.sequence_parallel else 1
    layers = work.shape.num_hidden_layers / (work.recompute_every * work.pipeline)
    once = work.tokens * work.shape.hidden_size * work.value_bytes / pieces * layers / HOST_BANDWIDTH
    passes = computed.layers
    forward = Sent.beside(once, passes.forward, once / layers)
    return forward.plus(Sent.beside(once, passes.backward + passes.again, once / layers))


def host_bytes(work: Workload) -> tuple[float, float]:
    """Bytes of a rank that go to the host in a step, and that come from it before the update.

    DeepSpeed adds up gradients on the device and sends the sums, but at stage 3, and in fp32: there each
    micro-batch reads the sums from the host and writes them to it (read in its source). At stage 3 weights
    lie there, too, and come for every forward and every backward pass (ZeRO-Infinity, Rajbhandari et al.
    2021).
    """
    sums = work.trained / work.replicas * work.exchange.gradient_bytes
    times = work.micro_batches if work.zero == 3 or work.value_bytes == 4 else 1.0
    weights = 2.0 * work.micro_batches * work.sharded_bytes / work.replicas
    return sums * times, sums * (times - 1.0) + (weights if work.zero == 3 else 0.0)


def copies_spread(work: Workload, fleet: Fleet) -> Spread:
    """Ranks that hold the same experts, where these are dealt out."""
    return Spread(fleet, work.replicas // work.expert, work.tensor * work.expert)


def data_spread(work: Workload, fleet: Fleet) -> Spread:
    """Ranks that hold the same weights: those of other rows, and of other parts of a row."""
    return Spread(fleet, work.replicas, work.tensor)
