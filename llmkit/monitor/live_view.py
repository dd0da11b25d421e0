"""The live view of a run: a few lines that fit the terminal, the least important left out first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.text import Text

from llmkit.monitor.cost import for_the_whole_run
from llmkit.monitor.progress import Evaluation, Progress
from llmkit.monitor.sparkline import ASCII_BLOCKS, BLOCKS, sparkline
from llmkit.monitor.text import duration, number, thousands, time_of_day

GAP = "   "
MOST_CURVE = 60
"""Columns of the loss curve at most."""
LEAST_CURVE = 8
LEAST_BAR = 8


@dataclass(frozen=True)
class Frame:
    """What a view is drawn for.

    width, height: of the terminal, in characters. now: with its time zone. ascii: whether the terminal shows
    nothing else. activity: what the run does beside steps, as "evaluating, 12 s". state: of a run that does
    not train, as "done".
    """

    width: int
    height: int
    now: datetime
    ascii: bool = False
    activity: str | None = None
    state: str | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a line. rank: the largest is left out first; 0 never is, but shortened."""

    rank: int
    text: Text


def live_view(progress: Progress, frame: Frame) -> list[Text]:
    """At most four lines, each of fewer characters than the terminal has columns; one on a low terminal."""
    width = max(1, frame.width - 1)  # in the last column a terminal may wrap
    lines = [
        _steps(progress, frame, width),
        _loss(progress, frame, width),
        _fit(list(_speed(progress)), width),
        _fit(list(_times(progress, frame)), width),
    ]
    shown = [line for line in lines if line.plain]
    for line in shown:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return shown[: max(1, min(len(shown), frame.height // 2 - 1))]


def _steps(progress: Progress, frame: Frame, width: int) -> Text:
    """Name, bar, steps, share, time left and when that is over."""
    step, most = progress.step, progress.max_steps
    pieces = []
    if progress.name:
        name = Text(progress.name, style="bold")
        name.truncate(max(8, width // 4), overflow="ellipsis")
        pieces.append(Piece(4, name))
    counted = f"step {step:,}" if most is None else f"{step:,}/{most:,}"
    after = [Piece(0, Text(counted, style="bold"))]
    if most:
        after.append(Piece(3, Text(f"{100 * min(step, most) / most:.1f} %")))
    after += _end(progress, frame)
    if not most:
        return _fit([*pieces, *after], width)
    shortest = [*pieces, Piece(2, Text("-" * LEAST_BAR)), *after]
    kept = _kept(shortest, width)
    bar = next((piece for piece in kept if piece.rank == 2), None)
    if bar is not None:
        free = width - _length(kept) + LEAST_BAR
        kept[kept.index(bar)] = Piece(2, _bar(step / most, free, frame.ascii))
    return _join(kept)


def _end(progress: Progress, frame: Frame) -> Iterator[Piece]:
    """How the run stands where it does not train, else the time left."""
    if frame.state is not None:
        style = "bold green" if frame.state.startswith("done") else "bold yellow"
        yield Piece(1, Text(frame.state, style=style))
    elif (left := progress.seconds_left) is not None:
        yield Piece(1, Text(f"{duration(left)} left"))
        if left < 3e8:  # within ten years
            end = time_of_day(frame.now + timedelta(seconds=left), frame.now)
            yield Piece(5, Text.assemble(("ends ", "dim"), end))


def _bar(share: float, width: int, ascii: bool) -> Text:
    full = round(min(1.0, max(0.0, share)) * width)
    done, rest = ("#", "-") if ascii else ("━", "─")
    return Text.assemble((done * full, "cyan"), (rest * (width - full), "dim"))


def _loss(progress: Progress, frame: Frame, width: int) -> Text:
    """The loss and its curve, the held-out loss and the best one."""
    points, row = progress.losses.points, progress.row
    if not row:
        return Text()
    loss = points[-1][1] if points else None
    first = Text.assemble(("loss ", "dim"), (number(loss, ".4f"), "bold"))
    if row.get("loss") is None and row.get("no_targets"):
        first = Text("no targets", style="yellow")
    elif row.get("loss") is None:
        first = Text("loss not finite", style="bold red")
    if row.get("skipped"):
        first.append(", update skipped", style="yellow")
    after = [Piece(2 + k, text) for k, text in enumerate(_heldout(progress))]
    kept = _kept([Piece(0, first), Piece(1, Text("-" * LEAST_CURVE)), *after], width)
    if len(kept) > 1 and kept[1].rank == 1:
        free = min(MOST_CURVE, width - _length(kept) + LEAST_CURVE)
        curve = sparkline(points, free, ASCII_BLOCKS if frame.ascii else BLOCKS)
        kept[1] = Piece(1, Text(curve, style="cyan"))
    return _join([piece for piece in kept if piece.text.plain])


def _heldout(progress: Progress) -> Iterator[Text]:
    last, best = progress.last_evaluation, progress.best_evaluation
    if last is None:
        return
    is_best = best is not None and best.step == last.step
    loss = Text(number(last.loss, ".4f"), style="bold green" if is_best else "bold")
    text = Text.assemble(("held-out ", "dim"), loss)
    text.append(f" at {last.step:,}" + ", the best" * is_best, style="dim")
    yield text
    if best is not None and not is_best:
        yield _best(best)
    if last.bits_per_byte is not None:
        yield Text.assemble(("bits per byte ", "dim"), f"{last.bits_per_byte:.4f}")
    if last.accuracy is not None:
        yield Text.assemble(("accuracy ", "dim"), f"{100 * last.accuracy:.1f} %")


def _best(best: Evaluation) -> Text:
    return Text.assemble(("best ", "dim"), number(best.loss, ".4f"), (f" at {best.step:,}", "dim"))


def _speed(progress: Progress) -> Iterator[Piece]:
    """Tokens a second, MFU, memory, learning rate, cost and energy."""
    row = progress.row
    if (rate := row.get("tokens_per_second")) is not None:
        yield Piece(0, Text.assemble((thousands(rate), "bold"), (" tokens/s", "dim")))
    if (mfu := row.get("mfu")) is not None:
        yield Piece(1, Text.assemble(("MFU ", "dim"), f"{100 * mfu:.1f} %"))
    if (memory := row.get("peak_memory_gib")) is not None:
        yield Piece(2, Text.assemble(("memory ", "dim"), f"{memory:.1f} GiB"))
    if (cost := row.get("cost")) is not None:
        total = for_the_whole_run(cost, row["step"], progress.max_steps)
        about = "" if total is None else f" of about {total:,.2f}"
        yield Piece(3, Text.assemble(("cost ", "dim"), f"{cost:,.2f}{about} {progress.currency}".rstrip()))
    if (energy := row.get("energy_kwh")) is not None:
        yield Piece(5, Text.assemble(("energy ", "dim"), f"{energy:,.3g} kWh"))
    if (rate := row.get("learning_rate")) is not None:
        yield Piece(4, Text.assemble(("learning rate ", "dim"), f"{rate:.3g}"))


def _times(progress: Progress, frame: Frame) -> Iterator[Piece]:
    """What comes next, or what goes on beside steps; what happened last."""
    if frame.activity is not None:
        yield Piece(0, Text(frame.activity, style="yellow"))
    elif frame.state is None:
        yield from _due(progress, frame.now)
    if (last := progress.last_event) is not None:
        style = "bold red" if last.text.startswith(("NOT SAVED", "FAULT")) else ""
        text = Text(last.text, style=style)
        if last.at is not None:
            text.append(f", {time_of_day(last.at, frame.now)}", style="dim")
        yield Piece(0, text)


def _due(progress: Progress, now: datetime) -> Iterator[Piece]:
    """The next evaluation and the next save, the nearer one first; of steps where no speed is known."""
    due = []
    for name, every in (("evaluation", progress.evaluate_every), ("save", progress.save_every)):
        step = progress.next_after(every)
        seconds = None if step is None else progress.seconds_until(step)
        if name == "save":
            seconds = progress.seconds_until_save(now)
        if seconds is not None:
            due.append((seconds, name, f"in {duration(seconds)}"))
        elif step is not None:
            due.append((step, name, f"at {step:,}"))
    for rank, (_, name, when) in enumerate(sorted(due), start=1):
        yield Piece(rank, Text.assemble((f"{name} ", "dim"), when))


def _fit(pieces: list[Piece], width: int) -> Text:
    return _join(_kept(pieces, width))


def _kept(pieces: list[Piece], width: int) -> list[Piece]:
    """The pieces that fit beside each other, without the least important ones."""
    kept = [piece for piece in pieces if piece.text.plain]
    while _length(kept) > width and any(piece.rank for piece in kept):
        kept.remove(max(kept, key=lambda piece: piece.rank))
    return kept


def _length(pieces: Sequence[Piece]) -> int:
    return sum(piece.text.cell_len for piece in pieces) + len(GAP) * max(0, len(pieces) - 1)


def _join(pieces: Sequence[Piece]) -> Text:
    return Text(GAP).join(piece.text for piece in pieces)
