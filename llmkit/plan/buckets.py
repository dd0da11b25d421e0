"""How much is sent at once between ranks: buckets of gradients and of weights, from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RANKS = 32
"""With more, buckets grow as the number of ranks does, so that a rank's slice does not become small."""
ALIGNMENT = 64
"""Elements. In partitioned buckets weights begin at multiples, which matrix products read fastest."""


ON_THEIR_WAY = 1
"""At stage 2 of the native engine, buckets of gradients that are still summed while the next one fills."""


@dataclass(frozen=True)
class BucketSizes:
    """How much is sent at once; what parity makes small, so that small models are sent in many parts.

    native: bytes of a bucket of gradients. deepspeed: elements of its communication buckets, enough for
    messages that are sent at full speed. persistent: ZeRO-3 keeps parameters up to this many elements
    unpartitioned, as gathering a norm costs more than holding it.
    """

    native: int = 25 * 2**20
    deepspeed: int = 2**25
    persistent: int = 100_000


BUCKET_SIZES = BucketSizes()


def fill(parameters: Sequence[tuple[int, int]], bucket_bytes: int, ranks: int) -> list[list[int]]:
    """The parameters of each bucket of the native engine, as indices, in the order in which buckets are sent.

    parameters: elements of each and its number, in the order of the forward pass; those of different numbers
    share no bucket. bucket_bytes: of fp32 gradients; a bucket is full as soon as it has so many.
    """
    limit = bucket_bytes * max(1, ranks // RANKS) // 4
    found: list[list[int]] = []
    waiting: dict[int, list[int]] = {}
    completed: dict[int, int] = {}
    for at, index in enumerate(reversed(range(len(parameters)))):
        number = parameters[index][1]
        completed[number] = at
        waiting.setdefault(number, []).append(index)
        if sum(parameters[each][0] for each in waiting[number]) >= limit:
            found.append(waiting.pop(number))
    return found + [waiting[number] for number in sorted(waiting, key=completed.__getitem__)]


def offsets(elements: Sequence[int], ranks: int, *, partitioned: bool) -> tuple[list[int], int]:
    """Where each parameter of a bucket begins, and the elements of the bucket.

    partitioned: each of the ranks has a slice of it, all of one size.
    """
    unit, total = (ALIGNMENT, ALIGNMENT * ranks) if partitioned else (1, 1)
    found, size = [], 0
    for each in elements:
        found.append(size)
        size += -(-each // unit) * unit
    return found, -(-size // total) * total


def most_alive(sequences: Sequence[Sequence[tuple[Sequence[int], int]]]) -> int:
    """Elements of the buckets of gradients that are in memory at once at stage 2 of the native engine.

    Gradients come from the last parameter to the first. A bucket is in memory from its first gradient until
    it is summed, at the latest when `ON_THEIR_WAY` others have been sent behind it.

    sequences: for each set of ranks over which gradients are summed, its buckets as they are sent: indices of
    their parameters in the order of the forward pass, and elements.
    """
    place = {
        index: (sequence, number)
        for sequence, buckets in enumerate(sequences)
        for number, (indices, _) in enumerate(buckets)
        for index in indices
    }
    missing = [[set(indices) for indices, _ in buckets] for buckets in sequences]
    sent = [0] * len(sequences)
    alive, most = dict[tuple[int, int], int](), 0
    for index in sorted(place, reverse=True):
        sequence, number = place[index]
        buckets, left = sequences[sequence], missing[sequence]
        alive[sequence, number] = buckets[number][1]
        most = max(most, sum(alive.values()))
        left[number].discard(index)
        while sent[sequence] < len(buckets) and not left[sent[sequence]]:
            alive.pop((sequence, sent[sequence] - ON_THEIR_WAY), None)
            sent[sequence] += 1
    return most


def deepspeed_bucket(parameters: int, sizes: BucketSizes = BUCKET_SIZES) -> int:
    """Elements that DeepSpeed sends at once, of a rank with so many parameters.

    The buffers of a small model stay small beside it; DeepSpeed wants an even number.
    """
    return min(sizes.deepspeed, 1024 + parameters // 8 // 1024 * 1024)


def reduce_bucket(zero_stage: int, parameters: int, largest: int, sizes: BucketSizes = BUCKET_SIZES) -> int:
    """Elements of DeepSpeed's bucket of gradients. largest: elements of the largest parameter.

    At stage 2 it holds the largest one: a gradient that is larger is not copied into it but reduced where it
    is, by another stream, and DeepSpeed frees it while that stream may still read it (`overlap_comm`).
    """
    bucket = deepspeed_bucket(parameters, sizes)
    return max(bucket, largest + largest % 2) if zero_stage == 2 else bucket
