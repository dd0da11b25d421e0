"""Whole training steps: llmkit beside its peers, its engines, recomputation, fp8, and what losses do."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.contenders import contender_shape
from benchmarks.on_gpu.report import Row
from benchmarks.on_gpu.roofline import REACHED, STEP_TOKENS, TARGETS, causal_flops, memory, step_seconds
from benchmarks.on_gpu.setting import OUT_OF_TIME, Setting
from benchmarks.on_gpu.turn import Outcome, Task, measure
from benchmarks.timing import reason
from benchmarks.workloads import ROOT, make_workload
from llmkit.monitor.flops import train_flops_per_token, utilization

TOY_ROWS = 4
ENGINE_TOKENS = 131_072
"""Of a step that compares engines: fewer micro-batches, so that the update counts."""
LOSS_STEPS, LOSS_ROWS = 20, 32
GRACE = 20.0
"""Seconds that a turn may go on after the minutes are used up."""
DOCUMENTS = {"data": {"document_masks": True}}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "toy": ("toy", {}),
    "124m": ("124m", {}),
    "355m": ("355m", {}),
    "1558m": ("1558m", {}),
    "llama-1b": ("llama-1b", {}),
    "llama-1b-8k": ("llama-1b", {"data": {"sequence_length": 8192}}),
    "llama-3b": ("llama-3b", {}),
}
"""Name -> workload and what is changed of it."""
PEERS = {
    "gelu": ("gpt2-compiled", "gpt2", "litgpt-compiled", "litgpt"),
    "swiglu": ("llama-compiled", "llama-liger", "llama", "litgpt-compiled", "litgpt"),
}
ENGINES: dict[str, dict[str, Any]] = {
    "native": {},
    "native, stage 1": {"zero_stage": 1, "engine": "native"},
    "DeepSpeed, stage 1": {"zero_stage": 1, "engine": "deepspeed"},
    "DeepSpeed, stage 2": {"zero_stage": 2},
    "DeepSpeed, stage 3": {"zero_stage": 3},
}
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"activation_checkpointing": "selective"},
    "full, every second block": {"activation_checkpointing": "full", "activation_checkpointing_every": 2},
    "full": {"activation_checkpointing": "full"},
}

NOTES = (
    "A turn: a process of its own builds the contender, finds the largest micro-batch that fits (a "
    "divisor of the step's rows), then takes a first step, two more, and timed ones between CUDA events. "
    "Order A B C C B A: the second turn keeps the micro-batch of the first. A row is written after the "
    "first turn and again after the second; median (quickest to slowest) is of all timed steps of both.",
    "Batches, AdamW, clipping and number types: as in benchmarks/step.py. Peers run as they are (eager), "
    "compiled as a whole, and with Liger's kernels. A contender that does not import or run says why: it "
    "is not slow. Document masks: llmkit's row against llmkit's without.",
    "MFU, full: 6 N + 12 L d s FLOPs a token; causal: matrices, and the half of attention that is not "
    "masked; both over the published dense bf16 peak, recomputed work not counted. Predicted: the "
    f"roofline's bound times {REACHED}, for llmkit without recomputation.",
)  # fmt: skip
LOSS_NOTES = (
    f"Losses of {LOSS_STEPS} steps of {LOSS_ROWS} rows, each contender against its own run in fp32, "
    "eager, from the same weights and batches. llmkit's reference computes with PyTorch's forms of all "
    "operators. Within 0.02 nats is expected in bf16, 0.05 in fp8.",
)


@dataclass(frozen=True)
class Case:
    """A row: its name, what is measured, and whether the roofline predicts it."""

    name: str
    task: Task
    predicted: bool = False


def step(setting: Setting) -> Iterator[Row]:
    """llmkit beside its peers, a table a shape."""
    for name in setting.shapes or (("toy",) if setting.toy else [name for name in SHAPES if name != "toy"]):
        workload, changes = SHAPES[name]
        model = make_workload(workload, setting.device, changes).shape
        ours = task_of(setting, "llmkit", name)
        cases = [Case("llmkit", ours, predicted=True)]
        if model.mlp == "swiglu":
            masked = _merged(ours.changes, DOCUMENTS)
            cases.append(Case("llmkit, document masks", dataclasses.replace(ours, changes=masked)))
        peers = [peer for peer in setting.peers or PEERS[model.mlp] if peer != "llmkit"]
        cases += [Case(peer, task_of(setting, peer, name)) for peer in peers]
        yield from run(cases, f"Steps: {name}", name, setting)


def zero(setting: Setting) -> Iterator[Row]:
    """The engines at one process, at the same micro-batch."""
    name = "toy" if setting.toy else "llama-1b"
    yield from _variants(
        setting, name, "parallel", ENGINES, ENGINE_TOKENS, micro_rows=2 if setting.toy else 4
    )


def recompute(setting: Setting) -> Iterator[Row]:
    """What computing again costs, each at its largest micro-batch."""
    name = "toy" if setting.toy else "llama-1b"
    yield from _variants(setting, name, "parallel", RECOMPUTE, STEP_TOKENS)


def fp8(setting: Setting) -> Iterator[Row]:
    """fp8 against bf16."""
    for name in ("toy",) if setting.toy else ("llama-1b", "124m"):
        cases = [
            Case(precision, dataclasses.replace(task_of(setting, "llmkit", name), precision=precision))
            for precision in ("bf16", "fp8")
        ]
        yield from run(cases, f"fp8: {name}", name, setting)


def loss(setting: Setting) -> Iterator[Row]:
    """How far losses of 20 steps are from those in fp32."""
    name, steps = ("toy", 4) if setting.toy else ("124m", LOSS_STEPS)
    plain: dict[str, Any] = {"kernels": {"backend": "torch", "compile": False}}
    base = task_of(setting, "llmkit", name)
    base = dataclasses.replace(
        base, rows=min(LOSS_ROWS, base.rows), micro_rows=min(8, base.rows), steps=steps, precision="bf16"
    )
    variants = {
        "llmkit": base,
        "llmkit, eager": dataclasses.replace(base, changes={"kernels": {"compile": False}}),
        "llmkit, fp8": dataclasses.replace(base, precision="fp8"),
        **{
            f"llmkit, {engine}": dataclasses.replace(base, changes={"parallel": parallel})
            for engine, parallel in list(ENGINES.items())[1 : 2 if setting.toy else None]
        },
    }
    references = {"llmkit": dataclasses.replace(base, changes=plain, precision="fp32")}
    for peer, reference in (("gpt2-compiled", "gpt2"), ("litgpt-compiled", "litgpt")):
        variants[peer] = dataclasses.replace(base, contender=peer)
        references[reference] = dataclasses.replace(base, contender=reference, precision="fp32")
    expected: dict[str, Outcome] = {}
    for label, task in variants.items():
        reference = task.contender.removesuffix("-compiled")
        if reference not in expected:
            expected[reference] = turn(references[reference], setting)
        yield Row("Losses", _agreement(label, expected[reference], turn(task, setting)))


def run(cases: Sequence[Case], table: str, shape: str, setting: Setting) -> Iterator[Row]:
    """A row a case after its first turn, and again after its second."""
    turns: dict[str, list[Outcome]] = {}

    def row(case: Case) -> Row:
        cells = _cells(case, turns[case.name], shape, setting)
        return Row(table, cells | _ratio(cases[0].name, case.name, turns))

    for case in cases:
        turns[case.name] = [turn(case.task, setting)]
        yield row(case)
    for case in reversed(cases):
        once = turns[case.name][0]
        if once.failed is None and setting.in_time:
            again = turn(dataclasses.replace(case.task, micro_rows=once.micro_rows), setting)
            if again.failed is None:
                turns[case.name].append(again)
                yield row(case)


def turn(task: Task, setting: Setting) -> Outcome:
    """One turn of the task, in a process of its own unless the setting says otherwise."""
    if not setting.in_time:
        return Outcome(failed=OUT_OF_TIME)
    setting.note(f"{task.contender} at {task.workload}, {task.precision} {dict(task.changes)}")
    if not setting.isolated:
        return measure(task, setting.device)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--turn", task.to_json()]
    if setting.wheels is not None:
        command += ["--wheels", str(setting.wheels)]
    left = setting.ends - time.monotonic() + GRACE
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return Outcome(failed=OUT_OF_TIME)
    try:
        return Outcome(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, json.JSONDecodeError, TypeError):
        last = done.stderr.strip().splitlines()[-1:] or ["printed no result"]
        return Outcome(failed=f"exit code {done.returncode}: {reason(RuntimeError(last[0]))}")


def task_of(setting: Setting, contender: str, name: str, tokens: int = STEP_TOKENS) -> Task:
    """The contender at a shape. Where the largest micro-batch is asked for, the roofline's is tried first."""
    workload, changes = SHAPES[name]
    work = make_workload(workload, setting.device, changes)
    rows = TOY_ROWS if setting.toy else tokens // work.length
    guess = 1
    if setting.device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(setting.device)[1]
        fitting = [n for n in range(1, rows + 1) if memory(work.shape, n * work.length) < 0.9 * free]
        guess = max((n for n in fitting if rows % n == 0), default=1)
        guess = guess if contender == "llmkit" else max(1, guess // 2)
    return Task(contender, workload, rows, setting.precision, setting.seconds, changes, guess=guess)


def _variants(
    setting: Setting,
    name: str,
    section: str,
    variants: dict[str, dict[str, Any]],
    tokens: int,
    micro_rows: int | None = None,
) -> Iterator[Row]:
    base = task_of(setting, "llmkit", name, tokens)
    cases = [
        Case(
            label,
            dataclasses.replace(
                base, changes=_merged(base.changes, {section: values}) if values else base.changes,
                micro_rows=micro_rows,
            ),
        )
        for label, values in variants.items()
    ]  # fmt: skip
    yield from run(cases, f"{section}: {name}", name, setting)


def _merged(one: Any, other: Any) -> dict[str, Any]:
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in {**one, **other}}


