"""Messages of any length and content, over a group of one rank and of several."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from llmkit.parallel.messages import all_gather_text, broadcast_text, gather_bytes
from tests.ranks import run_ranks


def exchange() -> dict[str, Any]:
    """On one of 3 ranks, over all of them and over the last two."""
    rank = dist.get_rank()
    groups = [dist.group.WORLD, dist.new_group([1, 2])]
    found: dict[str, Any] = {}
    for name, group in zip(("all", "last two"), groups, strict=True):
        if not isinstance(group, dist.ProcessGroup):
            continue  # of other ranks
        found[name] = {
            "texts": all_gather_text("é" * rank, group),
            "bytes": [list(each) for each in gather_bytes(bytes(range(rank)), group)],
            "first": broadcast_text("ü\0" * (3 - rank), group),
        }
    return found


def test_ranks_exchange_texts_and_bytes_of_different_lengths():
    first, second, third = run_ranks(3, "tests.parallel.test_messages:exchange")
    for rank, found in enumerate((first, second, third)):
        assert found["all"]["texts"] == ["", "é", "éé"]
        assert found["all"]["bytes"] == ([[], [0], [0, 1]] if rank == 0 else [])
        assert found["all"]["first"] == "ü\0ü\0ü\0"
    assert "last two" not in first
    for found in (second, third):  # whose first rank is not rank 0
        assert found["last two"]["texts"] == ["é", "éé"]
        assert found["last two"]["first"] == "ü\0ü\0"
    assert (second["last two"]["bytes"], third["last two"]["bytes"]) == ([[0], [0, 1]], [])


def test_a_process_alone_hears_itself():
    assert all_gather_text("é", None) == ["é"]
    assert gather_bytes(b"\0", None) == [b"\0"]
    assert broadcast_text("", None) == ""
