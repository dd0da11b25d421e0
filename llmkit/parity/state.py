"""Gathers the state of a run, which is spread over its processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmkit.checkpoint.completeness import check_complete
from llmkit.checkpoint.index import PieceEntry, TensorEntry, build_index
from llmkit.checkpoint.pieces import runs
from llmkit.engine.base import Engine
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.placement import placement

State = dict[str, dict[str, Tensor]]
"""kind -> name -> full tensor, fp32 on the CPU."""


def gather_state(engine: Engine, mesh: Mesh, kinds: Collection[str]) -> State:
    """These kinds of state, as full tensors, on every rank; for small models. All ranks must call it.

    Raises ValueError unless the ranks' pieces are all of it, each element once.
    """
    mine = [piece for piece in engine.read_pieces() if piece.kind in kinds]
    flat = torch.cat([torch.empty(0), *(piece.data.detach().float().cpu() for piece in mine)])
    entries = [(p.kind, p.name, p.shape, p.box, p.range) for p in mine]
    state: State = {}
    found: list[PieceEntry] = []
    texts = mesh.all_gather_text(json.dumps(entries))
    for text, data in zip(texts, _all_flat(flat, mesh), strict=True):
        for kind, name, shape, box, (lo, hi) in json.loads(text):
            tensor = TensorEntry(kind, name, tuple(shape), "F32")
            found.append(PieceEntry(tensor, tuple(map(tuple, box)), (lo, hi)))
            full = state.setdefault(kind, {}).setdefault(name, torch.empty(shape))
            _copy_piece(full, found[-1], data[: hi - lo])
            data = data[hi - lo :]
    check_complete(build_index(found))
    return state


def drifted(model: nn.Module, mesh: Mesh) -> list[str]:
    """Weights that ranks should hold alike and do not, bit for bit. All ranks must call it.

    What ZeRO-3 has partitioned is passed over: no two ranks hold the same of it.
    """
    mine: dict[str, tuple[int, str]] = {}
    for name, weight in model.named_parameters():
        part = mesh[placement(weight).sharded].rank
        values = weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        mine[name] = part, hashlib.blake2b(values).hexdigest()
    held: dict[str, dict[int, set[str]]] = {name: {} for name in mine}
    for text in mesh.all_gather_text(json.dumps(mine)):
        for name, (part, digest) in json.loads(text).items():
            held[name].setdefault(part, set()).add(digest)
    return [name for name, parts in held.items() if any(len(found) > 1 for found in parts.values())]


def _all_flat(mine: Tensor, mesh: Mesh) -> list[Tensor]:
    """Every rank's values, each of its own length at least."""
    if mesh.world_size == 1:
        return [mine]
    longest = max(int(text) for text in mesh.all_gather_text(str(len(mine))))
    padded = torch.zeros(longest)
    padded[: len(mine)] = mine
    everyone = [torch.empty(longest) for _ in range(mesh.world_size)]
    dist.all_gather(everyone, padded, group=mesh.control)
    return everyone


def _copy_piece(tensor: Tensor, entry: PieceEntry, data: Tensor) -> None:
    """Copies a piece to where it belongs in the full tensor."""
    for run in runs(entry.box, entry.range):
        target = tensor[tuple(slice(lo, hi) for lo, hi in run.box)]
        target.copy_(run.view(data, entry.range[0], run.box))
