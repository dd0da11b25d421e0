"""Of each part of a step the formula with its numbers, and where it is from: what `--explain` shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmkit.config.memory import show_bytes
from llmkit.estimate.collectives import Spread
from llmkit.estimate.communication import (
    HOST_BANDWIDTH,
    copies_spread,
    data_spread,
    expert_bytes,
    expert_sends,
    expert_spread,
    host_bytes,
    ring_bytes,
    tensor_sums,
    ulysses_bytes,
)
from llmkit.estimate.computing import (
    KERNELS,
    attention_flops,
    linear_shapes,
    logit_bytes,
    pointwise_bytes,
    update_bytes,
)
from llmkit.estimate.constants import Constants
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.rates import K_HALF, LAUNCH
from llmkit.estimate.workload import Workload

Numbers = Callable[[Workload, Fleet, Constants], str]


def formula_of(part: str, work: Workload, fleet: Fleet, constants: Constants) -> tuple[str, str]:
    """Formula and source of a part."""
    numbers, source = _PARTS[part]
    return numbers(work, fleet, constants), source


def _matmul(work: Workload, fleet: Fleet, _: Constants) -> str:
    weights = sum(outputs * inputs for outputs, inputs in linear_shapes(work)) * _layers(work)
    adapters = f", and of {work.trained:.4g} of adapters 6 x as many" if work.frozen else ""
    return (
        f"{_flops(work)} x {work.tokens:,.0f} tokens x {weights:.4g} weights{adapters} x "
        f"{work.micro_batches:g} micro-batches in {work.linear}, at {_peak(work, fleet)}, "
        f"x k / (k + {K_HALF:g}) x filled waves"
    )


def _flops(work: Workload) -> str:
    """FLOPs of a weight and token: without the product for its gradient where it is frozen."""
    return "4" if work.frozen else "6"


def _head(work: Workload, fleet: Fleet, _: Constants) -> str:
    weights = work.shape.padded_vocab_size * work.shape.hidden_size / work.tensor
    tokens = f"{_flops(work)} x {work.tokens:,.0f} tokens"
    return f"{tokens} x {weights:.4g} weights x {work.micro_batches:g} micro-batches"


def _attention(work: Workload, fleet: Fleet, _: Constants) -> str:
    flops = 3.5 * attention_flops(work) * work.micro_batches / work.pipeline
    return (
        f"3.5 x 4 x queries x keys seen x width = {flops:.3g} FLOPs, at R s / (s + s0) by charts of the form"
    )


def _pointwise(work: Workload, fleet: Fleet, _: Constants) -> str:
    forward, backward = (size * _layers(work) * work.micro_batches for size in pointwise_bytes(work))
    return f"({show_bytes(forward)} + {show_bytes(backward)}) / {_bandwidth(fleet)}"


def _loss(work: Workload, fleet: Fleet, _: Constants) -> str:
    logits = work.tokens * work.shape.padded_vocab_size / work.tensor * work.micro_batches
    return f"{logits:.4g} logits x {logit_bytes(work):g} bytes / {_bandwidth(fleet)}"


def _recompute(work: Workload, fleet: Fleet, _: Constants) -> str:
    every = f" of every {work.recompute_every}. layer" if work.recompute_every > 1 else ""
    what = "the forward pass" if work.recompute == "full" else "pointwise operations of it"
    return f"{what}{every} once more"


def _accumulation(work: Workload, fleet: Fleet, _: Constants) -> str:
    total = work.trained * work.accumulates * work.micro_batches
    return (
        f"{work.trained:.4g} gradients x {work.accumulates:g} bytes x {work.micro_batches:g} micro-batches "
        f"= {show_bytes(total)} / {_bandwidth(fleet)}"
    )


def _overhead(work: Workload, fleet: Fleet, constants: Constants) -> str:
    return f"({constants.overhead:g} - 1) x all computing: gaps between kernels, lower clocks"


def _launching(work: Workload, fleet: Fleet, _: Constants) -> str:
    kernels = (sum(KERNELS[work.fused]) + work.hooks) * _layers(work) * work.micro_batches
    hooks = ", DeepSpeed's hooks as so many" if work.hooks else ""
    each = (
        "as measured" if fleet.device.architecture == "cpu" else f"x {LAUNCH * 1e6:g} us, less all computing"
    )
    return f"{kernels:,.0f} kernels{hooks}, {each}"


def _stragglers(work: Workload, fleet: Fleet, constants: Constants) -> str:
    nodes = max(1.0, work.world / fleet.devices_per_node)
    return f"{constants.jitter:g} x log2({nodes:g} nodes) x all computing: each step waits for the slowest"


def _tensor(work: Workload, fleet: Fleet, _: Constants) -> str:
    size = work.tokens * work.shape.hidden_size * work.value_bytes
    sums = tensor_sums(work) * work.micro_batches
    return f"{sums:,.0f} sums of {show_bytes(size)} {_over(Spread(fleet, work.tensor))}"


def _context(work: Workload, fleet: Fleet, _: Constants) -> str:
    layers, spread = _layers(work) * work.micro_batches, Spread(fleet, work.context, work.tensor)
    if work.context_form == "ring":
        passes = 2.0 + (1.0 / work.recompute_every if work.recompute == "full" else 0.0)
        text = f"{passes:g} x {work.context - 1} passes of {show_bytes(ring_bytes(work))}"
        back = show_bytes(ring_bytes(work) * 4 / work.value_bytes)
        return f"{layers:,.0f} x ({text}, and {work.context} of {back} of gradients) {_over(spread)}"
    before, behind = map(show_bytes, ulysses_bytes(work))
    times = 2.0 + (1.0 / work.recompute_every if work.recompute == "full" else 0.0)
    return f"{layers:,.0f} x {times:g} x all-to-alls of {before} and {behind} {_over(spread)}"


def _experts(work: Workload, fleet: Fleet, _: Constants) -> str:
    size, spread = show_bytes(expert_bytes(work)), expert_spread(work, fleet)
    return f"{expert_sends(work):,.0f} all-to-alls of {size}, and their sizes, {_over(spread)}"


def _gathers(work: Workload, fleet: Fleet, _: Constants) -> str:
    weights, gradients = work.sharded_bytes, work.trained * work.exchange.gradient_bytes
    return (
        f"(2 x {show_bytes(weights)} + {show_bytes(gradients)}) x {work.micro_batches:g} micro-batches in "
        f"{_layers(work):g} layers {_over(data_spread(work, fleet))}"
    )


def _gradients(work: Workload, fleet: Fleet, _: Constants) -> str:
    dealt, copies = 0.0 if work.frozen else work.dealt, copies_spread(work, fleet)
    text = _sums(work, work.trained - dealt, data_spread(work, fleet))
    if dealt and copies.ranks > 1:
        text += f"; of experts {_sums(work, dealt, copies)}"
    return text


def _sums(work: Workload, elements: float, spread: Spread) -> str:
    """Of so many elements of a rank, over the ranks that hold the same ones."""
    exchange = work.exchange
    times = f" x {work.micro_batches:g} micro-batches" if exchange.each_micro_batch else ""
    size = show_bytes(elements * exchange.gradient_bytes)
    text = f"{size} of gradients{' x 2 (all-reduce)' if exchange.all_reduce else ''}{times}"
    text += f" and {show_bytes(elements * work.weight_bytes)} of weights" if work.zero else ""
    return f"{text} {_over(spread)}"


def _offload(work: Workload, fleet: Fleet, _: Constants) -> str:
    if not work.offload:
        return f"inputs of {_layers(work):g} blocks, there and back, at {HOST_BANDWIDTH / 1e9:g} GB/s"
    there, here = host_bytes(work)
    return (
        f"{show_bytes(there)} to the host and {show_bytes(here)} from it at {HOST_BANDWIDTH / 1e9:g} GB/s, "
        f"less all computing; then its update of {work.trained / work.replicas:.4g} parameters"
    )


def _pipeline(work: Workload, fleet: Fleet, _: Constants) -> str:
    return f"({work.pipeline} - 1) / ({work.chunks:g} x {work.micro_batches:g}) of the step, and messages"


def _optimizer(work: Workload, fleet: Fleet, _: Constants) -> str:
    muon = ", and Newton-Schulz products" if work.update is not None and work.update.muon else ""
    return f"{work.updated:.4g} parameters x {update_bytes(work):.3g} bytes / {_bandwidth(fleet)}{muon}"


def _layers(work: Workload) -> float:
    return work.shape.num_hidden_layers / work.pipeline


def _peak(work: Workload, fleet: Fleet) -> str:
    kind = work.linear if work.linear in fleet.device.flops else "bf16"
    reached = fleet.device.reached
    return f"{reached.products:.3g} x {reached.sustained:g} of {fleet.device.flops[kind] / 1e12:,.4g} TFLOP/s"


def _bandwidth(fleet: Fleet) -> str:
    device = fleet.device
    if not device.bandwidth:
        return "the measured rate"
    return f"{device.bandwidth * device.reached.memory / 1e12:.3g} TB/s"


def _over(spread: Spread) -> str:
    where = (
        f"{spread.ranks} ranks, {spread.in_node} a node"
        if spread.nodes > 1
        else f"{spread.ranks} ranks of a node"
    )
    return f"over {where}, at {spread.bandwidth / 1e9:.4g} GB/s + {spread.latency * 1e6:.3g} us a message"


DATA_SHEETS = "bandwidth by data sheets, shares and latencies assumed"
_PARTS: Mapping[str, tuple[Numbers, str]] = {
    "matmul": (_matmul, "estimate/rates.py; rates measured on one H100, assumed of other devices"),
    "attention": (_attention, "charts of FlashAttention-2, -3"),
    "pointwise": (_pointwise, "estimate/computing.py, counted; bandwidth measured on one H100"),
    "head": (_head, "estimate/rates.py"),
    "loss": (_loss, "counted on the kernels"),
    "recompute": (_recompute, "Chen et al. 2016"),
    "accumulation": (_accumulation, "engine/reduce.py, DeepSpeed's source"),
    "overhead": (_overhead, "fitted to published runs"),
    "launching": (_launching, "kernels counted, hooks measured on a CPU, seconds assumed of GPUs"),
    "stragglers": (_stragglers, "fitted to published runs"),
    "tensor parallelism": (_tensor, f"Shoeybi et al. 2019, Korthikanti et al. 2022; {DATA_SHEETS}"),
    "context parallelism": (_context, f"Jacobs et al. 2023, Liu et al. 2023; {DATA_SHEETS}"),
    "expert parallelism": (_experts, f"Lepikhin et al. 2021; {DATA_SHEETS}"),
    "gathers of ZeRO-3": (_gathers, f"Rajbhandari et al. 2020, Zhao et al. 2023; {DATA_SHEETS}"),
    "gradients and weights": (_gradients, f"Li et al. 2020, Rajbhandari et al. 2020; {DATA_SHEETS}"),
    "offload": (_offload, "Ren et al. 2021, Rajbhandari et al. 2021, DeepSpeed's source; rates assumed"),
    "pipeline": (_pipeline, "Narayanan et al. 2021"),
    "optimizer": (_optimizer, "counted; Jordan et al. 2024 for Muon"),
}
