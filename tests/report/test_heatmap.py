"""Statistics by layer as pictures."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from llmkit.report.heatmap import WIDTH, heatmaps
from tests.report.runs import make_run


def pixels(url: str) -> np.ndarray:
    """(height, width, 3), read as the standard says: checked chunks, a palette, unfiltered rows."""
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", content, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks[kind], at = data, at + 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    assert chunks[b"IHDR"][8:] == bytes([8, 3, 0, 0, 0])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(256, 3).astype(int)[rows[:, 1:]]


def test_a_picture_has_a_row_a_layer_from_dark_to_bright(tmp_path: Path):
    rows = [
        {"step": 100, "grad_norm": 1.0, "grad_norm/embedding": 0.01, "grad_norm/blocks.0": 1.0},
        {"step": 200, "grad_norm/embedding": 1.0},
    ]
    (found,) = heatmaps(make_run(tmp_path / "run", rows))
    assert (found.title, found.layers) == ("Gradient norm", ["embedding", "blocks.0"])
    assert found.across == "steps 100 to 200"
    assert (found.low, found.high) == ("0.01", "1")
    picture = pixels(found.image)
    assert picture.shape == (2, 2, 3)
    assert picture[0, 0].tolist() == [68, 1, 84] and picture[0, 1].tolist() == picture[1, 0].tolist() == [
        253,
        231,
        37,
    ]
    assert picture[1, 1].tolist() == [128, 128, 128]  # not known


def test_of_many_steps_the_largest_value_stays(tmp_path: Path):
    rows = [{"step": step, "update_ratio/head": 1e-3 if step != 1234 else 1.0} for step in range(1, 3001)]
    (found,) = heatmaps(make_run(tmp_path / "run", rows))
    picture = pixels(found.image)
    assert picture.shape == (1, WIDTH, 3)
    assert np.flatnonzero(picture[0, :, 0] == 253).tolist() == [123]


@pytest.mark.parametrize("value", [0.0, 3.0, -1.0])
def test_values_without_a_range_make_a_picture_too(tmp_path: Path, value: float):
    (found,) = heatmaps(make_run(tmp_path / "run", [{"step": 1, "activation_max/head": value}]))
    assert pixels(found.image).shape == (1, 1, 3)


def test_a_run_without_layers_has_none(tmp_path: Path):
    assert list(heatmaps(make_run(tmp_path / "run"))) == []
    assert list(heatmaps(make_run(tmp_path / "null", [{"step": 1, "grad_norm/head": None}]))) == []
