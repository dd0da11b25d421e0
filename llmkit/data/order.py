"""The order of the training rows: a pure function from a global position to a row of a source.

Nothing here knows of ranks, workers or micro-batches, and memory does not grow with the number of rows.
So a run goes on at any world size from one integer, the number of rows already consumed:

    position -> segment -> slot of the mixing block -> source and its local count
             -> epoch = count // rows of the source, row = keyed permutation of the rest
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmkit.errors import UserError

SLOTS = 1 << 16
"""Slots of a mixing block: a weight has a grain of 1/65536."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK64 = (1 << 64) - 1
_ROUNDS = 6
_U64 = np.uint64
_SLOT_STREAM, _ROW_STREAM = 1, 2
"""Words that keep the key of the mixing apart from the keys of the rows."""

Word = int | np.ndarray


def _mix(z: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection that scatters nearby inputs."""
    z = (z ^ (z >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U64(27))) * _U64(0x94D049BB133111EB)
    return z ^ (z >> _U64(31))


def _scramble(half: np.ndarray, round_key: np.ndarray) -> np.ndarray:
    """Round function: the 64-bit finaliser of MurmurHash3 (Appleby) on the keyed half."""
    z = half ^ round_key
    # In place, as this is most of what an order costs: the arrays then stay in the processor's cache.
    high = z >> _U64(33)
    for factor in (_U64(0xFF51AFD7ED558CCD), _U64(0xC4CEB9FE1A85EC53)):
        z ^= high
        z *= factor
        np.right_shift(z, _U64(33), out=high)
    z ^= high
    return z


def key(*words: Word) -> np.ndarray:
    """Fold integers into 64-bit keys; the order of the words matters.

    A word is one integer or an array of them: arrays give a key an element. Returns uint64, shape (1,)
    if every word is a single integer.
    """
    # Arrays throughout: numpy wraps them silently, while its scalars warn about every overflow.
    state = np.zeros(1, dtype=_U64)
    for word in words:
        value = word.astype(_U64) if isinstance(word, np.ndarray) else np.array([word & _MASK64], dtype=_U64)
        state = _mix((state ^ value) + _GOLDEN)
    return state


def permute(index: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Keyed bijection of [0, n), evaluated at `index`: a Feistel network that walks cycles.

    index: (count,) integers in [0, n). keys: uint64 of shape (1,) or (count,), one permutation each.
    Returns (count,) int64. The network permutes the smallest domain of an even number of bits that holds
    n, under 4n wide; a value outside [0, n) goes through again (Black and Rogaway 2002).
    """
    if n <= 1:
        return np.zeros(index.shape, dtype=np.int64)
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = _U64(half_bits), _U64((1 << half_bits) - 1)
    round_keys = [_mix(keys + np.array([r + 1], dtype=_U64) * _GOLDEN) for r in range(_ROUNDS)]

    out = index.astype(_U64)
    again = np.arange(out.size)
    while again.size:
        value = out[again]
        left, right = value >> shift, value & mask
        for round_key in round_keys:
            chosen = round_key if round_key.size == 1 else round_key[again]
            scrambled = _scramble(right, chosen)
            scrambled &= mask
            scrambled ^= left
            left, right = right, scrambled
        value = (left << shift) | right
        out[again] = value
        again = again[value >= _U64(n)]
    return out.astype(np.int64)


def quotas(weights: Sequence[float], slots: int = SLOTS) -> np.ndarray:
    """Slots of each source in a mixing block, summing to `slots`, by largest remainder; weight 0 gets none.

    Raises UserError if all weights are 0, or one is too small to get a slot.
    """
    total = sum(weights)
    if total == 0:
        raise UserError("data.sources: all weights are 0, so there is no source to draw rows from")
    share = np.asarray(weights, dtype=np.float64) / total * slots
    count = np.floor(share).astype(np.int64)
    count[np.argsort(count - share, kind="stable")[: slots - int(count.sum())]] += 1
    small = (count == 0) & (np.asarray(weights) > 0)
    if small.any():
        i = int(np.argmax(small))
        raise UserError(
            f"the weight of data.sources.{i}, {weights[i]:g}, is less than 1/{slots} of the weights' sum "
            f"{total:g}; give it a larger weight, 0, or remove the source"
        )
    return count


@dataclass(frozen=True)
class Segment:
    """Positions from `start` on, with fixed weights.

    carry: (sources,) rows of each source consumed before `start`. source: (SLOTS,) source of each slot
    of a block. earlier: (SLOTS,) number of earlier slots of the block with the same source.
    """

    start: int
    weights: tuple[float, ...]
    quota: np.ndarray
    carry: np.ndarray
    source: np.ndarray
    earlier: np.ndarray

    @classmethod
    def build(cls, start: int, weights: Sequence[float], carry: np.ndarray, seed: int) -> Segment:
        """The segment from `start` on; its slots are shuffled by (seed, start)."""
        quota = quotas(weights)
        slot = permute(np.arange(SLOTS), SLOTS, key(seed, _SLOT_STREAM, start))
        source = np.searchsorted(np.cumsum(quota), slot, side="right").astype(np.int32)
        earlier = np.empty(SLOTS, dtype=np.int32)
        for i, count in enumerate(quota):
            earlier[source == i] = np.arange(count)
        return cls(start, tuple(weights), quota, carry, source, earlier)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source, and number of that source's rows that lie before, of each position."""
        block, slot = np.divmod(positions - self.start, SLOTS)
        source = self.source[slot]
        return source, self.carry[source] + block * self.quota[source] + self.earlier[slot]

    def consumed(self, position: int) -> np.ndarray:
        """Rows of each source that lie before `position`, shape (sources,)."""
        block, slot = divmod(position - self.start, SLOTS)
        inside = np.bincount(self.source[:slot], minlength=len(self.quota))
        return self.carry + block * self.quota + inside


class Order:
    """Which row of which source stands at a global position; epochs follow each other without end.

    seed: of the run. sizes: rows of each source, None where they are not numbered (a live source).
    weights: share of each source. numbers: what each source is called in the keys of its permutations, by
    default its place. start: the first position; carry: rows of each source that were consumed before it.
    """

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int | None],
        weights: Sequence[float],
        numbers: Sequence[int] | None = None,
        start: int = 0,
        carry: Sequence[int] | None = None,
    ) -> None:
        self.seed, self.start = seed, start
        self.sizes = tuple(sizes)
        self.numbers = tuple(numbers or range(len(sizes)))
        self.carry = tuple(carry or [0] * len(sizes))
        assert len(self.sizes) == len(weights) == len(self.numbers) == len(self.carry), (sizes, weights)
        assert all(size is None or size > 0 for size in sizes), sizes
        self.segments = [Segment.build(start, weights, np.asarray(self.carry, dtype=np.int64), seed)]

    def reweight(self, position: int, weights: Sequence[float]) -> None:
        """From `position` on draw with other weights; no row is lost or repeated by the change."""
        last = self.segments[-1]
        assert position >= last.start, (position, last.start)
        assert len(weights) == len(self.sizes), weights
        carry = last.consumed(position)
        if position == last.start:
            self.segments.pop()
        self.segments.append(Segment.build(position, weights, carry, self.seed))

    def consumed(self, position: int) -> np.ndarray:
        """Rows of each source that lie before `position`, shape (sources,)."""
        starts = [segment.start for segment in self.segments]
        return self.segments[max(0, bisect_right(starts, position) - 1)].consumed(position)

    def sources(self, positions: np.ndarray) -> np.ndarray:
        """Source of each of the global positions, which ascend; int32, (count,). Far cheaper than `at`."""
        parts = np.split(positions, np.searchsorted(positions, [each.start for each in self.segments[1:]]))
        pairs = zip(self.segments, parts, strict=True)
        return np.concatenate([each.source[(part - each.start) % SLOTS] for each, part in pairs])

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, epoch and row of global positions; all int64 of the shape of `positions`, (count,).

        Where a source's rows are not numbered, the epoch is 0 and the row the number of its rows before.
        """
        starts = [segment.start for segment in self.segments]
        which = np.searchsorted(starts, positions, side="right") - 1
        source, row = (np.empty(positions.shape, dtype=np.int64) for _ in range(2))
        for w in np.unique(which):
            here = which == w
            source[here], row[here] = self.segments[w].locate(positions[here])
        epoch = np.zeros(positions.shape, dtype=np.int64)
        for i in np.unique(source):
            size = self.sizes[i]
            if size is None:
                continue
            here = source == i
            epochs, place = np.divmod(row[here], size)
            epoch[here] = epochs
            # One key for all where they share the epoch, which is nearly always so: half the work.
            word: Word = int(epochs[0]) if (epochs == epochs[0]).all() else epochs
            row[here] = permute(place, size, key(self.seed, _ROW_STREAM, self.numbers[i], word))
        return source, epoch, row

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, epoch and row of positions start .. start+count-1; cheapest for 4096 or more at a time."""
        return self.at(np.arange(start, start + count, dtype=np.int64))
