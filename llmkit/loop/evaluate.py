"""Held-out loss while training, given up where the run is asked to stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from llmkit.batch import Batch, LossSum, Ranges
from llmkit.data.eval_loader import EvalLoader, EvalSource
from llmkit.data.prefetch import Interrupted
from llmkit.engine.base import Engine
from llmkit.engine.loss_parts import loss_at, sums_by_position
from llmkit.loop.control import Control, Poll
from llmkit.loop.hook import Evaluation
from llmkit.monitor.flops import bits_per_byte, perplexity
from llmkit.parallel.mesh import Mesh
from llmkit.preference.loss import MEASURES


def evaluate(
    engine: Engine, heldout: EvalLoader, mesh: Mesh, control: Control, stop_code: Callable[[], int],
    step: int, ranges: Ranges | None = None,
) -> Evaluation:  # fmt: skip
    """The held-out loss of the weights of now, the same on all ranks, which all call it.

    ranges: the positions of each row that this rank computes; None: all.
    Raises Interrupted, on all of them, where one is asked to stop meanwhile.
    """
    positions: list[Tensor] = []

    def observe(batch: Batch, loss: LossSum) -> None:
        if loss.by_token is not None:
            found = sums_by_position(loss.by_token, batch)
            positions[:] = [found + before for before in positions] or [found]

    rows = engine.evaluate(_batches(heldout, mesh.device, Poll(control, stop_code), ranges), observe)
    measured = [name for name in MEASURES if name in rows.extras]
    sources = heldout.sources if len(heldout.sources) > 1 else []
    sums = [rows.nats.double().sum(), *(rows.extras[name] for name in measured)]
    sums += [rows.nats[part.rows].double().sum() for part in sources]
    sums += [number for found in positions for number in found.flatten()]
    totals = mesh["data", "context"].sum(torch.stack(sums)).tolist()
    # The very same everywhere: it may end the run. JSON knows NaN and infinity as Python writes them.
    nats, *others = json.loads(mesh.broadcast_text(json.dumps(totals)))
    means = {name: value / heldout.targets for name, value in zip(measured, others, strict=False)}
    parts = by_source(sources, others[len(measured) :])
    if positions:
        parts |= loss_at(others[len(measured) + len(sources) :], heldout.length)
    return Evaluation(step, nats / heldout.targets, bits_per_byte(nats, heldout.text_bytes), means, parts)


def by_source(sources: Sequence[EvalSource], nats: Sequence[float]) -> dict[str, float | None]:
    """Columns of the held-out loss of each source that has targets; nats: the sum of each."""
    columns: dict[str, float | None] = {}
    for part, total in zip(sources, nats, strict=False):
        if part.targets:
            columns[f"loss/{part.name}"] = total / part.targets
            columns[f"bits_per_byte/{part.name}"] = bits_per_byte(total, part.text_bytes)
    return columns


def evaluation_row(found: Evaluation, of_pairs: bool) -> dict[str, Any]:
    """The row of an evaluation for metrics.jsonl. of_pairs: whether what is held out are pairs of answers."""
    row = {"step": found.step, "eval_loss": found.loss, "eval_bits_per_byte": found.bits_per_byte}
    if not of_pairs:
        row["eval_perplexity"] = perplexity(found.loss)
    return row | {f"eval_{name}": value for name, value in {**found.measures, **found.parts}.items()}


def _batches(
    heldout: EvalLoader, device: torch.device, poll: Poll, ranges: Ranges | None
) -> Iterator[Batch]:
    """The held-out batches on the device; raises Interrupted, on all ranks before the same one, on a stop."""
    for batch in heldout:
        if why := poll():
            raise Interrupted(why)
        yield batch.cut(ranges).pinned_for(device).to(device)
