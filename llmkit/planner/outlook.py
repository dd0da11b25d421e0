"""What a run with a layout takes from its first step to its last: time, money, saves, disks, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from llmkit.checkpoint.rule import count_for_good
from llmkit.config.memory import checkpoint_bytes, show_bytes
from llmkit.config.schema import Checkpoint
from llmkit.data.shards.format import token_dtype
from llmkit.errors import UserError
from llmkit.estimate import interruptions
from llmkit.estimate.communication import (
    HOST_BANDWIDTH,
    copies_spread,
    expert_bytes,
    expert_sends,
    expert_spread,
)
from llmkit.estimate.expense import Expense, expense
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.interruptions import DALY, LLAMA_3, daly_interval, lost_share, seconds_between
from llmkit.estimate.search import Candidate
from llmkit.estimate.term import Term
from llmkit.estimate.workload import Workload, workload_of
from llmkit.monitor.cost import Prices
from llmkit.plan.plan import Plan

HOPELESS = 0.99
"""Share of the time lost to saves and failures from which on a run counts as one that never ends."""
DISK_BANDWIDTH = 2e9
"""Bytes a second that a node writes to a shared disk (assumed; `llmkit doctor` measures it)."""


@dataclass(frozen=True)
class Question:
    """What of a run is asked for beside its layout.

    tokens: of the run. device_hours: between two failures of a device. given_rate: whether these are the
    user's.
    """

    tokens: float
    prices: Prices
    device_hours: float = interruptions.DEVICE_HOURS
    given_rate: bool = False


@dataclass(frozen=True)
class Outlook:
    """A run from its first step to its last.

    seconds: with all that is lost to saves and failures; low, high: by the uncertainty of a step. interval,
    stall: seconds between two saves, and of one. lost: share of the time. failures: expected. terms: how each
    figure comes about.
    """

    tokens: float
    steps: int
    seconds: float
    low: float
    high: float
    interval: float
    stall: float
    lost: float
    failures: float
    expense: Expense
    checkpoint: float
    terms: tuple[Term, ...]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def outlook(candidate: Candidate, question: Question) -> Outlook:
    """The run of a candidate that fits. Raises UserError where failures leave no time for it."""
    plan, fleet, step = candidate.plan, candidate.fleet, candidate.time
    steps = math.ceil(question.tokens / plan.tokens_per_step)
    saved = checkpoint_size(plan)
    stall = _stall(saved.value, candidate)
    between = seconds_between(question.device_hours, fleet.size)
    interval = max(step.seconds, daly_interval(stall.value, between))
    lost = lost_share(interval, stall.value, between)
    if lost > HOPELESS:
        raise UserError(
            f"plan: a run on {_devices(fleet)} never ends: one of them fails every {between:.3g} s "
            f"({question.device_hours:,.4g} device-hours between failures, --mtbf), and a restart takes "
            f"{interruptions.RESTART_SECONDS:.0f} s; plan for fewer devices, or for ones that fail less often"
        )
    alone = steps * step.seconds
    longer = 1.0 / (1.0 - lost)
    seconds = alone * longer
    spent = expense(seconds, fleet.size, fleet.device.watts or None, question.prices)
    rate = "given" if question.given_rate else LLAMA_3
    terms = (
        Term(
            "steps", steps, "steps",
            f"{question.tokens:.4g} tokens / {plan.tokens_per_step:,} tokens a step, rounded up",
        ),
        Term("training", alone, "s", f"{steps:,} steps x {step.seconds:.4g} s"),
        saved,
        stall,
        Term(
            "between failures", between, "s",
            f"{question.device_hours:,.6g} device-hours / {_devices(fleet)}", rate,
        ),
        Term(
            "between saves", interval, "s",
            f"Daly's optimum for a stall of {stall.value:.3g} s and a failure every {between:.3g} s; a step "
            "at least", DALY,
        ),
        Term(
            "lost", lost, "share",
            f"saves of {stall.value:.3g} s, steps done again and {interruptions.RESTART_SECONDS:.0f} s of "
            "each restart: 1 - t / (M e^(R / M) (e^((t + d) / M) - 1))", f"{DALY}; the restart is assumed",
        ),
        *_as_configured(candidate, alone, stall.value, between),
        Term("time", seconds, "s", f"{alone:.4g} s / (1 - {lost:.3g})"),
        *_expenses(spent, candidate, question.prices),
        *_needs(candidate, question, saved.value, steps),
    )  # fmt: skip
    return Outlook(
        question.tokens, steps, seconds, steps * step.low * longer, steps * step.high * longer, interval,
        stall.value, lost, seconds / between, spent, saved.value, terms,
    )  # fmt: skip


def checkpoint_size(plan: Plan) -> Term:
    """Of one checkpoint: fp32 values with what is kept beside them."""
    each = checkpoint_bytes(plan.kept_tensors)
    kept = f"fp32 and {plan.kept_tensors:.3g} more (moments, a moving average)"
    formula = f"{plan.num_trained:,} trained parameters x {each:.4g} bytes: {kept}"
    return Term("checkpoint", each * plan.num_trained, "bytes", formula, "llmkit/config/memory.py")


def _stall(saved: float, candidate: Candidate) -> Term:
    """Seconds for which training waits for a save: every rank copies its share to its host, and waits for the
    disk, too, where that is not done beside training."""
    mine, node = saved / candidate.fleet.size, saved / candidate.fleet.nodes
    seconds, formula = mine / HOST_BANDWIDTH, f"{show_bytes(mine)} a rank / {HOST_BANDWIDTH / 1e9:.0f} GB/s"
    if not candidate.saves_beside:
        seconds += node / DISK_BANDWIDTH
        asked = candidate.plan.config.checkpoint.background
        why = "the host has no memory for a copy" if asked else "no checkpoint.background"
        formula += f" + {show_bytes(node)} a node / {DISK_BANDWIDTH / 1e9:g} GB/s ({why})"
    return Term(
        "stall of a save", seconds, "s", formula,
        "all ranks share the pieces (docs/checkpoints.md); rates of PCIe and of a shared disk are assumed",
    )  # fmt: skip


def _as_configured(candidate: Candidate, alone: float, stall: float, between: float) -> Iterator[Term]:
    """What is lost where the run saves as often as its configuration says, instead. alone: seconds of all
    steps."""
    checkpoint, step = candidate.plan.config.checkpoint, candidate.time.seconds
    spans = [checkpoint.every_steps * step, checkpoint.every_minutes * 60.0]
    interval = min([alone, *filter(None, spans)])
    formula = f"the same with a save every {interval:.4g} s (checkpoint.every_steps, every_minutes)"
    if interval == alone:
        formula = "the same with no save before the end (checkpoint.every_steps, every_minutes)"
    lost = lost_share(interval, stall, between)
    yield Term("lost as configured", lost, "share", formula)
    if lost <= HOPELESS:
        yield Term("time as configured", alone / (1.0 - lost), "s", f"{alone:.4g} s / (1 - {lost:.3g})")


def _devices(fleet: Fleet) -> str:
    return f"{fleet.size:,} device{'s' * (fleet.size > 1)}"


def _expenses(spent: Expense, candidate: Candidate, prices: Prices) -> list[Term]:
    device = candidate.fleet.device
    how = f"{_devices(candidate.fleet)} x {spent.seconds / 3600:.4g} h"
    terms = [Term("device-hours", spent.device_hours, "h", how)]
    if spent.kwh is not None:
        how = f"{spent.device_hours:.4g} h x {device.watts:g} W, the devices' limit, without their hosts"
        terms.append(Term("energy", spent.kwh, "kWh", how, device.source))
    if spent.money is not None:
        parts = []
        if prices.per_device_hour is not None:
            parts.append(f"{spent.device_hours:.4g} h x {prices.per_device_hour:g}")
        if prices.per_kwh is not None and spent.kwh is not None:
            parts.append(f"{spent.kwh:.4g} kWh x {prices.pue:g} x {prices.per_kwh:g}")
        terms.append(Term("cost", spent.money, prices.currency, " + ".join(parts), "prices as given"))
    if spent.grams is not None:
        how = f"{spent.kwh:.4g} kWh x {prices.pue:g} x {prices.grid:g} g"
        terms.append(Term("CO2", spent.grams / 1000.0, "kg", how, "monitor.grid_gco2_per_kwh"))
    return terms


def disk(checkpoint: Checkpoint, steps: int, seconds: float, saved: float) -> Term:
    """Bytes of the checkpoints of a run at its end, each of `saved`, while its last one is written.

    steps, seconds: of the run. Of those that are kept for good, the ones among the newest count twice: the
    disk has them until these are others.
    """
    parts, count = [f"{checkpoint.keep_last} newest"], checkpoint.keep_last
    if every := checkpoint.keep_every:
        kept = count_for_good(checkpoint, 0, steps, seconds)
        count, parts = count + kept, [*parts, f"{kept:,} of steps that {every:,} divides"]
    if checkpoint.keep_best:
        count, parts = count + 1, [*parts, "the best one"]
    formula = f"({' + '.join(parts)} + 1 being written) x {show_bytes(saved)}"
    return Term("disk for checkpoints", (count + 1) * saved, "bytes", formula)


def _needs(candidate: Candidate, question: Question, saved: float, steps: int) -> list[Term]:
    """Of disks, hosts and network."""
    plan, fleet = candidate.plan, candidate.fleet
    terms = [disk(plan.config.checkpoint, steps, steps * candidate.time.seconds, saved)]
    if (vocabulary := getattr(plan.model, "vocab_size", None)) is not None:
        size = 2 if token_dtype(vocabulary) == "uint16" else 4
        formula = f"{question.tokens:.4g} x {size} bytes, where no token is read twice or live"
        terms.append(Term("disk for tokens", size * question.tokens, "bytes", formula))
    host, each = candidate.memory.host_bytes, fleet.devices_per_node
    terms.append(Term("host memory of a node", host * each, "bytes", f"{each} x {show_bytes(host)}"))
    write = saved / fleet.nodes / DISK_BANDWIDTH
    terms.append(
        Term(
            "writing a checkpoint", write, "s",
            f"{show_bytes(saved / fleet.nodes)} a node / {DISK_BANDWIDTH / 1e9:g} GB/s",
            "the rate is assumed; `llmkit doctor` measures it",
        )
    )  # fmt: skip
    terms.append(_data(candidate))
    if fleet.nodes > 1:
        terms.append(_network(candidate))
    return terms


def _data(candidate: Candidate) -> Term:
    """Tokens a second that a data-parallel rank takes."""
    rate, ranks = candidate.time.tokens_per_second, candidate.plan.layout.data_parallel_size
    formula = f"{rate:,.0f} / {ranks:,} ranks of other rows; must be ready, as no waiting is counted"
    return Term("data for a rank", rate / ranks, "tokens/s", formula)


def _network(candidate: Candidate) -> Term:
    """Bytes a second that leave a node: each ring of data-parallel ranks crosses its border once, and
    copies of tokens go to experts on other nodes."""
    plan, zero, work = candidate.plan, candidate.plan.layout.zero_stage, workload_of(candidate.plan)
    assert work is not None, "a search has found the layout of a model that is known"
    exchange = work.exchange
    gradients: float = exchange.gradient_bytes * (2 if exchange.all_reduce else 1)  # scattered and gathered
    gradients *= plan.accumulation_steps if zero == 3 or exchange.each_micro_batch else 1
    shared = plan.num_trained - _unshared(work, candidate.fleet)
    gradients *= shared
    weights = float(zero > 0) * work.weight_bytes * shared
    if zero == 3:  # frozen ones, too, for every forward and every backward pass
        weights = 2.0 * plan.accumulation_steps * work.sharded_bytes * plan.layout.tensor_parallel_size
    copies = _to_experts(work, candidate.fleet)
    seconds, there = candidate.time.seconds, candidate.fleet.node_bandwidth / 1e9
    tokens = f" + {show_bytes(copies)} of tokens to experts" if copies else ""
    return Term(
        "network of a node", (gradients + weights + copies) / seconds, "bytes/s",
        f"({show_bytes(gradients)} of gradients + {show_bytes(weights)} of weights{tokens}) in "
        f"{seconds:.4g} s, of {there:.4g} GB/s",
        "rings of reduce-scatter and all-gather (Patarasuk and Yuan 2009), each crossing once",
    )  # fmt: skip


def _unshared(work: Workload, fleet: Fleet) -> float:
    """Parameters of dealt out experts whose rings do not cross the border of a node: those that it has none
    of, and all where no other node has the same ones."""
    if work.frozen:
        return 0.0
    there = expert_spread(work, fleet).in_node if copies_spread(work, fleet).nodes > 1 else 0
    return work.dealt * work.tensor * (work.expert - there)


def _to_experts(work: Workload, fleet: Fleet) -> float:
    """Bytes of a step that leave a node with copies of tokens, or their gradients: to experts on other nodes,
    and back to where these copies are from."""
    spread = expert_spread(work, fleet)
    leaving = expert_bytes(work) * (spread.ranks - spread.in_node) / spread.ranks
    return leaving * expert_sends(work) * fleet.devices_per_node
