"""What each rank trains on, row by row: for those who ask what the model has seen, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from llmkit.data.loader import TrainLoader
from llmkit.data.rank_batch import RankBatch
from llmkit.data.sources.records import skipped_summary
from llmkit.monitor.jsonlines import JsonLines
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder

FOLDER = "samples"


def samples_file(folder: Path, data_rank: int) -> Path:
    """Where the ranks that see the rows of `data_rank` write them down."""
    return folder / FOLDER / f"rank-{data_rank:05d}.jsonl"


def cut_back_samples(folder: Path, step: int) -> None:
    """Drops what was trained on after `step`, by any rank that there ever was: it is trained on again."""
    for path in sorted((folder / FOLDER).glob("rank-*.jsonl")):
        JsonLines(path).keep(lambda row: isinstance(row.get("step"), int) and row["step"] <= step)


class SampleLog:
    """A line a step: `step`, `first` (position of the step's first row in the order of the run), `positions`
    of this rank's rows, and `hashes`, the xxh64 of each row's tokens and labels.

    Of ranks that see the same rows (tensor-parallel peers) only the first writes.
    """

    def __init__(self, folder: RunFolder, mesh: Mesh) -> None:
        path, writes = samples_file(folder.path, mesh["data"].rank), mesh["context", "tensor"].rank == 0
        self._file = JsonLines(path, folder.claim) if writes else None

    def record(self, step: int, batch: RankBatch) -> None:
        """Notes what was trained on in `step`."""
        if self._file is None:
            return
        assert batch.hashes is not None, "the loader was not asked for hashes"
        real = batch.sources.ravel() >= 0
        positions = batch.positions[real].tolist()
        hashes = [f"{value:016x}" for value in batch.hashes[real].tolist()]
        row = {"step": step, "first": batch.first, "positions": positions, "hashes": hashes}
        self._file.append(row)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class LeftOutReport:
    """Says which documents of live sources were left out: at the first one, and as their number doubles.

    note: is called with what the user should know.
    """

    def __init__(self, loader: TrainLoader, note: Callable[[str], None]) -> None:
        self._loader, self._note = loader, note
        self._reported: Counter[str] = Counter()

    def report(self) -> None:
        """To be called now and then."""
        while self._loader.notes:
            self._note(f"data: {self._loader.notes.pop(0)}")
        for name, counts in self._loader.left_out.items():
            if counts.total() >= max(1, 2 * self._reported[name]):
                self._reported[name] = counts.total()
                self._note(f"data: {name}: {skipped_summary(counts)}, so far")
