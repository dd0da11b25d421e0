"""Whether ranks that should hold the same weights do: by sums of their bits, which any wrong bit changes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from llmkit.config.mistakes import listed
from llmkit.engine.base import Engine
from llmkit.engine.fingerprint import sum_of_bits
from llmkit.errors import DisagreementError
from llmkit.loop.ranks import hosts_of, named_ranks
from llmkit.loop.scalars import Scalars
from llmkit.parallel.mesh import Mesh

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

SHOWN = 4
HALF = 2**32


class Sums(NamedTuple):
    """The sums of what this rank holds copies of, on their way to the host.

    groups: the tensors' names, by the ranks that should hold the same, as text.
    """

    step: int
    groups: dict[str, list[str]]
    halves: Scalars | None

    def read(self) -> dict[str, dict[str, int]]:
        """Group -> tensor -> sum."""
        values = iter(() if self.halves is None else self.halves.read())
        return {
            group: {name: int(next(values)) * HALF + int(next(values)) for name in names}
            for group, names in self.groups.items()
        }


def sum_copies(engine: Engine, mesh: Mesh, step: int) -> Sums:
    """Reads all that other ranks have copies of, once; waits for nothing."""
    groups: dict[str, list[str]] = {}
    sums: dict[str, list[torch.Tensor]] = {}
    for copy in engine.copies():
        if mesh[copy.dims].size > 1:
            group = ",".join(map(str, ranks_along(mesh, copy.dims)))
            groups.setdefault(group, []).append(copy.name)
            sums.setdefault(group, []).append(sum_of_bits(copy.tensor.contiguous()))
    found = [each for group in groups for each in sums[group]]
    if not found:
        return Sums(step, groups, None)
    stacked = torch.stack(found)  # fp64 holds half of an int64 exactly
    return Sums(step, groups, Scalars([torch.stack([stacked >> 32, stacked & (HALF - 1)], 1)]))


def ranks_along(mesh: Mesh, dims: tuple[str, ...]) -> list[int]:
    """The ranks of the world that share all other coordinates with this one."""
    return [rank for rank in range(mesh.world_size) if mesh.differs_only_in(rank, dims)]


def compare_copies(t: Trainer, sums: Sums) -> None:
    """Raises DisagreementError, on all ranks, where some of them hold something else. Collective."""
    own = sums.read()
    digest = {
        group: hashlib.sha256(json.dumps(found).encode()).hexdigest() for group, found in own.items()
    }
    digests = [json.loads(text) for text in t.mesh.all_gather_text(json.dumps(digest))]
    groups = sorted({group for each in digests for group in each})
    wrong = [group for group in groups if len({each[group] for each in digests if group in each}) > 1]
    if not wrong:
        return
    everything = [json.loads(text) for text in t.mesh.all_gather_text(json.dumps(own))]
    ranks, names, known = _odd_ones(wrong, everything)
    hosts = hosts_of(ranks, t.hosts)
    t.events.record(
        "replicas_differ", step=sums.step, ranks=ranks, hosts=hosts, tensors=names[:SHOWN], found=known
    )
    who = named_ranks(ranks, t.hosts, SHOWN)
    what = listed(names, SHOWN)
    verb = "hold" if len(ranks) > 1 else "holds"
    text = (
        f"{who} {verb} other values than the other ranks of"
        if known
        else f"{who} hold different values, and it cannot be told which are right, of"
    )
    raise DisagreementError(
        f"step {sums.step}: {text} {what}: a fault of memory, of a device or of the network. Nothing of "
        "it is saved; the same command goes on from the newest checkpoint, best without that node (llmkit "
        "doctor checks nodes)",
        hosts if known else (),
    )


def _odd_ones(groups: list[str], sums: list[dict[str, dict[str, int]]]) -> tuple[list[int], list[str], bool]:
    """The ranks that differ from most of their group, what differs, and whether there is a majority."""
    ranks, names, known = set[int](), dict[str, None](), True
    for group in groups:
        members = [int(rank) for rank in group.split(",")]
        values = {rank: json.dumps(sums[rank].get(group)) for rank in members}
        (most, count), *_ = Counter(values.values()).most_common()
        majority = 2 * count > len(members)
        known &= majority
        ranks |= {rank for rank, value in values.items() if value != most or not majority}
        held = [sums[rank].get(group, {}) for rank in members]
        names |= {name: None for name in held[0] if len({each.get(name) for each in held}) > 1}
    return sorted(ranks), list(names), known
