"""Checkpoints of version 1 are read, and their manifests checked as strictly as ever."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from llmkit.checkpoint import read
from tests.checkpoint import rank_saves
from tests.checkpoint.forging import Content, forge, to_version_1

PIECES = "pieces-00000-00000.safetensors"


def test_a_checkpoint_of_version_1_gives_what_was_saved(save_step: Any, tensors: Any) -> None:
    folder = save_step(100)
    to_version_1(folder)
    checkpoint = read.load(folder)
    assert checkpoint.manifest.version == 1 and read.verify(folder) == []
    for name, tensor in tensors(100).items():
        assert torch.equal(checkpoint.read(name, "exp_avg"), tensor + 1)
    assert checkpoint.tokenizer_json() == '{"model": "bytes"}'
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "tokenizer.json", PIECES}


def test_shards_of_version_1_are_assembled(save_step: Any) -> None:
    folder = save_step(1, pieces=[piece for rank in range(3) for piece in rank_saves.pieces(rank, 1)])
    to_version_1(folder)
    checkpoint = read.load(folder)
    for name, kind in product(rank_saves.SHAPES, rank_saves.KINDS):
        assert torch.equal(checkpoint.read(name, kind), rank_saves.full(name, kind, 1))


HOSTILE_PIECES: dict[str, Callable[[Content], object]] = {
    "a file too few": lambda m: m["files"].pop(0),
    "a piece in another file": lambda m: m["pieces"][0].update(file="other.safetensors"),
    "a piece in the tokenizer": lambda m: m["pieces"][0].update(file="tokenizer.json"),
    "a key that is not there": lambda m: m["pieces"][0].update(key="x"),
    "a key of another length": lambda m: m["pieces"][0].update(key=m["pieces"][3]["key"]),
    "another type": lambda m: m["pieces"][0].update(dtype="I32"),
    "an unknown type": lambda m: m["pieces"][0].update(dtype="object"),
    "a box outside the shape": lambda m: m["pieces"][0].update(box=[[0, 51], [0, 16]]),
    "a negative box": lambda m: m["pieces"][0].update(box=[[-1, 49], [0, 16]]),
    "a box turned around": lambda m: m["pieces"][0].update(box=[[50, 0], [0, 16]]),
    "a range outside the box": lambda m: m["pieces"][0].update(range=[0, 801]),
    "an empty range": lambda m: m["pieces"][0].update(range=[5, 5]),
    "a huge shape": lambda m: m["pieces"][0].update(shape=[10**40, 16]),
    "a fractional shape": lambda m: m["pieces"][0].update(shape=[50.0, 16]),
    "pieces that differ in shape": lambda m: m["pieces"].append({**m["pieces"][0], "shape": [60, 16]}),
    "a name with a slash": lambda m: m["pieces"][0].update(name="../w"),
}


@pytest.mark.parametrize("change", HOSTILE_PIECES.values(), ids=HOSTILE_PIECES)
def test_hostile_pieces_of_version_1_are_refused_in_one_line(
    save_step: Any, change: Callable[[Content], object]
) -> None:
    folder = save_step(100)
    to_version_1(folder)
    forge(folder, change)
    (problem,) = read.verify(folder)
    assert problem.startswith(str(folder)) and "\n" not in problem
