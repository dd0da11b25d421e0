"""Computes on full matrices whose elements are spread over the ranks of a group.

Tensor parallelism and ZeRO leave each rank with some elements of a matrix, which is all that an
elementwise optimizer needs. What needs full matrices, such as Muon's iteration, is dealt out: each matrix
is assembled on one rank, its owner, computed there, and every rank gets back the elements that it holds.
Per step each element is sent twice, in the type of the computation, however many ranks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.parallel.mesh import Axis
from llmkit.parallel.slices import Box, ParameterSlice, Range, Shape, box_shape, box_size, full_box


class MatrixShard(NamedTuple):
    """Elements of one full matrix that a rank holds.

    name, shape: of the full matrix. box: rows and columns that the layout gave to this rank. range:
    elements of the box, counted row by row. offset: where in the flat storage of its tensor they begin.
    """

    name: str
    shape: Shape
    box: Box
    range: Range
    offset: int

    @property
    def numel(self) -> int:
        return self.range[1] - self.range[0]


def shards_of(
    parts: Sequence[ParameterSlice], start: int, stop: int, offset: int = 0
) -> Iterator[MatrixShard]:
    """The elements [start, stop) of a parameter's flat storage, kept from `offset` on, as shards."""
    for part in parts:
        if shared := part.overlap(start, stop):
            yield MatrixShard(
                part.name, part.shape, part.box, shared, offset + part.offset + shared[0] - start
            )


def deal(shapes: Sequence[Shape], ranks: int) -> list[int]:
    """The owner of each matrix, so that Newton-Schulz iterations take all ranks about equally long.

    Greedy: the most expensive matrix goes next, to the rank with least to do.
    """
    loads = [0] * ranks
    owners = [0] * len(shapes)
    cost = [2 * min(shape) ** 2 * (max(shape) + min(shape)) for shape in shapes]
    for index in sorted(range(len(shapes)), key=lambda i: (-cost[i], i)):
        owners[index] = min(range(ranks), key=loads.__getitem__)
        loads[owners[index]] += cost[index]
    return owners


class _Request(NamedTuple):
    """A shard as its owner knows it. source: the rank that holds it; sent: whether its values are sent."""

    source: int
    matrix: int
    box: Box
    range: Range
    sent: bool

    @property
    def numel(self) -> int:
        return self.range[1] - self.range[0]


