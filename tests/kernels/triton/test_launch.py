"""How tensors are divided among programs: every row of a view is found, tiles hold whole rows."""

from __future__ import annotations

import pytest
import torch


def rows_by(rows, size):
    """What a kernel would read."""
    elements = rows.tensor.untyped_storage().nbytes() // rows.tensor.element_size()
    flat = rows.tensor.as_strided((elements,), (1,), 0)
    count = rows.tensor.numel() // size
    begins = [(r // rows.inner) * rows.outer_stride + (r % rows.inner) * rows.stride for r in range(count)]
    first = rows.tensor.storage_offset()
    return torch.stack([flat[first + begin : first + begin + size] for begin in begins])


VIEWS = {
    "contiguous": lambda x: x,
    "one of several projections": lambda x: x[..., 5:15],
    "heads of one of them": lambda x: x[..., 6:18].unflatten(-1, (4, 3)),
    "one head": lambda x: x[..., 6:9].unflatten(-1, (1, 3)),
    "last position": lambda x: x[:, -1],
    "transposed": lambda x: x.transpose(0, 1),
    "columns apart": lambda x: x[..., ::2],
    "three strides": lambda x: x[:, ::2, 6:18].unflatten(-1, (4, 3))[:, :, :2],
    "one row": lambda x: x[0, 0],
}


@pytest.mark.parametrize("view", VIEWS)
def test_rows_of_a_view_are_found(view):
    from llmkit.kernels.triton.launch import Rows

    x = VIEWS[view](torch.randn(3, 5, 20))
    rows = Rows.of(x)
    assert torch.equal(rows_by(rows, x.shape[-1]), x.reshape(-1, x.shape[-1])), str(rows[1:])
    copied = rows.tensor.data_ptr() != x.data_ptr()
    assert copied == (view in ("columns apart", "three strides")), "copied" if copied else "not copied"


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (64, 3), (64, 10_000), (768, 9), (5000, 70), (0, 0)])
def test_tiles_are_powers_of_two_that_hold_whole_rows(columns, rows):
    from llmkit.kernels.triton.launch import TILE, Tile

    tile = Tile.of(columns, rows)
    assert tile.columns >= columns and tile.rows * tile.columns <= max(TILE, 2 * columns), str(tile)
    assert all(each & (each - 1) == 0 for each in tile) and tile.warps <= 16, str(tile)


def misfits(device):
    """Calls in which a tensor is shorter than what a kernel would read."""
    from llmkit.kernels.triton import activation, dropout, norm, rotation

    def randn(*shape):
        return torch.randn(shape, device=device)

    x, short, key = randn(2, 9, 8), randn(8, 8), torch.full((), 5, device=device)
    heads, table = x.unflatten(-1, (2, 4)), randn(9, 2)
    return {
        "positions behind the tables": lambda: rotation.rotate(heads, heads + 1.0, table[:5], table[:5]),
        "fewer sines": lambda: rotation._rotated(heads, heads, table, table[:5], False),
        "fewer keys": lambda: rotation.rotate(heads, heads[:1] + 1.0, table, table),
        "weight": lambda: norm.rms_norm(x, short[0, :4], 1e-5),
        "bias of a norm": lambda: norm.layer_norm(x, short[0], short[0, :4], 1e-5),
        "branch": lambda: norm.add_rms_norm(x, short[:1], short[0], 1e-5),
        "up": lambda: activation.swiglu(x, x[:, :1]),
        "bias": lambda: activation.gelu(x, short[0, :1]),
        "dropped branch": lambda: dropout.dropout_add(x[:1], x, 0.5, key),
    }


def test_what_is_shorter_than_a_kernel_would_read_is_refused(device):
    for name, call in misfits(device).items():
        try:
            call()
        except ValueError as error:
            assert "has the shape" in str(error), name
        else:
            raise AssertionError(f"{name}: no error")