def _cells(case: Case, turns: Sequence[Outcome], name: str, setting: Setting) -> dict[str, str]:
    """A row of figures, or the reason why there are none."""
    first = turns[0]
    if first.failed is not None:
        return {"contender": case.name, "tokens/s": why(first.failed)}
    workload, changes = SHAPES[name]
    work = make_workload(workload, setting.device, changes)
    shape, task = contender_shape(case.task.contender, work.shape), case.task
    tokens = task.rows * work.length
    seconds = [second for each in turns for second in each.seconds]
    rate = tokens / median(seconds)
    cells = {
        "contender": case.name,
        "parameters": f"{shape.num_parameters / 1e6:.1f}M",
        "micro-batch x accumulation": f"{first.micro_rows} x {task.rows // first.micro_rows}",
        "tokens/s": f"{rate:,.0f} ({tokens / max(seconds):,.0f} to {tokens / min(seconds):,.0f})",
        "step ms": f"{1e3 * median(seconds):,.1f}",
    }
    for convention, flops in (
        ("full", train_flops_per_token(shape, work.length)), ("causal", causal_flops(shape, work.length))
    ):  # fmt: skip
        share = utilization(rate, flops, setting.peak)
        cells[f"MFU {convention}"] = "-" if share is None else f"{share:.1%}"
    if case.predicted and setting.rates is not None:
        bound = step_seconds(shape, work.length, first.micro_rows * work.length, tokens, setting.rates)
        cells["predicted tokens/s"] = f"{tokens / bound * REACHED:,.0f}"
        cells["target MFU"] = f"{TARGETS[workload]:.0%}" if workload in TARGETS else "-"
    return cells | {
        "peak GiB": f"{max(each.peak for each in turns):.2f}" if first.peak else "-",
        "first step s": ", ".join(f"{each.first_step:.1f}" for each in turns),
        "loss": f"{first.losses[0]:.3f} to {first.losses[-1]:.3f}",
        "turns": str(len(turns)),
        "clocks, power": first.clocks,
        "notes": "; ".join(first.notes),
    }


def why(failed: str) -> str:
    """What a row says in the place of figures."""
    return failed if failed == OUT_OF_TIME else f"did not run: {failed}"


def _ratio(base: str, name: str, turns: Mapping[str, Sequence[Outcome]]) -> dict[str, str]:
    """The rate as a multiple of the base's, of as many turns of it."""
    count = len(turns[name])
    ours, theirs = (
        [second for each in turns[case][-count:] for second in each.seconds] for case in (base, name)
    )
    return {f"x {base}": f"{median(ours) / median(theirs):.3f}"} if ours and theirs else {}


def _agreement(label: str, expected: Outcome, found: Outcome) -> dict[str, str]:
    failed = found.failed or (expected.failed and f"its reference: {expected.failed}")
    if failed:
        return {"contender": label, "largest difference": why(failed)}
    differences = [abs(a - b) for a, b in zip(expected.losses, found.losses, strict=True)]
    return {
        "contender": label,
        "largest difference": f"{max(differences):.2e}",
        "last difference": f"{differences[-1]:.2e}",
        "loss": f"{found.losses[0]:.4f} to {found.losses[-1]:.4f}",
        "in fp32": f"{expected.losses[0]:.4f} to {expected.losses[-1]:.4f}",
    }
