"""Ranks of a run in words, with the hosts that they are on."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.config.mistakes import listed


def named_ranks(ranks: Sequence[int], hosts: Sequence[str], most: int) -> str:
    """As in "rank 3 (n2) and rank 5 (n3)", so many of them at most. hosts: of all ranks."""
    return listed([f"rank {rank} ({hosts[rank]})" for rank in ranks], most)


def hosts_of(ranks: Sequence[int], hosts: Sequence[str]) -> list[str]:
    """The hosts of these ranks, each once, in the order of their names. hosts: of all ranks."""
    return sorted({hosts[rank] for rank in ranks})
