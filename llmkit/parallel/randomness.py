"""Random numbers of training: reseeded each step, so that no generator's state is ever saved."""

from __future__ import annotations

import hashlib

import torch


def seed_step(seed: int, step: int, data_rank: int = 0) -> None:
    """Starts the generators of all devices anew for one step of one data-parallel rank.

    What dropout draws in a step then depends on nothing that happened before it: a resumed run draws
    what the uninterrupted one drew.
    """
    digest = hashlib.blake2b(f"{seed}:{step}:{data_rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
