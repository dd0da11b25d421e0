"""What each rank trains on, row by row: for those who ask what the model has seen, and when."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llmkit.data.loader import Step
from llmkit.data.sources.records import left_out_summary
from llmkit.loop.run import Run
from llmkit.monitor.jsonlines import JsonLines

FOLDER = "samples"


def samples_file(folder: Path, data_rank: int) -> Path:
    """Where the ranks that see the rows of `data_rank` write them down."""
    return folder / FOLDER / f"rank-{data_rank:05d}.jsonl"


def cut_back_samples(folder: Path, step: int) -> None:
    """Forgets what was trained on after `step`, by any rank that there ever was: it is trained on again."""
    for path in sorted((folder / FOLDER).glob("rank-*.jsonl")):
        JsonLines(path).keep(lambda row: isinstance(row.get("step"), int) and row["step"] <= step)


class SampleLog:
    """A line a step: `step`, `first` (position of the step's first row in the order of the run), `positions`
    of this rank's rows, and `hashes`, the xxh64 of each row's tokens and labels.

    Does nothing unless `monitor.log_samples` is set; of tensor-parallel peers only the first writes.
    """

    def __init__(self, run: Run) -> None:
        wanted = run.config.monitor.log_samples and run.mesh["context", "tensor"].rank == 0
        self._rank, self._world = run.mesh["data"].rank, run.mesh["data"].size
        self._file = JsonLines(samples_file(run.folder.path, self._rank)) if wanted else None

    def record(self, step: int, batch: Step) -> None:
        """Notes what was trained on in `step`."""
        if self._file is None:
            return
        assert batch.hashes is not None, "the loader was not asked for hashes"
        real = batch.sources.ravel() >= 0
        start = batch.first + (self._rank - batch.first) % self._world
        positions = [start + self._world * k for k in range(int(real.sum()))]
        hashes = [f"{value:016x}" for value in batch.hashes[real].tolist()]
        row = {"step": step, "first": batch.first, "positions": positions, "hashes": hashes}
        self._file.append(row)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class TellLeftOut:
    """Says which documents of live sources were left out: at the first one, and as their number doubles."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()

    def tell(self, run: Run) -> None:
        """To be called now and then."""
        while run.loader.notes:
            run.console.note(f"data: {run.loader.notes.pop(0)}")
        for name, counts in run.loader.left_out.items():
            if counts.total() >= max(1, 2 * self._told[name]):
                self._told[name] = counts.total()
                run.console.note(f"data: {name}: {left_out_summary(counts)}, so far")
