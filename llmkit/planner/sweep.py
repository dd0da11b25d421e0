"""How a run scales with more devices, for one batch and for one that grows; its memory by micro-batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmkit.config.derive import divisors
from llmkit.config.memory import show_bytes
from llmkit.errors import UserError
from llmkit.estimate.layout_choice import layouts_of
from llmkit.estimate.search import MICRO_BATCH, Candidate, as_given, with_settings
from llmkit.files import write_atomic
from llmkit.planner import words
from llmkit.planner.study import Study
from llmkit.planner.svg import Chart, Line, svg
from llmkit.report.chart import short

MOST_DEVICES = 16_384
BATCH = "train.global_batch_size"
RECOMPUTED = ("none", "selective", "full")
BAR, WIDE = 20, 110
"""Letters of the longest bar, which a terminal of so many columns has room for."""


@dataclass(frozen=True)
class Point:
    """The best layout of a number of devices."""

    devices: int
    best: Candidate

    @property
    def each(self) -> float:
        """Tokens a second of one device."""
        return self.best.time.tokens_per_second / self.devices


def sweep_command(study: Study, file: str | None) -> Iterator[str]:
    """The lines; with `file` the charts are written there. Raises UserError where it cannot be written."""
    strong, weak = list(_points(study, weak=False)), list(_points(study, weak=True))
    memory = {how: list(_memory(study, how)) for how in RECOMPUTED}
    rows = study.subject.loaded.config.train.global_batch_size
    yield from _table(f"strong scaling: {rows:,} rows a step", strong)
    yield ""
    yield from _table(f"weak scaling: {rows / study.fleet.size:.3g} rows a step and device", weak)
    yield ""
    yield from _memory_table(study, memory)
    if file is not None:
        _write(file, svg(_charts(study, strong, weak, memory)))
        yield f"the charts are in {file}"


def _points(study: Study, *, weak: bool) -> Iterator[Point]:
    """Of one node, two, four ... the best layout, as far as one fits and every rank has a row."""
    loaded, nodes = study.subject.loaded, 1
    rows = loaded.config.train.global_batch_size
    while (devices := nodes * study.fleet.devices_per_node) <= MOST_DEVICES:
        ground = replace(study.ground, fleet=replace(study.fleet, nodes=nodes))
        nodes *= 2
        batch = max(1, round(rows * devices / study.fleet.size)) if weak else rows
        found = layouts_of(with_settings(loaded, {BATCH: batch}), ground).fitting
        if found and found[0].plan.padding_rows == 0:
            yield Point(devices, found[0])


def _memory(study: Study, how: str) -> Iterator[tuple[int, int]]:
    """Micro-batch and bytes of a process, of the best layout with another activation checkpointing."""
    settings = {**study.best.settings, "parallel.activation_checkpointing": how}
    rows = study.best.plan.rows_per_rank
    for micro in divisors(rows):
        loaded = with_settings(study.subject.loaded, {**settings, MICRO_BATCH: micro})
        memory = as_given(loaded, study.ground).memory
        yield micro, memory.device_bytes
        if not memory.fits:
            return


def _table(title: str, points: list[Point]) -> Iterator[str]:
    yield title
    if not points:
        yield "  no number of devices fits"
        return
    first, most = points[0], max(point.each for point in points)
    longest = BAR if words.width() >= WIDE else 0
    rows = [("  devices", "step", "tokens/s", "a device", "efficiency", "MFU", "layout", "")]
    for point in points:
        time = point.best.time
        mfu = "?" if time.mfu is None else f"{time.mfu:.1%}"
        rows.append((
            f"  {point.devices:,}", words.seconds(time.seconds), short(time.tokens_per_second),
            short(point.each), f"{point.each / first.each:.0%}", mfu, words.layout(point.best.plan),
            "━" * round(longest * point.each / most),
        ))  # fmt: skip
    yield from words.table(rows, right=(0, 1, 2, 3, 4, 5), words=6)


def _memory_table(study: Study, memory: dict[str, list[tuple[int, int]]]) -> Iterator[str]:
    there = study.fleet.device.memory
    title = f"memory of a process by micro-batch, of {show_bytes(there)}, by what is computed again"
    yield from words.wrapped(title)
    micros = sorted({micro for points in memory.values() for micro, _ in points})
    rows: list[Sequence[str]] = [("  micro-batch", *RECOMPUTED)]
    for micro in micros:
        sizes = [dict(memory[how]).get(micro) for how in RECOMPUTED]
        rows.append((f"  {micro}", *("" if size is None else show_bytes(size) for size in sizes)))
    yield from words.table(rows, right=(0, 1, 2, 3))


def _charts(
    study: Study, strong: list[Point], weak: list[Point], memory: dict[str, list[tuple[int, int]]]
) -> Iterator[Chart]:
    lines = [
        Line(name, [(float(p.devices), p.each) for p in points])
        for name, points in (("strong scaling", strong), ("weak scaling", weak))
        if points
    ]
    if weak:
        lines.append(Line("without loss", [(float(p.devices), weak[0].each) for p in weak], dashed=True))
    name, device = Path(study.path).stem, study.fleet.device.name
    yield Chart(f"{name} on {device}: tokens a second of one device", "devices", "tokens/s", lines)
    kept = [Line(how, [(float(n), size / 2**30) for n, size in points]) for how, points in memory.items()]
    ends = sorted({float(n) for points in memory.values() for n, _ in points})
    there = study.fleet.device.memory / 2**30
    kept.append(Line(device, [(ends[0], there), (ends[-1], there)], dashed=True))
    yield Chart("memory of a process", "micro-batch", "GiB", kept)


def _write(file: str, text: str) -> None:
    try:
        with write_atomic(Path(file)) as out:
            out.write(text.encode())
    except OSError as error:
        raise UserError(f"plan: --svg {file}: it cannot be written: {error.strerror}") from error
