"""What bounds a step, from the events of a profiler's trace: a verdict with figures, the top operators."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Bound = Literal["data", "communication", "launch", "compute", "memory"]
Event = Mapping[str, Any]
Spans = list[tuple[float, float]]

DEVICE_EVENTS = ("kernel", "gpu_memcpy", "gpu_memset")
COLLECTIVE = re.compile(r"nccl|rccl|gloo:|c10d(_functional)?::|deepspeed_shm", re.IGNORECASE)
MATRIX = re.compile(
    r"gemm|gemv|nvjet|cutlass|cublas|xmma|wgmma|mma_|_mma|matmul|triton_tem|flash|fmha|cudnn.*(sdpa|attn)|attention"
    r"|aten::(_?addmm|mm|bmm|baddbmm|linear|matmul|_scaled_mm|_grouped_mm|einsum)|mkldnn.*linear|mkl_linear",
    re.IGNORECASE,
)
"""Names of kernels and operators whose arithmetic outweighs their memory traffic: products, and attention."""
NO_STEPS = ("evaluate", "save")
"""Marks of what may lie between two steps: it is left out."""
SHORT_MICROSECONDS = 10.0
"""An operator on the CPU that takes less mostly pays for being called."""


@dataclass(frozen=True)
class Operator:
    """Totals of the events of one name: microseconds of its own, without what it calls."""

    name: str
    calls: int
    microseconds: float
    kind: Literal["collective", "matrix", "other"]


@dataclass(frozen=True)
class Bottleneck:
    """shares: of the time of the steps, by what it went to; they add up to 1. operators: longest first."""

    bound: Bound
    shares: Mapping[Bound, float]
    operators: Sequence[Operator]
    device: bool
    """Whether the trace has events of a GPU; else operators are those of the CPU's main thread."""
    steps: int
    step_seconds: float
    matrix_flops: float | None
    """FLOP/s while matrix kernels run; None where it is not known."""
    collective_bytes: float | None
    """Bytes a second while collectives run; None where the trace does not tell."""

    def line(self) -> str:
        """The verdict with its figures, in one line."""
        between = "between kernels" if self.device else "in short operators and between operators"
        words: dict[Bound, str] = {
            "compute": "in matrix products and attention",
            "memory": "in other kernels, which move memory" if self.device else "in other operators",
            "communication": "in collectives that no computation hides, or waiting for other ranks",
            "data": "waiting for data",
            "launch": f"{between} (launching, Python)",
        }
        order = sorted((name for name in words if self.shares[name] >= 0.005), key=lambda n: -self.shares[n])
        parts = []
        for name in order:
            text = f"{100 * self.shares[name]:.0f} % {words[name]}"
            if name == "compute" and self.matrix_flops:
                text += f" ({self.matrix_flops / 1e12:.3g} TFLOP/s there)"
            if name == "communication" and self.collective_bytes:
                text += f" ({self.collective_bytes / 1e9:.3g} GB/s)"
            parts.append(text)
        seconds = f"{1000 * self.step_seconds:.4g} ms a step"
        return f"{self.bound}-bound: {', '.join(parts)}; {seconds}, {self.steps} profiled"


def find_bottleneck(
    events: Iterable[Event], seconds: float, waiting: float, steps: int, flops: float | None = None
) -> Bottleneck:
    """Where the time of profiled steps went.

    events: `traceEvents` of a trace in Chrome's format, as PyTorch writes it. seconds: of all its steps;
    waiting: of them, for data. flops: of all the steps on this device.

    Of a GPU's time, collectives count as far as no other kernel runs beside them; time without any kernel
    is waiting for data or else launching. Without a GPU the operators of the thread that is busiest take
    the place of kernels.
    """
    complete = [each for each in events if each.get("ph") == "X" and "dur" in each]
    marks = merged(spans_of(e for e in complete if e["name"] in NO_STEPS and e["cat"] == "user_annotation"))
    if marks:
        complete = [e for e in complete if not any(begin <= e["ts"] < end for begin, end in marks)]
        seconds -= length(marks) / 1e6
    kernels = [each for each in complete if each.get("cat") in DEVICE_EVENTS]
    if kernels:
        return _of_gpu(kernels, seconds, waiting, steps, flops)
    return _of_cpu(complete, seconds, waiting, steps, flops)


def _of_gpu(
    kernels: list[Event], seconds: float, waiting: float, steps: int, flops: float | None
) -> Bottleneck:
    collectives = [each for each in kernels if COLLECTIVE.search(each["name"])]
    others = [each for each in kernels if not COLLECTIVE.search(each["name"])]
    computing = merged(spans_of(others))
    exposed = length(merged(spans_of(collectives) + computing)) - length(computing)
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for each in kernels:
        total = totals[each["name"]]
        total[0] += 1
        total[1] += each["dur"]
    operators = _operators(totals)
    matrix = sum(each.microseconds for each in operators if each.kind == "matrix")
    other = sum(each.microseconds for each in operators if each.kind == "other")
    shared = length(computing) / (matrix + other) if matrix + other else 0.0  # several streams overlap
    return _verdict(
        seconds, waiting, steps, flops, operators, exposed, matrix * shared, other * shared, matrix,
        collective_rate(collectives), device=True,
    )  # fmt: skip