class MatrixExchange:
    """Applies functions of full matrices to `shards`, this rank's elements of `matrices`.

    matrices: name -> shape of every matrix that any rank holds elements of, in the same order on all ranks.
    axis: the ranks that together hold all elements of each.
    Where several ranks hold the same elements, one of them sends them, the owner itself if it can.
    device, dtype: of the computation, and of what is sent.

    All ranks of the group must make it together, and call `apply` together. Raises ValueError, on all of
    them, where they do not hold all elements of a matrix.
    """

    def __init__(
        self,
        shards: Sequence[MatrixShard],
        matrices: Mapping[str, Shape],
        axis: Axis,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.rank, self.size, self.group = axis.rank, axis.size, axis.group
        self.device, self.dtype = device, dtype
        self.shapes = list(matrices.values())
        index = {name: number for number, name in enumerate(matrices)}
        owners = deal(self.shapes, self.size)
        owner_of = [owners[index[shard.name]] for shard in shards]
        self.order = sorted(range(len(shards)), key=owner_of.__getitem__)
        """Of the shards: by owner, those of one owner as they came."""
        self.numels = [shards[i].numel for i in self.order]
        requests = self._describe([(index[shards[i].name], shards[i]) for i in self.order], owner_of)
        self.requests = requests
        self.owned = [number for number, owner in enumerate(owners) if owner == self.rank]
        self._check_complete(axis, list(matrices))
        self.returned_sizes = self._sums((r.source, r.numel) for r in requests)
        self.arriving_sizes = self._sums((r.source, r.numel) for r in requests if r.sent)
        owners_in_order = [owner_of[i] for i in self.order]
        self.result_sizes = self._sums(zip(owners_in_order, self.numels, strict=True))
        self.sent_sizes = self._sums(
            (owner, numel)
            for owner, numel, sent in zip(owners_in_order, self.numels, self.sent, strict=True)
            if sent
        )

    def _describe(self, shards: Sequence[tuple[int, MatrixShard]], owner_of: Sequence[int]) -> list[_Request]:
        """Tells each owner what this rank holds; what the owned matrices are assembled from.

        Sets `sent`: of the shards in order, whether this rank sends their values.
        """
        rows: list[tuple[int, ...]] = [
            (matrix, *shard.box[0], *shard.box[1], *shard.range) for matrix, shard in shards
        ]
        counts = [0] * self.size
        for owner in owner_of:
            counts[owner] += 1
        incoming, arrived = counts, rows
        if self.size > 1:
            once = [1] * self.size
            incoming = [count for (count,) in self._swap_ints([(count,) for count in counts], 1, once, once)]
            arrived = self._swap_ints(rows, 7, counts, incoming)
        sources = [source for source, count in enumerate(incoming) for _ in range(count)]
        # Of those that hold the same elements the owner itself comes first.
        best: dict[tuple[int, ...], int] = {}
        for number in sorted(range(len(arrived)), key=lambda n: (sources[n] != self.rank, n)):
            best.setdefault(arrived[number], number)
        chosen = [best[row] == number for number, row in enumerate(arrived)]
        self.sent = chosen
        if self.size > 1:
            flags = self._swap_ints([(int(flag),) for flag in chosen], 1, incoming, counts)
            self.sent = [bool(flag) for (flag,) in flags]
        return [
            _Request(source, row[0], ((row[1], row[2]), (row[3], row[4])), (row[5], row[6]), sent)
            for source, row, sent in zip(sources, arrived, chosen, strict=True)
        ]

    def _swap_ints(
        self, rows: Sequence[tuple[int, ...]], width: int, sent: Sequence[int], received: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """`_swap` of rows of `width` numbers."""
        table = torch.tensor(rows, dtype=torch.int64, device=self.device).view(-1, width)
        return [tuple(row) for row in self._swap(table, sent, received).tolist()]

    def _check_complete(self, axis: Axis, names: Sequence[str]) -> None:
        """Raises ValueError, on all ranks, for a matrix of which elements are missing. Collective."""
        held = [0] * len(names)
        for request in self.requests:
            if request.sent:
                held[request.matrix] += request.numel
        counts = held
        if self.size > 1:  # of each matrix its owner alone knows
            counts = axis.sum(torch.tensor(held, dtype=torch.int64, device=self.device)).tolist()
        for name, shape, count in zip(names, self.shapes, counts, strict=True):
            wanted = box_size(full_box(shape))
            if count != wanted:
                raise ValueError(f"{name}: the ranks hold {count} elements of {wanted}")

    def _sums(self, pairs: Iterator[tuple[int, int]] | zip[tuple[int, int]]) -> list[int]:
        """Elements a rank."""
        sums = [0] * self.size
        for rank, count in pairs:
            sums[rank] += count
        return sums

    def _swap(self, values: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Rows that the ranks have sent to this one, by rank. sent, received: how many, for each rank."""
        if self.size == 1:
            return values
        result = values.new_empty([sum(received), *values.shape[1:]])
        dist.all_to_all_single(result, values, list(received), list(sent), group=self.group)
        return result

    def _swap_lists(
        self, tensors: Sequence[Tensor], sent: Sequence[int], received: Sequence[int], numels: Sequence[int]
    ) -> Sequence[Tensor]:
        """The same for flat tensors; those that arrive have `numels` elements."""
        tensors = [tensor.to(self.device, self.dtype) for tensor in tensors]
        if self.size == 1:
            return tensors
        values = torch.cat(tensors) if tensors else torch.empty(0, dtype=self.dtype, device=self.device)
        return self._swap(values, sent, received).split(list(numels))

    @torch.no_grad()
    def apply(
        self, values: Sequence[Tensor], function: Callable[[list[Tensor]], Sequence[Tensor]]
    ) -> list[Tensor]:
        """This rank's elements of the function's results, in the order of the shards.

        values: the elements of each shard, flat. function: takes the matrices that this rank owns, in the
        type of the computation, and returns one of the same shape for each.
        """
        sent = [values[i] for i, flag in zip(self.order, self.sent, strict=True) if flag]
        numels = [request.numel for request in self.requests if request.sent]
        arrived = self._swap_lists(sent, self.sent_sizes, self.arriving_sizes, numels)
        computed = function(self._assemble(arrived))
        results = dict(zip(self.owned, computed, strict=True))
        back = [self._cut(results[request.matrix], request) for request in self.requests]
        mine = self._swap_lists(back, self.returned_sizes, self.result_sizes, self.numels)
        ordered = sorted(zip(self.order, mine, strict=True), key=lambda pair: pair[0])
        return [tensor for _, tensor in ordered]

    def _assemble(self, arrived: Sequence[Tensor]) -> list[Tensor]:
        """The owned matrices, of the values that have arrived."""
        boxes: dict[int, dict[Box, Tensor]] = {matrix: {} for matrix in self.owned}
        into, values = [], []
        for request, value in zip((r for r in self.requests if r.sent), arrived, strict=True):
            box = boxes[request.matrix]
            if request.numel == box_size(request.box):
                box[request.box] = value
                continue
            if request.box not in box:
                box[request.box] = value.new_empty(box_size(request.box))
            into.append(box[request.box][slice(*request.range)])
            values.append(value)
        if into:
            torch._foreach_copy_(into, values)
        return [self._join(self.shapes[matrix], boxes[matrix]) for matrix in self.owned]

    @staticmethod
    def _join(shape: Shape, boxes: Mapping[Box, Tensor]) -> Tensor:
        if full_box(shape) in boxes:
            return boxes[full_box(shape)].view(shape)
        matrix = next(iter(boxes.values())).new_empty(shape)
        for box, values in boxes.items():
            matrix[tuple(slice(*each) for each in box)] = values.view(box_shape(box))
        return matrix

    @staticmethod
    def _cut(matrix: Tensor, request: _Request) -> Tensor:
        """The elements that a rank holds of a matrix."""
        box = matrix[tuple(slice(*each) for each in request.box)]
        return box.reshape(-1)[slice(*request.range)]
