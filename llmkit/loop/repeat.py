"""A micro-batch computed again: a rank that does not agree with itself has a faulty device or memory.

Where all kernels are deterministic two passes agree bit for bit. Where some are not (atomic additions on a
GPU), three passes differ by rounding, each pair about as much as the others: a pass that stands apart does
so by much more. A device that always makes the same error is not found so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmkit.batch import Batch
from llmkit.config.mistakes import listed
from llmkit.engine.fingerprint import Fingerprint
from llmkit.errors import DisagreementError
from llmkit.loop.ranks import hosts_of, named_ranks
from llmkit.parallel.mesh import Mesh

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

APART = 100.0
"""A pass stands apart that differs from the other two so many times more than these from each other."""
ROUNDING = 1e-6
"""Differences below this, relative to a tensor's norm, cannot be distinguished from rounding."""
LARGE = 0.3
"""Rounding never makes more of a difference."""
LEAST = 1e-30
"""Of values whose bits differ."""
SHOWN = 4


def distances(a: Fingerprint, b: Fingerprint) -> dict[str, float]:
    """How far two passes are apart in each tensor, relative to its norm; 0 where all bits are the same."""
    found = {}
    for index, name in enumerate(a.names):
        if a.bits[index] == b.bits[index]:
            found[name] = 0.0
            continue
        norms = a.norms[index], b.norms[index]
        projections = a.projections[index], b.projections[index]
        if not all(map(math.isfinite, (*norms, *projections))):
            found[name] = math.inf
            continue
        apart = max(abs(norms[0] - norms[1]), abs(projections[0] - projections[1]))
        found[name] = max(apart / max(*norms, LEAST), LEAST)
    return found


def suspects(passes: Sequence[Fingerprint]) -> list[str]:
    """The tensors of which one of three passes stands apart from the others."""
    first, second, third = passes
    pairs = [distances(first, second), distances(first, third), distances(second, third)]
    found = []
    for name in first.names:
        least, _, most = sorted(pair[name] for pair in pairs)
        if least == 0.0 < most or most > LARGE or most > max(APART * least, ROUNDING):
            found.append(name)
    return found


def repeat(t: Trainer, batch: Batch, reason: str, seed: Callable[[], None]) -> None:
    """Computes a micro-batch two times, or three, on all ranks. Raises DisagreementError on all of them where
    one does not agree with itself. Collective.

    seed: seeds what dropout draws, before each pass.
    """

    def compute() -> Fingerprint:
        t.watch.alive()  # the step takes that much longer than the others
        seed()
        return t.engine.fingerprint(batch)

    passes = [compute(), compute()]
    (differ,) = t.control.largest(int(passes[0].bits != passes[1].bits))
    wrong: list[str] = []
    if differ:
        passes.append(compute())
        wrong = suspects(passes)
    t.watch.alive()
    step = t.state.step + 1
    found = {rank: names for rank, names in enumerate(_gathered(t, wrong)) if names}
    if not found:
        t.console.log(f"step {step}: a micro-batch was computed again ({reason}), with the same result")
        if differ:
            t.note_once("kernels here are not deterministic: such checks find differences beyond rounding")
        return
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    ranks, alone = with_peers(list(found), t.mesh), t.mesh["expert"].size == 1
    hosts = hosts_of(ranks, t.hosts) if alone else []
    t.events.record(
        "computation_differs", step=step, ranks=ranks, hosts=hosts, tensors=names[:SHOWN], reason=reason
    )
    who, without = named_ranks(ranks, t.hosts, SHOWN), ", best without that node"
    if not alone:
        who, without = f"one of the processes that share experts, {who},", ""
    raise DisagreementError(
        f"step {step}: {who} computed the same micro-batch again with another result "
        f"({listed(names, SHOWN)}): a faulty device or memory. Nothing since the newest checkpoint is saved; "
        f"the same command goes on from there{without} (llmkit doctor checks nodes)",
        hosts,
    )


def with_peers(ranks: Sequence[int], mesh: Mesh) -> list[int]:
    """These ranks and all that experts are dealt out over with one of them: within a pass they send each
    other tokens, and with them any error, so that it cannot be told whose it is."""
    if mesh["expert"].size == 1:
        return list(ranks)
    groups = [replace(mesh, rank=rank)["expert_data"].rank for rank in range(mesh.world_size)]
    found = {groups[rank] for rank in ranks}
    return [rank for rank, group in enumerate(groups) if group in found]


def _gathered(t: Trainer, wrong: list[str]) -> list[list[str]]:
    return [json.loads(text) for text in t.mesh.all_gather_text(json.dumps(wrong))]
