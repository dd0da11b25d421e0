"""Headers of tensor files are checked before anything that they say is used."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from llmkit.checkpoint import read
from llmkit.checkpoint.format import Damaged
from llmkit.checkpoint.pieces import Piece
from tests.checkpoint.forging import forge_file

PIECES = "pieces-00000-00000.safetensors"


HEADERS = {
    "longer than the file": (10**6).to_bytes(8, "little") + b"{}",
    "longer than any": b"\xff" * 16,
    "cut": b"abc",
    "a list": (8).to_bytes(8, "little") + b"[]      ",
    "no text": (8).to_bytes(8, "little") + b"\xff" * 8,
    "empty": (2).to_bytes(8, "little") + b"{}",
}


def header(**tensor: Any) -> bytes:
    """A safetensors file with 16 bytes of data and this entry for the tensor of the test."""
    text = json.dumps({"m/w": tensor}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(16)


ENTRIES = {
    "behind the end": header(dtype="F32", shape=[2], data_offsets=[12, 20]),
    "in the header": header(dtype="F32", shape=[2], data_offsets=[-8, 0]),
    "backwards": header(dtype="F32", shape=[2], data_offsets=[8, 0]),
    "not aligned": header(dtype="F32", shape=[2], data_offsets=[3, 11]),
    "of another length": header(dtype="F32", shape=[1], data_offsets=[0, 4]),
    "of an unknown type": header(dtype="Q4", shape=[2], data_offsets=[0, 8]),
    "of another type": header(dtype="I32", shape=[2], data_offsets=[0, 8]),
    "without a place": header(dtype="F32", shape=[2]),
    "with text for a place": header(dtype="F32", shape=[2], data_offsets=["0", "8"]),
    "with fractions for a place": header(dtype="F32", shape=[2], data_offsets=[0.0, 1e300]),
    "with half a place": header(dtype="F32", shape=[2], data_offsets=[0]),
}


@pytest.mark.drill(
    "D37",
    injection=f"{len(HEADERS) + len(ENTRIES)} hostile headers: absurd sizes, spans outside of the file",
    expected="refused",
)
@pytest.mark.parametrize("raw", [*HEADERS.values(), *ENTRIES.values()], ids=[*HEADERS, *ENTRIES])
def test_a_hostile_tensor_file_is_refused(save_step: Any, raw: bytes) -> None:
    piece = Piece("w", "m", (2,), ((0, 2),), (0, 2), torch.zeros(2))
    folder = save_step(1, pieces=[piece])
    forge_file(folder, PIECES, raw)
    (problem,) = read.verify(folder)
    assert PIECES in problem
    with pytest.raises(Damaged, match=PIECES):
        read.load(folder).read("w", "m")
