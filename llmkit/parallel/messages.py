"""Exchange of small messages (JSON, digests) between the ranks of a gloo group.

Each function is collective: all ranks of the group must call it. `group` None stands for a process alone.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def all_gather_text(text: str, group: ProcessGroup | None) -> list[str]:
    """The texts of all ranks, in the order of their ranks, on every rank. For short texts."""
    if group is None:
        return [text]
    lengths, padded = _pad(text.encode(), group)
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded, group=group)
    return [_bytes(values, length).decode() for values, length in zip(found, lengths, strict=True)]


def gather_bytes(content: bytes, group: ProcessGroup | None) -> list[bytes]:
    """What all ranks give, on the group's first rank; nothing on the others. For messages of any length."""
    if group is None:
        return [content]
    lengths, padded = _pad(content, group)
    found = [torch.empty_like(padded) for _ in lengths] if group.rank() == 0 else None
    dist.gather(padded, found, group=group, group_dst=0)
    return [_bytes(values, length) for values, length in zip(found or [], lengths, strict=False)]


def broadcast_text(text: str, group: ProcessGroup | None) -> str:
    """The text of the group's first rank."""
    if group is None:
        return text
    mine = _tensor(text.encode())
    length = torch.tensor([len(mine)])
    dist.broadcast(length, group=group, group_src=0)
    values = mine if group.rank() == 0 else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(values, group=group, group_src=0)
    return _bytes(values, int(length)).decode()


def _pad(content: bytes, group: ProcessGroup) -> tuple[list[int], Tensor]:
    """The lengths of all ranks' messages as tensors, and this rank's message padded to the longest."""
    mine = _tensor(content)
    gathered = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(gathered, torch.tensor([len(mine)]), group=group)
    lengths = [int(length) for length in gathered]
    return lengths, torch.nn.functional.pad(mine, (0, max(lengths) - len(mine)))


def _tensor(content: bytes) -> Tensor:
    """The content with a zero at the end, so that no tensor is empty: (bytes + 1,) uint8."""
    return torch.frombuffer(bytearray(content + b"\0"), dtype=torch.uint8)


def _bytes(values: Tensor, length: int) -> bytes:
    """The inverse of `_tensor`; `length` counts the zero at the end and not the padding behind it."""
    return values[: length - 1].numpy().tobytes()
