"""Files of weights: how tensors are dealt out to them."""

from __future__ import annotations

import torch

from llmkit.convert.shards import Planned, split
from llmkit.hf.names import Stored


def tensor(size):
    return Planned(Stored(f"t{size}", ((f"t{size}", (size,)),), False), torch.bfloat16)


def test_files_hold_consecutive_tensors_up_to_their_size():
    tensors = [tensor(size) for size in (3, 4, 20, 1, 9)]
    assert [[each.nbytes for each in shard] for shard in split(tensors, 20)] == [[6, 8], [40], [2, 18]]


def test_what_fits_into_one_file_is_one_file():
    assert len(split([tensor(3), tensor(4)], 14)) == 1
