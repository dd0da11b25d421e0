"""Whether documents are held out for evaluation, and if not, why."""

from __future__ import annotations

from llmkit.config.schema import PRETOKENIZED, Data
from llmkit.config.settings import Settings


def may_hold_out(data: Data) -> bool:
    """Whether some source may have held-out documents; whether it has is known once the data are built."""
    return any(
        source.heldout_path is not None or (data.heldout_every > 0 and source.type not in PRETOKENIZED)
        for source in data.sources
    )


def nothing_held_out(s: Settings) -> str:
    """Returns why no document with targets is held out, and what would change that."""
    if all(source.type in PRETOKENIZED for source in s.config.data.sources):
        return "sources of type shards and megatron hold nothing out; name held-out shards in heldout_path"
    fraction = s.describe("data.validation_fraction")
    if s.config.data.heldout_every == 0:
        return f"{fraction} holds nothing out"
    return (
        f"of the few documents of the sources, {fraction} holds none out that has tokens to learn; raise it"
    )
