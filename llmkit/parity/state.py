"""The state of a run that is spread over processes, put together again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmkit.checkpoint.completeness import check_complete
from llmkit.checkpoint.format import PieceEntry
from llmkit.checkpoint.pieces import runs
from llmkit.engine.base import Engine
from llmkit.parallel.mesh import Mesh

State = dict[str, dict[str, Tensor]]
"""kind -> name -> full tensor, fp32 on the CPU."""


def gather_state(engine: Engine, mesh: Mesh, kinds: Collection[str]) -> State:
    """These kinds of state, whole, on every rank; for small models. All ranks must call it.

    Raises ValueError unless the ranks' pieces are all of it, each element once.
    """
    mine = [piece for piece in engine.read_pieces() if piece.kind in kinds]
    flat = torch.cat([torch.empty(0), *(piece.data.detach().float().cpu() for piece in mine)])
    entries = [
        {"name": p.name, "kind": p.kind, "shape": p.shape, "box": p.box, "range": p.range} for p in mine
    ]
    state: State = {}
    found: list[PieceEntry] = []
    texts = mesh.all_gather_text(json.dumps(entries))
    for text, data in zip(texts, _all_flat(flat, mesh), strict=True):
        for each in json.loads(text):
            fields = {**each, "dtype": "F32", "file": "memory", "key": ""}
            entry = PieceEntry.model_validate_json(json.dumps(fields))
            found.append(entry)
            size = entry.range[1] - entry.range[0]
            tensor = state.setdefault(entry.kind, {}).setdefault(entry.name, torch.empty(entry.shape))
            _place(tensor, entry, data[:size])
            data = data[size:]
    check_complete(found)
    return state


def drifted(model: nn.Module, mesh: Mesh) -> list[str]:
    """Weights that ranks should hold alike and do not, bit for bit. All ranks must call it.

    What ZeRO-3 has cut is passed over: no two ranks hold the same of it.
    """
    mine: dict[str, tuple[int, str]] = {}
    for name, weight in model.named_parameters():
        part = mesh.tensor_rank if hasattr(weight, "tensor_model_parallel") else 0
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
    dist.all_gather(everyone, padded, group=mesh.control_group)
    return everyone


def _place(tensor: Tensor, entry: PieceEntry, data: Tensor) -> None:
    """Copies a piece to where it belongs in the full tensor."""
    for run in runs(entry.box, entry.range):
        target = tensor[tuple(slice(lo, hi) for lo, hi in run.box)]
        target.copy_(run.view(data, entry.range[0], run.box))
