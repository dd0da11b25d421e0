"""The next batch, or an end that all ranks agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmkit.data.loader import TrainLoader
from llmkit.data.prefetch import Interrupted
from llmkit.data.rank_batch import RankBatch
from llmkit.loop.control import Control


@dataclass(frozen=True)
class NoBatch:
    """Why there is no batch for the next step, on all ranks alike.

    stop: why a rank that waited for its batch was asked to stop, an index into `stop.REASONS`; 0 = none was.
    failed: the data of a rank have failed; error: the exception, on the ranks where it happened.
    """

    stop: int = 0
    failed: bool = False
    error: Exception | None = None


class Batches:
    """This rank's batches, in lockstep with those of the other ranks.

    stop_code: why this rank is asked to stop (0 = it is not); asked while a batch is awaited.
    """

    def __init__(self, loader: TrainLoader, control: Control, stop_code: Callable[[], int]) -> None:
        self._loader, self._control = loader, control
        self._steps: Iterator[RankBatch] = iter(loader)
        loader.give_up = stop_code

    def next(self, unready: bool) -> RankBatch | NoBatch:
        """The next batch, or why no rank has one. What other ranks got is then put back, as nothing was
        trained on it.

        unready: a rank may be without a batch, as agreed before: only then do the ranks wait for each other.
        Raises what is wrong with the data where it was not agreed before: the others train meanwhile.
        """
        loader = self._loader
        lanes_left = loader.lanes_left
        batch, stop, error = None, 0, None
        try:
            batch = next(self._steps)
        except Interrupted as end:
            stop = end.why
        except Exception as caught:
            error = caught
        failed = error is not None
        if unready:
            stop, any_failed, *left = self._control.largest(stop, int(failed), *lanes_left.values())
            failed = bool(any_failed)
            dry = [index for index, most in zip(lanes_left, left, strict=True) if most == 0]
            if dry and not (failed or stop):
                failed, error = True, loader.run_dry(dry[0])
        elif error is not None:
            raise error
        if not (failed or stop):
            assert batch is not None
            return batch
        if batch is not None:
            loader.undo_last()
        return NoBatch(stop, failed, error)
