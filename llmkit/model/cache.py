"""The key-value cache of generation: rows of any lengths, which come, grow and go."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.config.shape import ModelShape

SLACK = 64
"""Positions that a row has room for beyond what it holds, at first."""


class KeyValueCache:
    """Keys and values of the positions so far of some rows, in a buffer for each layer that grows as needed.

    lengths: how many positions each row holds, on the host. like: a parameter, for type and device. tp_size:
    ranks that share the heads; this one holds its own.
    """

    def __init__(self, shape: ModelShape, like: Tensor, tp_size: int = 1) -> None:
        self.lengths: list[int] = []
        self.context_length = shape.max_position_embeddings
        self._like = like
        self._heads = (max(1, shape.num_key_value_heads // tp_size), shape.head_dim)
        layers = range(shape.num_hidden_layers)
        # (2, rows, positions, kv_heads, head_dim) each: keys and values.
        self._buffers = [self._empty(2, 0, 0, *self._heads) for _ in layers]
        # (rows, 1, kv_heads, head_dim) each: what `before` was given for the newest position.
        self._last = [self._empty(0, 1, *self._heads) for _ in layers]
        self._token = torch.zeros(0, 1, dtype=torch.int64, device=like.device)

    def rows(self, counts: Sequence[int], first: int = 0) -> CacheRows:
        """Consecutive rows, from `first` on, for a forward pass that adds so many positions to each.

        Rows that are not there yet are added, empty.
        """
        self.lengths += [0] * (first + len(counts) - len(self.lengths))
        return CacheRows(self, first, list(counts))

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        length = self.lengths[target] = self.lengths[source]
        for buffer in self._buffers:
            if source < buffer.shape[1]:  # else the model has no such layer in use
                buffer[:, target, :length] = buffer[:, source, :length]
        for values in (*self._last, self._token):
            if source < len(values):  # else it looks at no earlier position
                values[target] = values[source]

    def clear(self, row: int) -> None:
        """Row `row` becomes empty."""
        self.lengths[row] = 0
        for values in (*self._last, self._token):
            values[row : row + 1] = 0

    def keep(self, row: int) -> Kept:
        """A copy of what a row holds."""
        length = self.lengths[row]
        return Kept(
            length,
            [buffer[:, row : row + 1, :length].clone() for buffer in self._buffers],
            [values[row : row + 1].clone() for values in self._last],
            self._token[row : row + 1].clone(),
        )

    def restore(self, row: int, kept: Kept, length: int) -> None:
        """Row `row`, maybe a new one, becomes the first positions of what was kept; see `Kept.usable`."""
        self.lengths += [0] * (row + 1 - len(self.lengths))
        self.clear(row)
        self.lengths[row] = length
        for layer, stored in enumerate(kept.layers):
            if stored.shape[1]:
                self.buffer(layer, length)[:, row, :length] = stored[:, 0, :length]
        for layer, values in enumerate(kept.last):
            if len(values):
                self.last(layer)[row] = values[0]
        if len(kept.token):
            self.token()[row] = kept.token[0]

    def buffer(self, layer: int, positions: int) -> Tensor:
        """Keys and values of a layer, (2, rows, `positions` or more, kv_heads, head_dim); it may grow."""
        old = self._buffers[layer]
        rows, room = old.shape[1:3]
        if len(self.lengths) > rows or positions > room:
            if len(self.lengths) > rows:
                rows = max(len(self.lengths), 2 * rows)
            if positions > room:
                room = max(positions, min(max(2 * room, positions + SLACK), self.context_length))
            new = self._empty(2, rows, room, *self._heads)
            new[:, : old.shape[1], : old.shape[2]] = old
            self._buffers[layer] = new
        return self._buffers[layer]

    def last(self, layer: int) -> Tensor:
        """(rows, 1, kv_heads, head_dim): what `CacheRows.before` was given last; zeros for empty rows."""
        self._last[layer] = _as_long_as(self.lengths, self._last[layer])
        return self._last[layer]

    def token(self) -> Tensor:
        """(rows, 1): the newest token of each row; 0 for empty rows."""
        self._token = _as_long_as(self.lengths, self._token)
        return self._token

    def _empty(self, *size: int) -> Tensor:
        # Zeros, since what is masked counts nothing only if it is finite.
        return torch.zeros(size, dtype=self._like.dtype, device=self._like.device)


class Kept(NamedTuple):
    """What a row of a cache held: `length` positions; tensors as in the cache, of one row, or of none where
    the model does not use them."""

    length: int
    layers: list[Tensor]
    last: list[Tensor]
    token: Tensor

    def usable(self, length: int) -> int:
        """How many of the first `length` positions can be gone on from: all, or none where the model looks
        back at the newest position and that is another one."""
        looks_back = len(self.token) or any(map(len, self.last))
        return 0 if looks_back and length != self.length else length


class CacheRows:
    """Rows of a cache, first .. first + len(counts) - 1, in one forward pass.

    counts: tokens that each row is given; the tokens of a pass are as many as the largest of them, the others
    have padding behind theirs. starts: positions that the rows held before.
    """

    def __init__(self, cache: KeyValueCache, first: int, counts: list[int]) -> None:
        self.cache, self.counts, self.width = cache, counts, max(counts)
        self.index = slice(first, first + len(counts))
        self.starts = cache.lengths[self.index]
        self.even = len(set(self.starts)) == 1
        self._visible: dict[int | None, Tensor] = {}

    def advance(self) -> None:
        """After the pass: the rows hold what they were given."""
        self.cache.lengths[self.index] = [
            start + count for start, count in zip(self.starts, self.counts, strict=True)
        ]

    @cached_property
    def positions(self) -> Tensor:
        """(rows, width) int64: positions of the tokens; those of padding may lie beyond the context."""
        device = self.cache._token.device
        return torch.tensor(self.starts, device=device)[:, None] + torch.arange(self.width, device=device)

    @cached_property
    def _numbers(self) -> Tensor:
        """(rows, 1) int64: 0, 1, ...."""
        return torch.arange(len(self.counts), device=self.cache._token.device)[:, None]

    @cached_property
    def newest(self) -> Tensor | None:
        """(rows,) int64: where the last token of each row stands; None = in the last column for all."""
        if min(self.counts) == self.width:
            return None
        return torch.tensor(self.counts, device=self.cache._token.device) - 1

    def last_of(self, x: Tensor) -> Tensor:
        """x: (rows, width, ...) -> (rows, 1, ...): of the last token of each row."""
        if self.newest is None:
            return x[:, -1:]
        return x[self._numbers[:, 0], self.newest][:, None]

    def token_before(self, tokens: Tensor) -> Tensor:
        """The token before `tokens`, (rows, width), of each row; 0 at the start."""
        stored = self.cache.token()[self.index]
        earlier = stored.clone()
        stored.copy_(self.last_of(tokens))
        return earlier

    def before(self, layer: int, key: Tensor) -> Tensor:
        """What this was given for the position before `key`, (rows, width, kv_heads, head_dim); or zeros."""
        stored = self.cache.last(layer)[self.index]
        earlier = stored.clone()
        stored.copy_(self.last_of(key))
        return earlier

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores key and value, (rows, width, kv_heads, head_dim) each; returns those of all positions.

        The queries are the last positions of what is returned where the rows are `even`; else see `visible`.
        """
        stop = max(self.starts) + self.width
        both = self.cache.buffer(layer, stop)[:, self.index]
        if self.even:
            both[0, :, self.starts[0] : stop] = key
            both[1, :, self.starts[0] : stop] = value
            if self.starts[0] == 0:
                return key, value
        else:
            both[0][self._numbers, self.positions] = key
            both[1][self._numbers, self.positions] = value
        return both[0, :, :stop], both[1, :, :stop]

    def visible(self, window: int | None) -> Tensor:
        """(rows, width, positions) bool: which positions each token attends to, `window` of them at most."""
        if window not in self._visible:
            query = self.positions[..., None]
            key = torch.arange(max(self.starts) + self.width, device=query.device)
            seen = key <= query
            self._visible[window] = seen if window is None else seen & (key > query - window)
        return self._visible[window]


def _as_long_as(rows: Sequence[object], stored: Tensor) -> Tensor:
    """`stored`, (some rows, ...), with zeros for the rows that it lacks."""
    missing = len(rows) - len(stored)
    return stored if missing <= 0 else torch.cat((stored, stored.new_zeros(missing, *stored.shape[1:])))