def _of_cpu(
    complete: list[Event], seconds: float, waiting: float, steps: int, flops: float | None
) -> Bottleneck:
    threads: dict[Any, list[Event]] = defaultdict(list)
    for each in complete:
        if each.get("cat") == "cpu_op":
            threads[each.get("pid"), each.get("tid")].append(each)
    main = max(threads.values(), key=lambda found: length(merged(spans_of(found))), default=[])
    blocking = merged(spans_of(each for each in main if COLLECTIVE.search(each["name"])))
    computing = without(merged(spans_of(main)), blocking)
    # gloo's threads mark theirs as annotations.
    collectives = merged(spans_of(each for each in complete if COLLECTIVE.search(each["name"])))
    exposed = length(merged(collectives + computing)) - length(computing)
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    times = {"matrix": 0.0, "other": 0.0, "collective": 0.0}
    for each, microseconds in own_times(main):
        total = totals[each["name"]]
        total[0] += 1
        total[1] += microseconds
        if microseconds >= SHORT_MICROSECONDS:
            times[kind_of(each["name"])] += microseconds
    return _verdict(
        seconds, waiting, steps, flops, _operators(totals), exposed, times["matrix"], times["other"],
        times["matrix"], None, device=False,
    )  # fmt: skip


def _verdict(
    seconds: float, waiting: float, steps: int, flops: float | None, operators: list[Operator],
    exposed: float, matrix: float, other: float, matrix_time: float, rate: float | None, *, device: bool,
) -> Bottleneck:  # fmt: skip
    """Times of kernels in microseconds: see `Bottleneck`."""
    busy = {"communication": exposed / 1e6, "compute": matrix / 1e6, "memory": other / 1e6}
    idle = max(0.0, seconds - sum(busy.values()))
    data = min(waiting, idle)  # what the device has still to do while the host waits costs nothing
    found: dict[Bound, float] = {**busy, "data": data, "launch": idle - data}  # type: ignore[dict-item]
    whole = sum(found.values()) or 1.0
    shares = {name: value / whole for name, value in found.items()}
    return Bottleneck(
        bound=max(shares, key=lambda name: shares[name]),
        shares=shares,
        operators=operators,
        device=device,
        steps=steps,
        step_seconds=seconds / max(1, steps),
        matrix_flops=flops / (matrix_time / 1e6) if flops and matrix_time else None,
        collective_bytes=rate,
    )


def _operators(totals: Mapping[str, list[float]]) -> list[Operator]:
    found = [
        Operator(name, int(calls), microseconds, kind_of(name))
        for name, (calls, microseconds) in totals.items()
    ]
    return sorted(found, key=lambda each: -each.microseconds)


def kind_of(name: str) -> Literal["collective", "matrix", "other"]:
    """Of a kernel or an operator, by its name."""
    if COLLECTIVE.search(name):
        return "collective"
    return "matrix" if MATRIX.search(name) else "other"


def collective_rate(collectives: Iterable[Event]) -> float | None:
    """Bytes a second that a rank gives to collectives while they run, where each event tells its size."""
    size, microseconds = 0.0, 0.0
    widths = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Byte": 1, "Char": 1}
    for each in collectives:
        arguments = each.get("args", {})
        width = widths.get(str(arguments.get("dtype")))
        if width is None or "In msg nelems" not in arguments:
            return None
        size += width * arguments["In msg nelems"]
        microseconds += each["dur"]
    return size / (microseconds / 1e6) if microseconds else None


def spans_of(events: Iterable[Event]) -> Spans:
    """Begin and end of each event, microseconds."""
    return [(each["ts"], each["ts"] + each["dur"]) for each in events]


def merged(spans: Spans) -> Spans:
    """Their union, as spans that do not meet."""
    found: Spans = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def without(spans: Spans, holes: Spans) -> Spans:
    """What is left of spans that do not meet, once others that do not meet are taken out."""
    found: Spans = []
    for begin, end in spans:
        for from_, to in holes:
            if to > begin and from_ < end:
                if from_ > begin:
                    found.append((begin, from_))
                begin = to
        if begin < end:
            found.append((begin, end))
    return found


def length(spans: Spans) -> float:
    """Of spans that do not overlap."""
    return sum(end - begin for begin, end in spans)


def own_times(events: list[Event]) -> list[tuple[Event, float]]:
    """Each event of one thread with its microseconds, less those of the events within it."""
    own = [each["dur"] for each in events]
    order = sorted(range(len(events)), key=lambda i: (events[i]["ts"], -events[i]["dur"]))
    open_events: list[int] = []
    for i in order:
        begin = events[i]["ts"]
        while open_events and events[open_events[-1]]["ts"] + events[open_events[-1]]["dur"] <= begin:
            open_events.pop()
        if open_events:
            own[open_events[-1]] -= events[i]["dur"]
        open_events.append(i)
    return [(each, max(0.0, time)) for each, time in zip(events, own, strict=True)]
