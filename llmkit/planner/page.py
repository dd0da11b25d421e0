"""The page that `llmkit plan` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmkit.config.memory import show_bytes
from llmkit.estimate.search import HOST_SHARE, Candidate
from llmkit.estimate.term import Term
from llmkit.monitor.text import duration
from llmkit.planner import words
from llmkit.planner.compare import side_by_side
from llmkit.planner.launch import launch_lines, override
from llmkit.planner.study import Study
from llmkit.recipes.document import amount

BAR = 24
"""Letters of the longest bar, where there is room."""


def page(study: Study, best: int) -> Iterator[str]:
    """The lines of the page. best: layouts that are listed."""
    plan, fleet = study.best.plan, study.fleet
    yield from words.wrapped(f"{study.path}: {words.model(plan)}, on {words.fleet(fleet)}")
    rows = plan.config.train.global_batch_size
    yield f"a step: {rows:,} row{'s' * (rows > 1)}, {plan.tokens_per_step:,} tokens, {plan.precision}"
    if study.subject.assumed:
        given = ", ".join(override(path, value) for path, value in study.subject.assumed.items())
        yield from words.wrapped(f"assumed, as {study.path} leaves it open: {given}", "  ")
    yield ""
    yield from _layouts(study, best)
    yield ""
    yield from _parts(study)
    yield ""
    yield from _run(study)
    yield ""
    yield from laws(study)
    yield ""
    yield from _launch(study)


def _layouts(study: Study, best: int) -> Iterator[str]:
    rows: list[Sequence[str]] = [("", "layout", "memory", "step", "tokens/s", "MFU", "HFU")]
    if study.asked is not None:
        rows.append(("asked", *_layout_row(study.asked)))
    shown = study.found.families[:best]
    rows += [(str(place), *_layout_row(each)) for place, each in enumerate(shown, start=1)]
    yield from words.table(rows, right=(2, 3, 4, 5, 6), words=1)
    for note in _notes(study):
        yield from words.wrapped(note, "  ")


def _notes(study: Study) -> Iterator[str]:
    """What there is to say of the layouts."""
    if study.refusal:
        yield f"the layout that is asked for is refused: {study.refusal}"
    elif study.asked is not None and not study.asked.memory.fits:
        yield f"the layout that is asked for does not fit: {' and '.join(_lacks(study.asked))}"
    elif study.subject.loaded.config.parallel.layout == "auto":
        yield "parallel.layout is auto: a start chooses layout 1, with the micro-batch that its memory allows"
    step, count = study.best.time, len(study.found.fitting)
    reasons = f" ({', '.join(step.unsure)})" if step.unsure else ""
    yield f"{count} layouts fit; of each way to share the run out the fastest is shown"
    if fill := study.best.plan.padding_rows:
        rows_given = study.best.plan.config.train.global_batch_size
        yield (
            f"{fill:,} of the {rows_given + fill:,} rows that layout 1 computes in a step only fill: "
            f"train.global_batch_size is {rows_given:,}, which its ranks do not divide"
        )
    span = f"{words.seconds(step.low)} to {words.seconds(step.high)}"
    yield f"a step of 1: {span}, +-{step.spread:.0%}{reasons}"
    if study.best.memory.host and study.ground.host_memory is None:
        node = show_bytes(study.ground.host_room * study.fleet.devices_per_node)
        yield f"a host is taken to have {node}, {HOST_SHARE:g} times its devices' (--host-memory)"
    if study.best.plan.config.checkpoint.background and not study.best.saves_beside:
        yield "the host of 1 has no memory for a copy of a checkpoint: training waits for the disk at a save"


def _lacks(candidate: Candidate) -> Iterator[str]:
    """Of which memory there is too little, in figures."""
    memory = candidate.memory
    device, host = memory.missing()
    if device:
        yield f"a device has {show_bytes(memory.available)}"
    if host:
        needed = show_bytes(host + memory.host_available)
        yield f"a process needs {needed} of its host, and has {show_bytes(memory.host_available)}"


def _layout_row(candidate: Candidate) -> tuple[str, ...]:
    time, memory = candidate.time, show_bytes(candidate.memory.device_bytes)
    if not candidate.memory.fits:
        return words.layout(candidate.plan), memory, "does not fit", "", "", ""
    rate, shares = f"{time.tokens_per_second:,.0f}", (_share(time.mfu), _share(time.hfu))
    return words.layout(candidate.plan), memory, words.seconds(time.seconds), rate, *shares


def _share(part: float | None) -> str:
    return "?" if part is None else f"{part:.1%}"


def _parts(study: Study) -> Iterator[str]:
    """Memory and time, part by part, of layout 1, and of the one that is asked for where that is another."""
    asked, best = study.asked, study.best
    if asked is not None and asked.settings != best.settings:
        yield f"part by part; a device has {show_bytes(best.memory.available)}"
        yield from side_by_side("asked", asked, "1", best)
        if asked.memory.fits:
            return
        yield ""
    else:
        yield from _memory(best)
        yield ""
    yield from _time(best)


def _memory(candidate: Candidate) -> Iterator[str]:
    memory = candidate.memory
    there = show_bytes(memory.available)
    size, largest = show_bytes(memory.device_bytes), memory.largest_micro_batch
    yield f"memory of a process of 1: {size} of {there}; micro-batches of {largest} and less fit"
    yield from _bars(memory.device)
    if memory.host:
        yield f"on its host: {show_bytes(memory.host_bytes)} of {show_bytes(memory.host_available)}"
        yield from _bars(memory.host)


def _time(candidate: Candidate) -> Iterator[str]:
    time = candidate.time
    yield f"a step of 1: {words.seconds(time.seconds)}"
    yield from _bars(time.parts)
    if time.hidden:
        beside = ", ".join(f"{term.name} {words.value(term)}" for term in time.hidden)
        yield from words.wrapped(f"  beside computing, which hides it: {beside}", "  ")
    yield "  waiting for data is not counted (see data for a rank, below)"


def _bars(terms: Sequence[Term]) -> Iterator[str]:
    largest = max((term.value for term in terms), default=0.0)
    total = sum(term.value for term in terms)
    rest = max((len(term.name) + len(words.value(term)) for term in terms), default=0)
    longest = max(0, min(BAR, words.width() - rest - len("    100.0%    ")))
    rows = [
        (
            f"  {term.name}", words.value(term), f"{term.value / total:.1%}",
            "━" * round(longest * term.value / largest),
        )
        for term in sorted(terms, key=lambda each: -each.value)
        if term.value > 0.0
    ]  # fmt: skip
    yield from words.table(rows, right=(1, 2))


def _run(study: Study) -> Iterator[str]:
    found = study.outlook
    yield f"the run of {amount(found.tokens)} tokens with layout 1"
    span = f"{duration(found.low)} to {duration(found.high)}"
    rows = [("  time", duration(found.seconds), f"{span}, with saves and {found.failures:.1f} failures")]
    for term in found.terms:
        if term.name not in ("steps", "training", "time"):
            rows.append((f"  {term.name}", words.value(term), term.formula))
    if found.expense.money is None:
        rows.append(("  cost", "not known", "give --price-per-hour, or monitor.cost"))
    yield from words.table(rows, words=2)


def laws(study: Study) -> Iterator[str]:
    """The table of scaling laws, and that of the loss that was asked for."""
    first = study.laws[0]
    spent = f"{first.best.flops:.3g} FLOPs"
    title = f"scaling laws (losses in nats a token of their text); the best training for about {spent}:"
    yield from words.wrapped(title)
    rows = [["  law", "loss of this run", "best size", "its tokens", "its loss"]]
    for row in study.laws:
        best = row.best
        sizes = amount(best.parameters), amount(best.tokens), _nats(best.loss)
        rows.append([f"  {row.law.name}", _nats(row.loss), *sizes])
    yield from words.table(rows, right=(1, 2, 3, 4))
    if any(row.wanted is not None for row in study.laws):
        yield f"to a loss of {study.loss:g} nats a token:"
        yield from words.table(_to_loss(study), right=(1, 2, 3))


def _to_loss(study: Study) -> Iterator[Sequence[str]]:
    yield "  law", "tokens to the loss", "best size for it", "its tokens"
    for row in study.laws:
        own = "never" if row.tokens is None and row.loss is not None else _amount(row.tokens)
        best = row.wanted
        sizes = ("-", "-") if best is None else (amount(best.parameters), amount(best.tokens))
        yield f"  {row.law.name}", own, *sizes


def _nats(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


def _amount(number: float | None) -> str:
    return "-" if number is None else amount(number)


def _launch(study: Study) -> Iterator[str]:
    overrides = study.best_overrides
    yield from words.wrapped(f"layout 1: {' '.join(overrides) if overrides else 'as it is'}", "  ")
    if study.subject.assumed or study.fleet.nodes > 1:
        yield "(names in capitals are yours to fill in)"
    for line in launch_lines(study.path, overrides, study.fleet, study.subject.assumed):
        yield from words.command(line)
